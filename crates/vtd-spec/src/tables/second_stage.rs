// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Second-stage paging entries. \[S 9.8\]

use crate::Capabilities;
use crate::bits::{mask, wide};

wide! {
    /// Second-stage paging entry, 64 bit. \[S 9.8\]
    ///
    /// `level` below is 1 for SS-PTE, 2 for SS-PDE, 3 for SS-PDPE, 4 for SS-PML4E, 5 for SS-PML5E; others count as 5.
    /// There is no present bit: an entry without read and write permission is not present.
    pub struct SecondStageEntry: 1 {
        /// Read.
        flag r, with_r: 0 : 0;
        /// Write.
        flag w, with_w: 0 : 1;
        /// Extended memory type; ignored unless EMTE=1.
        uint(u8) emt, with_emt: 0 : 3, 3;
        /// Ignore PAT; ignored unless EMTE=1.
        flag ipat, with_ipat: 0 : 6;
        /// Page size: 1 makes an SS-PDE a 2 MiB and an SS-PDPE a 1 GiB leaf; ignored in an SS-PTE.
        flag ps, with_ps: 0 : 7;
        /// Accessed; set by hardware with SSADE=1.
        flag a, with_a: 0 : 8;
        /// Dirty; set by hardware in a leaf with SSADE=1.
        flag d, with_d: 0 : 9;
        /// Snoop; leaf only, reserved if ECAP.SC=0.
        flag snp, with_snp: 0 : 11;
        /// Read permission in place of R while RTADDR.SSIRWE is set.
        flag ir, with_ir: 0 : 61;
        /// Write permission in place of W while RTADDR.SSIRWE is set, else reserved.
        flag iw, with_iw: 0 : 62;
        /// Bits 51:12 as an address; see [`address`](Self::address) for what a leaf maps.
        addr addr, with_addr: 0 : 12, 40;
    }
}

impl SecondStageEntry {
    /// Mask of the accessed bit.
    pub const A: u64 = 1 << 8;
    /// Mask of the dirty bit.
    pub const D: u64 = 1 << 9;

    /// From the 64 bits in memory.
    pub const fn from_bits(bits: u64) -> Self {
        Self([bits])
    }

    /// The 64 bits in memory.
    pub const fn into_bits(self) -> u64 {
        self.0[0]
    }

    /// Read permission: R, or IR while RTADDR.SSIRWE is set.
    pub const fn read(&self, ssirwe: bool) -> bool {
        if ssirwe { self.ir() } else { self.r() }
    }

    /// Write permission: W, or IW while RTADDR.SSIRWE is set.
    pub const fn write(&self, ssirwe: bool) -> bool {
        if ssirwe { self.iw() } else { self.w() }
    }

    /// Whether the entry is present: it permits reads or writes.
    pub const fn present(&self, ssirwe: bool) -> bool {
        self.read(ssirwe) || self.write(ssirwe)
    }

    /// Whether a present entry of this level ends the walk: a PTE, or a PDE or PDPE with PS=1.
    pub const fn is_leaf(&self, level: u8) -> bool {
        level == 1 || ((level == 2 || level == 3) && self.ps())
    }

    /// The address the entry holds: of the next table, or of the page (4 KiB, 2 MiB or 1 GiB aligned) for a leaf.
    pub const fn address(&self, level: u8) -> u64 {
        let low = match level {
            2 if self.ps() => 21,
            3 if self.ps() => 30,
            _ => 12,
        };
        self.0[0] & mask(51, low)
    }

    /// Whether a reserved bit is set. \[LSS.2, SSS.3\] For a present entry: others are not checked.
    pub const fn reserved(&self, level: u8, ssirwe: bool, caps: &Capabilities) -> bool {
        let mut reserved = caps.paging_address_reserved();
        if !ssirwe {
            reserved |= 1 << 62;
        }
        if !self.is_leaf(level) || !caps.ecap.sc() {
            reserved |= 1 << 11;
        }
        match level {
            1 => {}
            2 if self.ps() => {
                reserved |= mask(20, 12);
                if caps.cap.sslps() & 1 == 0 {
                    reserved |= 1 << 7;
                }
            }
            3 if self.ps() => {
                reserved |= mask(29, 12);
                if caps.cap.sslps() & 2 == 0 {
                    reserved |= 1 << 7;
                }
            }
            2 | 3 => {}
            _ => reserved |= 1 << 7,
        }
        self.0[0] & reserved != 0
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
                let entry = SecondStageEntry::from_bits(1 << bit);
                let always = matches!(bit, 46..=51) || (bit == 7 && level >= 4) || (bit == 11 && level >= 2);
                assert_eq!(entry.reserved(level, true, &all()), always, "level {level} bit {bit}");
                assert_eq!(
                    entry.reserved(level, false, &all()),
                    always || bit == 62,
                    "level {level} bit {bit}"
                );
            }
        }
    }

    #[test]
    fn reserved_bits_of_large_leaves() {
        for bit in 0..64 {
            let entry = SecondStageEntry::from_bits(1 << 7 | 1 << bit);
            let two = matches!(bit, 12..=20 | 46..=51 | 62);
            let one = matches!(bit, 12..=29 | 46..=51 | 62);
            assert_eq!(entry.reserved(2, false, &all()), two, "2 MiB bit {bit}");
            assert_eq!(entry.reserved(3, false, &all()), one, "1 GiB bit {bit}");
        }
    }

    #[test]
    fn page_sizes_and_snoop_need_their_capability() {
        let large = SecondStageEntry::new().with_ps(true);
        assert!(large.reserved(2, false, &none()) && large.reserved(3, false, &none()));
        let only_2m = Capabilities { cap: all().cap.with_sslps(1), ..all() };
        assert!(!large.reserved(2, false, &only_2m) && large.reserved(3, false, &only_2m));
        assert!(!large.reserved(1, false, &none()), "bit 7 of a PTE is ignored");
        let snooped = SecondStageEntry::new().with_snp(true);
        assert!(snooped.reserved(1, false, &none()) && !snooped.reserved(1, false, &all()));
    }

    #[test]
    fn permissions_move_with_ssirwe() {
        let entry = SecondStageEntry::new().with_r(true).with_iw(true);
        assert!(entry.read(false) && !entry.write(false));
        assert!(!entry.read(true) && entry.write(true));
        assert!(!SecondStageEntry::new().with_ir(true).present(false));
    }

    #[test]
    fn address_depends_on_the_level_of_the_leaf() {
        let entry = SecondStageEntry::from_bits(0x7fff_ffff_f083);
        assert_eq!(
            [1, 2, 3, 4].map(|level| entry.address(level)),
            [0x7fff_ffff_f000, 0x7fff_ffe0_0000, 0x7fff_c000_0000, 0x7fff_ffff_f000]
        );
    }

    #[test]
    fn flag_masks_agree_with_the_accessors() {
        let entry = SecondStageEntry::from_bits(SecondStageEntry::A | SecondStageEntry::D);
        assert_eq!(entry, SecondStageEntry::new().with_a(true).with_d(true));
    }
}
