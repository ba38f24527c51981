// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A machine of one unit and one accelerator, and its operating system.

use std::sync::{Arc, Mutex};

use dsa::Dsa;
use patience::Patience;
use pci::PciFunction;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vtd_spec::descriptors::{PageGroupResponse, PasidDeviceTlb, PasidIotlb, PasidIotlbGranularity, Wait};
use vtd_spec::registers::offset;
use vtd_spec::{
    AddressRange, Descriptor, DomainId, InvalidationQueueAddress, PageRequestDescriptor,
    PageRequestQueueAddress, Pasid, PasidDirectoryEntry, PasidEntry, PasidGranularTranslationType,
    ResponseCode, ScalableContextEntry, SourceId,
};
use vtd_unit::{Message, Notify, Unit, UnitConfig};

pub type Memory = GuestMemoryMmap<()>;

pub const PAGE: u64 = 0x1000;
pub const MEMORY_SIZE: u64 = 64 << 20;
pub const SOURCE_ID: SourceId = SourceId::new(0, 2, 0);
pub const PASID: Pasid = Pasid::truncated(0x2a);
pub const OTHER_PASID: Pasid = Pasid::truncated(0x51);
pub const DOMAIN: DomainId = DomainId(1);

pub const ROOT_TABLE: u64 = 0x1000;
pub const CONTEXT_TABLE: u64 = 0x2000;
pub const STATUS: u64 = 0x3000;
pub const QUEUE: u64 = 0x4000;
pub const PAGE_REQUESTS: u64 = 0x8000;
pub const PASID_DIRECTORY: u64 = 0x10_0000;
pub const HEAP: u64 = 0x20_0000;

pub const PRESENT: u64 = 1;
pub const WRITABLE: u64 = 2;
pub const USER: u64 = 4;
pub const FRAME: u64 = 0x000f_ffff_ffff_f000;

/// Addresses of the process: pointers above 4 GiB.
pub const SOURCE: u64 = 0x7f12_3400_0000;
pub const DESTINATION: u64 = 0x7f56_7800_0000;
pub const RECORD: u64 = 0x7ffc_0000_1000;

pub const GENCTRL: u64 = 0x88;
pub const GENSTS: u64 = 0x90;
pub const INTCAUSE: u64 = 0x98;
pub const CMD: u64 = 0xa0;
pub const CMDSTATUS: u64 = 0xa8;
pub const SWERROR: u64 = 0xc0;
pub const WQCFG: u64 = 0x500;
pub const GRPCFG: u64 = 0x800;
pub const MSIX_TABLE: u64 = 0x2000;

pub const MOVE: u32 = 0x0300_0000;
pub const FILL: u32 = 0x0400_0000;
/// Completion record address valid and record requested.
pub const RECORDED: u32 = 0xc;
pub const BLOCK: u32 = 0xe;

#[derive(Default)]
pub struct Messages(pub Mutex<Vec<Message>>);

impl Notify for Messages {
    fn message(&self, message: Message) {
        self.0.lock().unwrap().push(message);
    }
}

pub struct Machine {
    pub memory: Arc<Memory>,
    pub unit: Unit<Memory>,
    pub messages: Arc<Messages>,
    pub dsa: Arc<Dsa<Memory>>,
    heap: Mutex<u64>,
    tail: Mutex<u64>,
}

impl Machine {
    /// A unit with scalable mode on, and two processes' tables bound to their PASIDs.
    pub fn new() -> Self {
        let memory = Arc::new(Memory::from_ranges(&[(GuestAddress(0), MEMORY_SIZE as usize)]).unwrap());
        let messages = Arc::new(Messages::default());
        let unit =
            Unit::new(&UnitConfig::default(), Arc::clone(&memory), Arc::clone(&messages) as Arc<dyn Notify>)
                .unwrap();
        let dsa = Dsa::new(|sink| unit.endpoint(SOURCE_ID, sink).unwrap()).unwrap();
        let (heap, tail) = (Mutex::new(HEAP), Mutex::new(0));
        let machine = Self { memory, unit, messages, dsa, heap, tail };

        machine.store(ROOT_TABLE, CONTEXT_TABLE | PRESENT);
        let context = ScalableContextEntry::new()
            .with_present(true)
            .with_dte(true)
            .with_paside(true)
            .with_pre(true)
            .with_pdts(7)
            .with_pasid_dir_ptr(PASID_DIRECTORY);
        machine.store_all(CONTEXT_TABLE + u64::from(SOURCE_ID.devfn()) * 32, &context.to_qwords());
        for pasid in [PASID, OTHER_PASID] {
            let table = machine.page();
            let entry = PasidEntry::new()
                .with_p(true)
                .with_pgtt(PasidGranularTranslationType::FirstStage)
                .with_did(DOMAIN)
                .with_pwsnp(true)
                .with_fsptptr(table);
            machine.store_all(machine.pasid_entry(pasid), &entry.to_qwords());
        }
        let queue = InvalidationQueueAddress::new().with_qs(2).with_dw(true).with_iqa(QUEUE);
        machine.write_unit(offset::IQA, queue.into_bits());
        machine.command_unit(1 << 26);
        machine.write_unit(offset::PQA, PageRequestQueueAddress::new().with_pqa(PAGE_REQUESTS).into_bits());
        machine.write_unit(offset::RTADDR, ROOT_TABLE | 0x400);
        machine.command_unit(1 << 30);
        machine.command_unit(1 << 31);
        machine
    }

