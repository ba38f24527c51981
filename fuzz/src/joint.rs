// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The joint against a guest that writes its registers, queue and tables as it likes, devices that ask for anything, and a
//! host that refuses now and then. What must hold: nothing panics; no rule of `HostIommu` is broken; once a global
//! invalidation has completed, shadow, host and tables agree; nothing is held when the joint has gone.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::str::FromStr;
use std::sync::Arc;

use arbitrary::Arbitrary;
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::tempfile::TempFile;
use vsva::{
    Assigned, Attachment, DeviceId, FaultPasid, HostFault, HostIommu, HostMemory, Joint, SoftHost,
    SoftHostConfig,
};
use vtd_spec::registers::offset;
use vtd_spec::{FaultReason, Pasid, SourceId};
use vtd_unit::{
    Access, Endpoint, EndpointSink, Message, Notify, PageGroupResponse, PageRequest, Requester, Translation,
    Unit, UnitConfig,
};

use super::ledger::Ledger;

use crate::steps::steps;
use crate::until::until;

type Memory = GuestMemoryMmap<()>;

/// Units of different capabilities; few PASIDs, so that a directory is read in no time.
const CONFIGS: [&str; 8] = [
    "",
    "srs=on,eafs=on,rps=on",
    "vcmd=on,fault-records=1",
    "vcmd=early,fs5lp=off,fs1gp=off,esrtps=off",
    "ssts=on,nest=on,ssads=on",
    "prs=off,sms=off,pds=off,nwfs=off,dt=off",
    "smpwc=off,psi=off,ir=on,eim=on,mamv=0",
    "srs=on,eafs=on,vcmd=on,iotlb-entries=1,structure-entries=0",
];
/// 256 PASIDs.
const PASID_BITS: u32 = 8;

const ROOT: u64 = 0x1000;
const CONTEXT: u64 = 0x2000;
const DIRECTORY: u64 = 0x3000;
const TABLES: u64 = 0x4000;
const TABLE_COUNT: u64 = 4;
const FIRST: u64 = 0x8000;
const REQUESTS: u64 = 0xd000;
const QUEUE: u64 = 0xe000;
const QUEUE_BYTES: u64 = 0x2000;
/// Where the last invalidation's wait says that it is done.
const STATUS: u64 = 0x1_0000;
const DATA: u64 = 0x2_0000;
const MEMORY: u64 = 4 << 20;
const FUNCTIONS: [SourceId; 2] = [SourceId::new(0, 3, 0), SourceId::new(0xff, 0x1f, 7)];

/// One run: a guest, a host, and what is done to them.
#[derive(Arbitrary, Debug)]
pub struct Input {
    config: u8,
    /// A soft host behind the books, or the books alone.
    soft: bool,
    identical_pasids: bool,
    /// Start from valid tables and a queue, so that little damage goes deep.
    prepared: bool,
    #[arbitrary(with = steps::<_, 128>)]
    actions: Vec<Action>,
}

/// A quadword of memory that means something.
#[derive(Arbitrary, Debug)]
enum Place {
    Root(u8),
    Context(u8),
    Directory(u8),
    PasidEntry(u8, u16),
    First(u8, u16),
    Queue(u16),
    Any(u64),
}

impl Place {
    fn address(&self) -> u64 {
        match *self {
            Self::Root(index) => ROOT + u64::from(index) * 8,
            Self::Context(index) => CONTEXT + u64::from(index) * 8,
            Self::Directory(index) => DIRECTORY + u64::from(index & 7) * 8,
            Self::PasidEntry(table, index) => table_of(table) + u64::from(index & 0x1ff) * 8,
            Self::First(table, index) => FIRST + u64::from(table % 5) * 0x1000 + u64::from(index & 0x1ff) * 8,
            Self::Queue(index) => QUEUE + u64::from(index) * 8 % QUEUE_BYTES,
            Self::Any(address) => address & !7,
        }
    }
}

fn table_of(table: u8) -> u64 {
    TABLES + u64::from(table) % TABLE_COUNT * 0x1000
}

/// What a guest writes.
#[derive(Arbitrary, Debug)]
enum Value {
    Any(u64),
    Bit(u8),
    Pointer(Place, u16),
    Small(u8),
}

