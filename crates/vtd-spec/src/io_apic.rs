// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! I/O APIC redirection entries in remappable format. \[S 5.1.5.1\]

use bitfield_struct::bitfield;

use crate::RemappableRequest;

/// A redirection entry in remappable format: what it holds instead of a destination is an index into the interrupt
/// remapping table, whose entry says the rest. \[S 5.1.5.1\]
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct RemappableRedirectionEntry {
    /// Vector: for level-triggered interrupts the same as in the table's entry, for the EOI to find its way back.
    pub vector: u8,
    /// 0 in this format.
    #[bits(3)]
    pub delivery_mode: u8,
    /// Bit 15 of the index; see [`index`](Self::index).
    pub index_15: bool,
    /// Delivery status; read-only.
    pub delivery_status: bool,
    /// Polarity: 1 active low.
    pub polarity: bool,
    /// Remote IRR; read-only.
    pub remote_irr: bool,
    /// Trigger mode: 0 edge, 1 level.
    pub level_triggered: bool,
    /// Mask.
    pub mask: bool,
    #[bits(31)]
    __: u32,
    /// Interrupt format: 1 in this format, 0 in compatibility format.
    pub remappable: bool,
    /// Bits 14:0 of the index; see [`index`](Self::index).
    #[bits(15)]
    pub index_14_0: u16,
}

impl RemappableRedirectionEntry {
    /// The interrupt index.
    pub const fn index(self) -> u16 {
        self.index_14_0() | (self.index_15() as u16) << 15
    }

    /// This entry with the interrupt index replaced.
    #[must_use]
    pub const fn with_index(self, index: u16) -> Self {
        self.with_index_14_0(index & 0x7fff).with_index_15(index >> 15 != 0)
    }

    /// The request that the I/O APIC sends: without subhandle.
    pub const fn request(self) -> RemappableRequest {
        RemappableRequest { handle: self.index(), shv: false, data: self.vector() as u32 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn index_is_split_over_both_halves() {
        let entry = RemappableRedirectionEntry::new()
            .with_remappable(true)
            .with_index(0x8001)
            .with_level_triggered(true)
            .with_vector(0x31);
        assert_eq!(entry.into_bits(), 0x0003_0000_0000_8831);
        assert_eq!((entry.index(), entry.request().index()), (0x8001, 0x8001));
        for index in [0, 1, 0x7fff, 0x8000, u16::MAX] {
            let other = entry.with_index(index);
            assert_eq!(other.index(), index);
            assert_eq!(other.with_index(0x8001), entry);
        }
        assert_eq!(RemappableRedirectionEntry::new().with_mask(true).into_bits(), 1 << 16);
    }
}
