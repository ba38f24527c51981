// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Processes whose tables devices use, against a unit in software: binding, changes, faults served, the end.

mod common;

use std::sync::atomic::{AtomicBool, Ordering};

use common::{Process, System, asked};
use patience::{Raise, eventually};
use vtd_driver::{Error, Memory, sva};
use vtd_spec::{AddressRange, FaultReason, Pasid, ResponseCode, SourceId};

const DEVICE: SourceId = SourceId::new(0, 3, 0);
const OTHER: SourceId = SourceId::new(1, 0, 0);
const ADDRESS: u64 = 0x7f12_3456_7000;

fn bind(system: &mut System, device: SourceId, pasid: Pasid, process: &Process) -> Result<(), Error> {
    sva::bind(&mut system.iommu, &mut system.pasids, system.set, device, pasid, process.table())
}

fn unbind(system: &mut System, device: SourceId, pasid: Pasid) -> Result<(), Error> {
    sva::unbind(&mut system.iommu, &mut system.pasids, system.set, device, pasid)
}

#[test]
fn devices_use_the_addresses_of_the_process() {
    let mut system = System::new();
    let devices = [system.add_device(DEVICE, true), system.add_device(OTHER, false)];
    let process = Process::new(&system.host);
    let page = process.map(ADDRESS);
    let pasid = system.allocate_pasid();
    for device in &devices {
        bind(&mut system, device.source_id, pasid, &process).unwrap();
    }
    assert!(devices[0].write(pasid, ADDRESS + 8, &42u64.to_le_bytes()));
    assert_eq!(devices[1].read(pasid, ADDRESS + 8), Some(42));
    assert_eq!(system.host.load(page + 8), 42);
    let stranger = Pasid::truncated(pasid.get() + 1);
    assert_eq!(devices[0].read(stranger, ADDRESS + 8), None);
    for device in &devices {
        unbind(&mut system, device.source_id, pasid).unwrap();
        assert_eq!(device.read(pasid, ADDRESS + 8), None);
    }
    // The device with ATS was told by its translation requests.
    assert_eq!(system.take_faults(), [FaultReason::Spt2.code()]);
}

#[test]
fn a_page_that_is_unmapped_is_out_of_reach_when_the_invalidation_returns() {
    let mut system = System::new();
    let devices = [system.add_device(DEVICE, true), system.add_device(OTHER, false)];
    let process = Process::new(&system.host);
    let pasid = system.allocate_pasid();
    for device in &devices {
        bind(&mut system, device.source_id, pasid, &process).unwrap();
    }
    for page in 0..64 {
        process.map(ADDRESS + 4096 * page);
        assert!(devices.iter().all(|device| device.write(pasid, ADDRESS + 4096 * page, &[1])));
    }
    process.unmap(ADDRESS + 4096 * 5);
    let range = AddressRange::new(ADDRESS + 4096 * 5, 0);
    sva::invalidate(&mut system.iommu, &system.pasids, pasid, range, true).unwrap();
    for device in &devices {
        assert!(!device.write(pasid, ADDRESS + 4096 * 5, &[1]));
        assert!(device.write(pasid, ADDRESS + 4096 * 6, &[1]));
    }
    (0..64).for_each(|page| process.unmap(ADDRESS + 4096 * page));
    sva::invalidate(&mut system.iommu, &system.pasids, pasid, AddressRange::ALL, false).unwrap();
    for page in 0..64 {
        assert!(devices.iter().all(|device| !device.write(pasid, ADDRESS + 4096 * page, &[1])));
    }
}

#[test]
fn a_pasid_goes_from_process_to_process() {
    let mut system = System::new();
    let device = system.add_device(DEVICE, true);
    let pasid = system.allocate_pasid();
    for round in 0..20u64 {
        let process = Process::new(&system.host);
        let page = process.map(ADDRESS);
        system.host.store(page, round);
        bind(&mut system, DEVICE, pasid, &process).unwrap();
        assert_eq!(device.read(pasid, ADDRESS), Some(round));
        unbind(&mut system, DEVICE, pasid).unwrap();
        assert_eq!(device.read(pasid, ADDRESS), None);
        system.take_faults();
    }
}