impl Value {
    fn get(&self) -> u64 {
        match self {
            Self::Any(value) => *value,
            Self::Bit(bit) => 1 << (bit & 63),
            Self::Pointer(place, flags) => place.address() & !0xfff | u64::from(*flags) & 0xfff,
            Self::Small(value) => u64::from(*value),
        }
    }
}

/// Who asks.
#[derive(Arbitrary, Debug)]
struct Asker {
    function: bool,
    pasid: Option<u8>,
    far: bool,
    privileged: bool,
}

impl Asker {
    fn pasid(&self) -> Option<Pasid> {
        self.pasid.map(|pasid| Pasid::truncated(u32::from(pasid) << if self.far { 12 } else { 0 }))
    }

    fn requester(&self) -> Requester {
        Requester { pasid: self.pasid(), privileged: self.privileged }
    }
}

#[derive(Arbitrary, Debug)]
enum Action {
    /// A PASID entry that may well be valid.
    Entry {
        pasid: u8,
        pgtt: u8,
        domain: u8,
        table: u8,
        flags: u8,
    },
    Store {
        at: Place,
        value: Value,
    },
    Write {
        at: u16,
        wide: bool,
        value: Value,
    },
    Command {
        bits: u8,
    },
    VirtualCommand {
        early: bool,
        command: u8,
        pasid: u8,
    },
    /// PASID-cache and PASID-based invalidations of the kinds that there are.
    Announce {
        kind: u8,
        domain: u8,
        pasid: u8,
        range: u8,
    },
    Descriptor {
        qwords: [u64; 4],
    },
    Respond {
        by: Asker,
        group: u16,
        code: u8,
    },
    Access {
        by: Asker,
        at: u16,
        write: bool,
    },
    Request {
        by: Asker,
        at: u16,
        flags: u8,
        group: u16,
    },
    /// The host says something of a PASID that need not be anyone's.
    HostRequest {
        by: Asker,
        flags: u8,
        group: u16,
    },
    HostFault {
        by: Asker,
        of_device: bool,
        reason: u8,
        address: u64,
    },
    Ats {
        function: bool,
        on: bool,
    },
    Refuse {
        one_in: u8,
        seed: u64,
    },
    Unmap {
        page: u8,
        mapped: bool,
    },
    ResetDevice {
        function: bool,
    },
    Reset {
        boot: bool,
    },
}

struct Quiet;

impl Notify for Quiet {
    fn message(&self, _: Message) {}
}

impl EndpointSink for Quiet {
    fn page_group_response(&self, response: PageGroupResponse) {
        assert!(response.group < 512);
    }
}

struct Machine {
    memory: Arc<Memory>,
    unit: Unit<Memory>,
    soft: Option<Arc<SoftHost>>,
    ledger: Arc<Ledger>,
    joint: Joint<Memory>,
    assigned: Vec<Arc<Assigned<Memory>>>,
    ports: Vec<Endpoint<HostMemory>>,
    tail: u64,
}

/// Runs one input. Panics where something that must hold does not.
pub fn run(input: &Input) {
    let mut machine = Machine::new(input);
    for action in &input.actions {
        machine.act(action);
    }
    machine.agrees();
    let Machine { joint, ledger, soft, .. } = machine;
    drop(joint);
    // The unit's thread may still be giving back what a response or a command of the guest's has released.
    let empty = || ledger.is_empty() && soft.as_ref().is_none_or(|soft| soft.allocated_pasids() == 0);
    let soon = (0..1000).any(|_| {
        empty() || {
            std::thread::sleep(std::time::Duration::from_millis(1));
            false
        }
    });
    assert!(soon, "something stays allocated");
}

