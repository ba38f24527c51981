// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The accelerator as a PCI function behind a remapping unit, driven as Linux's idxd drives it, on the memory of a
//! process that it knows by PASID. The test is the guest: driver, page tables and page fault handler.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use dsa::Dsa;
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

type Memory = GuestMemoryMmap<()>;

const PATIENCE: Duration = Duration::from_secs(20);
const PAGE: u64 = 0x1000;
const MEMORY_SIZE: u64 = 64 << 20;
const SOURCE_ID: SourceId = SourceId::new(0, 2, 0);
const PASID: Pasid = Pasid::truncated(0x2a);
const OTHER_PASID: Pasid = Pasid::truncated(0x51);
const DOMAIN: DomainId = DomainId(1);

const ROOT_TABLE: u64 = 0x1000;
const CONTEXT_TABLE: u64 = 0x2000;
const STATUS: u64 = 0x3000;
const QUEUE: u64 = 0x4000;
const PAGE_REQUESTS: u64 = 0x8000;
const PASID_DIRECTORY: u64 = 0x10_0000;
const HEAP: u64 = 0x20_0000;

const PRESENT: u64 = 1;
const WRITABLE: u64 = 2;
const USER: u64 = 4;
const FRAME: u64 = 0x000f_ffff_ffff_f000;

/// Addresses of the process: pointers above 4 GiB.
const SOURCE: u64 = 0x7f12_3400_0000;
const DESTINATION: u64 = 0x7f56_7800_0000;
const RECORD: u64 = 0x7ffc_0000_1000;

const GENCTRL: u64 = 0x88;
const GENSTS: u64 = 0x90;
const INTCAUSE: u64 = 0x98;
const CMD: u64 = 0xa0;
const CMDSTATUS: u64 = 0xa8;
const SWERROR: u64 = 0xc0;
const WQCFG: u64 = 0x500;
const GRPCFG: u64 = 0x800;
const MSIX_TABLE: u64 = 0x2000;

const MOVE: u32 = 0x0300_0000;
const FILL: u32 = 0x0400_0000;
/// Completion record address valid and record requested.
const RECORDED: u32 = 0xc;
const BLOCK: u32 = 0xe;

#[derive(Default)]
struct Messages(Mutex<Vec<Message>>);

impl Notify for Messages {
    fn message(&self, message: Message) {
        self.0.lock().unwrap().push(message);
    }
}

struct Machine {
    memory: Arc<Memory>,
    unit: Unit<Memory>,
    messages: Arc<Messages>,
    dsa: Arc<Dsa<Memory>>,
    heap: Mutex<u64>,
    tail: Mutex<u64>,
}

