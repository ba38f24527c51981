// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A unit in software as the driver half sees it.

use vm_memory::GuestMemoryBackend;
use vtd_driver::Registers;
use vtd_unit::Unit;

/// The register page of a unit, for a driver in the same process: that of the soft host, or a whole guest's in a test.
#[derive(Clone)]
pub struct UnitRegisters<M>(pub Unit<M>);

impl<M: GuestMemoryBackend + Send + Sync + 'static> Registers for UnitRegisters<M> {
    fn read32(&self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.0.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn read64(&self, offset: u64) -> u64 {
        let mut data = [0; 8];
        self.0.read(offset, &mut data);
        u64::from_le_bytes(data)
    }

    fn write32(&self, offset: u64, value: u32) {
        self.0.write(offset, &value.to_le_bytes());
    }

    fn write64(&self, offset: u64, value: u64) {
        self.0.write(offset, &value.to_le_bytes());
    }

    fn relax(&self, polls: u64) -> bool {
        // What is not done yet is in the unit's worker thread.
        std::thread::yield_now();
        polls < 1 << 24
    }
}