impl Machine {
    fn new(input: &Input) -> Self {
        let mut config = UnitConfig::from_str(CONFIGS[usize::from(input.config) % CONFIGS.len()]).unwrap();
        config.pss = PASID_BITS as u8 - 1;
        let file = TempFile::new().unwrap().into_file();
        file.set_len(MEMORY).unwrap();
        let range = (GuestAddress(0), MEMORY as usize, Some(FileOffset::new(file, 0)));
        let memory = Arc::new(Memory::from_ranges_with_files([range]).unwrap());
        let unit = Unit::new(&config, Arc::clone(&memory), Arc::new(Quiet)).unwrap();
        let soft = input.soft.then(|| {
            let mut host = SoftHostConfig { table_bytes: 16 << 20, ..SoftHostConfig::default() };
            host.identical_pasids = input.identical_pasids;
            host.pasid_quota = 100;
            (host.unit.srs, host.unit.eafs, host.unit.iotlb_entries) = (true, true, 64);
            SoftHost::new(&host, &memory).unwrap()
        });
        let (mut ids, mut ports) = (vec![DeviceId(1), DeviceId(2)], Vec::new());
        let ledger = match &soft {
            Some(soft) => {
                let functions = FUNCTIONS.map(|_| soft.function(Arc::new(Quiet), Arc::new(Quiet)).unwrap());
                (ids, ports) = functions.into_iter().unzip();
                Ledger::of(Arc::clone(soft) as Arc<dyn HostIommu>)
            }
            None => Ledger::new(input.identical_pasids, 100),
        };
        let joint = Joint::new(&unit, Arc::clone(&ledger) as Arc<dyn HostIommu>, None).unwrap();
        let assigned = FUNCTIONS.into_iter().zip(ids).map(|(at, id)| joint.assign(at, id).unwrap()).collect();
        let mut machine = Self { memory, unit, soft, ledger, joint, assigned, ports, tail: 0 };
        if input.prepared {
            machine.prepare(&config);
            machine.boot();
            machine.submit([7 | 3 << 4, 0, 0, 0]);
        }
        machine
    }

    /// Tables of both functions, and a page table.
    fn prepare(&self, config: &UnitConfig) {
        for source_id in FUNCTIONS {
            let half = u64::from(source_id.devfn() >> 7) * 8;
            self.store(ROOT + u64::from(source_id.bus()) * 16 + half, CONTEXT | 1);
            let flags = if config.dt { 1 << 2 } else { 0 } | if config.prs { 1 << 4 } else { 0 };
            let context = CONTEXT + u64::from(source_id.devfn() & 0x7f) * 32;
            self.store(context, DIRECTORY | flags | 1 << 3 | 1);
        }
        for table in 0..TABLE_COUNT {
            self.store(DIRECTORY + table * 8, table_of(table as u8) | 1);
        }
        for level in 0..4 {
            self.store(FIRST + level * 0x1000, (FIRST + (level + 1) * 0x1000) | 7);
        }
        for number in 0..6 {
            let entry = TABLES + number * 64;
            self.store(entry + 16, FIRST);
            self.store(entry + 8, (1 + (number & 1)) | if config.smpwc { 1 << 23 } else { 0 });
            self.store(entry, 1 << 6 | 1);
        }
        for page in 0..16 {
            self.store(FIRST + 0x3000 + page * 8, (DATA + page * 0x1000) | 7);
        }
    }

    /// Queues, root table and translation on, whatever was before.
    fn boot(&mut self) {
        self.tail = 0;
        self.unit.write(offset::FSTS, &0x7fu32.to_le_bytes());
        self.unit.write(offset::IQT, &0u64.to_le_bytes());
        self.unit.write(offset::IQA, &(QUEUE | 1 << 11 | 1).to_le_bytes());
        self.unit.write(offset::PQA, &REQUESTS.to_le_bytes());
        self.unit.write(offset::RTADDR, &(ROOT | 0x400).to_le_bytes());
        for bits in [0x0400_0000u32, 0x4400_0000, 0x8400_0000] {
            self.unit.write(offset::GCMD, &bits.to_le_bytes());
        }
    }

    fn store(&self, address: u64, value: u64) {
        // Where there is no memory nothing is written.
        let _ = self.memory.write_obj(value, GuestAddress(address));
    }

    fn submit(&mut self, qwords: [u64; 4]) {
        for (at, qword) in (QUEUE + self.tail..).step_by(8).zip(qwords) {
            self.store(at, qword);
        }
        self.tail = (self.tail + 32) % QUEUE_BYTES;
        self.unit.write(offset::IQT, &self.tail.to_le_bytes());
    }

