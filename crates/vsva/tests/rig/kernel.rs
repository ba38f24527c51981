// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A guest's kernel: `vtd-driver` on the virtual unit, its memory, and processes.

#![allow(dead_code, reason = "each test binary uses its own part")]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, VolatileMemory};
use vsva::UnitRegisters;
use vtd_driver::{Config, DeviceConfig, FirstStageTable, Iommu, Pasids};
use vtd_spec::{FirstStageEntry, FirstStagePagingMode, Pasid, SourceId};
use vtd_unit::Unit;

use super::common::{MEMORY_BYTES, Memory};

/// The register page, as the guest reaches it.
pub type Page = UnitRegisters<Memory>;

/// Pages of guest memory, and which of them are out. What is freed is filled with ones, so that whoever still uses it is
/// found out.
pub struct Pages {
    pub memory: Arc<Memory>,
    next: Mutex<u64>,
    free: Mutex<BTreeMap<usize, Vec<u64>>>,
    out: Mutex<BTreeMap<u64, usize>>,
}

impl Pages {
    pub fn new(memory: &Arc<Memory>) -> Arc<Self> {
        let (next, memory) = (Mutex::new(0x10_0000), Arc::clone(memory));
        Arc::new(Self { memory, next, free: Mutex::default(), out: Mutex::default() })
    }

    /// Pages that were allocated and not freed.
    pub fn outstanding(&self) -> usize {
        self.out.lock().unwrap().values().sum()
    }

    fn cell<T>(&self, address: u64, f: impl FnOnce(&AtomicU64) -> T) -> T {
        let slice = self.memory.get_slice(GuestAddress(address), 8).unwrap();
        f(slice.get_atomic_ref::<AtomicU64>(0).unwrap())
    }
}

impl vtd_driver::Memory for Pages {
    fn allocate(&self, pages: usize) -> Option<u64> {
        let address = self.free.lock().unwrap().entry(pages).or_default().pop().or_else(|| {
            let mut next = self.next.lock().unwrap();
            // Aligned to their size, for a page of 2 MiB among others.
            let address = next.next_multiple_of(pages.next_power_of_two() as u64 * 4096);
            *next = address + pages as u64 * 4096;
            (*next <= MEMORY_BYTES).then_some(address)
        })?;
        self.memory.write_slice(&vec![0; pages * 4096], GuestAddress(address)).unwrap();
        self.out.lock().unwrap().insert(address, pages);
        Some(address)
    }

    fn free(&self, address: u64, pages: usize) {
        assert_eq!(self.out.lock().unwrap().remove(&address), Some(pages), "freed as it was allocated");
        self.memory.write_slice(&vec![0xff; pages * 4096], GuestAddress(address)).unwrap();
        self.free.lock().unwrap().entry(pages).or_default().push(address);
    }

    fn load(&self, address: u64) -> u64 {
        self.cell(address, |cell| u64::from_le(cell.load(Ordering::Acquire)))
    }

    fn store(&self, address: u64, value: u64) {
        self.cell(address, |cell| cell.store(value.to_le(), Ordering::Release));
    }

    fn compare_exchange(&self, address: u64, current: u64, new: u64) -> Result<(), u64> {
        self.cell(address, |cell| {
            cell.compare_exchange(current.to_le(), new.to_le(), Ordering::AcqRel, Ordering::Acquire)
                .map(|_| ())
                .map_err(u64::from_le)
        })
    }
}

/// See the module's documentation.
pub struct Kernel {
    pub pages: Arc<Pages>,
    pub iommu: Iommu<Page, Arc<Pages>>,
    pub pasids: Pasids,
    pub set: ioasid::SetId,
}

impl Kernel {
    /// Brings the unit up, with remapping on and nothing behind it.
    pub fn boot(unit: &Unit<Memory>, memory: &Arc<Memory>) -> Self {
        let pages = Pages::new(memory);
        let config = Config::new(unit.capabilities().haw);
        let mut iommu = Iommu::bring_up(UnitRegisters(unit.clone()), Arc::clone(&pages), config).unwrap();
        iommu.enable_translation().unwrap();
        let mut pasids = Pasids::new(1..=Pasid::MAX.get()).unwrap();
        let set = pasids.create_set(ioasid::DEFAULT_QUOTA).unwrap();
        Self { pages, iommu, pasids, set }
    }

    pub fn add_device(&mut self, source_id: SourceId) {
        self.iommu.add_device(DeviceConfig::with_sva(source_id)).unwrap();
    }

    pub fn allocate_pasid(&mut self) -> Result<Pasid, ioasid::Error> {
        self.pasids.allocate(self.set, 1..=Pasid::MAX.get(), None).map(Pasid::truncated)
    }

    pub fn bind(
        &mut self,
        source_id: SourceId,
        pasid: Pasid,
        process: &Process,
    ) -> Result<(), vtd_driver::Error> {
        let Self { iommu, pasids, set, .. } = self;
        vtd_driver::sva::bind(iommu, pasids, *set, source_id, pasid, process.table())
    }

    pub fn unbind(&mut self, source_id: SourceId, pasid: Pasid) {
        let Self { iommu, pasids, set, .. } = self;
        vtd_driver::sva::unbind(iommu, pasids, *set, source_id, pasid).unwrap();
    }

    /// Shuts down; every page must have been given back but `kept`.
    pub fn shut_down(self, kept: usize) {
        let Self { pages, iommu, .. } = self;
        iommu.shutdown().unwrap();
        assert_eq!(pages.outstanding(), kept, "pages that were not given back");
    }
}

/// A process: its page table of 4 levels.
pub struct Process {
    pages: Arc<Pages>,
    root: u64,
}

impl Process {
    pub fn new(kernel: &Kernel) -> Self {
        let pages = Arc::clone(&kernel.pages);
        let root = vtd_driver::Memory::allocate(&*pages, 1).unwrap();
        Self { pages, root }
    }

    pub fn table(&self) -> FirstStageTable {
        FirstStageTable { root: self.root, mode: FirstStagePagingMode::Level4 }
    }

    fn entry(&self, address: u64) -> u64 {
        use vtd_driver::Memory;
        let present = FirstStageEntry::new().with_p(true).with_rw(true).with_us(true);
        let mut table = self.root;
        for level in [4, 3, 2] {
            let slot = table + (address >> (9 * level) & 0xff8);
            let entry = FirstStageEntry::from_bits(self.pages.load(slot));
            table = entry.address(4);
            if !entry.p() {
                table = self.pages.allocate(1).unwrap();
                self.pages.store(slot, present.with_addr(table).into_bits());
            }
        }
        table + (address >> 9 & 0xff8)
    }

    /// Maps a fresh page; returns its guest physical address.
    pub fn map(&self, address: u64) -> u64 {
        use vtd_driver::Memory;
        let page = self.pages.allocate(1).unwrap();
        let entry = FirstStageEntry::new().with_p(true).with_rw(true).with_us(true).with_addr(page);
        self.pages.store(self.entry(address), entry.into_bits());
        page
    }

    /// Takes a page away; devices are told by the caller.
    pub fn unmap(&self, address: u64) {
        vtd_driver::Memory::store(&*self.pages, self.entry(address), 0);
    }
}