#[test]
fn a_pasid_is_rebound_under_dma_and_never_reaches_the_process_before() {
    let mut system = System::new();
    let device = system.add_device(DEVICE, true);
    let pasid = system.allocate_pasid();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _stop = Raise(&stop);
        let dma = scope.spawn(|| {
            let mut done = 0u64;
            while !stop.load(Ordering::Relaxed) {
                done += u64::from(device.write(pasid, ADDRESS, &[1]));
            }
            done
        });
        for _ in 0..60 {
            let process = Process::new(&system.host);
            let page = process.map(ADDRESS);
            bind(&mut system, DEVICE, pasid, &process).unwrap();
            eventually("a write of the device", || system.host.load(page) != 0);
            unbind(&mut system, DEVICE, pasid).unwrap();
            // Bound no longer: what is written from now on is not the device's.
            system.host.store(page, 0);
            for _ in 0..50 {
                std::thread::yield_now();
            }
            assert_eq!(system.host.load(page), 0, "the device wrote to memory of a process that is gone");
            system.iommu.take_faults();
        }
        stop.store(true, Ordering::Relaxed);
        assert!(dma.join().unwrap() >= 60);
    });
}

#[test]
fn a_page_fault_goes_up_is_served_and_comes_back() {
    let mut system = System::new();
    let device = system.add_device(DEVICE, true);
    let process = Process::new(&system.host);
    let pasid = system.allocate_pasid();
    bind(&mut system, DEVICE, pasid, &process).unwrap();
    assert!(!device.write(pasid, ADDRESS, &[1]));
    assert_eq!(
        (system.take_faults(), system.messages.take()),
        (vec![], vec![]),
        "a page request may cure it"
    );
    device.ask(pasid, ADDRESS, true, 7, false);
    device.ask(pasid, ADDRESS + 4096, true, 7, true);
    assert_eq!(system.messages.take(), [0x21]);
    let requests = system.iommu.take_page_requests().unwrap();
    let expected = [(ADDRESS, false), (ADDRESS + 4096, true)]
        .map(|(address, last)| asked(&device, pasid, address, true, 7, last));
    assert_eq!((requests.requests.as_slice(), requests.overflow), (&expected[..], false));
    process.map(ADDRESS);
    process.map(ADDRESS + 4096);
    for request in &requests.requests {
        system.iommu.respond(request, ResponseCode::Success).unwrap();
    }
    assert_eq!(device.sink.take_responses(), [(7, ResponseCode::Success)], "one answer a group");
    assert!(device.write(pasid, ADDRESS, &[1]) && device.write(pasid, ADDRESS + 4096, &[1]));
    device.ask(pasid, ADDRESS + 8192, true, 8, true);
    assert_eq!(system.messages.take(), [0x21], "the event is raised again");
    let request = system.iommu.take_page_requests().unwrap().requests[0];
    system.iommu.respond(&request, ResponseCode::InvalidRequest).unwrap();
    assert_eq!(device.sink.take_responses(), [(8, ResponseCode::InvalidRequest)]);
}

#[test]
fn an_address_that_cannot_be_is_answered_at_once() {
    let mut system = System::new();
    let device = system.add_device(DEVICE, true);
    let process = Process::new(&system.host);
    let pasid = system.allocate_pasid();
    bind(&mut system, DEVICE, pasid, &process).unwrap();
    device.ask(pasid, 0x4000_0000_0000_0000, false, 3, true);
    assert!(system.iommu.take_page_requests().unwrap().requests.is_empty());
    assert_eq!(device.sink.take_responses(), [(3, ResponseCode::InvalidRequest)]);
}