    /// The device too is set up, with a work queue for each process.
    pub fn ready() -> Self {
        let machine = Self::new();
        machine.enable_function();
        machine.enable_device();
        machine
    }

    pub fn load(&self, address: u64) -> u64 {
        self.memory.read_obj(GuestAddress(address)).unwrap()
    }

    pub fn store(&self, address: u64, value: u64) {
        self.memory.write_obj(value, GuestAddress(address)).unwrap();
    }

    pub fn store_all(&self, address: u64, values: &[u64]) {
        for (n, value) in values.iter().enumerate().rev() {
            self.store(address + 8 * n as u64, *value);
        }
    }

    pub fn page(&self) -> u64 {
        let mut heap = self.heap.lock().unwrap();
        // Not in the order of addresses: a device that ignored the tables would not get away with it.
        *heap += 3 * PAGE;
        assert!(*heap < MEMORY_SIZE);
        *heap
    }

    pub fn pasid_entry(&self, pasid: Pasid) -> u64 {
        let directory = PASID_DIRECTORY + u64::from(pasid.get() >> 6) * 8;
        let mut entry = PasidDirectoryEntry::from_bits(self.load(directory));
        if !entry.p() {
            entry = entry.with_p(true).with_smptblptr(self.page());
            self.store(directory, entry.into_bits());
        }
        entry.smptblptr() + u64::from(pasid.get() & 0x3f) * 64
    }

    /// Where the leaf entry of a process's address lies.
    pub fn leaf(&self, pasid: Pasid, address: u64) -> u64 {
        let qwords = [0, 8, 16].map(|n| self.load(self.pasid_entry(pasid) + n));
        let mut table = qwords[2] & FRAME;
        for level in [39, 30, 21] {
            let at = table + (address >> level & 0x1ff) * 8;
            if self.load(at) & PRESENT == 0 {
                self.store(at, self.page() | PRESENT | WRITABLE | USER);
            }
            table = self.load(at) & FRAME;
        }
        table + (address >> 12 & 0x1ff) * 8
    }

    /// Makes a page of the process present.
    pub fn map(&self, pasid: Pasid, address: u64) {
        let leaf = self.leaf(pasid, address);
        if self.load(leaf) & PRESENT == 0 {
            self.store(leaf, self.page() | PRESENT | WRITABLE | USER);
        }
    }

    /// Takes a page away as Linux does: entry, IOTLB, device-TLB, wait.
    pub fn unmap(&self, pasid: Pasid, address: u64) {
        self.store(self.leaf(pasid, address), 0);
        let range = AddressRange::new(address, 0);
        let granularity = PasidIotlbGranularity::Page;
        let iotlb = PasidIotlb { granularity, did: DOMAIN, pasid, am: 0, ih: false, addr: range.base() };
        let device = PasidDeviceTlb { sid: SOURCE_ID, pfsid: SourceId(0), mip: 0, pasid, gi: false, range };
        self.invalidate(&[Descriptor::PasidIotlb(iotlb), Descriptor::PasidDeviceTlb(device)]);
    }

    /// The physical address behind an address of the process.
    pub fn physical(&self, pasid: Pasid, address: u64) -> GuestAddress {
        let leaf = self.load(self.leaf(pasid, address));
        assert_eq!(leaf & PRESENT, PRESENT, "{address:#x}");
        GuestAddress(leaf & FRAME | address & (PAGE - 1))
    }

