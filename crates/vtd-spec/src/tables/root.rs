// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Root entries: 256 of 16 bytes, indexed by the bus number. \[S 9.1, 9.2\]

use crate::Capabilities;
use crate::bits::{mask, wide};

wide! {
    /// Legacy-mode root entry, 128 bit. \[S 9.1\]
    pub struct RootEntry: 2 {
        /// Present.
        flag p, with_p: 0 : 0;
        /// Context table pointer: a table of 256 legacy context entries.
        addr ctp, with_ctp: 0 : 12, 52;
    }
}

impl RootEntry {
    /// Whether a reserved bit is set. \[LRT.3\]
    pub const fn reserved(&self, caps: &Capabilities) -> bool {
        self.0[0] & (mask(11, 1) | caps.address_reserved()) | self.0[1] != 0
    }
}

wide! {
    /// Scalable-mode root entry, 128 bit: one half per half of the functions of a bus. \[S 9.2\]
    pub struct ScalableRootEntry: 2 {
        /// Lower present: functions 0x00 to 0x7f.
        flag lp, with_lp: 0 : 0;
        /// Lower context table pointer.
        addr lctp, with_lctp: 0 : 12, 52;
        /// Upper present: functions 0x80 to 0xff.
        flag up, with_up: 1 : 0;
        /// Upper context table pointer.
        addr uctp, with_uctp: 1 : 12, 52;
    }
}

impl ScalableRootEntry {
    /// The half that answers for a function: the lower one for devfn below 0x80. Only this half is checked.
    pub const fn half(&self, devfn: u8) -> RootHalf {
        RootHalf(self.0[(devfn >> 7) as usize])
    }
}

/// One half of a scalable-mode root entry, 64 bit. \[S 9.2\]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct RootHalf(u64);

impl RootHalf {
    /// From the 64 bits in memory: byte 0 or byte 8 of the root entry.
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// The 64 bits in memory.
    pub const fn into_bits(self) -> u64 {
        self.0
    }

    /// Present (LP or UP).
    pub const fn present(self) -> bool {
        self.0 & 1 != 0
    }

    /// Context table pointer (LCTP or UCTP): a table of 128 scalable context entries, indexed by devfn & 0x7f.
    pub const fn context_table(self) -> u64 {
        self.0 & mask(63, 12)
    }

    /// Whether a reserved bit of this half is set. \[SRT.3\]
    pub const fn reserved(self, caps: &Capabilities) -> bool {
        self.0 & (mask(11, 1) | caps.address_reserved()) != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tables::test_caps::reference;

    #[test]
    fn reserved_bits_of_a_legacy_entry() {
        let reserved = |bit: u32| {
            let mut qwords = [0u64; 2];
            qwords[bit as usize / 64] = 1 << (bit % 64);
            RootEntry::from_qwords(qwords).reserved(&reference())
        };
        for bit in 0..128 {
            assert_eq!(reserved(bit), matches!(bit, 1..=11 | 46..=127), "bit {bit}");
        }
    }

    #[test]
    fn halves_are_checked_separately() {
        let entry = ScalableRootEntry::new().with_lp(true).with_lctp(0x1000).with_uctp(1 << 46).with_up(true);
        assert!(entry.half(0x7f).present() && entry.half(0x80).present());
        assert_eq!(entry.half(0x7f).context_table(), 0x1000);
        assert_eq!(entry.half(0xff).context_table(), 1 << 46);
        assert!(!entry.half(0).reserved(&reference()));
        assert!(entry.half(0x80).reserved(&reference()));
        for bit in 0..64 {
            let half = RootHalf::from_bits(1 << bit);
            assert_eq!(half.reserved(&reference()), matches!(bit, 1..=11 | 46..=63), "bit {bit}");
        }
    }
}
