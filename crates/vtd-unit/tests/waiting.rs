// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Who waits for what is in flight: the guest's wait descriptor, and GSTS; never the thread that writes a register, and
//! never a thread for itself.

mod common;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, mpsc};

use common::descriptors::{context_device, pasid_cache_entry, pasid_device_tlb, pasid_iotlb, wait};
use common::{Guest, Memory, Messages, SOURCE_ID, Sink, WAIT_STATUS, entry, pasid};
use patience::eventually;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vtd_spec::registers::offset;
use vtd_spec::{AddressRange, Descriptor, DomainId, InterruptRemapEntry, Pasid, RemappableRequest};
use vtd_unit::{
    Access, Endpoint, EndpointSink, Executor, Message, Notify, PageGroupResponse, PageRequest, Requester,
    Unit, UnitConfig, Work,
};

const PASID: Pasid = Pasid::truncated(0x42);
const OTHER: Pasid = Pasid::truncated(0x43);
const DOMAIN: DomainId = DomainId(1);
const ADDRESS: u64 = 0x7f12_3456_7000;
const STATUS: u64 = WAIT_STATUS + 0x40;

fn guest() -> Guest {
    let guest = Guest::new();
    for pasid in [PASID, OTHER] {
        guest.bind(pasid);
        guest.map(pasid, ADDRESS, guest.page(), entry::USER);
    }
    guest
}

fn status(guest: &Guest) -> u32 {
    guest.memory.read_obj(GuestAddress(STATUS)).unwrap()
}

/// Every way in which software makes the unit wait for a function's accesses.
fn invalidations() -> Vec<Descriptor> {
    vec![
        context_device(SOURCE_ID),
        pasid_cache_entry(DOMAIN, PASID),
        pasid_iotlb(DOMAIN, PASID),
        pasid_device_tlb(SOURCE_ID, PASID, AddressRange::ALL),
    ]
}

#[test]
fn a_doorbell_returns_while_memory_is_pinned_and_the_wait_completes_when_it_no_longer_is() {
    for descriptor in invalidations() {
        let guest = guest();
        let pinned = guest.endpoint.pin(Guest::with_pasid(PASID), ADDRESS).unwrap();
        guest.queue(&descriptor);
        guest.queue(&wait(STATUS, 2));
        // By the very thread that holds the pin.
        guest.ring();
        assert_eq!(status(&guest), 0, "{descriptor:?}");
        pinned.write_obj(1u8, GuestAddress(ADDRESS)).unwrap();
        drop(pinned);
        eventually("the wait", || status(&guest) == 2);
    }
}

#[test]
fn a_thread_that_holds_a_pin_accesses_again_while_somebody_waits_for_its_end() {
    for descriptor in invalidations() {
        let guest = guest();
        let requester = Guest::with_pasid(PASID);
        let pinned = guest.endpoint.pin(requester, ADDRESS).unwrap();
        guest.queue(&descriptor);
        guest.queue(&wait(STATUS, 2));
        guest.ring();
        eventually("the recall", || *guest.sink.recalls.lock().unwrap() > 0);
        for _ in 0..3 {
            guest.endpoint.write(requester, ADDRESS, &[1]).unwrap();
            // A PASID that is not cached, and that nobody can cache now.
            guest.endpoint.write(Guest::with_pasid(OTHER), ADDRESS, &[2]).unwrap();
            let other = guest.endpoint.pin(Guest::with_pasid(OTHER), ADDRESS).unwrap();
            other.write_obj(3u8, GuestAddress(ADDRESS)).unwrap();
            assert!(guest.endpoint.pin(Guest::with_pasid(pasid(0x99)), ADDRESS).is_err());
            assert!(guest.endpoint.read(Guest::with_pasid(pasid(0x99)), ADDRESS, &mut [0]).is_err());
            guest.endpoint.page_request(PageRequest {
                requester: Guest::with_pasid(OTHER),
                address: ADDRESS,
                read: true,
                write: false,
                last: true,
                group: 1,
            });
        }
        assert_ne!(guest.take_faults(), [], "of the PASID that is not bound");
        assert_eq!(status(&guest), 0);
        drop(pinned);
        eventually("the wait", || status(&guest) == 2);
    }
}

