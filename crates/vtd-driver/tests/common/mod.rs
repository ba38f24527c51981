// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A whole system in a test: memory, a unit in software, endpoints behind it, and the driver that programs it.

#![allow(dead_code, reason = "each test binary uses its own part")]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, VolatileMemory};
use vtd_driver::{Config, DeviceConfig, FirstStageTable, Iommu, Memory, PageRequest, Pasids, Registers};
use vtd_spec::{FirstStageEntry, FirstStagePagingMode, Pasid, ResponseCode, SourceId};
use vtd_unit::{
    DeviceTlbInvalidation, Endpoint, EndpointSink, Message, Notify, PageGroupResponse, Requester, Unit,
    UnitConfig,
};

pub type Ram = GuestMemoryMmap<()>;
pub type Driver = Iommu<Page, Arc<Host>>;

/// 256 MiB at 0.
const MEMORY_BYTES: u64 = 256 << 20;
pub const PASIDS: std::ops::RangeInclusive<u32> = 1..=ioasid::MAX_ID;

/// The memory, with an allocator of pages that remembers what is out.
pub struct Host {
    pub ram: Arc<Ram>,
    next: Mutex<u64>,
    free: Mutex<BTreeMap<usize, Vec<u64>>>,
    out: Mutex<BTreeMap<u64, usize>>,
}

impl Host {
    fn new() -> Self {
        let ram = Ram::from_ranges(&[(GuestAddress(0), MEMORY_BYTES as usize)]).unwrap();
        let (free, out) = (Mutex::default(), Mutex::default());
        Self { ram: Arc::new(ram), next: Mutex::new(0x10_0000), free, out }
    }

    pub fn outstanding(&self) -> usize {
        self.out.lock().unwrap().values().sum()
    }

    fn atomic<T>(&self, address: u64, f: impl FnOnce(&AtomicU64) -> T) -> T {
        let slice = self.ram.get_slice(GuestAddress(address), 8).unwrap();
        f(slice.get_atomic_ref::<AtomicU64>(0).unwrap())
    }
}

impl Memory for Host {
    fn allocate(&self, pages: usize) -> Option<u64> {
        let address = match self.free.lock().unwrap().entry(pages).or_default().pop() {
            Some(address) => address,
            None => {
                let mut next = self.next.lock().unwrap();
                let address = *next;
                if address + 4096 * pages as u64 > MEMORY_BYTES {
                    return None;
                }
                *next += 4096 * pages as u64;
                address
            }
        };
        self.ram.write_slice(&vec![0; 4096 * pages], GuestAddress(address)).unwrap();
        self.out.lock().unwrap().insert(address, pages);
        Some(address)
    }

    fn free(&self, address: u64, pages: usize) {
        assert_eq!(self.out.lock().unwrap().remove(&address), Some(pages), "freed as it was allocated");
        // What still uses it is to be found out.
        self.ram.write_slice(&vec![0xff; 4096 * pages], GuestAddress(address)).unwrap();
        self.free.lock().unwrap().entry(pages).or_default().push(address);
    }

    fn load(&self, address: u64) -> u64 {
        self.atomic(address, |cell| u64::from_le(cell.load(Ordering::Acquire)))
    }

    fn store(&self, address: u64, value: u64) {
        self.atomic(address, |cell| cell.store(value.to_le(), Ordering::Release));
    }

    fn compare_exchange(&self, address: u64, current: u64, new: u64) -> Result<(), u64> {
        self.atomic(address, |cell| {
            cell.compare_exchange(current.to_le(), new.to_le(), Ordering::AcqRel, Ordering::Acquire)
                .map(|_| ())
                .map_err(u64::from_le)
        })
    }
}

/// The register page of a unit.
#[derive(Clone)]
pub struct Page(pub Unit<Ram>);

impl Registers for Page {
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
        std::thread::yield_now();
        polls < 1_000_000
    }
}

/// Keeps the unit's messages.
#[derive(Default)]
pub struct Messages(Mutex<Vec<Message>>);

impl Messages {
    pub fn take(&self) -> Vec<u32> {
        std::mem::take(&mut *self.0.lock().unwrap()).into_iter().map(|message| message.data).collect()
    }
}

impl Notify for Messages {
    fn message(&self, message: Message) {
        self.0.lock().unwrap().push(message);
    }
}

/// Keeps what an endpoint hears.
#[derive(Default)]
pub struct Sink {
    responses: Mutex<Vec<PageGroupResponse>>,
    invalidations: Mutex<Vec<DeviceTlbInvalidation>>,
}

impl Sink {
    pub fn take_responses(&self) -> Vec<(u16, ResponseCode)> {
        let responses = std::mem::take(&mut *self.responses.lock().unwrap());
        responses.into_iter().map(|response| (response.group, response.code)).collect()
    }

    pub fn take_invalidations(&self) -> Vec<DeviceTlbInvalidation> {
        std::mem::take(&mut *self.invalidations.lock().unwrap())
    }
}

impl EndpointSink for Sink {
    fn page_group_response(&self, response: PageGroupResponse) {
        self.responses.lock().unwrap().push(response);
    }

    fn device_tlb_invalidation(&self, invalidation: DeviceTlbInvalidation) {
        self.invalidations.lock().unwrap().push(invalidation);
    }
}

/// A device: its port, and what it hears.
pub struct Device {
    pub source_id: SourceId,
    pub port: Endpoint<Ram>,
    pub sink: Arc<Sink>,
}

