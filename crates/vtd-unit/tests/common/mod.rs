// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A guest in a test: memory, a unit, an endpoint, and the tables that connect them, written as an operating system
//! would write them.

#![allow(dead_code, reason = "each test binary uses its own part")]

pub mod descriptors;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vtd_spec::registers::offset;
use vtd_spec::{
    Descriptor, DomainId, FaultRecord, InvalidationQueueAddress, PageRequestQueueAddress, Pasid,
    PasidDirectoryEntry, PasidEntry, PasidGranularTranslationType, ScalableContextEntry, SourceId,
};
use vtd_unit::{
    DeviceTlbInvalidation, Endpoint, EndpointSink, Message, Notify, PageGroupResponse, Requester, Unit,
    UnitConfig,
};

pub type Memory = GuestMemoryMmap<()>;

/// Guest memory: 64 MiB at 0.
pub const MEMORY_BYTES: u64 = 64 << 20;
pub const ROOT_TABLE: u64 = 0x1000;
pub const CONTEXT_TABLE: u64 = 0x2000;
pub const PASID_DIRECTORY: u64 = 0x10_0000;
pub const QUEUE: u64 = 0x4000;
pub const QUEUE_SIZE_SHIFT: u8 = 2;
pub const PAGE_REQUEST_QUEUE: u64 = 0x2_0000;
pub const WAIT_STATUS: u64 = 0x3000;
/// From here on pages are handed out.
const HEAP: u64 = 0x20_0000;

/// The source-id of the fixture's endpoint.
pub const SOURCE_ID: SourceId = SourceId::new(0, 3, 0);

/// Keeps the messages that were sent.
#[derive(Default)]
pub struct Messages(pub Mutex<Vec<Message>>);

impl Messages {
    pub fn take(&self) -> Vec<Message> {
        std::mem::take(&mut self.0.lock().unwrap())
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
    pub responses: Mutex<Vec<PageGroupResponse>>,
    pub invalidations: Mutex<Vec<DeviceTlbInvalidation>>,
    pub recalls: Mutex<usize>,
}

impl EndpointSink for Sink {
    fn page_group_response(&self, response: PageGroupResponse) {
        self.responses.lock().unwrap().push(response);
    }

    fn device_tlb_invalidation(&self, invalidation: DeviceTlbInvalidation) {
        self.invalidations.lock().unwrap().push(invalidation);
    }

    fn pins_recalled(&self) {
        *self.recalls.lock().unwrap() += 1;
    }
}

/// Bits of a first-stage entry.
pub mod entry {
    pub const P: u64 = 1;
    pub const RW: u64 = 2;
    pub const US: u64 = 4;
    pub const A: u64 = 0x20;
    pub const D: u64 = 0x40;
    pub const PS: u64 = 0x80;
    /// A page that a process may read and write.
    pub const USER: u64 = P | RW | US;
}

pub struct Guest {
    pub memory: Arc<Memory>,
    pub unit: Unit<Memory>,
    pub messages: Arc<Messages>,
    pub sink: Arc<Sink>,
    pub endpoint: Endpoint<Memory>,
    heap: Mutex<u64>,
    tail: Mutex<u64>,
    tables: Mutex<BTreeMap<u32, u64>>,
}

impl Guest {
    /// A guest whose unit has just been powered up.
    pub fn powered_up(config: &UnitConfig) -> Self {
        let memory = Memory::from_ranges(&[(GuestAddress(0), MEMORY_BYTES as usize)]).unwrap();
        Self::powered_up_in(config, memory)
    }

    /// The same in memory of the caller's: at least [`MEMORY_BYTES`] from 0 on.
    pub fn powered_up_in(config: &UnitConfig, memory: Memory) -> Self {
        let memory = Arc::new(memory);
        let messages = Arc::new(Messages::default());
        let unit = Unit::new(config, Arc::clone(&memory), Arc::clone(&messages) as Arc<dyn Notify>).unwrap();
        let sink = Arc::new(Sink::default());
        let endpoint = unit.endpoint(SOURCE_ID, Arc::clone(&sink) as Arc<dyn EndpointSink>).unwrap();
        Self {
            memory,
            unit,
            messages,
            sink,
            endpoint,
            heap: Mutex::new(HEAP),
            tail: Mutex::new(0),
            tables: Mutex::default(),
        }
    }