    /// What the process writes and reads, page by page.
    pub fn put(&self, pasid: Pasid, address: u64, data: &[u8]) {
        for (n, byte) in data.iter().enumerate() {
            self.map(pasid, address + n as u64);
            self.memory.write_obj(*byte, self.physical(pasid, address + n as u64)).unwrap();
        }
    }

    pub fn get(&self, pasid: Pasid, address: u64, length: usize) -> Vec<u8> {
        (0..length as u64).map(|n| self.memory.read_obj(self.physical(pasid, address + n)).unwrap()).collect()
    }

    pub fn write_unit(&self, offset: u64, value: u64) {
        self.unit.write(offset, &value.to_le_bytes());
    }

    pub fn read_unit(&self, offset: u64) -> u64 {
        let mut data = [0; 8];
        self.unit.read(offset, &mut data);
        u64::from_le_bytes(data)
    }

    pub fn command_unit(&self, bit: u32) {
        let status = (self.read_unit(offset::GCMD) >> 32) as u32;
        self.unit.write(offset::GCMD, &(status & 0x96ff_ffff | bit).to_le_bytes());
    }

    pub fn invalidate(&self, descriptors: &[Descriptor]) {
        let wait = Wait { sw: true, status_data: 2, status_address: STATUS, ..Wait::default() };
        // One at a time: there is one tail, and one status.
        let mut tail = self.tail.lock().unwrap();
        self.store(STATUS, 1);
        for descriptor in descriptors.iter().chain([&Descriptor::Wait(wait)]) {
            self.store_all(QUEUE + *tail, &descriptor.encode());
            *tail = (*tail + 32) % (PAGE << 2);
        }
        self.write_unit(offset::IQT, *tail);
        let mut patience = Patience::default();
        while self.load(STATUS) as u32 != 2 {
            patience.pause("the invalidation's end");
        }
    }

    /// Takes the oldest page request off the queue, where there is one.
    pub fn take_page_request(&self) -> PageRequestDescriptor {
        let head = self.read_unit(offset::PQH);
        let qwords = [0, 8, 16, 24].map(|n| self.load(PAGE_REQUESTS + head + n));
        self.write_unit(offset::PQH, (head + 32) % PAGE);
        PageRequestDescriptor::from_qwords(qwords)
    }

    /// The page fault handler: serves the page requests that are there. `allowed` says which pages there can be.
    pub fn serve(&self, allowed: impl Fn(&PageRequestDescriptor) -> bool) -> usize {
        let mut served = 0;
        while self.read_unit(offset::PQH) != self.read_unit(offset::PQT) {
            let request = self.take_page_request();
            assert_eq!(request.rid(), SOURCE_ID);
            assert!(request.pp() && request.lpig() && !request.pmr());
            let ok = allowed(&request);
            if ok {
                self.map(request.pasid(), request.addr());
            }
            let response = PageGroupResponse {
                pasid: Some(request.pasid()),
                rid: SOURCE_ID,
                rc: if ok { ResponseCode::Success } else { ResponseCode::InvalidRequest },
                prgi: request.prgi(),
            };
            self.invalidate(&[Descriptor::PageGroupResponse(response)]);
            served += 1;
        }
        served
    }

    pub fn config(&self, at: u16) -> u32 {
        let mut data = [0; 4];
        self.dsa.config_read(at, &mut data);
        u32::from_le_bytes(data)
    }

    pub fn set_config(&self, at: u16, value: u32) {
        self.dsa.config_write(at, &value.to_le_bytes());
    }

    pub fn capability(&self, id: u32) -> u16 {
        let mut at = self.config(0x34) & 0xff;
        while at != 0 {
            let header = self.config(at as u16);
            if header & 0xff == id {
                return at as u16;
            }
            at = header >> 8 & 0xff;
        }
        panic!("no capability {id:#x}");
    }

    pub fn extended_capability(&self, id: u32) -> u16 {
        let mut at = 0x100;
        while at != 0 {
            let header = self.config(at);
            if header & 0xffff == id {
                return at;
            }
            at = (header >> 20) as u16;
        }
        panic!("no extended capability {id:#x}");
    }

