// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a unit can do, as far as it decides which bits of a structure are reserved.

use crate::bits::mask;
use crate::{Capability, ExtendedCapability};

/// The capabilities that reserved-bit checks depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// CAP, as the unit reports it. \[S 11.4.2\]
    pub cap: Capability,
    /// ECAP, as the unit reports it. \[S 11.4.3\]
    pub ecap: ExtendedCapability,
    /// Host address width (HAW) in bits, 12 to 64: the width the DMAR table reports. \[S 8.1\]
    pub haw: u8,
}

impl Capabilities {
    /// Bits 63:HAW: reserved in every pointer to a table. \[S 9\]
    pub const fn address_reserved(&self) -> u64 {
        mask(63, self.haw as u32)
    }

    /// Bits 51:HAW: reserved in the address of a paging entry. \[S 9.7, 9.8\]
    pub const fn paging_address_reserved(&self) -> u64 {
        mask(51, self.haw as u32)
    }

    /// The bits of a domain-id that the unit uses, from CAP.ND: 2 x ND + 4 of them, 16 at the most.
    pub const fn did_mask(&self) -> u16 {
        mask(self.cap.nd() as u32 * 2 + 3, 0) as u16
    }

    /// The largest address a host address can be: 2^HAW - 1.
    pub const fn max_host_address(&self) -> u64 {
        !self.address_reserved()
    }

    /// The largest input address of a second stage of this width: 2^min(MGAW, AW) - 1. \[S 3.7\]
    pub const fn max_second_stage_input(&self, width: AddressWidth) -> u64 {
        let mgaw = self.cap.mgaw() as u32 + 1;
        let width = if mgaw < width.bits() { mgaw } else { width.bits() };
        mask(width - 1, 0)
    }

    /// The number of PASID bits the unit supports: ECAP.PSS + 1, 20 at the most.
    pub const fn pasid_bits(&self) -> u32 {
        let bits = self.ecap.pss() as u32 + 1;
        if bits > 20 { 20 } else { bits }
    }
}

/// Second-stage adjusted guest address width: the AW field of context and PASID entries. \[S 9.3, 9.6\]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum AddressWidth {
    /// 39 bits, 3 levels.
    Bits39 = 1,
    /// 48 bits, 4 levels.
    Bits48 = 2,
    /// 57 bits, 5 levels.
    Bits57 = 3,
}

impl AddressWidth {
    /// From the 3-bit field; `None` for a reserved encoding.
    pub const fn from_bits(aw: u8) -> Option<Self> {
        match aw {
            1 => Some(Self::Bits39),
            2 => Some(Self::Bits48),
            3 => Some(Self::Bits57),
            _ => None,
        }
    }

    /// The field's encoding.
    pub const fn into_bits(self) -> u8 {
        self as u8
    }

    /// Width of the input address in bits.
    pub const fn bits(self) -> u32 {
        30 + 9 * self as u32
    }

    /// Number of table levels.
    pub const fn levels(self) -> u8 {
        2 + self as u8
    }

    /// Whether CAP.SAGAW offers this width. \[S 11.4.2\]
    pub const fn is_supported(self, cap: Capability) -> bool {
        cap.sagaw() & 1 << self as u8 != 0
    }
}

/// First-stage paging mode: the FSPM field of a PASID entry. \[S 9.6\]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum FirstStagePagingMode {
    /// 4 levels, 48-bit canonical addresses.
    Level4 = 0,
    /// 5 levels, 57-bit canonical addresses; needs CAP.FS5LP.
    Level5 = 1,
}

impl FirstStagePagingMode {
    /// From the 2-bit field; `None` for a reserved encoding.
    pub const fn from_bits(fspm: u8) -> Option<Self> {
        match fspm {
            0 => Some(Self::Level4),
            1 => Some(Self::Level5),
            _ => None,
        }
    }

    /// The field's encoding.
    pub const fn into_bits(self) -> u8 {
        self as u8
    }

    /// Width of the (sign-extended) input address in bits.
    pub const fn bits(self) -> u32 {
        48 + 9 * self as u32
    }

    /// Number of table levels.
    pub const fn levels(self) -> u8 {
        4 + self as u8
    }

    /// Whether the unit offers this mode: 5 levels need CAP.FS5LP.
    pub const fn is_supported(self, cap: Capability) -> bool {
        matches!(self, Self::Level4) || cap.fs5lp()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caps(haw: u8) -> Capabilities {
        Capabilities { cap: Capability::new().with_nd(6).with_mgaw(47), ecap: ExtendedCapability::new(), haw }
    }

    #[test]
    fn reserved_address_bits_begin_at_the_host_address_width() {
        assert_eq!(caps(46).address_reserved(), 0xffff_c000_0000_0000);
        assert_eq!(caps(46).paging_address_reserved(), 0x000f_c000_0000_0000);
        assert_eq!(caps(52).paging_address_reserved(), 0);
        assert_eq!(caps(64).address_reserved(), 0);
        assert_eq!(caps(46).max_host_address(), 0x3fff_ffff_ffff);
    }

    #[test]
    fn domain_id_width_follows_nd() {
        let with = |nd| Capabilities { cap: Capability::new().with_nd(nd), ..caps(46) }.did_mask();
        assert_eq!([with(0), with(1), with(5), with(6), with(7)], [0xf, 0x3f, 0x3fff, 0xffff, 0xffff]);
    }

    #[test]
    fn second_stage_input_is_limited_by_the_smaller_of_mgaw_and_aw() {
        assert_eq!(caps(46).max_second_stage_input(AddressWidth::Bits39), 0x7f_ffff_ffff);
        assert_eq!(caps(46).max_second_stage_input(AddressWidth::Bits57), 0xffff_ffff_ffff);
    }

    #[test]
    fn widths_and_levels_belong_together() {
        for (aw, bits, levels) in [(1, 39, 3), (2, 48, 4), (3, 57, 5)] {
            let width = AddressWidth::from_bits(aw).unwrap();
            assert_eq!((width.bits(), width.levels(), width.into_bits()), (bits, levels, aw));
            assert!(width.is_supported(Capability::new().with_sagaw(1 << aw)));
            assert!(!width.is_supported(Capability::new().with_sagaw(0x1f & !(1 << aw))));
        }
        assert_eq!([0, 4, 7].map(AddressWidth::from_bits), [None; 3]);
        let five = FirstStagePagingMode::from_bits(1).unwrap();
        assert_eq!((five.bits(), five.levels()), (57, 5));
        assert!(!five.is_supported(Capability::new()));
        assert_eq!([2, 3].map(FirstStagePagingMode::from_bits), [None; 2]);
    }
}
