// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! First-stage paging entries: the CPU's 4 and 5-level format. \[S 9.7\]

use crate::Capabilities;
use crate::bits::{mask, wide};

wide! {
    /// First-stage paging entry, 64 bit. \[S 9.7\]
    ///
    /// `level` below is 1 for FS-PTE, 2 for FS-PDE, 3 for FS-PDPE, 4 for FS-PML4E, 5 for FS-PML5E; others count as 5.
    pub struct FirstStageEntry: 1 {
        /// Present.
        flag p, with_p: 0 : 0;
        /// Read/write: 0 forbids user writes (and supervisor writes with WPE=1).
        flag rw, with_rw: 0 : 1;
        /// User/supervisor: 0 forbids user access.
        flag us, with_us: 0 : 2;
        /// Page-level write-through; ignored if ECAP.MTS=0.
        flag pwt, with_pwt: 0 : 3;
        /// Page-level cache disable; ignored if ECAP.MTS=0.
        flag pcd, with_pcd: 0 : 4;
        /// Accessed; set by hardware.
        flag a, with_a: 0 : 5;
        /// Dirty; set by hardware in a leaf.
        flag d, with_d: 0 : 6;
        /// Page size: 1 makes an FS-PDE a 2 MiB and an FS-PDPE a 1 GiB leaf. In an FS-PTE this bit is PAT.
        flag ps, with_ps: 0 : 7;
        /// Global; ignored by hardware.
        flag g, with_g: 0 : 8;
        /// Extended accessed; set by hardware with EAFE=1.
        flag ea, with_ea: 0 : 10;
        /// Execute disable of the CPU; ignored by hardware.
        flag xd, with_xd: 0 : 63;
        /// Bits 51:12 as an address; see [`address`](Self::address) for what a leaf maps.
        addr addr, with_addr: 0 : 12, 40;
    }
}

impl FirstStageEntry {
    /// Mask of the accessed bit.
    pub const A: u64 = 1 << 5;
    /// Mask of the dirty bit.
    pub const D: u64 = 1 << 6;
    /// Mask of the extended accessed bit.
    pub const EA: u64 = 1 << 10;

    /// From the 64 bits in memory.
    pub const fn from_bits(bits: u64) -> Self {
        Self([bits])
    }

    /// The 64 bits in memory.
    pub const fn into_bits(self) -> u64 {
        self.0[0]
    }

    /// Whether a present entry of this level ends the walk: a PTE, or a PDE or PDPE with PS=1.
    pub const fn is_leaf(&self, level: u8) -> bool {
        level == 1 || ((level == 2 || level == 3) && self.ps())
    }

    /// The address the entry holds: of the next table, or of the page (4 KiB, 2 MiB or 1 GiB aligned) for a leaf.
    pub const fn address(&self, level: u8) -> u64 {
        self.0[0] & mask(51, if self.is_leaf(level) { leaf_shift(level) } else { 12 })
    }

    /// Whether a reserved bit is set. \[SFS.3\] For a present entry.
    pub const fn reserved(&self, level: u8, caps: &Capabilities) -> bool {
        let mut reserved = caps.paging_address_reserved();
        match level {
            1 => {}
            2 if self.ps() => reserved |= mask(20, 13),
            3 if self.ps() => {
                reserved |= mask(29, 13);
                if !caps.cap.fs1gp() {
                    reserved |= 1 << 7;
                }
            }
            2 | 3 => {}
            _ => reserved |= 1 << 7,
        }
        self.0[0] & reserved != 0
    }
}

/// log2 of the page size of a leaf of this level: 12, 21 or 30.
const fn leaf_shift(level: u8) -> u32 {
    match level {
        2 => 21,
        3 => 30,
        _ => 12,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tables::test_caps::{all, none};

    #[test]
    fn reserved_bits_per_level() {
        for level in 1..=5u8 {
            for bit in 0..64 {
                let expected = matches!(bit, 46..=51) || (bit == 7 && level >= 4);
                let entry = FirstStageEntry::from_bits(1 << bit);
                assert_eq!(entry.reserved(level, &all()), expected, "level {level} bit {bit}");
            }
        }
    }

    #[test]
    fn reserved_bits_of_large_leaves() {
        for bit in 0..64 {
            let entry = FirstStageEntry::from_bits(1 << 7 | 1 << bit);
            assert_eq!(entry.reserved(2, &all()), matches!(bit, 13..=20 | 46..=51), "2 MiB bit {bit}");
            assert_eq!(entry.reserved(3, &all()), matches!(bit, 13..=29 | 46..=51), "1 GiB bit {bit}");
        }
        let large = FirstStageEntry::new().with_ps(true);
        assert!(large.reserved(3, &none()), "1 GiB pages need FS1GP");
        assert!(!large.reserved(2, &none()));
        assert!(!large.reserved(1, &none()), "bit 7 of a PTE is PAT");
    }

    #[test]
    fn address_depends_on_the_level_of_the_leaf() {
        let entry = FirstStageEntry::from_bits(0x8000_7fff_ffff_f0e7);
        assert_eq!(entry.address(1), 0x7fff_ffff_f000);
        assert_eq!(entry.address(2), 0x7fff_ffe0_0000);
        assert_eq!(entry.address(3), 0x7fff_c000_0000);
        assert_eq!(entry.address(4), 0x7fff_ffff_f000);
        assert_eq!(entry.with_ps(false).address(2), 0x7fff_ffff_f000);
        assert!(entry.is_leaf(1) && entry.is_leaf(2) && entry.is_leaf(3) && !entry.is_leaf(4));
    }

    #[test]
    fn flag_masks_agree_with_the_accessors() {
        let entry = FirstStageEntry::from_bits(FirstStageEntry::A | FirstStageEntry::D | FirstStageEntry::EA);
        assert_eq!(entry, FirstStageEntry::new().with_a(true).with_d(true).with_ea(true));
    }
}