    /// A guest with the queues set up, translation enabled and an empty PASID table for [`SOURCE_ID`].
    pub fn new() -> Self {
        Self::with_config(&UnitConfig::default())
    }

    pub fn with_config(config: &UnitConfig) -> Self {
        Self::powered_up(config).boot()
    }

    /// What a kernel does first.
    pub fn boot(self) -> Self {
        let guest = self;
        guest.write32(offset::FEDATA, 0x41);
        guest.write32(offset::FEADDR, 0xfee0_0000);
        guest.write32(offset::FECTL, 0);
        guest.enable_queue();
        guest.write32(offset::PEDATA, 0x42);
        guest.write32(offset::PEADDR, 0xfee0_0000);
        guest.write32(offset::PECTL, 0);
        guest.write64(offset::PQA, PageRequestQueueAddress::new().with_pqa(PAGE_REQUEST_QUEUE).into_bits());
        guest.add_function(SOURCE_ID);
        guest.write64(offset::RTADDR, ROOT_TABLE | 0x400);
        guest.command(1 << 30);
        guest.command(1 << 31);
        guest
    }

    pub fn enable_queue(&self) {
        let address = InvalidationQueueAddress::new().with_qs(QUEUE_SIZE_SHIFT).with_dw(true).with_iqa(QUEUE);
        self.write64(offset::IQT, 0);
        self.write64(offset::IQA, address.into_bits());
        self.command(1 << 26);
    }

    /// Enables the queue of a unit that has been reset.
    pub fn restart_queue(&self) {
        *self.tail.lock().unwrap() = 0;
        self.enable_queue();
    }

    /// Points root and context entry of a function at the shared PASID directory.
    pub fn add_function(&self, source_id: SourceId) {
        let half = if source_id.devfn() < 0x80 { 0 } else { 8 };
        let root = ROOT_TABLE + u64::from(source_id.bus()) * 16 + half;
        self.store(root, (CONTEXT_TABLE + half * 0x200) | 1);
        self.write_context(source_id, Self::context());
    }

    /// Another function, with its own sink, behind the same PASID directory. It replaces one that is there.
    pub fn endpoint_at(&self, source_id: SourceId) -> (Endpoint<Memory>, Arc<Sink>) {
        self.unit.remove_endpoint(source_id);
        self.add_function(source_id);
        let sink = Arc::new(Sink::default());
        (self.unit.endpoint(source_id, Arc::clone(&sink) as Arc<dyn EndpointSink>).unwrap(), sink)
    }

    /// A context entry for all PASIDs, with ATS and page requests.
    pub fn context() -> ScalableContextEntry {
        ScalableContextEntry::new()
            .with_present(true)
            .with_dte(true)
            .with_paside(true)
            .with_pre(true)
            .with_pdts(7)
            .with_pasid_dir_ptr(PASID_DIRECTORY)
    }

    pub fn write_context(&self, source_id: SourceId, entry: ScalableContextEntry) {
        let half = if source_id.devfn() < 0x80 { 0 } else { 0x1000 };
        let address = CONTEXT_TABLE + half + u64::from(source_id.devfn() & 0x7f) * 32;
        for (index, qword) in entry.to_qwords().into_iter().enumerate().rev() {
            self.store(address + 8 * index as u64, qword);
        }
    }

    /// A fresh, zeroed page.
    pub fn page(&self) -> u64 {
        self.pages(1, 1)
    }

    /// `count` fresh pages that lie together, aligned to `align` pages.
    pub fn pages(&self, count: u64, align: u64) -> u64 {
        let mut heap = self.heap.lock().unwrap();
        let page = heap.next_multiple_of(align * 4096);
        *heap = page + count * 4096;
        assert!(*heap <= self.memory.last_addr().0 + 1, "the fixture's memory is used up");
        page
    }

    /// A first-stage entry for PASID table use: present, snooped, `table` on top.
    pub fn first_stage(domain: DomainId, table: u64) -> PasidEntry {
        PasidEntry::new()
            .with_p(true)
            .with_pgtt(PasidGranularTranslationType::FirstStage)
            .with_did(domain)
            .with_pwsnp(true)
            .with_fsptptr(table)
    }

