// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The memory type range registers; all of them reserved if ECAP.MTS=0.

use bitfield_struct::bitfield;

use crate::bits::{from_page, to_page};

/// A memory type, as the MTRRs and PAT fields encode it; other values are reserved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum MemoryType {
    /// Uncacheable.
    Uncacheable = 0,
    /// Write combining.
    WriteCombining = 1,
    /// Write through.
    WriteThrough = 4,
    /// Write protected.
    WriteProtected = 5,
    /// Write back.
    WriteBack = 6,
}

impl MemoryType {
    /// From the field; `None` for a reserved encoding.
    pub const fn from_bits(bits: u8) -> Option<Self> {
        Some(match bits {
            0 => Self::Uncacheable,
            1 => Self::WriteCombining,
            4 => Self::WriteThrough,
            5 => Self::WriteProtected,
            6 => Self::WriteBack,
            _ => return None,
        })
    }

    /// The field's encoding.
    pub const fn into_bits(self) -> u8 {
        self as u8
    }
}

/// MTRRCAP, read-only. \[S 11.4\]
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct MtrrCapability {
    /// Number of variable ranges.
    pub vcnt: u8,
    /// Fixed ranges are supported.
    pub fix: bool,
    #[bits(1)]
    __: u8,
    /// Write combining is supported.
    pub wc: bool,
    #[bits(53)]
    __: u64,
}

/// MTRRDEF. \[S 11.4\]
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct MtrrDefaultType {
    /// Type of what lies in no range, raw: see [`MemoryType`].
    pub memory_type: u8,
    #[bits(2)]
    __: u8,
    /// The fixed ranges are enabled.
    pub fe: bool,
    /// The registers are enabled.
    pub e: bool,
    #[bits(52)]
    __: u64,
}

/// A fixed-range MTRR: the types of eight ranges of equal size, lowest address in the lowest byte. \[S 11.4\]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct MtrrFixedRange(pub [u8; 8]);

impl MtrrFixedRange {
    /// From the register.
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits.to_le_bytes())
    }

    /// To the register.
    pub const fn into_bits(self) -> u64 {
        u64::from_le_bytes(self.0)
    }

    /// The type of one of the eight ranges; `None` for a reserved encoding, or a range that there is not.
    pub fn memory_type(self, range: usize) -> Option<MemoryType> {
        self.0.get(range).copied().and_then(MemoryType::from_bits)
    }
}

/// A variable-range MTRR base. \[S 11.4\]
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct MtrrPhysicalBase {
    /// Type, raw: see [`MemoryType`].
    pub memory_type: u8,
    #[bits(4)]
    __: u8,
    /// Base address of the range; bits 63:HAW are reserved.
    #[bits(52, from = from_page, into = to_page)]
    pub physbase: u64,
}

/// A variable-range MTRR mask. \[S 11.4\]
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct MtrrPhysicalMask {
    #[bits(11)]
    __: u16,
    /// The range is valid.
    pub v: bool,
    /// Address bits that are compared with the base; bits 63:HAW are reserved.
    #[bits(52, from = from_page, into = to_page)]
    pub physmask: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_lie_at_the_specified_bits() {
        assert_eq!(MtrrCapability::new().with_vcnt(10).with_fix(true).with_wc(true).into_bits(), 0x50a);
        let default = MtrrDefaultType::new().with_memory_type(6).with_fe(true).with_e(true);
        assert_eq!(default.into_bits(), 0xc06);
        let base = MtrrPhysicalBase::from_bits(0x12_3456_7006);
        assert_eq!((base.physbase(), base.memory_type()), (0x12_3456_7000, 6));
        let mask = MtrrPhysicalMask::new().with_v(true).with_physmask(0xf_8000_0fff);
        assert_eq!(mask.into_bits(), 0xf_8000_0800);
    }

    #[test]
    fn a_fixed_range_holds_eight_types_from_the_lowest_address_up() {
        let range = MtrrFixedRange::from_bits(0x0206_0605_0401_0006);
        assert_eq!(range.memory_type(0), Some(MemoryType::WriteBack));
        assert_eq!(range.memory_type(1), Some(MemoryType::Uncacheable));
        assert_eq!(range.memory_type(2), Some(MemoryType::WriteCombining));
        assert_eq!(range.memory_type(7), None, "reserved");
        assert_eq!(range.memory_type(8), None);
        assert_eq!(MtrrFixedRange::from_bits(u64::MAX - 5).into_bits(), u64::MAX - 5);
    }

    #[test]
    fn types_round_trip_and_the_rest_is_reserved() {
        for bits in 0..=u8::MAX {
            match MemoryType::from_bits(bits) {
                Some(memory_type) => assert_eq!(memory_type.into_bits(), bits),
                None => assert!(matches!(bits, 2 | 3 | 7..)),
            }
        }
    }
}
