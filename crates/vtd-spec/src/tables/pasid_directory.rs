// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! PASID directory entries, indexed by PASID bits 19:6. \[S 9.5\]

use crate::Capabilities;
use crate::bits::{mask, wide};

wide! {
    /// PASID directory entry, 64 bit. \[S 9.5\]
    pub struct PasidDirectoryEntry: 1 {
        /// Present.
        flag p, with_p: 0 : 0;
        /// Fault processing disable; evaluated even with P=0.
        flag fpd, with_fpd: 0 : 1;
        /// Pointer to the PASID table: 64 entries of 64 bytes in one 4 KiB page; a host physical address.
        addr smptblptr, with_smptblptr: 0 : 12, 52;
    }
}

impl PasidDirectoryEntry {
    /// From the 64 bits in memory.
    pub const fn from_bits(bits: u64) -> Self {
        Self([bits])
    }

    /// The 64 bits in memory.
    pub const fn into_bits(self) -> u64 {
        self.0[0]
    }

    /// Whether a reserved bit is set. \[SPD.3\]
    pub const fn reserved(&self, caps: &Capabilities) -> bool {
        self.0[0] & (mask(11, 2) | caps.address_reserved()) != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tables::test_caps::reference;

    #[test]
    fn reserved_bits() {
        for bit in 0..64 {
            let entry = PasidDirectoryEntry::from_bits(1 << bit);
            assert_eq!(entry.reserved(&reference()), matches!(bit, 2..=11 | 46..=63), "bit {bit}");
        }
    }

    #[test]
    fn fields() {
        let entry = PasidDirectoryEntry::from_bits(0x1234_5003);
        assert!(entry.p() && entry.fpd());
        assert_eq!(entry.smptblptr(), 0x1234_5000);
        assert_eq!(PasidDirectoryEntry::new().with_p(true).with_smptblptr(0x1fff).into_bits(), 0x1001);
    }
}
