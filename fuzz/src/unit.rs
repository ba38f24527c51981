// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The remapping unit against a guest that writes its registers, queues and tables as it likes, and devices that ask
//! for anything. What must hold: nothing panics, work is bounded, registers stay within their definition, errors name
//! addresses of the request, and no page request is answered that was not made.

use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arbitrary::Arbitrary;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vtd_spec::descriptors::{
    ContextCache, ContextGranularity, DeviceTlb, FunctionMask, InterruptEntryCache, InterruptGranularity,
    Iotlb, IotlbGranularity, PageGroupResponse as PageGroupResponseDescriptor, PasidCache,
    PasidCacheGranularity, PasidDeviceTlb, PasidIotlb, PasidIotlbGranularity, Wait,
};
use vtd_spec::registers::offset;
use vtd_spec::{AddressRange, Descriptor, DomainId, InterruptRemapEntry, Pasid, ResponseCode, SourceId};
use vtd_unit::{
    Access, DeviceTlbInvalidation, DmaError, Endpoint, EndpointSink, Message, Notify, PageGroupResponse,
    PageRequest, Requester, Unit, UnitConfig,
};

use crate::steps::steps;
use crate::until::until;

type Memory = GuestMemoryMmap<()>;

/// Units of different capabilities and of small caches, where collisions are seen.
const CONFIGS: [&str; 12] = [
    "",
    "iotlb-entries=2,fault-records=2",
    "ir=on,eim=on,fault-records=100",
    "srs=on,eafs=on,rps=on",
    "cm=off,esrtps=off,psi=off,fs5lp=off,fs1gp=off",
    "ssts=on,nest=on,ssads=on",
    "ssts=on,nest=on,structure-entries=0,iotlb-entries=1",
    "ssts=on,nest=on,ssads=on,srs=on,eafs=on,rps=on,ir=on,haw=36",
    "smpwc=off,nwfs=off,pss=6,sms=off",
    "prs=off,sms=off,pds=off,nwfs=off,dt=off,haw=52",
    "vcmd=final,ir=on",
    "vcmd=early,psi=off",
];

const ROOT: u64 = 0x1000;
const CONTEXT: u64 = 0x2000;
const DIRECTORY: u64 = 0x3000;
const PASID_TABLE: u64 = 0x4000;
/// First-stage tables, top to bottom, of which a 4-level walk skips the first.
const FIRST: u64 = 0x5000;
/// Second-stage tables, likewise.
const SECOND: u64 = 0xa000;
const QUEUE: u64 = 0x1_0000;
const REQUESTS: u64 = 0x1_4000;
const REMAPPING: u64 = 0x1_8000;
/// Mapped by the tables, page by page.
const DATA: u64 = 0x2_0000;
const MEMORY: u64 = 0x4_0000;
/// A second piece of memory behind a hole.
const FAR: u64 = 0x1_0000_0000;
const FAR_BYTES: u64 = 0x1_0000;
const FUNCTIONS: [SourceId; 3] =
    [SourceId::new(0, 3, 0), SourceId::new(0, 0x13, 7), SourceId::new(0xff, 0x1f, 7)];

/// One run: a unit, and what is done to it.
#[derive(Arbitrary, Debug)]
pub struct Input {
    config: u8,
    /// Start from valid tables and queues, so that little damage goes deep.
    prepared: bool,
    five_levels: bool,
    pgtt: u8,
    /// Prepare for legacy mode, with a queue or for register-based invalidation.
    legacy: Option<bool>,
    #[arbitrary(with = steps::<_, 256>)]
    actions: Vec<Action>,
}

/// A register, mostly one that exists.
#[derive(Arbitrary, Debug)]
enum Register {
    Named(u8),
    FaultRecord(u8),
    Any(u16),
    Outside(u64),
}