#[test]
fn an_access_from_within_an_access_does_not_lock_up() {
    for ats in [false, true] {
        let guest = guest();
        guest.endpoint.set_ats_enabled(ats);
        let requester = Guest::with_pasid(PASID);
        let mut inner = Vec::new();
        guest
            .endpoint
            .access(requester, ADDRESS, 8, Access::Write, &mut |_, _| {
                guest.queue(&pasid_iotlb(DOMAIN, PASID));
                guest.queue(&wait(STATUS, 2));
                guest.ring();
                eventually("the recall", || *guest.sink.recalls.lock().unwrap() > 0);
                inner.push(guest.endpoint.write(requester, ADDRESS, &[1]));
                inner.push(guest.endpoint.write(Guest::with_pasid(OTHER), ADDRESS, &[1]));
                inner.push(guest.endpoint.compare_and_swap(requester, ADDRESS, 1, 2).map(drop));
                guest.endpoint.set_ats_enabled(false);
                assert_eq!(status(&guest), 0);
            })
            .unwrap();
        assert_eq!(inner, [Ok(()); 3], "ats: {ats}");
        eventually("the wait", || status(&guest) == 2);
    }
}

#[test]
fn a_command_returns_while_memory_is_pinned_and_gsts_tells_when_it_is_done() {
    let guest = guest();
    let pinned = guest.endpoint.pin(Guest::with_pasid(PASID), ADDRESS).unwrap();
    let status = guest.read32(offset::GSTS) & 0x96ff_ffff;
    guest.write32(offset::GCMD, status & !(1 << 31));
    assert_ne!(guest.read32(offset::GSTS) >> 31, 0);
    // Another before the first is done: the last one counts.
    guest.write32(offset::GCMD, status | 1 << 30);
    guest.write32(offset::GCMD, status & !(1 << 31));
    assert_eq!(guest.read32(offset::GSTS) >> 30, 0b10, "still on, and the table is not yet set");
    drop(pinned);
    eventually("both", || guest.read32(offset::GSTS) >> 30 == 0b01);
}

#[test]
fn ats_is_turned_off_without_waiting_for_a_pin() {
    let guest = guest();
    guest.endpoint.set_ats_enabled(true);
    let pinned = guest.endpoint.pin(Guest::with_pasid(PASID), ADDRESS).unwrap();
    guest.endpoint.set_ats_enabled(false);
    drop(pinned);
    // Without ATS what is not mapped is refused, and recorded; with it, it would be a page fault.
    eventually("the end of ATS", || {
        let result = guest.endpoint.write(Guest::with_pasid(PASID), ADDRESS + 0x1000, &[1]);
        matches!(result, Err(vtd_unit::DmaError::Refused { .. }))
    });
}

/// Holds each message until it is let go, and may ring the doorbell from within.
struct Slow {
    entered: Mutex<mpsc::Sender<()>>,
    go: Mutex<mpsc::Receiver<()>>,
    arrived: AtomicUsize,
    ring: OnceLock<(Unit<Memory>, u64)>,
}

impl Notify for Slow {
    fn message(&self, _: Message) {
        if let Some((unit, tail)) = self.ring.get() {
            unit.write(offset::IQT, &tail.to_le_bytes());
        }
        self.entered.lock().unwrap().send(()).unwrap();
        let _ = self.go.lock().unwrap().recv();
        self.arrived.fetch_add(1, Ordering::SeqCst);
    }
}

struct Quiet;

impl EndpointSink for Quiet {
    fn page_group_response(&self, _: PageGroupResponse) {}
}

