// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! PMEN: the protected memory regions.

use bitfield_struct::bitfield;

use crate::bits::mask;

/// PMEN; read-only if CAP.PLMR=0 and CAP.PHMR=0. \[S 11.4.8.1\]
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct ProtectedMemoryEnable {
    /// Protected region status: the regions are enabled; read-only.
    pub prs: bool,
    #[bits(30)]
    __: u32,
    /// Enable protected memory.
    pub epm: bool,
}

/// The addresses of an enabled protected memory region, first and last: `base` and `limit` are PLMBASE and PLMLIMIT, or
/// PHMBASE and PHMLIMIT, and `n` the highest bit that the unit does not implement in them. Bits n:0 of the base count as
/// 0, of the limit as 1. \[S 11.4.8\]
pub const fn protected_region(base: u64, limit: u64, n: u32) -> (u64, u64) {
    let low = mask(n, 0);
    (base & !low, limit | low)
}

/// The `n` of [`protected_region`], from what a base register reads after ones were written to all of it; `None` where
/// it holds nothing, or every bit.
pub const fn protected_region_alignment(ones_read_back: u64) -> Option<u32> {
    match ones_read_back.trailing_zeros() {
        64 => None,
        0 => None,
        lowest => Some(lowest - 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_region_ends_with_the_last_byte_of_its_granule() {
        assert_eq!(protected_region(0x0020_0000, 0x0060_0000, 20), (0x20_0000, 0x7f_ffff));
        assert_eq!(protected_region(0x0021_2345, 0x0060_0000, 20), (0x20_0000, 0x7f_ffff));
        assert_eq!(protected_region(0, 0, 63), (0, u64::MAX));
    }

    #[test]
    fn alignment_is_found_by_writing_ones() {
        assert_eq!(protected_region_alignment(0xffe0_0000), Some(20));
        assert_eq!(protected_region_alignment(0), None);
    }

    #[test]
    fn enable_and_status_are_the_two_ends() {
        assert_eq!(ProtectedMemoryEnable::new().with_epm(true).with_prs(true).into_bits(), 0x8000_0001);
    }
}