    /// Where a descriptor has stopped the queue, puts a wait without effect in its place and clears the error, as a kernel does:
    /// nothing behind it would be looked at otherwise. \[Linux drivers/iommu/intel/dmar.c: qi_check_fault\]
    fn recover(&self) {
        let (mut status, mut head) = ([0; 4], [0; 8]);
        self.unit.read(offset::FSTS, &mut status);
        let errors = u32::from_le_bytes(status) & 0x70;
        if errors != 0 {
            self.unit.read(offset::IQH, &mut head);
            let at = QUEUE + u64::from_le_bytes(head) % QUEUE_BYTES;
            for (at, qword) in (at..).step_by(8).zip([5 | 1 << 6, 0, 0, 0]) {
                self.store(at, qword);
            }
            self.unit.write(offset::FSTS, &errors.to_le_bytes());
        }
    }

    fn port(&self, function: bool) -> Option<&Endpoint<HostMemory>> {
        self.ports.get(usize::from(function))
    }

    fn act(&mut self, action: &Action) {
        match action {
            Action::Entry { pasid, pgtt, domain, table, flags } => {
                let at = table_of(pasid >> 6) + u64::from(pasid & 0x3f) * 64;
                let pgtt = [1, 1, 1, 4, 3, 0, 7, 2][usize::from(pgtt & 7)];
                let options = u64::from(flags & 0b1001_0101 & (flags >> 1 | flags << 1));
                self.store(at + 16, (FIRST + u64::from(table & 3) * 0x1000) | options);
                self.store(at + 8, u64::from(domain & 3) | if flags & 8 == 0 { 1 << 23 } else { 0 });
                self.store(at, pgtt << 6 | u64::from(flags & 2 == 0) | u64::from(flags & 0x20 != 0) << 1);
            }
            Action::Store { at, value } => self.store(at.address(), value.get()),
            Action::Write { at, wide, value } => {
                let bytes = value.get().to_le_bytes();
                self.unit.write(u64::from(at & 0xffc), if *wide { &bytes } else { &bytes[..4] });
            }
            Action::Command { bits } => {
                self.unit.write(offset::GCMD, &(u32::from(*bits) << 24).to_le_bytes());
            }
            Action::VirtualCommand { early, command, pasid } => {
                let (at, shift) = if *early { (0xe10, 8) } else { (0xe00, 8) };
                let value = u64::from(command & 3) | u64::from(*pasid) << shift;
                self.unit.write(at, &value.to_le_bytes());
            }
            Action::Announce { kind, domain, pasid, range } => {
                let (domain, pasid) = (u64::from(domain & 3) << 16, u64::from(*pasid) << 32);
                let function = u64::from(FUNCTIONS[usize::from(*kind >> 7)].0);
                let range = u64::from(range & 0xf) << 12 | u64::from(range >> 4);
                self.recover();
                self.submit(match kind % 10 {
                    0 => [7 | 3 << 4, 0, 0, 0],
                    1 => [7 | domain, 0, 0, 0],
                    2 | 3 => [7 | 1 << 4 | domain | pasid, 0, 0, 0],
                    4 => [6 | 2 << 4 | domain | pasid, 0, 0, 0],
                    5 => [6 | 3 << 4 | domain | pasid, range, 0, 0],
                    6 => [8 | function << 16 | pasid, range, 0, 0],
                    7 => [1 | 3 << 4 | domain | function << 32, 0, 0, 0],
                    8 => [2 | 2 << 4 | domain, 0, 0, 0],
                    _ => [5 | 1 << 5 | 7 << 32, STATUS + 8, 0, 0],
                });
            }
            Action::Descriptor { qwords } => self.submit(*qwords),
            Action::Respond { by, group, code } => {
                let function = u64::from(FUNCTIONS[usize::from(by.function)].0);
                let pasid = by.pasid().map_or(0, |pasid| 1 << 4 | u64::from(pasid.get()) << 32);
                let code = [0, 1, 0xf, 5][usize::from(code & 3)] << 12;
                self.submit([9 | pasid | code | function << 16, u64::from(group & 0x1ff) << 3, 0, 0]);
            }
            Action::Access { by, at, write } => {
                let Some(port) = self.port(by.function) else { return };
                let (requester, mut data) = (by.requester(), [0x5a; 32]);
                let _ = match write {
                    true => port.write(requester, u64::from(*at), &data),
                    false => port.read(requester, u64::from(*at), &mut data),
                };
            }
            Action::Request { by, at, flags, group } => {
                if let Some(port) = self.port(by.function) {
                    port.page_request(page_request(by, u64::from(*at), *flags, *group));
                }
            }
            Action::HostRequest { by, flags, group } => {
                let device = self.assigned[usize::from(by.function)].device();
                // What a host passes on has been through its unit.
                let request = page_request(by, 0x1000, *flags, group & 0x1ff);
                if let Some(events) = self.ledger.events(device) {
                    events.page_request(device, request, 0);
                }
            }
            Action::HostFault { by, of_device, reason, address } => {
                let device = self.assigned[usize::from(by.function)].device();
                let pasid = match by.pasid() {
                    None => FaultPasid::None,
                    Some(pasid) if *of_device => FaultPasid::Device(pasid),
                    Some(pasid) => FaultPasid::Host(pasid),
                };
                let reason = FaultReason::ALL[usize::from(*reason) % FaultReason::ALL.len()];
                let (access, privileged) = (Access::Write, by.privileged);
                if let Some(events) = self.ledger.events(device) {
                    events.fault(device, HostFault { reason, pasid, address: *address, access, privileged });
                }
            }
            Action::Ats { function, on } => {
                if let Some(port) = self.port(*function) {
                    port.set_ats_enabled(*on);
                }
            }
            Action::Refuse { one_in, seed } => self.ledger.refuse(u64::from(one_in & 7), *seed),
            Action::Unmap { page, mapped } => {
                if let Some(soft) = &self.soft {
                    // Whole pages of the host, or what it refuses.
                    let _ = soft.set_mapped(u64::from(page & 1) << 21, 2 << 20, *mapped);
                }
            }
            Action::ResetDevice { function } => self.assigned[usize::from(*function)].reset(),
            Action::Reset { boot } => {
                self.unit.reset();
                if *boot {
                    self.boot();
                }
            }
        }
    }