/// A unit with an interrupt remapping table at 64 KiB, and an interrupt entry cache invalidation with a wait in its queue.
fn interrupts(notify: Arc<Slow>) -> (Arc<Memory>, Unit<Memory>, Endpoint<Memory>, Message) {
    let memory = Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap());
    let config = UnitConfig { ir: true, ..UnitConfig::default() };
    let unit = Unit::new(&config, Arc::clone(&memory), notify).unwrap();
    let endpoint = unit.endpoint(SOURCE_ID, Arc::new(Quiet)).unwrap();
    let entry = InterruptRemapEntry::new().with_p(true).with_vector(0x55).with_destination(1, false);
    for (at, qword) in [0x1_0000 + 16 * 9, 0x1_0008 + 16 * 9].into_iter().zip(entry.to_qwords()) {
        memory.write_obj(qword, GuestAddress(at)).unwrap();
    }
    unit.write(offset::IRTA, &0x1_0007u64.to_le_bytes());
    unit.write(offset::IQA, &0x2_0000u64.to_le_bytes());
    for command in [1u32 << 24, 1 << 25, 1 << 25 | 1 << 26] {
        unit.write(offset::GCMD, &command.to_le_bytes());
    }
    for (at, qword) in [4u64 | 1 << 4 | 9 << 32, 0, 5 | 1 << 5 | 2 << 32, STATUS].into_iter().enumerate() {
        memory.write_obj(qword, GuestAddress(0x2_0000 + 8 * at as u64)).unwrap();
    }
    let request = RemappableRequest { handle: 9, shv: false, data: 0 }.message();
    (memory, unit, endpoint, Message { address: request.address, data: request.data })
}

/// \[S 6.8\]
#[test]
fn a_message_that_was_remapped_has_arrived_when_the_invalidation_of_its_entry_completes() {
    for from_within in [false, true] {
        let (entered, inside) = mpsc::channel();
        let (go, left) = mpsc::channel();
        let slow = Arc::new(Slow {
            entered: Mutex::new(entered),
            go: Mutex::new(left),
            arrived: AtomicUsize::new(0),
            ring: OnceLock::new(),
        });
        let (memory, unit, endpoint, message) = interrupts(Arc::clone(&slow));
        let status = || memory.read_obj::<u32>(GuestAddress(STATUS)).unwrap();
        if from_within {
            assert!(slow.ring.set((unit.clone(), 32)).is_ok());
        }
        std::thread::scope(|scope| {
            // Gone with this closure, however it ends: a failure lets the message go.
            let go = go;
            scope.spawn(|| endpoint.message(message));
            inside.recv().unwrap();
            if !from_within {
                unit.write(offset::IQT, &32u64.to_le_bytes());
            }
            assert_eq!((status(), slow.arrived.load(Ordering::SeqCst)), (0, 0));
            go.send(()).unwrap();
            eventually("the wait", || status() == 2);
            assert_eq!(slow.arrived.load(Ordering::SeqCst), 1);
        });
    }
}

/// Keeps the work until somebody does it.
#[derive(Default)]
struct Later(Mutex<Vec<Work>>);

impl Executor for Later {
    fn execute(&self, work: Work) {
        self.0.lock().unwrap().push(work);
    }
}

impl Later {
    fn run(&self) -> usize {
        let work = std::mem::take(&mut *self.0.lock().unwrap());
        let count = work.len();
        work.into_iter().for_each(|work| work());
        count
    }
}

#[test]
fn an_embedders_executor_does_what_has_to_wait_and_nothing_else() {
    let memory = Arc::new(Memory::from_ranges(&[(GuestAddress(0), 64 << 20)]).unwrap());
    let (later, messages) = (Arc::new(Later::default()), Arc::new(Messages::default()));
    let executor = Arc::clone(&later) as Arc<dyn Executor>;
    let unit = Unit::with_executor(&UnitConfig::default(), Arc::clone(&memory), messages, executor).unwrap();
    let endpoint = unit.endpoint(SOURCE_ID, Arc::new(Sink::default())).unwrap();
    unit.write(offset::IQA, &0x4000u64.to_le_bytes());
    unit.write(offset::GCMD, &(1u32 << 26).to_le_bytes());
    let submit = |tail: u64| unit.write(offset::IQT, &tail.to_le_bytes());
    for (at, qword) in [1u64 | 1 << 4, 0, 5 | 1 << 5 | 2 << 32, STATUS].into_iter().enumerate() {
        memory.write_obj(qword, GuestAddress(0x4000 + 8 * at as u64)).unwrap();
    }
    let status = || memory.read_obj::<u32>(GuestAddress(STATUS)).unwrap();
    submit(32);
    assert_eq!((status(), later.run()), (2, 0), "with nothing in flight all runs inline");
    memory.write_obj(0u32, GuestAddress(STATUS)).unwrap();
    let pinned = endpoint.pin(Requester::default(), 0x9000).unwrap();
    unit.write(offset::IQH, &[0; 8]);
    unit.write(offset::GCMD, &0u32.to_le_bytes());
    unit.write(offset::GCMD, &(1u32 << 26).to_le_bytes());
    assert_eq!(status(), 0);
    drop(pinned);
    assert_eq!((later.run(), status()), (1, 2));
    assert_eq!(later.run(), 0);
}