    /// Address of the entry of `pasid`; makes its table where there is none.
    pub fn pasid_entry_address(&self, pasid: Pasid) -> u64 {
        let directory = PASID_DIRECTORY + u64::from(pasid.get() >> 6) * 8;
        let mut entry = PasidDirectoryEntry::from_bits(self.load(directory));
        if !entry.p() {
            entry = entry.with_p(true).with_smptblptr(self.page());
            self.store(directory, entry.into_bits());
        }
        entry.smptblptr() + u64::from(pasid.get() & 0x3f) * 64
    }

    /// Writes a PASID entry, the present bit last.
    pub fn write_pasid_entry(&self, pasid: Pasid, entry: PasidEntry) {
        let address = self.pasid_entry_address(pasid);
        for (index, qword) in entry.to_qwords().into_iter().enumerate().rev() {
            self.store(address + 8 * index as u64, qword);
        }
    }

    /// Binds a new, empty 4-level table to `pasid` in domain 1.
    pub fn bind(&self, pasid: Pasid) {
        let table = self.page();
        self.tables.lock().unwrap().insert(pasid.get(), table);
        self.write_pasid_entry(pasid, Self::first_stage(DomainId(1), table));
    }

    /// Maps one page of 4 KiB (`level` 1), 2 MiB (2) or 1 GiB (3) in the table of `pasid`, with the entry's `flags`;
    /// returns the leaf entry's address. Nothing is invalidated.
    pub fn map_level(&self, pasid: Pasid, address: u64, page: u64, flags: u64, level: u32) -> u64 {
        let mut table = self.tables.lock().unwrap()[&pasid.get()];
        for at_level in (level + 1..=4).rev() {
            let at = table + ((address >> (12 + 9 * (at_level - 1))) & 0x1ff) * 8;
            let mut next = self.load(at);
            if next & entry::P == 0 {
                next = self.page() | entry::USER;
                self.store(at, next);
            }
            table = next & 0x000f_ffff_ffff_f000;
        }
        let at = table + ((address >> (12 + 9 * (level - 1))) & 0x1ff) * 8;
        let size = if level > 1 && flags & entry::P != 0 { entry::PS } else { 0 };
        self.store(at, page | flags | size);
        at
    }

    /// Binds the table of `of` to another PASID in domain 2.
    pub fn share(&self, pasid: Pasid, of: Pasid) {
        let table = self.tables.lock().unwrap()[&of.get()];
        self.write_pasid_entry(pasid, Self::first_stage(DomainId(2), table));
    }

    /// The addresses of the four entries that a walk for `address` reads.
    pub fn walk_addresses(&self, pasid: Pasid, address: u64) -> Vec<u64> {
        let mut table = self.tables.lock().unwrap()[&pasid.get()];
        let mut addresses = Vec::new();
        for level in (1..=4).rev() {
            addresses.push(table + ((address >> (12 + 9 * (level - 1))) & 0x1ff) * 8);
            table = self.load(addresses[addresses.len() - 1]) & 0x000f_ffff_ffff_f000;
        }
        addresses
    }

    /// Maps a page of 4 KiB.
    pub fn map(&self, pasid: Pasid, address: u64, page: u64, flags: u64) -> u64 {
        self.map_level(pasid, address, page, flags, 1)
    }

    /// Puts a descriptor into the queue without ringing.
    pub fn queue(&self, descriptor: &Descriptor) {
        self.queue_qwords(descriptor.encode());
    }

    pub fn queue_qwords(&self, qwords: [u64; 4]) {
        let mut tail = self.tail.lock().unwrap();
        for (index, qword) in qwords.into_iter().enumerate() {
            self.store(QUEUE + *tail + 8 * index as u64, qword);
        }
        *tail = (*tail + 32) % (4096 << QUEUE_SIZE_SHIFT);
    }

    pub fn ring(&self) {
        let tail = *self.tail.lock().unwrap();
        self.write64(offset::IQT, tail);
    }

