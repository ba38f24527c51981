// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The MSI-X permission table: which work queues may raise which vectors. \[D 9.2.22\]

use vtd_unit::Pasid;

/// Ignore, PASID enable, PASID; bits 1:0 of the first two and the rest are reserved.
const WRITABLE: u32 = 0xffff_f00c;
const IGNORE: u32 = 1 << 2;
const PASID_ENABLE: u32 = 1 << 3;

/// An entry of the table.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Permission(u32);

impl Permission {
    pub const fn read(self) -> u32 {
        self.0
    }

    pub fn write(&mut self, value: u32, mask: u32) {
        let mask = mask & WRITABLE;
        self.0 = self.0 & !mask | value & mask;
    }

    /// Whether descriptors with this PASID may name the vector.
    pub fn allows(self, pasid: Option<Pasid>) -> bool {
        let own = (self.0 & PASID_ENABLE != 0).then(|| Pasid::truncated(self.0 >> 12));
        own == pasid
    }

    /// Interrupts of descriptors are dropped.
    pub const fn ignores(self) -> bool {
        self.0 & IGNORE != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pasid_and_its_enable_must_agree() {
        let mut entry = Permission::default();
        assert!(entry.allows(None) && !entry.allows(Pasid::new(0)));
        entry.write(u32::MAX, u32::MAX);
        assert_eq!(entry.read(), WRITABLE);
        entry.write(0x12345 << 12 | PASID_ENABLE, u32::MAX);
        assert!(entry.allows(Pasid::new(0x12345)) && !entry.allows(Pasid::new(1)) && !entry.allows(None));
        assert!(!entry.ignores());
    }
}