#[test]
fn a_unit_that_goes_while_work_is_left_ends_its_thread() {
    let guest = guest();
    let pinned = guest.endpoint.pin(Guest::with_pasid(PASID), ADDRESS).unwrap();
    guest.queue(&pasid_iotlb(DOMAIN, PASID));
    guest.ring();
    drop(pinned);
    // Joins the thread: were it not to end, neither would this.
    drop(guest);
}

struct Mirror(AtomicUsize);

impl vtd_unit::Observer for Mirror {
    fn invalidated(&self, _: &Descriptor) {}
    fn complete(&self, _: bool) {}
    fn remapping_changed(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// How long that takes is for the guest's tables to say.
#[test]
fn whoever_mirrors_the_tables_reads_them_on_the_executor_and_gsts_waits_for_that() {
    let memory = Arc::new(Memory::from_ranges(&[(GuestAddress(0), 64 << 20)]).unwrap());
    let (later, messages) = (Arc::new(Later::default()), Arc::new(Messages::default()));
    let executor = Arc::clone(&later) as Arc<dyn Executor>;
    let unit = Unit::with_executor(&UnitConfig::default(), memory, messages, executor).unwrap();
    let mirror = Arc::new(Mirror(AtomicUsize::new(0)));
    unit.add_observer(&(Arc::clone(&mirror) as Arc<dyn vtd_unit::Observer>));
    let status = || {
        let mut data = [0; 4];
        unit.read(offset::GSTS, &mut data);
        u32::from_le_bytes(data) >> 30
    };
    unit.write(offset::RTADDR, &(common::ROOT_TABLE | 0x400).to_le_bytes());
    unit.write(offset::GCMD, &(1u32 << 30).to_le_bytes());
    assert_eq!((mirror.0.load(Ordering::SeqCst), status()), (0, 0));
    // Another processor commands more before that is done: one look serves both.
    unit.write(offset::GCMD, &(1u32 << 31).to_le_bytes());
    assert_eq!((later.run(), mirror.0.load(Ordering::SeqCst), status()), (1, 1, 0b11));
    assert_eq!(later.run(), 0);
}

/// What software has not set is no table.
#[test]
fn translation_and_interrupt_remapping_need_a_table() {
    let memory = Arc::new(Memory::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap());
    let config = UnitConfig { ir: true, ..UnitConfig::default() };
    let unit = Unit::new(&config, memory, Arc::new(Messages::default())).unwrap();
    let status = || {
        let mut data = [0; 4];
        unit.read(offset::GSTS, &mut data);
        u32::from_le_bytes(data)
    };
    unit.write(offset::GCMD, &(1u32 << 31 | 1 << 25).to_le_bytes());
    assert_eq!(status(), 0);
    unit.write(offset::GCMD, &(1u32 << 30).to_le_bytes());
    unit.write(offset::GCMD, &(1u32 << 31 | 1 << 25).to_le_bytes());
    assert_eq!(status(), 0b11 << 30);
    unit.write(offset::GCMD, &(1u32 << 31 | 1 << 24).to_le_bytes());
    unit.write(offset::GCMD, &(1u32 << 31 | 1 << 25).to_le_bytes());
    assert_eq!(status(), 0b11 << 30 | 0b11 << 24);
    unit.reset();
    unit.write(offset::GCMD, &(1u32 << 31 | 1 << 25).to_le_bytes());
    assert_eq!(status(), 0);
}