    /// What Linux enables before the driver comes: PASID, ATS, PRI; then memory, bus master, MSI-X.
    pub fn enable_function(&self) {
        let pasid = self.extended_capability(0x1b);
        assert_eq!(self.config(pasid + 4) & 0xffff, 0x1404);
        self.set_config(pasid + 4, 5 << 16);
        let ats = self.extended_capability(0x0f);
        assert_eq!(self.config(ats + 4) & 0xffff, 0x60);
        self.set_config(ats + 4, 1 << 31);
        let pri = self.extended_capability(0x13);
        // Responses to what was asked before a reset may have come since: unexpected ones.
        assert_eq!(self.config(pri + 4) & !(2 << 16), 0x8100_0000);
        self.set_config(pri + 4, 2);
        assert_eq!(self.config(pri + 8), 0x200);
        self.set_config(pri + 12, 0x200);
        self.dsa.config_write(pri + 4, &[1, 0]);
        self.set_config(4, 6);
        let msix = self.capability(0x11);
        assert_eq!(self.config(msix) >> 16, 8);
        self.set_config(msix, 1 << 31);
        for vector in 0..9 {
            let entry = MSIX_TABLE + vector * 16;
            self.write(entry, 0xfee0_0000);
            self.write(entry + 8, 0x50 + vector as u32);
            self.write(entry + 12, 0);
        }
    }

    pub fn write(&self, at: u64, value: u32) {
        self.dsa.bar_write(0, at, &value.to_le_bytes());
    }

    pub fn read(&self, at: u64) -> u32 {
        let mut data = [0; 4];
        self.dsa.bar_read(0, at, &mut data);
        u32::from_le_bytes(data)
    }

    pub fn has_message(&self, data: u32) -> bool {
        self.messages.0.lock().unwrap().contains(&Message { address: 0xfee0_0000, data })
    }

    /// A command as idxd gives it: waits for vector 0, then looks at the cause and the status.
    pub fn command(&self, code: u32, operand: u32) -> u32 {
        self.messages.0.lock().unwrap().clear();
        self.write(CMD, 1 << 31 | code << 20 | operand);
        self.await_command()
    }

    pub fn await_command(&self) -> u32 {
        let mut patience = Patience::default();
        while self.read(INTCAUSE) & 2 == 0 || !self.has_message(0x50) {
            patience.pause("the command's end");
        }
        self.write(INTCAUSE, 2);
        self.read(CMDSTATUS)
    }

    pub fn enable_device(&self) {
        self.write(GENCTRL, 3);
        for (queue, pasid) in [(0, PASID), (1, OTHER_PASID)] {
            self.write(WQCFG + queue * 64, 16);
            self.write(WQCFG + queue * 64 + 8, 0x1000_00a3 | pasid.get() << 8);
            self.write(WQCFG + queue * 64 + 12, 31 | 5 << 5);
        }
        self.write(GRPCFG, 3);
        self.write(GRPCFG + 32, 0xf);
        assert_eq!(self.command(1, 0), 0);
        assert_eq!(self.command(6, 0), 0);
        assert_eq!(self.command(6, 1), 0);
        assert_eq!(self.read(GENSTS), 1);
    }

    /// Stores a descriptor as a process does: eight qwords into one slot of the limited portal.
    pub fn submit(&self, queue: u64, record: u64, operation: u32, first: u64, second: u64, size: u32) {
        let head = u64::from(operation) << 32;
        for (n, qword) in [head, record, first, second, size.into(), 0, 0, 0].into_iter().enumerate() {
            self.dsa.bar_write(2, queue * 0x4000 + 0x1040 + n as u64 * 8, &qword.to_le_bytes());
        }
    }

    /// Submits to the first process's queue and waits, serving its page faults.
    pub fn run(
        &self,
        operation: u32,
        first: u64,
        second: u64,
        size: u32,
        allowed: impl Fn(&PageRequestDescriptor) -> bool,
    ) -> Vec<u8> {
        self.put(PASID, RECORD, &[0; 32]);
        self.submit(0, RECORD, operation, first, second, size);
        let mut patience = Patience::default();
        while self.get(PASID, RECORD, 1) == [0] {
            self.serve(&allowed);
            patience.pause(&format!("completion; software error {:#x}", self.read(SWERROR)));
        }
        self.get(PASID, RECORD, 32)
    }

    pub fn faults(&self) -> u64 {
        self.read_unit(offset::FSTS & !7) >> (8 * (offset::FSTS & 7)) & 3
    }
}

pub fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x1234_5678_u32;
    (0..length)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        })
        .collect()
}