impl Register {
    fn offset(&self) -> u64 {
        const NAMED: [u64; 35] = [
            offset::VER,
            offset::CAP,
            offset::ECAP,
            offset::GCMD,
            offset::GSTS,
            offset::RTADDR,
            offset::CCMD,
            offset::FSTS,
            offset::FECTL,
            offset::FEDATA,
            offset::FEADDR,
            offset::FEUADDR,
            offset::IQH,
            offset::IQT,
            offset::IQA,
            offset::ICS,
            offset::IECTL,
            offset::IEDATA,
            offset::IQERCD,
            offset::IRTA,
            offset::PQH,
            offset::PQT,
            offset::PQA,
            offset::PRS,
            offset::PECTL,
            offset::PEADDR,
            0xe00,
            0xe08,
            0xe10,
            0xe30,
            0xf00,
            0xf04,
            0xf08,
            0xf0c,
            offset::CCMD + 4,
        ];
        match self {
            Self::Named(index) => NAMED[usize::from(*index) % NAMED.len()],
            Self::FaultRecord(index) => 0x220 + u64::from(*index) * 4,
            Self::Any(at) => u64::from(*at) & 0xfff,
            Self::Outside(at) => *at,
        }
    }
}

/// What a guest writes: something that is an address somewhere, or anything.
#[derive(Arbitrary, Debug)]
enum Value {
    Any(u64),
    Bit(u8),
    /// A place with flags in its low bits.
    Pointer(Place, u16),
    Ones,
    Small(u8),
}

impl Value {
    fn get(&self) -> u64 {
        match self {
            Self::Any(value) => *value,
            Self::Bit(bit) => 1 << (bit & 63),
            Self::Pointer(place, flags) => place.address() & !0xfff | u64::from(*flags) & 0xfff,
            Self::Ones => !0,
            Self::Small(value) => u64::from(*value),
        }
    }
}

/// A quadword of memory that means something.
#[derive(Arbitrary, Debug)]
enum Place {
    Root(u8),
    Context(u8),
    Directory(u8),
    PasidEntry(u8),
    First(u8, u8),
    Second(u8, u8),
    Queue(u16),
    Remapping(u8),
    Data(u8),
    Far(u16),
    Any(u64),
}

impl Place {
    fn address(&self) -> u64 {
        let quadword = |base: u64, index: u64| base + index * 8;
        match *self {
            Self::Root(index) => quadword(ROOT, index.into()),
            Self::Context(index) => quadword(CONTEXT, index.into()),
            Self::Directory(index) => quadword(DIRECTORY, (index & 7).into()),
            Self::PasidEntry(index) => quadword(PASID_TABLE, index.into()),
            Self::First(table, index) => quadword(FIRST + u64::from(table % 5) * 0x1000, index.into()),
            Self::Second(table, index) => quadword(SECOND + u64::from(table % 5) * 0x1000, index.into()),
            Self::Queue(index) => quadword(QUEUE, u64::from(index) % 0x800),
            Self::Remapping(index) => quadword(REMAPPING, index.into()),
            Self::Data(index) => quadword(DATA, index.into()),
            Self::Far(index) => FAR + u64::from(index) * 8 % FAR_BYTES,
            Self::Any(address) => address & !7,
        }
    }
}

/// An input address of a device.
#[derive(Arbitrary, Debug)]
enum Target {
    /// In a page that the prepared tables map.
    Mapped(u8, u16),
    Interrupt(u32),
    Physical(Place, u8),
    Any(u64),
}

impl Target {
    fn address(&self) -> u64 {
        match self {
            Self::Mapped(page, at) => u64::from(page & 0x3f) << 12 | u64::from(at & 0xfff),
            Self::Interrupt(at) => 0xfee0_0000 | u64::from(*at) & 0xf_ffff,
            Self::Physical(place, at) => place.address().wrapping_add((*at).into()),
            Self::Any(address) => *address,
        }
    }
}

#[derive(Arbitrary, Debug)]
struct Asker {
    function: u8,
    pasid: Option<u8>,
    any_pasid: Option<u32>,
    privileged: bool,
}

impl Asker {
    fn requester(&self) -> Requester {
        // Few PASIDs that the tables know, and seldom any of the others.
        let number =
            self.any_pasid.filter(|number| number % 8 == 0).or(self.pasid.map(|pasid| u32::from(pasid & 3)));
        Requester { pasid: number.map(Pasid::truncated), privileged: self.privileged }
    }
}

