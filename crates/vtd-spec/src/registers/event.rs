// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The event registers: control, data and address of the unit's own message interrupts.
//!
//! The fault (FE), invalidation completion (IE), page request (PE) and performance monitoring events have the same layout.

use bitfield_struct::bitfield;

/// Shifts MA down to the field.
const fn to_dword(address: u32) -> u32 {
    address >> 2
}

/// Shifts MA up to the address.
const fn from_dword(field: u32) -> u32 {
    field << 2
}

/// FECTL, IECTL, PECTL. \[S 11.4.7.2, 11.4.9.5, 11.4.11.5\]
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct EventControl {
    #[bits(30)]
    __: u32,
    /// Interrupt pending; read-only.
    pub ip: bool,
    /// Interrupt mask; 1 after reset.
    pub im: bool,
}

impl EventControl {
    /// The value after reset: masked, nothing pending.
    pub const RESET: Self = Self::new().with_im(true);
}

/// FEDATA, IEDATA, PEDATA. \[S 11.4.7.3, 11.4.9.6, 11.4.11.6\]
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct EventData {
    /// Interrupt message data.
    pub imd: u16,
    #[bits(16)]
    __: u16,
}

/// FEADDR, IEADDR, PEADDR: bits 31:0 of the message address. \[S 11.4.7.4, 11.4.9.7, 11.4.11.7\]
///
/// The upper address registers (FEUADDR, IEUADDR, PEUADDR) hold bits 63:32 and nothing else.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct EventAddress {
    #[bits(2)]
    __: u8,
    /// Message address, a multiple of 4.
    #[bits(30, from = from_dword, into = to_dword)]
    pub ma: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reset_value_is_masked_and_not_pending() {
        assert_eq!(EventControl::RESET.into_bits(), 1 << 31);
        assert_eq!(EventControl::new().with_ip(true).into_bits(), 1 << 30);
    }

    #[test]
    fn message_address_is_a_byte_address() {
        assert_eq!(EventAddress::from_bits(0xfee0_0003).ma(), 0xfee0_0000);
        assert_eq!(EventAddress::new().with_ma(0xfee0_1004).into_bits(), 0xfee0_1004);
    }
}
