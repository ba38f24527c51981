// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What an observer hears, and what it reads of the tables.

mod common;

use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};

use common::{Guest, SOURCE_ID, pasid};
use vm_memory::{Bytes, GuestAddress};
use vtd_spec::descriptors::{PasidCache, PasidCacheGranularity};
use vtd_spec::{Descriptor, DomainId, Pasid, PasidGranularTranslationType};
use vtd_unit::{Observer, RequestsWithoutPasid, Translation};

struct Log {
    heard: Mutex<Vec<String>>,
    memory: Arc<common::Memory>,
}

impl Observer for Log {
    fn invalidated(&self, descriptor: &Descriptor) {
        self.heard.lock().unwrap().push(format!("{:?}", descriptor.descriptor_type()));
    }

    fn complete(&self, _: bool) {
        let status: u32 = self.memory.read_obj(GuestAddress(common::WAIT_STATUS)).unwrap();
        self.heard.lock().unwrap().push(format!("complete, status {status}"));
    }

    fn remapping_changed(&self) {
        self.heard.lock().unwrap().push("remapping".into());
    }
}

fn pasid_cache() -> Descriptor {
    let granularity = PasidCacheGranularity::Global;
    Descriptor::PasidCache(PasidCache { granularity, did: DomainId(0), pasid: Pasid::ZERO })
}

#[test]
fn invalidations_are_heard_in_order_and_before_their_wait_completes() {
    let guest = Guest::new();
    let log = Arc::new(Log { heard: Mutex::default(), memory: Arc::clone(&guest.memory) });
    guest.unit.add_observer(&(Arc::clone(&log) as Arc<dyn Observer>));
    let iotlb =
        Descriptor::decode([0x12, 0, 0, 0], vtd_spec::DescriptorWidth::Bits256, &guest.unit.capabilities());
    guest.submit_all(&[pasid_cache(), iotlb.unwrap()]);
    assert_eq!(*log.heard.lock().unwrap(), ["PasidCache", "Iotlb", "complete, status 1"]);
    log.heard.lock().unwrap().clear();
    guest.command_off(1 << 31);
    guest.unit.reset();
    assert_eq!(*log.heard.lock().unwrap(), ["remapping", "remapping"]);
}

#[test]
fn bindings_are_what_the_tables_say() {
    let guest = Guest::new();
    guest.bind(pasid(5));
    guest.bind(pasid(0x1_2345));
    let odd = Guest::first_stage(DomainId(9), 0x1000).with_pgtt(PasidGranularTranslationType::PassThrough);
    guest.write_pasid_entry(pasid(70), odd);
    // Not valid: a type that the unit does not have.
    let invalid = Guest::first_stage(DomainId(9), 0x1000).with_pgtt(PasidGranularTranslationType::Nested);
    guest.write_pasid_entry(pasid(71), invalid);
    let mut found = Vec::new();
    guest.unit.bindings(SOURCE_ID, Pasid::ZERO, &|| false, &mut |pasid, binding| {
        found.push((pasid.get(), binding.domain.0));
        ControlFlow::Continue(())
    });
    assert_eq!(found, [(5, 1), (70, 9), (0x1_2345, 1)]);
    let binding = guest.unit.binding(SOURCE_ID, pasid(5)).unwrap();
    let Translation::FirstStage(table) = binding.translation else { panic!("{binding:?}") };
    assert_eq!((table.levels, table.sre), (4, false));
    assert_eq!(guest.unit.binding(SOURCE_ID, pasid(6)), None);
    assert_eq!(guest.unit.binding(SOURCE_ID, Pasid::ZERO), None, "RID_PASID is not for requests with PASID");
    assert_eq!(guest.unit.requests_without_pasid(SOURCE_ID), RequestsWithoutPasid::Blocked);
    guest.bind(Pasid::ZERO);
    assert!(matches!(guest.unit.requests_without_pasid(SOURCE_ID), RequestsWithoutPasid::Remapped(_)));
    guest.command_off(1 << 31);
    assert_eq!(guest.unit.requests_without_pasid(SOURCE_ID), RequestsWithoutPasid::NotRemapped);
}