#[derive(Arbitrary, Debug)]
enum Action {
    Read {
        at: Register,
        bytes: u8,
    },
    Write {
        at: Register,
        wide: bool,
        value: Value,
    },
    WriteBytes {
        at: Register,
        bytes: Vec<u8>,
    },
    Command {
        bits: u8,
    },
    Store {
        at: Place,
        value: Value,
    },
    /// A descriptor behind those already there; rung for or not.
    Submit {
        kind: u8,
        low: Value,
        high: Value,
        ring: bool,
    },
    Descriptor {
        qwords: [u64; 4],
    },
    /// A descriptor without a mistake, of what the tables know, and a doorbell.
    Invalidate {
        what: u8,
        pasid: u8,
        domain: u8,
        function: u8,
        at: Target,
        order: u8,
        flags: u8,
    },
    /// As a kernel does: the descriptor that was refused is replaced, and all faults are cleared.
    Recover,
    /// An interrupt remapping table entry that delivers, for a function or for all.
    InterruptEntry {
        index: u8,
        vector: u8,
        function: Option<u8>,
    },
    /// A message in remappable format.
    Remappable {
        function: u8,
        index: u8,
        subhandle: Option<u8>,
    },
    Access {
        by: Asker,
        at: Target,
        bytes: u16,
        access: u8,
    },
    Swap {
        by: Asker,
        at: Target,
        values: [u64; 2],
    },
    Pin {
        by: Asker,
        at: Target,
        bytes: u8,
    },
    Probe {
        by: Asker,
        at: Target,
        bytes: u32,
    },
    Request {
        by: Asker,
        at: Target,
        flags: u8,
        group: u16,
    },
    Ats {
        function: u8,
        on: bool,
    },
    Interrupt {
        function: u8,
        address: u64,
        data: u32,
    },
    Unsolicited {
        function: u8,
    },
    Replug {
        function: u8,
    },
    Reset {
        warm: bool,
    },
}

#[derive(Default)]
struct Counts {
    messages: AtomicU64,
    invalidations: AtomicU64,
    responses: AtomicU64,
}

impl Notify for Counts {
    fn message(&self, _: Message) {
        self.messages.fetch_add(1, Ordering::Relaxed);
    }
}

impl EndpointSink for Counts {
    fn page_group_response(&self, response: PageGroupResponse) {
        assert!(response.group < 512);
        self.responses.fetch_add(1, Ordering::Relaxed);
    }

    fn device_tlb_invalidation(&self, invalidation: DeviceTlbInvalidation) {
        assert!(invalidation.range.order() <= 52);
        self.invalidations.fetch_add(1, Ordering::Relaxed);
    }
}

struct Machine {
    unit: Unit<Memory>,
    memory: Arc<Memory>,
    counts: Arc<Counts>,
    endpoints: Vec<Endpoint<Memory>>,
    tail: u64,
    /// Descriptors that may have been fetched, at the most: what is queued, or a whole ring.
    fetched: u64,
    /// Page requests that may be answered without software.
    requests: u64,
    /// Anything that may raise an event.
    events: u64,
}

/// Runs one input. Panics where something that must hold does not.
pub fn run(input: &Input) {
    let mut machine = Machine::new(input);
    for action in &input.actions {
        machine.act(action);
        machine.check_registers();
    }
    machine.comes_to_rest();
}

impl Machine {
    fn new(input: &Input) -> Self {
        let config = UnitConfig::from_str(CONFIGS[usize::from(input.config) % CONFIGS.len()]).unwrap();
        let ranges = [(GuestAddress(0), MEMORY as usize), (GuestAddress(FAR), FAR_BYTES as usize)];
        let memory = Arc::new(Memory::from_ranges(&ranges).unwrap());
        let counts = Arc::new(Counts::default());
        let unit = Unit::new(&config, Arc::clone(&memory), Arc::clone(&counts) as Arc<dyn Notify>).unwrap();
        let endpoints = FUNCTIONS
            .map(|source_id| unit.endpoint(source_id, Arc::clone(&counts) as Arc<dyn EndpointSink>).unwrap())
            .into();
        let machine = Self { unit, memory, counts, endpoints, tail: 0, fetched: 0, requests: 0, events: 0 };
        if input.prepared {
            machine.prepare(input, &config);
        }
        machine
    }

