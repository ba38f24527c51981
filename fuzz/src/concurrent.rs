// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Two functions that read while software changes the tables they read through, invalidates in all ways that are enough, and
//! asks for pages. What must hold: what is read is what the tables held at some moment between its beginning, as far as a wait
//! descriptor had completed by then, and its end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use arbitrary::Arbitrary;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vtd_spec::descriptors::{
    ContextCache, ContextGranularity, FunctionMask, Iotlb, IotlbGranularity, PasidCache,
    PasidCacheGranularity, PasidDeviceTlb, PasidIotlb, PasidIotlbGranularity, Wait,
};
use vtd_spec::registers::offset;
use vtd_spec::{AddressRange, Descriptor, DomainId, Pasid, SourceId};
use vtd_unit::{Endpoint, PageRequest, Requester, Unit, UnitConfig};

use crate::deaf::Deaf;
use crate::steps::steps;

type Memory = GuestMemoryMmap<()>;

const ROOT: u64 = 0x1000;
const CONTEXT: u64 = 0x2000;
const DIRECTORY: u64 = 0x3000;
const PASID_TABLE: u64 = 0x4000;
/// Four levels, one table each.
const TABLES: u64 = 0x5000;
const QUEUE: u64 = 0x1_0000;
const QUEUE_BYTES: u64 = 0x1000;
const STATUS: u64 = 0x1_2000;
const REQUESTS: u64 = 0x1_3000;
/// Each full of its own number.
const FRAMES: u64 = 0x2_0000;
const FRAME_COUNT: u8 = 8;
const PAGES: usize = 4;
const MEMORY: usize = 0x4_0000;
const PASID: Pasid = Pasid::truncated(1);
const DOMAIN: DomainId = DomainId(1);
const FUNCTIONS: [SourceId; 2] = [SourceId::new(0, 3, 0), SourceId::new(0, 4, 0)];
const PATIENCE: Duration = Duration::from_secs(60);

/// One run.
#[derive(Arbitrary, Debug)]
pub struct Input {
    small: bool,
    ats: [bool; 2],
    #[arbitrary(with = steps::<_, 200>)]
    steps: Vec<Step>,
}

#[derive(Arbitrary, Debug)]
enum Step {
    /// A page gets another frame, or none, and the change is announced in one of the ways that are enough.
    Change {
        page: u8,
        frame: u8,
        how: u8,
    },
    /// Nothing changes, and something is invalidated.
    Invalidate {
        page: u8,
        how: u8,
    },
    /// A function asks for a page.
    Ask {
        function: u8,
        page: u8,
    },
    Ats {
        function: u8,
        on: bool,
    },
}

/// The frames that a page had, one after the other; 0 is none.
struct Page {
    history: Vec<u8>,
    /// How far a device may have gone: what was stored last.
    stored: AtomicUsize,
    /// Behind what it may not be any more: what was complete last.
    complete: AtomicUsize,
}

struct Machine {
    memory: Arc<Memory>,
    unit: Unit<Memory>,
    endpoints: Vec<Endpoint<Memory>>,
    tail: u64,
    waits: u32,
}

/// Runs one input. Panics where something that must hold does not.
pub fn run(input: &Input) {
    let mut machine = Machine::new(input);
    let pages: Vec<_> = (0..PAGES).map(|page| Page::new(page, input)).collect();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for endpoint in machine.endpoints.clone() {
            let (pages, stop) = (&pages, &stop);
            scope.spawn(move || {
                let mut page = 0;
                while !stop.load(Ordering::Relaxed) {
                    page = (page + 1) % PAGES;
                    pages[page].check(page, &endpoint);
                }
            });
        }
        // Readers that panic are joined, and panic here.
        let stop = Stop(&stop);
        input.steps.iter().for_each(|step| machine.step(step, &pages));
        drop(stop);
    });
}

/// Ends the readers, also where the writer panics.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn address(page: usize) -> u64 {
    page as u64 * 0x1000
}