    /// After a global invalidation, shadow and host have what the tables say.
    fn agrees(&mut self) {
        self.ledger.refuse(0, 0);
        self.unit.reset();
        self.boot();
        self.store(STATUS, 1);
        // Whatever the guest had in its queue before is not looked at any more.
        self.submit([7 | 3 << 4, 0, 0, 0]);
        self.submit([5 | 1 << 5 | 2 << 32, STATUS, 0, 0]);
        let status = || self.memory.read_obj::<u32>(GuestAddress(STATUS)).unwrap();
        until("the invalidation never completes", || status() == 2);
        for assigned in &self.assigned {
            let bound = assigned.bound();
            let by_guest: BTreeMap<Pasid, Attachment> =
                bound.iter().map(|(guest, _, to)| (*guest, *to)).collect();
            let by_host: BTreeMap<Pasid, Attachment> =
                bound.iter().map(|(_, host, to)| (*host, *to)).collect();
            assert_eq!(self.ledger.reached(assigned.device()), by_guest);
            assert_eq!(self.ledger.attached(assigned.device()), by_host);
            let said = self.tables_say(assigned.source_id());
            assert!(by_guest.iter().all(|(guest, to)| said.get(guest) == Some(to)), "{by_guest:?} {said:?}");
            // What is not bound, the host has refused: for its quota, or for what lies outside its memory.
            if self.soft.is_none() && said.len() * FUNCTIONS.len() <= 100 {
                assert_eq!(by_guest, said);
            }
        }
    }

    fn tables_say(&self, source_id: SourceId) -> BTreeMap<Pasid, Attachment> {
        let mut said = BTreeMap::new();
        self.unit.bindings(source_id, Pasid::ZERO, &|| false, &mut |pasid, binding| {
            let to = match binding.translation {
                Translation::PassThrough => Some(Attachment::SecondStage),
                Translation::FirstStage(table) => Some(Attachment::Nested(table)),
                Translation::SecondStage => None,
            };
            said.extend(to.map(|to| (pasid, to)));
            ControlFlow::Continue(())
        });
        said
    }
}

fn page_request(by: &Asker, address: u64, flags: u8, group: u16) -> PageRequest {
    PageRequest {
        requester: by.requester(),
        address,
        read: flags & 1 != 0,
        write: flags & 2 != 0,
        last: flags & 4 != 0,
        group,
    }
}