    /// Tables for every function and PASIDs 0 to 3, queues, translation on.
    fn prepare(&self, input: &Input, config: &UnitConfig) {
        for source_id in FUNCTIONS {
            if input.legacy.is_some() {
                self.store(ROOT + u64::from(source_id.bus()) * 16, CONTEXT | 1);
                let context = CONTEXT + u64::from(source_id.devfn()) * 16;
                let kind = if config.dt { u64::from(input.pgtt % 3) << 2 } else { 0 };
                self.store(context, (SECOND + 0x1000) | kind | 1);
                self.store(context + 8, 1 << 8 | 2);
                continue;
            }
            let half = u64::from(source_id.devfn() >> 7) * 8;
            self.store(ROOT + u64::from(source_id.bus()) * 16 + half, CONTEXT | 1);
            let context = CONTEXT + u64::from(source_id.devfn() & 0x7f) * 32;
            let flags = if config.dt { 1 << 2 } else { 0 } | if config.prs { 1 << 4 } else { 0 };
            self.store(context, DIRECTORY | flags | 1 << 3 | 1);
        }
        self.store(DIRECTORY, PASID_TABLE | 1);
        let five = input.five_levels && config.fs5lp;
        let pgtt = match input.pgtt % 4 {
            1 if config.ssts => 2,
            2 if config.nest => 3,
            3 if config.pt => 4,
            _ => 1,
        };
        for number in 0..4 {
            let entry = PASID_TABLE + number * 64;
            let first = if five { FIRST | 1 << 2 } else { FIRST + 0x1000 };
            let second = if pgtt == 2 || pgtt == 3 { (SECOND + 0x1000) | 2 << 2 } else { 0 };
            self.store(entry + 16, if pgtt == 1 || pgtt == 3 { first } else { 0 });
            self.store(entry + 8, (1 + number) | if config.smpwc { 1 << 23 } else { 0 });
            self.store(entry, second | pgtt << 6 | 1);
        }
        for (base, flags) in [(FIRST, 7), (SECOND, 3)] {
            for level in 0..4 {
                self.store(base + level * 0x1000, (base + (level + 1) * 0x1000) | flags);
            }
            for page in 0..64 {
                // The second stage maps all of memory to itself, so that the first stage's tables are found.
                let output = if base == SECOND { page * 0x1000 } else { DATA + (page % 16) * 0x1000 };
                self.store(base + 0x4000 + page * 8, output | flags);
            }
        }
        self.unit.write(offset::IQA, &(QUEUE | 0x800 | 2).to_le_bytes());
        self.unit.write(offset::PQA, &REQUESTS.to_le_bytes());
        self.unit.write(offset::IRTA, &(REMAPPING | 7).to_le_bytes());
        let mode = if input.legacy.is_some() { 0 } else { 0x400 };
        self.unit.write(offset::RTADDR, &(ROOT | mode).to_le_bytes());
        let queue = if input.legacy == Some(false) { 0u32 } else { 0x0400_0000 };
        for bits in [queue, 0x4100_0000 | queue, 0x8000_0000 | queue] {
            self.unit.write(offset::GCMD, &bits.to_le_bytes());
        }
        for control in [offset::FECTL, offset::IECTL, offset::PECTL] {
            self.unit.write(control, &0u32.to_le_bytes());
        }
    }

    fn store(&self, address: u64, value: u64) {
        // Where there is no memory nothing is written.
        let _ = self.memory.write_obj(value, GuestAddress(address));
    }

    fn read32(&self, at: u64) -> u32 {
        let mut data = [0; 4];
        self.unit.read(at, &mut data);
        u32::from_le_bytes(data)
    }

    fn read64(&self, at: u64) -> u64 {
        let mut data = [0; 8];
        self.unit.read(at, &mut data);
        u64::from_le_bytes(data)
    }

    fn write(&mut self, at: u64, bytes: &[u8]) {
        // Anything may set the queue off: a whole ring of the narrowest descriptors.
        self.fetched += (4096 << 7) / 16;
        self.events += 4;
        self.unit.write(at, bytes);
    }