#[test]
fn requests_that_overflow_the_queue_are_answered_by_the_unit_and_told() {
    let mut system = System::new();
    let device = system.add_device(DEVICE, true);
    let process = Process::new(&system.host);
    let pasid = system.allocate_pasid();
    bind(&mut system, DEVICE, pasid, &process).unwrap();
    for page in 0..3000u64 {
        device.ask(pasid, ADDRESS + 4096 * page, false, (page % 512) as u16, true);
    }
    let requests = system.iommu.take_page_requests().unwrap();
    assert_eq!((requests.requests.len(), requests.overflow), (2047, true));
    assert_eq!(device.sink.take_responses().len(), 3000 - 2047);
    device.ask(pasid, ADDRESS, false, 1, true);
    let requests = system.iommu.take_page_requests().unwrap();
    assert_eq!((requests.requests.len(), requests.overflow), (1, false));
}

#[test]
fn unbinding_answers_what_the_device_still_waits_for() {
    let mut system = System::new();
    let device = system.add_device(DEVICE, true);
    let process = Process::new(&system.host);
    let (pasid, other) = (system.allocate_pasid(), system.allocate_pasid());
    bind(&mut system, DEVICE, pasid, &process).unwrap();
    bind(&mut system, DEVICE, other, &process).unwrap();
    device.ask(pasid, ADDRESS, false, 1, true);
    device.ask(other, ADDRESS, false, 2, true);
    device.ask(pasid, ADDRESS, false, 3, false);
    unbind(&mut system, DEVICE, pasid).unwrap();
    assert_eq!(device.sink.take_responses(), [(1, ResponseCode::InvalidRequest)]);
    let kept = system.iommu.take_page_requests().unwrap().requests;
    assert_eq!(kept, [asked(&device, other, ADDRESS, false, 2, true)]);
    system.pasids.free(system.set, pasid.get()).unwrap();
}

#[test]
fn the_devices_of_a_process_that_ends_are_silent() {
    let mut system = System::new();
    let device = system.add_device(DEVICE, false);
    let process = Process::new(&system.host);
    process.map(ADDRESS);
    let pasid = system.allocate_pasid();
    bind(&mut system, DEVICE, pasid, &process).unwrap();
    assert!(device.write(pasid, ADDRESS, &[1]));
    sva::release(&mut system.iommu, &mut system.pasids, pasid).unwrap();
    assert!(!device.write(pasid, ADDRESS, &[1]));
    assert_eq!(system.take_faults(), [], "nobody is interested");
    unbind(&mut system, DEVICE, pasid).unwrap();
    assert!(!device.write(pasid, ADDRESS, &[1]));
    assert_eq!(system.take_faults(), [FaultReason::Spt2.code()]);
}

#[test]
fn ten_thousand_pasids_are_bound_and_unbound() {
    let mut system = System::new();
    let device = system.add_device(DEVICE, true);
    let process = Process::new(&system.host);
    process.map(ADDRESS);
    let before = system.host.outstanding();
    system.pasids.set_quota(system.set, 10_000).unwrap();
    let pasids: Vec<Pasid> = (0..10_000).map(|_| system.allocate_pasid()).collect();
    for pasid in &pasids {
        bind(&mut system, DEVICE, *pasid, &process).unwrap();
    }
    assert_eq!(system.host.outstanding() - before, 10_000usize.div_ceil(64));
    assert!(pasids.iter().step_by(997).all(|pasid| device.write(*pasid, ADDRESS, &[1])));
    for pasid in &pasids {
        unbind(&mut system, DEVICE, *pasid).unwrap();
        system.pasids.free(system.set, pasid.get()).unwrap();
    }
    assert!(pasids.iter().step_by(997).all(|pasid| !device.write(*pasid, ADDRESS, &[1])));
    assert_eq!(system.pasids.allocated(), 0);
}