#[test]
fn reading_stops_when_it_is_told_to() {
    let guest = Guest::new();
    // Every directory entry names the same table, full of valid entries.
    for index in 0..64 {
        guest.bind(pasid(64 + index));
    }
    let table = guest.load(common::PASID_DIRECTORY + 8);
    for index in 0..1 << 14 {
        guest.store(common::PASID_DIRECTORY + index * 8, table);
    }
    let mut count = 0;
    guest.unit.bindings(SOURCE_ID, pasid(100), &|| false, &mut |pasid, _| {
        assert_eq!(pasid.get(), 100 + count);
        count += 1;
        if count == 1000 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert_eq!(count, 1000);
}

#[test]
fn a_directory_entry_is_read_once_for_all_of_its_table() {
    let guest = Guest::new();
    guest.bind(pasid(0x80));
    guest.bind(pasid(0x81));
    // The guest takes the table away while it is being looked at.
    let directory = common::PASID_DIRECTORY + 2 * 8;
    let mut found = Vec::new();
    guest.unit.bindings(SOURCE_ID, pasid(0x80), &|| false, &mut |pasid, _| {
        guest.store(directory, 0);
        found.push(pasid.get());
        ControlFlow::Continue(())
    });
    assert_eq!(found, [0x80, 0x81]);
}

/// Counts looks; behind after each PASID-cache invalidation.
#[derive(Default)]
struct Lazy {
    behind: std::sync::atomic::AtomicBool,
    looks: std::sync::atomic::AtomicUsize,
    waits: std::sync::atomic::AtomicUsize,
}

impl Observer for Lazy {
    fn invalidated(&self, _: &Descriptor) {
        self.behind.store(true, std::sync::atomic::Ordering::SeqCst);
    }

    fn is_behind(&self) -> bool {
        self.behind.load(std::sync::atomic::Ordering::SeqCst)
    }

    fn complete(&self, _: bool) {
        self.waits.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        if self.behind.swap(false, std::sync::atomic::Ordering::SeqCst) {
            self.looks.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        }
    }

    fn remapping_changed(&self) {}
}

/// Whatever one doorbell brings: what takes long is done once.
#[test]
fn waits_that_are_in_the_queue_together_complete_in_order_behind_one_look() {
    let guest = Guest::new();
    let lazy = Arc::new(Lazy::default());
    guest.unit.add_observer(&(Arc::clone(&lazy) as Arc<dyn Observer>));
    const WAITS: u64 = 200;
    for number in 0..WAITS {
        guest.queue(&pasid_cache());
        guest.queue(&common::descriptors::wait(common::WAIT_STATUS + 0x100 + 4 * number, number as u32 + 1));
    }
    guest.ring();
    let status =
        |number: u64| guest.memory.read_obj(GuestAddress(common::WAIT_STATUS + 0x100 + 4 * number)).unwrap();
    patience::eventually("the last wait", || {
        let last: u32 = status(WAITS - 1);
        last == WAITS as u32
    });
    for number in 0..WAITS {
        let found: u32 = status(number);
        assert_eq!(found, number as u32 + 1);
    }
    assert_eq!(lazy.waits.load(std::sync::atomic::Ordering::SeqCst) as u64, WAITS);
    assert_eq!(lazy.looks.load(std::sync::atomic::Ordering::SeqCst), 1);
}

#[test]
fn a_table_that_a_directory_names_again_is_read_for_its_valid_entries_alone() {
    let guest = Guest::new();
    guest.bind(pasid(64 + 3));
    let table = guest.load(common::PASID_DIRECTORY + 8);
    for index in 0..1 << 14 {
        guest.store(common::PASID_DIRECTORY + index * 8, table);
    }
    let (mut found, tables) = (0, std::cell::Cell::new(0));
    let count = || {
        tables.set(tables.get() + 1);
        false
    };
    assert!(guest.unit.bindings(SOURCE_ID, Pasid::ZERO, &count, &mut |at, _| {
        assert_eq!(at.get() % 64, 3);
        found += 1;
        if found == 2 {
            // What appears meanwhile is for the announcement that follows.
            guest.write_pasid_entry(pasid(64 + 9), Guest::first_stage(DomainId(1), 0x1000));
        }
        ControlFlow::Continue(())
    }));
    assert_eq!((found, tables.get()), (1 << 14, 1 << 14));
    assert!(!guest.unit.bindings(SOURCE_ID, Pasid::ZERO, &|| true, &mut |_, _| panic!("interrupted")));
}

/// Waits that are put off are complete before an error behind them shows, and none is lost where the queue ends oddly.
#[test]
fn waits_complete_before_an_error_behind_them_shows() {
    for (name, last) in [("an invalid descriptor", [0x7fu64, 0, 0, 0]), ("none", [0x15, 0, 0, 0])] {
        let guest = Guest::new();
        let lazy = Arc::new(Lazy::default());
        guest.unit.add_observer(&(Arc::clone(&lazy) as Arc<dyn Observer>));
        let status = common::WAIT_STATUS + 0x100;
        for number in 1..=3 {
            guest.queue(&pasid_cache());
            guest.queue(&common::descriptors::wait(status, number));
        }
        guest.queue_qwords(last);
        guest.ring();
        if name == "none" {
            patience::eventually("the last wait", || {
                let found: u32 = guest.memory.read_obj(GuestAddress(status)).unwrap();
                found == 3
            });
        } else {
            patience::eventually("IQE", || guest.read32(vtd_spec::offset::FSTS) & 1 << 4 != 0);
            let found: u32 = guest.memory.read_obj(GuestAddress(status)).unwrap();
            assert_eq!(found, 3, "{name}");
        }
        let waits = if name == "none" { 4 } else { 3 };
        patience::eventually("all waits", || lazy.waits.load(std::sync::atomic::Ordering::SeqCst) == waits);
    }
}

/// Where nobody mirrors tables, an observer is no reason to hand an invalidation of a domain to the worker.
#[test]
fn an_observer_that_does_not_mirror_tables_does_not_put_invalidations_off() {
    #[derive(Default)]
    struct Thread(Mutex<Option<std::thread::ThreadId>>);

    impl Observer for Thread {
        fn invalidated(&self, _: &Descriptor) {
            *self.0.lock().unwrap() = Some(std::thread::current().id());
        }

        fn mirrors_tables(&self) -> bool {
            false
        }

        fn complete(&self, _: bool) {}

        fn remapping_changed(&self) {}
    }

    let guest = Guest::new();
    let heard = Arc::new(Thread::default());
    guest.unit.add_observer(&(Arc::clone(&heard) as Arc<dyn Observer>));
    guest.submit(&common::descriptors::iotlb_domain(DomainId(1)));
    assert_eq!(*heard.0.lock().unwrap(), Some(std::thread::current().id()));
}