    /// Submits a descriptor and waits until the unit says that it is done, as Linux does.
    pub fn submit(&self, descriptor: &Descriptor) {
        self.submit_all(std::slice::from_ref(descriptor));
    }

    pub fn submit_all(&self, descriptors: &[Descriptor]) {
        for descriptor in descriptors {
            self.queue(descriptor);
        }
        self.submit_wait(0);
    }

    /// Submits what is queued with a wait descriptor that has more `flags`, and waits for it.
    pub fn submit_wait(&self, flags: u64) {
        self.memory.write_obj(1u32, GuestAddress(WAIT_STATUS)).unwrap();
        self.queue_qwords([5 | 1 << 5 | flags | 2 << 32, WAIT_STATUS, 0, 0]);
        self.ring();
        self.await_status(WAIT_STATUS);
    }

    /// Waits until the status dword at `address` is 2.
    pub fn await_status(&self, address: u64) {
        patience::eventually("the wait descriptor's status", || {
            self.memory.read_obj::<u32>(GuestAddress(address)).unwrap() == 2
        });
    }

    /// A request with PASID.
    pub fn with_pasid(pasid: Pasid) -> Requester {
        Requester { pasid: Some(pasid), privileged: false }
    }

    /// Writes GCMD as Linux does: the persistent bits of GSTS with one more, and waits for it.
    pub fn command(&self, bit: u32) {
        let status = self.read32(offset::GSTS) & 0x96ff_ffff;
        self.write32(offset::GCMD, status | bit);
        patience::eventually("GSTS", || self.read32(offset::GSTS) & bit == bit);
    }

    /// Writes GCMD with a persistent bit cleared, and waits for that.
    pub fn command_off(&self, bit: u32) {
        let status = self.read32(offset::GSTS) & 0x96ff_ffff;
        self.write32(offset::GCMD, status & !bit);
        patience::eventually("GSTS", || self.read32(offset::GSTS) & bit == 0);
    }

    /// The fault record `index`, cleared as Linux clears it; `None` where F is not set.
    pub fn take_fault(&self, index: u64) -> Option<FaultRecord> {
        let base = (self.read64(offset::CAP) >> 24 & 0x3ff) * 16 + index * 16;
        let record = FaultRecord::from_qwords([self.read64(base), self.read64(base + 8)]);
        if !record.f() {
            return None;
        }
        self.write32(base + 12, 1 << 31);
        Some(record)
    }

    /// Every pending fault in the order of the ring, all cleared as Linux clears them.
    pub fn take_faults(&self) -> Vec<FaultRecord> {
        let count = (self.read64(offset::CAP) >> 40 & 0xff) + 1;
        let first = u64::from(self.read32(offset::FSTS) >> 8 & 0xff);
        let faults = (0..count).filter_map(|index| self.take_fault((first + index) % count)).collect();
        self.write32(offset::FSTS, 0x83);
        faults
    }

    /// The reason code of the first pending fault, with all of them cleared.
    pub fn take_fault_reason(&self) -> Option<u8> {
        let count = (self.read64(offset::CAP) >> 40 & 0xff) + 1;
        let faults: Vec<_> = (0..count).filter_map(|index| self.take_fault(index)).collect();
        self.write32(offset::FSTS, 1);
        faults.first().map(FaultRecord::fr)
    }

    pub fn load(&self, address: u64) -> u64 {
        self.memory.read_obj(GuestAddress(address)).unwrap()
    }

    pub fn store(&self, address: u64, value: u64) {
        self.memory.write_obj(value, GuestAddress(address)).unwrap();
    }

    pub fn read32(&self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.unit.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    pub fn read64(&self, offset: u64) -> u64 {
        let mut data = [0; 8];
        self.unit.read(offset, &mut data);
        u64::from_le_bytes(data)
    }

    pub fn write32(&self, offset: u64, value: u32) {
        self.unit.write(offset, &value.to_le_bytes());
    }

    pub fn write64(&self, offset: u64, value: u64) {
        self.unit.write(offset, &value.to_le_bytes());
    }
}

/// A PASID from a number that has at most 20 bits.
pub fn pasid(number: u32) -> Pasid {
    Pasid::new(number).unwrap()
}