    fn endpoint(&self, function: u8) -> &Endpoint<Memory> {
        &self.endpoints[usize::from(function) % FUNCTIONS.len()]
    }

    fn act(&mut self, action: &Action) {
        match action {
            Action::Read { at, bytes } => self.unit.read(at.offset(), &mut vec![0; usize::from(*bytes)]),
            Action::Write { at, wide, value } => {
                let bytes = value.get().to_le_bytes();
                self.write(at.offset(), if *wide { &bytes } else { &bytes[..4] });
            }
            Action::WriteBytes { at, bytes } => self.write(at.offset(), bytes),
            Action::Command { bits } => self.write(offset::GCMD, &(u32::from(*bits) << 24).to_le_bytes()),
            Action::Store { at, value } => self.store(at.address(), value.get()),
            Action::Submit { kind, low, high, ring } => {
                self.queue([u64::from(kind & 0xf) | low.get() & !0xf, high.get(), 0, 0]);
                if *ring {
                    let tail = self.tail;
                    self.write(offset::IQT, &tail.to_le_bytes());
                }
            }
            Action::Descriptor { qwords } => self.queue(*qwords),
            Action::Invalidate { what, pasid, domain, function, at, order, flags } => {
                self.queue(descriptor(*what, *pasid, *domain, *function, at, *order, *flags).encode());
                let tail = self.tail;
                self.write(offset::IQT, &tail.to_le_bytes());
            }
            Action::Recover => {
                let head = self.read64(offset::IQH);
                let wait = Descriptor::Wait(Wait { fn_: true, ..Wait::default() }).encode();
                for (index, qword) in wait.into_iter().enumerate() {
                    self.store(QUEUE + head + 8 * index as u64, qword);
                }
                self.write(offset::FSTS, &0xf3u32.to_le_bytes());
                for record in 0..u64::from(self.unit.capabilities().cap.fault_records()) {
                    let at = self.unit.capabilities().cap.fault_record_offset() + record * 16 + 12;
                    self.write(at, &(1u32 << 31).to_le_bytes());
                }
            }
            Action::InterruptEntry { index, vector, function } => {
                let entry =
                    InterruptRemapEntry::new().with_p(true).with_vector(*vector).with_destination(1, true);
                let [low, high] = entry.to_qwords();
                // SVT 01: the source-id is compared as a whole.
                let source = function.map_or(0, |f| 1 << 18 | u64::from(FUNCTIONS[usize::from(f) % 3].0));
                let at = REMAPPING + u64::from(*index) * 16;
                self.store(at, low);
                self.store(at + 8, high & !0xf_ffff | source);
            }
            Action::Remappable { function, index, subhandle } => {
                self.events += 1;
                let shv = if subhandle.is_some() { 1 << 3 } else { 0 };
                let address = 0xfee0_0010 | u64::from(*index) << 5 | shv;
                let data = subhandle.map_or(0, u32::from);
                self.endpoint(*function).message(Message { address, data });
            }
            Action::Access { by, at, bytes, access } => {
                let (address, bytes) = (at.address(), usize::from(*bytes) % 0x3000);
                let (endpoint, requester) = (self.endpoint(by.function), by.requester());
                let result = match access % 3 {
                    0 => endpoint.read(requester, address, &mut vec![0; bytes]),
                    1 => endpoint.write(requester, address, &vec![0x5a; bytes]),
                    _ => endpoint.access(requester, address, bytes, Access::Atomic, &mut |offset, slice| {
                        assert!(offset + slice.len() <= bytes && slice.len() <= 4096);
                    }),
                };
                check_error(result, address, bytes as u64);
                self.events += 1;
            }
            Action::Swap { by, at, values: [current, new] } => {
                let address = at.address();
                let result =
                    self.endpoint(by.function).compare_and_swap(by.requester(), address, *current, *new);
                check_error(result.map(|_| ()), address, 8);
                self.events += 1;
            }
            Action::Pin { by, at, bytes } => {
                let address = at.address();
                // As many as pages: each may be refused and recorded.
                self.events += 4;
                match self.endpoint(by.function).pin(by.requester(), address) {
                    Ok(memory) => {
                        let mut data = vec![0; usize::from(*bytes)];
                        let _ = memory.read_slice(&mut data, GuestAddress(address));
                        let _ = memory.write_slice(&data, GuestAddress(address));
                    }
                    Err(error) => check_error(Err(error), address, 1),
                }
            }
            Action::Probe { by, at, bytes } => {
                let (address, bytes) = (at.address(), *bytes as usize % 0x10_0000);
                let result = self.endpoint(by.function).probe(by.requester(), address, bytes, Access::Read);
                check_error(result, address, bytes as u64);
                self.events += 1;
            }
            Action::Request { by, at, flags, group } => {
                self.requests += 1;
                self.events += 1;
                self.endpoint(by.function).page_request(PageRequest {
                    requester: by.requester(),
                    address: at.address(),
                    read: flags & 1 != 0,
                    write: flags & 2 != 0,
                    last: flags & 4 != 0,
                    group: *group,
                });
            }
            Action::Ats { function, on } => self.endpoint(*function).set_ats_enabled(*on),
            Action::Interrupt { function, address, data } => {
                self.events += 1;
                self.endpoint(*function).message(Message { address: *address, data: *data });
            }
            Action::Unsolicited { function } => {
                self.events += 1;
                self.endpoint(*function).unsolicited_invalidation_completion();
            }
            Action::Replug { function } => {
                let index = usize::from(*function) % FUNCTIONS.len();
                let sink = Arc::clone(&self.counts) as Arc<dyn EndpointSink>;
                assert!(self.unit.remove_endpoint(FUNCTIONS[index]));
                self.endpoints[index] = self.unit.endpoint(FUNCTIONS[index], sink).unwrap();
            }
            Action::Reset { warm: true } => self.unit.warm_reset(),
            Action::Reset { warm: false } => self.unit.reset(),
        }
    }