impl Device {
    pub fn write(&self, pasid: Pasid, address: u64, data: &[u8]) -> bool {
        self.port.write(requester(pasid), address, data).is_ok()
    }

    pub fn read(&self, pasid: Pasid, address: u64) -> Option<u64> {
        let mut data = [0; 8];
        self.port.read(requester(pasid), address, &mut data).ok()?;
        Some(u64::from_le_bytes(data))
    }

    pub fn ask(&self, pasid: Pasid, address: u64, write: bool, group: u16, last: bool) {
        let requester = requester(pasid);
        let request = vtd_unit::PageRequest { requester, address, read: !write, write, last, group };
        self.port.page_request(request);
    }
}

/// PASID 0 stands for requests without PASID.
pub fn requester(pasid: Pasid) -> Requester {
    Requester { pasid: (pasid != Pasid::ZERO).then_some(pasid), privileged: false }
}

/// What a request of a device should look like to the driver.
pub fn asked(
    device: &Device,
    pasid: Pasid,
    address: u64,
    write: bool,
    group: u16,
    last: bool,
) -> PageRequest {
    let pasid = (pasid != Pasid::ZERO).then_some(pasid);
    PageRequest { source_id: device.source_id, pasid, address, read: !write, write, group, last }
}

/// The system.
pub struct System {
    pub host: Arc<Host>,
    pub unit: Unit<Ram>,
    pub messages: Arc<Messages>,
    pub iommu: Driver,
    pub pasids: Pasids,
    pub set: ioasid::SetId,
}

impl System {
    pub fn new() -> Self {
        Self::with(&UnitConfig::default())
    }

    /// A unit that was brought up, with remapping enabled and no device behind it.
    pub fn with(config: &UnitConfig) -> Self {
        let host = Arc::new(Host::new());
        let messages = Arc::new(Messages::default());
        let notify = Arc::clone(&messages) as Arc<dyn Notify>;
        let unit = Unit::new(config, Arc::clone(&host.ram), notify).unwrap();
        let config = Config::new(unit.capabilities().haw);
        let mut iommu = Iommu::bring_up(Page(unit.clone()), Arc::clone(&host), config).unwrap();
        iommu.enable_translation().unwrap();
        let mut pasids = Pasids::new(PASIDS).unwrap();
        let set = pasids.create_set(ioasid::DEFAULT_QUOTA).unwrap();
        Self { host, unit, messages, iommu, pasids, set }
    }

    /// A device that makes requests by PASID, with ATS and page requests if `ats`.
    pub fn add_device(&mut self, source_id: SourceId, ats: bool) -> Device {
        let sink = Arc::new(Sink::default());
        let port = self.unit.endpoint(source_id, Arc::clone(&sink) as Arc<dyn EndpointSink>).unwrap();
        port.set_ats_enabled(ats);
        let config = match ats {
            true => DeviceConfig::with_sva(source_id),
            false => DeviceConfig { pasid_bits: 20, ..DeviceConfig::new(source_id) },
        };
        self.iommu.add_device(config).unwrap();
        Device { source_id, port, sink }
    }

    pub fn allocate_pasid(&mut self) -> Pasid {
        Pasid::new(self.pasids.allocate(self.set, PASIDS, None).unwrap()).unwrap()
    }

    /// The reasons of the faults since the last call.
    pub fn take_faults(&mut self) -> Vec<u8> {
        self.iommu.take_faults().records.iter().map(|record| record.fr()).collect()
    }

    /// Ends everything; nothing may be left over but `pages`.
    pub fn end(self, pages: usize) {
        let Self { host, iommu, .. } = self;
        iommu.shutdown().unwrap();
        assert_eq!(host.outstanding(), pages, "pages that were not given back");
    }
}

/// A process: a 4-level table as a kernel keeps it, and memory.
pub struct Process {
    host: Arc<Host>,
    root: u64,
}

impl Process {
    pub fn new(host: &Arc<Host>) -> Self {
        Self { host: Arc::clone(host), root: host.allocate(1).unwrap() }
    }

    pub fn table(&self) -> FirstStageTable {
        FirstStageTable { root: self.root, mode: FirstStagePagingMode::Level4 }
    }

    /// Address of the entry of a page.
    fn entry(&self, address: u64) -> u64 {
        let mut table = self.root;
        for level in [4, 3, 2] {
            let slot = table + 8 * (address >> (12 + 9 * (level - 1)) & 511);
            let entry = FirstStageEntry::from_bits(self.host.load(slot));
            table = if entry.p() {
                entry.address(4)
            } else {
                let table = self.host.allocate(1).unwrap();
                let entry = FirstStageEntry::new().with_p(true).with_rw(true).with_us(true).with_addr(table);
                self.host.store(slot, entry.into_bits());
                table
            };
        }
        table + 8 * (address >> 12 & 511)
    }

    /// Maps a fresh page; returns its physical address.
    pub fn map(&self, address: u64) -> u64 {
        let page = self.host.allocate(1).unwrap();
        self.map_to(address, page);
        page
    }

    pub fn map_to(&self, address: u64, page: u64) {
        let entry = FirstStageEntry::new().with_p(true).with_rw(true).with_us(true).with_addr(page);
        self.host.store(self.entry(address), entry.into_bits());
    }

    /// Takes a mapping away; the devices are told by the caller.
    pub fn unmap(&self, address: u64) {
        self.host.store(self.entry(address), 0);
    }
}