impl Page {
    /// All that the input is going to make of it; at first the first frame.
    fn new(number: usize, input: &Input) -> Self {
        let changes = input.steps.iter().filter_map(|step| match step {
            Step::Change { page, frame, .. } if usize::from(*page) % PAGES == number => {
                Some(frame % (FRAME_COUNT + 1))
            }
            _ => None,
        });
        let history = std::iter::once(1).chain(changes).collect();
        Self { history, stored: AtomicUsize::new(0), complete: AtomicUsize::new(0) }
    }

    fn check(&self, number: usize, endpoint: &Endpoint<Memory>) {
        let first = self.complete.load(Ordering::Acquire);
        let mut data = [0; 16];
        let requester = Requester { pasid: Some(PASID), privileged: false };
        let read = endpoint.read(requester, address(number) + 0x123, &mut data);
        let last = self.stored.load(Ordering::Acquire);
        let seen = if read.is_ok() { data[0] } else { 0 };
        assert!(
            read.is_err() || data.iter().all(|byte| *byte == data[0]),
            "two frames in one page: {data:?}"
        );
        let allowed = &self.history[first..=last];
        assert!(allowed.contains(&seen), "page {number} reads {seen}, and was one of {allowed:?}");
    }
}

impl Machine {
    fn new(input: &Input) -> Self {
        let memory = Arc::new(Memory::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap());
        let entries = if input.small { 1 } else { 8192 };
        let config = UnitConfig { iotlb_entries: entries, ..UnitConfig::default() };
        let unit = Unit::new(&config, Arc::clone(&memory), Arc::new(Deaf)).unwrap();
        let store = |at: u64, value: u64| memory.write_obj(value, GuestAddress(at)).unwrap();
        store(ROOT, CONTEXT | 1);
        for source_id in FUNCTIONS {
            // DTE, PASIDE, PRE.
            store(CONTEXT + u64::from(source_id.devfn()) * 32, DIRECTORY | 1 << 2 | 1 << 3 | 1 << 4 | 1);
        }
        store(DIRECTORY, PASID_TABLE | 1);
        let entry = PASID_TABLE + u64::from(PASID.get()) * 64;
        store(entry + 16, TABLES);
        store(entry + 8, u64::from(DOMAIN.0) | 1 << 23);
        store(entry, 1 << 6 | 1);
        for level in 0..3 {
            store(TABLES + level * 0x1000, (TABLES + (level + 1) * 0x1000) | 7);
        }
        for frame in 1..=FRAME_COUNT {
            memory
                .write_slice(&[frame; 0x1000], GuestAddress(FRAMES + u64::from(frame - 1) * 0x1000))
                .unwrap();
        }
        let endpoints = FUNCTIONS.map(|source_id| unit.endpoint(source_id, Arc::new(())).unwrap());
        for (endpoint, ats) in endpoints.iter().zip(input.ats) {
            endpoint.set_ats_enabled(ats);
        }
        let machine = Self { memory, unit, endpoints: endpoints.into(), tail: 0, waits: 0 };
        (0..PAGES).for_each(|page| machine.map(page, 1));
        for (at, value) in
            [(offset::IQA, QUEUE | 0x800), (offset::PQA, REQUESTS), (offset::RTADDR, ROOT | 0x400)]
        {
            machine.unit.write(at, &value.to_le_bytes());
        }
        for (command, done) in [(0x0400_0000u32, 26), (0x4400_0000, 30), (0x8400_0000, 31)] {
            machine.unit.write(offset::GCMD, &command.to_le_bytes());
            machine.until("a command", || machine.read32(offset::GSTS) >> done & 1 == 1);
        }
        machine
    }

    fn read32(&self, at: u64) -> u32 {
        let mut data = [0; 4];
        self.unit.read(at, &mut data);
        u32::from_le_bytes(data)
    }

    fn until(&self, what: &str, holds: impl Fn() -> bool) {
        let started = Instant::now();
        while !holds() {
            assert!(started.elapsed() < PATIENCE, "{what} never ends");
            std::thread::yield_now();
        }
    }