    fn queue(&mut self, qwords: [u64; 4]) {
        for (index, qword) in qwords.into_iter().enumerate() {
            self.store(QUEUE + self.tail + 8 * index as u64, qword);
        }
        self.tail = (self.tail + 32) % 0x4000;
    }

    /// What software may rely on of every register, whatever it did.
    fn check_registers(&self) {
        let capabilities = self.unit.capabilities();
        assert_eq!(self.read32(offset::VER), 0x10);
        assert_eq!(self.read64(offset::CAP), capabilities.cap.into_bits());
        assert_eq!(self.read64(offset::ECAP), capabilities.ecap.into_bits());
        assert_eq!(self.read32(offset::GCMD), 0);
        assert_eq!(self.read32(offset::GSTS) & 0x387f_ffff, 0);
        assert_eq!(self.read32(offset::FSTS) & 0xffff_008c, 0);
        assert_eq!(self.read64(offset::IQH) & !0x7_fff0, 0);
        assert_eq!(self.read64(offset::IQT) & !0x7_fff0, 0);
        assert_eq!(self.read64(offset::PQT) & !0x7_ffe0, 0);
        assert_eq!(self.read64(offset::IQERCD) & 0xffff_fff0, 0);
        assert!(self.read64(offset::IQERCD) & 0xf <= 7);
        assert_eq!(self.read32(offset::PRS) & !3, 0);
        // Of CCMD and IOTLB what is write-only or reserved, and IVA.
        assert_eq!(self.read64(offset::CCMD) & 0x07ff_ffff_ffff_0000, 0);
        assert_eq!(self.read64(0xf08) & 0x49fc_0000_ffff_ffff, 0);
        assert_eq!(self.read64(0xf00), 0);
        assert_eq!(self.read32(offset::ICS) & !1, 0);
        let records = u64::from(capabilities.cap.nfr()) + 1;
        assert!(u64::from(self.read32(offset::FSTS) >> 8 & 0xff) < records);
        for control in [offset::FECTL, offset::IECTL, offset::PECTL] {
            assert_eq!(self.read32(control) & 0x3fff_ffff, 0);
        }
    }

