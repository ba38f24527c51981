// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The unit's register page.

/// The register page of a unit, and how long its owner is willing to wait for it.
///
/// Offsets are bytes from the register base, aligned to the width of the access. Registers are little-endian; values
/// here are the processor's. \[S 11.2\]
pub trait Registers {
    /// Reads a doubleword.
    fn read32(&self, offset: u64) -> u32;

    /// Reads a quadword.
    fn read64(&self, offset: u64) -> u64;

    /// Writes a doubleword. Stores to memory made before are visible to the unit when it sees the write.
    fn write32(&self, offset: u64, value: u32);

    /// Writes a quadword; as [`write32`](Self::write32).
    fn write64(&self, offset: u64, value: u64);

    /// Called between two looks at something that the unit is to change, `polls` times before for the same thing. May
    /// spin, yield or sleep; `false` gives up.
    ///
    /// The default spins; with a register read of half a microsecond between two calls it gives up after 8 s (Linux waits
    /// 10 s: iommu.h:IOMMU_WAIT_OP).
    fn relax(&self, polls: u64) -> bool {
        core::hint::spin_loop();
        polls < 1 << 24
    }
}

impl<T: Registers + ?Sized> Registers for &T {
    fn read32(&self, offset: u64) -> u32 {
        (**self).read32(offset)
    }

    fn read64(&self, offset: u64) -> u64 {
        (**self).read64(offset)
    }

    fn write32(&self, offset: u64, value: u32) {
        (**self).write32(offset, value);
    }

    fn write64(&self, offset: u64, value: u64) {
        (**self).write64(offset, value);
    }

    fn relax(&self, polls: u64) -> bool {
        (**self).relax(polls)
    }
}

#[cfg(target_has_atomic = "ptr")]
impl<T: Registers + ?Sized> Registers for alloc::sync::Arc<T> {
    fn read32(&self, offset: u64) -> u32 {
        (**self).read32(offset)
    }

    fn read64(&self, offset: u64) -> u64 {
        (**self).read64(offset)
    }

    fn write32(&self, offset: u64, value: u32) {
        (**self).write32(offset, value);
    }

    fn write64(&self, offset: u64, value: u64) {
        (**self).write64(offset, value);
    }

    fn relax(&self, polls: u64) -> bool {
        (**self).relax(polls)
    }
}