    fn map(&self, page: usize, frame: u8) {
        let at = TABLES + 0x3000 + page as u64 * 8;
        let entry = if frame == 0 { 0 } else { (FRAMES + u64::from(frame - 1) * 0x1000) | 7 };
        self.memory.store(entry, GuestAddress(at), Ordering::Release).unwrap();
    }

    fn step(&mut self, step: &Step, pages: &[Page]) {
        match step {
            Step::Change { page, frame, how } => {
                let number = usize::from(*page) % PAGES;
                let page = &pages[number];
                let next = page.stored.load(Ordering::Relaxed) + 1;
                let frame = frame % (FRAME_COUNT + 1);
                assert_eq!(page.history[next], frame);
                page.stored.store(next, Ordering::Release);
                self.map(number, frame);
                self.invalidate(number, *how);
                page.complete.store(next, Ordering::Release);
            }
            Step::Invalidate { page, how } => self.invalidate(usize::from(*page) % PAGES, *how),
            Step::Ask { function, page } => {
                self.endpoints[usize::from(*function) % 2].page_request(PageRequest {
                    requester: Requester { pasid: Some(PASID), privileged: false },
                    address: address(usize::from(*page) % PAGES),
                    read: true,
                    write: false,
                    last: false,
                    group: 0,
                });
                self.unit.write(offset::PQH, &self.read32(offset::PQT).to_le_bytes());
            }
            Step::Ats { function, on } => self.endpoints[usize::from(*function) % 2].set_ats_enabled(*on),
        }
    }

    /// One of the ways that take a page's translations from the unit, then from both devices, and a wait.
    fn invalidate(&mut self, page: usize, how: u8) {
        let order = how >> 4 & 3;
        let range = AddressRange::new(address(page), order);
        let addr = range.base();
        let page_of = |granularity| {
            Descriptor::PasidIotlb(PasidIotlb {
                granularity,
                did: DOMAIN,
                pasid: PASID,
                am: order,
                ih: true,
                addr,
            })
        };
        let of_domain = |granularity| {
            Descriptor::Iotlb(Iotlb {
                granularity,
                dw: true,
                dr: true,
                did: DOMAIN,
                am: 0,
                ih: false,
                addr: 0,
            })
        };
        self.submit(match how & 7 {
            0..=2 => page_of(PasidIotlbGranularity::Page),
            3 => page_of(PasidIotlbGranularity::Pasid),
            4 => of_domain(IotlbGranularity::Domain),
            5 => of_domain(IotlbGranularity::Global),
            6 => Descriptor::PasidCache(PasidCache {
                granularity: PasidCacheGranularity::Pasid,
                did: DOMAIN,
                pasid: PASID,
            }),
            _ => Descriptor::ContextCache(ContextCache {
                granularity: ContextGranularity::Global,
                did: DomainId(0),
                sid: SourceId(0),
                fm: FunctionMask::None,
            }),
        });
        for sid in FUNCTIONS {
            let (pfsid, gi) = (SourceId(0), how & 8 != 0);
            let device = PasidDeviceTlb { sid, pfsid, mip: 0, pasid: PASID, gi, range };
            self.submit(Descriptor::PasidDeviceTlb(device));
        }
        self.waits += 1;
        let (status_data, status_address) = (self.waits, STATUS);
        self.submit(Descriptor::Wait(Wait { sw: true, status_data, status_address, ..Wait::default() }));
        self.unit.write(offset::IQT, &self.tail.to_le_bytes());
        let status = || self.memory.load::<u32>(GuestAddress(STATUS), Ordering::Acquire).unwrap();
        self.until("a wait", || status() == self.waits);
    }

    fn submit(&mut self, descriptor: Descriptor) {
        for (index, qword) in descriptor.encode().into_iter().enumerate() {
            self.memory.write_obj(qword, GuestAddress(QUEUE + self.tail + 8 * index as u64)).unwrap();
        }
        self.tail = (self.tail + 32) % QUEUE_BYTES;
    }
}