    /// Work ends: the queue is empty, stopped by an error or off, and no more was done than asked for.
    fn comes_to_rest(&self) {
        // A command of an invalidation register that is not done.
        let commanded = || (self.read64(offset::CCMD) | self.read64(0xf08)) >> 63 != 0;
        let at_rest = || {
            if commanded() {
                return false;
            }
            self.read32(offset::GSTS) & 1 << 26 == 0
                || self.read32(offset::FSTS) & 0x50 != 0
                || self.read64(offset::IQH) == self.read64(offset::IQT)
        };
        until("the queue never comes to rest", at_rest);
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        assert!(count(&self.counts.invalidations) <= self.fetched);
        assert!(count(&self.counts.responses) <= self.fetched + self.requests);
        assert!(count(&self.counts.messages) <= self.fetched + self.events);
    }
}

/// A descriptor of what there is: PASIDs 0 to 3, domains 1 to 4, the functions.
fn descriptor(
    what: u8,
    pasid: u8,
    domain: u8,
    function: u8,
    at: &Target,
    order: u8,
    flags: u8,
) -> Descriptor {
    let pasid = Pasid::truncated(u32::from(pasid & 3));
    let did = DomainId(1 + u16::from(domain & 3));
    let sid = FUNCTIONS[usize::from(function) % FUNCTIONS.len()];
    let range = AddressRange::new(at.address(), if order & 0xf0 == 0xf0 { order & 0x3f } else { order % 12 });
    let (am, addr, ih) = (range.order().min(18), range.base(), flags & 1 == 1);
    let addr = addr & !((1 << (12 + u32::from(am))) - 1);
    match what % 12 {
        0 => Descriptor::ContextCache(ContextCache {
            granularity: [ContextGranularity::Global, ContextGranularity::Domain, ContextGranularity::Device]
                [usize::from(flags % 3)],
            did,
            sid,
            fm: FunctionMask::None,
        }),
        1 | 2 => Descriptor::Iotlb(Iotlb {
            granularity: [IotlbGranularity::Global, IotlbGranularity::Domain, IotlbGranularity::Page]
                [usize::from(flags / 2 % 3)],
            dw: true,
            dr: true,
            did,
            am,
            ih,
            addr,
        }),
        3 | 4 => Descriptor::PasidIotlb(PasidIotlb {
            granularity: [PasidIotlbGranularity::Pasid, PasidIotlbGranularity::Page]
                [usize::from(flags / 2 % 2)],
            did,
            pasid,
            am,
            ih,
            addr,
        }),
        5 => Descriptor::PasidCache(PasidCache {
            granularity: [
                PasidCacheGranularity::Global,
                PasidCacheGranularity::Domain,
                PasidCacheGranularity::Pasid,
            ][usize::from(flags % 3)],
            did,
            pasid,
        }),
        6 => Descriptor::DeviceTlb(DeviceTlb { sid, pfsid: SourceId(0), mip: flags & 0x1f, range }),
        7 | 8 => Descriptor::PasidDeviceTlb(PasidDeviceTlb {
            sid,
            pfsid: SourceId(0),
            mip: 0,
            pasid,
            gi: flags & 1 == 1,
            range,
        }),
        9 => Descriptor::InterruptEntryCache(InterruptEntryCache {
            granularity: [InterruptGranularity::Global, InterruptGranularity::Index][usize::from(flags & 1)],
            im: 0,
            iidx: u16::from(order),
        }),
        10 => Descriptor::PageGroupResponse(PageGroupResponseDescriptor {
            pasid: (flags & 1 == 1).then_some(pasid),
            rid: sid,
            rc: ResponseCode::Success,
            prgi: u16::from(order),
        }),
        _ => Descriptor::Wait(Wait {
            interrupt: flags & 1 == 1,
            sw: flags & 2 == 2,
            fn_: flags & 4 == 4,
            pd: flags & 8 == 8,
            status_data: u32::from(order),
            status_address: DATA + u64::from(flags) * 4,
        }),
    }
}

/// A refusal names an address of the request.
fn check_error(result: Result<(), DmaError>, address: u64, bytes: u64) {
    let Err(error) = result else { return };
    let (DmaError::PageFault { address: at, .. }
    | DmaError::TranslationRefused { address: at, .. }
    | DmaError::Refused { address: at }) = error;
    assert!(at.wrapping_sub(address) < bytes.max(1), "{error} for {bytes} bytes at {address:#x}");
}