impl Machine {
    /// A unit with scalable mode on, and two processes' tables bound to their PASIDs.
    fn new() -> Self {
        let memory = Arc::new(Memory::from_ranges(&[(GuestAddress(0), MEMORY_SIZE as usize)]).unwrap());
        let messages = Arc::new(Messages::default());
        let unit =
            Unit::new(&UnitConfig::default(), Arc::clone(&memory), Arc::clone(&messages) as Arc<dyn Notify>)
                .unwrap();
        let dsa = Dsa::new(|sink| unit.endpoint(SOURCE_ID, sink)).unwrap();
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
    fn ready() -> Self {
        let machine = Self::new();
        machine.enable_function();
        machine.enable_device();
        machine
    }

    fn load(&self, address: u64) -> u64 {
        self.memory.read_obj(GuestAddress(address)).unwrap()
    }

    fn store(&self, address: u64, value: u64) {
        self.memory.write_obj(value, GuestAddress(address)).unwrap();
    }

    fn store_all(&self, address: u64, values: &[u64]) {
        for (n, value) in values.iter().enumerate().rev() {
            self.store(address + 8 * n as u64, *value);
        }
    }

    fn page(&self) -> u64 {
        let mut heap = self.heap.lock().unwrap();
        // Not in the order of addresses: a device that ignored the tables would not get away with it.
        *heap += 3 * PAGE;
        assert!(*heap < MEMORY_SIZE);
        *heap
    }

    fn pasid_entry(&self, pasid: Pasid) -> u64 {
        let directory = PASID_DIRECTORY + u64::from(pasid.get() >> 6) * 8;
        let mut entry = PasidDirectoryEntry::from_bits(self.load(directory));
        if !entry.p() {
            entry = entry.with_p(true).with_smptblptr(self.page());
            self.store(directory, entry.into_bits());
        }
        entry.smptblptr() + u64::from(pasid.get() & 0x3f) * 64
    }

    /// Where the leaf entry of a process's address lies.
    fn leaf(&self, pasid: Pasid, address: u64) -> u64 {
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
    fn map(&self, pasid: Pasid, address: u64) {
        let leaf = self.leaf(pasid, address);
        if self.load(leaf) & PRESENT == 0 {
            self.store(leaf, self.page() | PRESENT | WRITABLE | USER);
        }
    }

    /// Takes a page away as Linux does: entry, IOTLB, device-TLB, wait.
    fn unmap(&self, pasid: Pasid, address: u64) {
        self.store(self.leaf(pasid, address), 0);
        let range = AddressRange::new(address, 0);
        let granularity = PasidIotlbGranularity::Page;
        let iotlb = PasidIotlb { granularity, did: DOMAIN, pasid, am: 0, ih: false, addr: range.base() };
        let device = PasidDeviceTlb { sid: SOURCE_ID, pfsid: SourceId(0), mip: 0, pasid, gi: false, range };
        self.invalidate(&[Descriptor::PasidIotlb(iotlb), Descriptor::PasidDeviceTlb(device)]);
    }

    /// The physical address behind an address of the process.
    fn physical(&self, pasid: Pasid, address: u64) -> GuestAddress {
        let leaf = self.load(self.leaf(pasid, address));
        assert_eq!(leaf & PRESENT, PRESENT, "{address:#x}");
        GuestAddress(leaf & FRAME | address & (PAGE - 1))
    }

    /// What the process writes and reads, page by page.
    fn put(&self, pasid: Pasid, address: u64, data: &[u8]) {
        for (n, byte) in data.iter().enumerate() {
            self.map(pasid, address + n as u64);
            self.memory.write_obj(*byte, self.physical(pasid, address + n as u64)).unwrap();
        }
    }

    fn get(&self, pasid: Pasid, address: u64, length: usize) -> Vec<u8> {
        (0..length as u64).map(|n| self.memory.read_obj(self.physical(pasid, address + n)).unwrap()).collect()
    }

    fn write_unit(&self, offset: u64, value: u64) {
        self.unit.write(offset, &value.to_le_bytes());
    }

    fn read_unit(&self, offset: u64) -> u64 {
        let mut data = [0; 8];
        self.unit.read(offset, &mut data);
        u64::from_le_bytes(data)
    }

    fn command_unit(&self, bit: u32) {
        let status = (self.read_unit(offset::GCMD) >> 32) as u32;
        self.unit.write(offset::GCMD, &(status & 0x96ff_ffff | bit).to_le_bytes());
    }

    fn invalidate(&self, descriptors: &[Descriptor]) {
        let wait = Wait { sw: true, status_data: 2, status_address: STATUS, ..Wait::default() };
        self.store(STATUS, 1);
        let tail = {
            let mut tail = self.tail.lock().unwrap();
            for descriptor in descriptors.iter().chain([&Descriptor::Wait(wait)]) {
                self.store_all(QUEUE + *tail, &descriptor.encode());
                *tail = (*tail + 32) % (PAGE << 2);
            }
            *tail
        };
        self.write_unit(offset::IQT, tail);
        let end = Instant::now() + PATIENCE;
        while self.load(STATUS) as u32 != 2 {
            assert!(Instant::now() < end, "the invalidation does not end");
        }
    }

    /// The page fault handler: serves the page requests that are there. `allowed` says which pages there can be.
    fn serve(&self, allowed: impl Fn(&PageRequestDescriptor) -> bool) -> usize {
        let mut head = self.read_unit(offset::PQH);
        let mut served = 0;
        while head != self.read_unit(offset::PQT) {
            let qwords = [0, 8, 16, 24].map(|n| self.load(PAGE_REQUESTS + head + n));
            let request = PageRequestDescriptor::from_qwords(qwords);
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
            head = (head + 32) % PAGE;
            self.write_unit(offset::PQH, head);
            self.invalidate(&[Descriptor::PageGroupResponse(response)]);
            served += 1;
        }
        served
    }

    fn config(&self, at: u16) -> u32 {
        let mut data = [0; 4];
        self.dsa.config_read(at, &mut data);
        u32::from_le_bytes(data)
    }

    fn set_config(&self, at: u16, value: u32) {
        self.dsa.config_write(at, &value.to_le_bytes());
    }

    fn capability(&self, id: u32) -> u16 {
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

    fn extended_capability(&self, id: u32) -> u16 {
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
    fn enable_function(&self) {
        let pasid = self.extended_capability(0x1b);
        assert_eq!(self.config(pasid + 4) & 0xffff, 0x1404);
        self.set_config(pasid + 4, 5 << 16);
        let ats = self.extended_capability(0x0f);
        assert_eq!(self.config(ats + 4) & 0xffff, 0x60);
        self.set_config(ats + 4, 1 << 31);
        let pri = self.extended_capability(0x13);
        assert_eq!(self.config(pri + 4), 0x8100_0000);
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

    fn write(&self, at: u64, value: u32) {
        self.dsa.bar_write(0, at, &value.to_le_bytes());
    }

    fn read(&self, at: u64) -> u32 {
        let mut data = [0; 4];
        self.dsa.bar_read(0, at, &mut data);
        u32::from_le_bytes(data)
    }

    fn has_message(&self, data: u32) -> bool {
        self.messages.0.lock().unwrap().contains(&Message { address: 0xfee0_0000, data })
    }

    /// A command as idxd gives it: waits for vector 0, then looks at the cause and the status.
    fn command(&self, code: u32, operand: u32) -> u32 {
        self.messages.0.lock().unwrap().clear();
        self.write(CMD, 1 << 31 | code << 20 | operand);
        self.await_command()
    }

    fn await_command(&self) -> u32 {
        let end = Instant::now() + PATIENCE;
        while self.read(INTCAUSE) & 2 == 0 || !self.has_message(0x50) {
            assert!(Instant::now() < end, "the command does not end");
            std::thread::sleep(Duration::from_millis(1));
        }
        self.write(INTCAUSE, 2);
        self.read(CMDSTATUS)
    }

    fn enable_device(&self) {
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
    fn submit(&self, queue: u64, record: u64, operation: u32, first: u64, second: u64, size: u32) {
        let head = u64::from(operation) << 32;
        for (n, qword) in [head, record, first, second, size.into(), 0, 0, 0].into_iter().enumerate() {
            self.dsa.bar_write(2, queue * 0x4000 + 0x1040 + n as u64 * 8, &qword.to_le_bytes());
        }
    }

    /// Submits to the first process's queue and waits, serving its page faults.
    fn run(
        &self,
        operation: u32,
        first: u64,
        second: u64,
        size: u32,
        allowed: impl Fn(&PageRequestDescriptor) -> bool,
    ) -> Vec<u8> {
        self.put(PASID, RECORD, &[0; 32]);
        self.submit(0, RECORD, operation, first, second, size);
        let end = Instant::now() + PATIENCE;
        while self.get(PASID, RECORD, 1) == [0] {
            self.serve(&allowed);
            assert!(Instant::now() < end, "no completion; software error {:#x}", self.read(SWERROR));
        }
        self.get(PASID, RECORD, 32)
    }

    fn faults(&self) -> u64 {
        self.read_unit(offset::FSTS & !7) >> (8 * (offset::FSTS & 7)) & 3
    }
}

fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x1234_5678_u32;
    (0..length)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        })
        .collect()
}

#[test]
fn the_function_is_what_idxd_looks_for() {
    let machine = Machine::new();
    assert_eq!(machine.config(0), 0x0b25_8086);
    assert_eq!(machine.config(8) >> 8, 0x08_80_00);
    for (register, size) in [(0x10, 0x1_0000_u32), (0x18, 0x2_0000)] {
        machine.set_config(register, u32::MAX);
        assert_eq!(machine.config(register), size.wrapping_neg() | 0xc);
    }
    let pcie = machine.capability(0x10);
    assert_eq!(machine.config(pcie) >> 20 & 0xf, 9);
    assert_eq!(machine.config(pcie + 4) >> 28 & 1, 1);
    assert_eq!(machine.config(pcie + 0x24) >> 21 & 7, 0b011);
    let mut portal = [0xaa; 8];
    machine.dsa.bar_read(2, 0x1000, &mut portal);
    assert_eq!(portal, [0; 8]);
}

#[test]
fn memory_moves_between_pointers_of_a_process() {
    let machine = Machine::ready();
    let data = noise(40_001);
    machine.put(PASID, SOURCE + 77, &data);
    // The destination was never touched.
    let pages = std::cell::Cell::new(0);
    let record = machine.run(MOVE | BLOCK, SOURCE + 77, DESTINATION + 4001, 40_001, |request| {
        pages.set(pages.get() + 1);
        assert_eq!(request.pasid(), PASID);
        assert!(request.wrr() && !request.rdr());
        true
    });
    assert_eq!(record, [&[1][..], &[0; 31]].concat());
    assert!(machine.get(PASID, DESTINATION + 4001, 40_001) == data);
    assert_eq!(pages.get(), 11);
    // All pages are there now.
    let record = machine.run(MOVE | RECORDED, DESTINATION + 4001, SOURCE + 78, 40_000, |_| false);
    assert_eq!(record[0], 1);
    assert!(machine.get(PASID, SOURCE + 78, 40_000) == data[..40_000]);
    assert_eq!(machine.faults(), 0);
}

#[test]
fn equal_pointers_of_two_processes_are_different_memory() {
    let machine = Machine::ready();
    for (pasid, byte) in [(PASID, 1), (OTHER_PASID, 2)] {
        machine.put(pasid, SOURCE, &[byte; 100]);
        machine.put(pasid, DESTINATION, &[0; 100]);
        machine.put(pasid, RECORD, &[0; 32]);
    }
    machine.submit(0, RECORD, MOVE | RECORDED, SOURCE, DESTINATION, 100);
    machine.submit(1, RECORD, MOVE | RECORDED, SOURCE, DESTINATION, 50);
    assert_eq!(machine.command(3, 0), 0);
    for (pasid, byte, length) in [(PASID, 1, 100), (OTHER_PASID, 2, 50)] {
        assert_eq!(machine.get(pasid, RECORD, 1), [1]);
        let expected = [vec![byte; length], vec![0; 100 - length]].concat();
        assert_eq!(machine.get(pasid, DESTINATION, 100), expected);
    }
}

#[test]
fn what_was_unmapped_is_not_reached_any_more() {
    let machine = Machine::ready();
    machine.put(PASID, SOURCE, &[1; 0x3000]);
    machine.put(PASID, DESTINATION, &[0; 0x3000]);
    assert_eq!(machine.run(MOVE | RECORDED, SOURCE, DESTINATION, 0x3000, |_| false)[0], 1);
    let frame = machine.physical(PASID, DESTINATION + PAGE);
    machine.unmap(PASID, DESTINATION + PAGE);
    machine.memory.write_obj(0x55_u8, frame).unwrap();
    let record = machine.run(MOVE | RECORDED, SOURCE, DESTINATION, 0x3000, |_| false);
    assert_eq!(record[0], 0x83);
    assert_eq!(record[4..8], 0x1000_u32.to_le_bytes());
    assert_eq!(record[8..16], (DESTINATION + PAGE).to_le_bytes());
    // With blocking the fault handler has the last word.
    let record = machine.run(MOVE | BLOCK, SOURCE, DESTINATION, 0x3000, |_| false);
    assert_eq!((record[0], &record[8..16]), (0x84, &(DESTINATION + PAGE).to_le_bytes()[..]));
    assert_eq!(machine.memory.read_obj::<u8>(frame).unwrap(), 0x55);
    // A read-only page is a fault for writing only.
    machine.put(PASID, SOURCE + 0x3000, &[7; 8]);
    let leaf = machine.leaf(PASID, SOURCE + 0x3000);
    let entry = machine.load(leaf) & !WRITABLE;
    machine.unmap(PASID, SOURCE + 0x3000);
    machine.store(leaf, entry);
    assert_eq!(machine.run(MOVE | RECORDED, SOURCE + 0x3000, DESTINATION, 8, |_| false)[0], 1);
    assert_eq!(machine.run(FILL | RECORDED, 0, SOURCE + 0x3000, 8, |_| false)[0], 0x83);
    assert_eq!(machine.run(FILL | BLOCK, 0, SOURCE + 0x3000, 8, |_| false)[0], 0x84);
    assert_eq!(machine.get(PASID, SOURCE + 0x3000, 8), [7; 8]);
    assert_eq!(machine.faults(), 0);
}

#[test]
fn completion_record_is_brought_in_by_a_page_request() {
    let machine = Machine::ready();
    machine.put(PASID, DESTINATION, &[0; 16]);
    machine.submit(0, RECORD, FILL | RECORDED, u64::MAX, DESTINATION, 16);
    let end = Instant::now() + PATIENCE;
    while machine.serve(|request| request.addr() == RECORD) == 0 {
        assert!(Instant::now() < end, "no page request");
    }
    assert_eq!(machine.command(8, 1), 0);
    assert_eq!(machine.get(PASID, RECORD, 1), [1]);
    assert_eq!(machine.get(PASID, DESTINATION, 16), [0xff; 16]);
}

#[test]
fn a_process_that_dies_with_work_in_flight_is_drained() {
    let machine = Machine::ready();
    for n in 0..16 {
        machine.submit(0, RECORD, FILL | BLOCK, u64::MAX, DESTINATION + n * PAGE, 8);
    }
    let end = Instant::now() + PATIENCE;
    while machine.read_unit(offset::PQT) < 4 * 32 {
        assert!(Instant::now() < end, "no page requests");
    }
    // idxd_file_dev_release: drain, with the fault handler refusing whatever comes.
    machine.messages.0.lock().unwrap().clear();
    machine.write(CMD, 1 << 31 | 8 << 20 | 1);
    assert_eq!(machine.read(CMDSTATUS) >> 31, 1);
    while machine.read(CMDSTATUS) >> 31 == 1 {
        machine.serve(|_| false);
        assert!(Instant::now() < end, "the drain does not end");
    }
    assert_eq!(machine.await_command(), 0);
    assert_eq!(machine.command(10, 1), 0);
    assert_eq!(machine.read_unit(offset::PQT), machine.read_unit(offset::PQH));
    // No record could be written: the first is told by the software error register.
    assert_eq!(machine.read(SWERROR) >> 8 & 0xff, 0x1a);
    machine.write(SWERROR, 3);
    machine.write(WQCFG + 8, 0x1000_00a3 | PASID.get() << 8);
    machine.write(WQCFG + 12, 31 | 5 << 5);
    assert_eq!(machine.command(6, 0), 0);
    machine.put(PASID, DESTINATION, &[0; 8]);
    assert_eq!(machine.run(FILL | RECORDED, u64::MAX, DESTINATION, 8, |_| false)[0], 1);
}

#[test]
fn a_pasid_without_a_valid_entry_reaches_nothing() {
    // Not present is a page fault, whose page request the unit refuses; reserved bits refuse the translation.
    // \[S 7.1.3\]
    for (first_qword, code) in [(0, 0x1a), (PRESENT | 1 << 10, 0x22)] {
        let machine = Machine::ready();
        assert_eq!(machine.command(10, 1), 0);
        let unbound = Pasid::truncated(0x77);
        machine.store(machine.pasid_entry(unbound), first_qword);
        machine.write(WQCFG + 8, 0x1000_00a3 | unbound.get() << 8);
        machine.write(WQCFG + 12, 31 | 5 << 5);
        assert_eq!(machine.command(6, 0), 0);
        machine.submit(0, RECORD, FILL | RECORDED, u64::MAX, DESTINATION, 8);
        assert_eq!(machine.command(3, 0), 0);
        assert_eq!(machine.read(SWERROR) >> 8 & 0xff, code);
        assert_ne!(machine.faults(), 0);
    }
}

#[test]
fn function_level_reset_ends_blocked_work() {
    let machine = Machine::ready();
    machine.submit(0, RECORD, FILL | BLOCK, u64::MAX, DESTINATION, 8);
    let end = Instant::now() + PATIENCE;
    while machine.read_unit(offset::PQT) == 0 {
        assert!(Instant::now() < end, "no page request");
    }
    let pcie = machine.capability(0x10);
    machine.dsa.config_write(pcie + 8, &[0x10, 0xa8]);
    assert_eq!(machine.config(4) & 6, 0);
    assert_eq!(machine.read(GENSTS), 0);
    assert_eq!(machine.read(MSIX_TABLE + 12), 1);
    machine.serve(|_| true);
    machine.enable_function();
    machine.enable_device();
    machine.put(PASID, SOURCE, &[3; 8]);
    assert_eq!(machine.run(MOVE | BLOCK, SOURCE, DESTINATION, 8, |_| true)[0], 1);
}

#[test]
fn disabling_bus_mastering_under_the_driver_halts_the_device() {
    let machine = Machine::ready();
    machine.set_config(4, 2);
    assert_eq!(machine.read(GENSTS), 3);
    assert_eq!(machine.read(SWERROR) >> 8 & 0xff, 0x51);
    machine.write(CMD, 5 << 20);
    assert_eq!(machine.read(CMDSTATUS), 0);
    assert_eq!(machine.read(GENSTS), 0);
}

#[test]
fn a_device_can_be_dropped_with_work_in_flight() {
    let machine = Machine::ready();
    for n in 0..8 {
        machine.submit(0, RECORD, FILL | BLOCK, u64::MAX, DESTINATION + n * PAGE, 8);
    }
    let end = Instant::now() + PATIENCE;
    while machine.read_unit(offset::PQT) == 0 {
        assert!(Instant::now() < end, "no page request");
    }
    let Machine { dsa, unit, .. } = machine;
    drop(dsa);
    drop(unit);
}
