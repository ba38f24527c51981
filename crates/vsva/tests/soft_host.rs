// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The whole way: guest table, guest unit, joint, host driver, physical unit, byte.

mod rig;

use rig::common::{Guest, SOURCE_ID, entry, pasid};
use rig::{Rig, pasid_cache};
use vm_memory::{Bytes, GuestAddress};
use vsva::{HostIommu, SoftHostConfig};
use vtd_spec::descriptors::PageGroupResponse as ResponseDescriptor;
use vtd_spec::{Descriptor, Pasid, PasidGranularTranslationType, ResponseCode};
use vtd_unit::{DmaError, PageRequest, Requester, UnitConfig};

const PASID: Pasid = Pasid::truncated(0x42);
const ADDRESS: u64 = 0x7f12_3456_7000;

#[test]
fn a_pointer_of_the_guest_reaches_its_byte_through_both_stages() {
    for identical_pasids in [false, true] {
        for ats in [false, true] {
            let host = SoftHostConfig { identical_pasids, ..SoftHostConfig::default() };
            let rig = Rig::with(&UnitConfig::default(), &host);
            rig.port.set_ats_enabled(ats);
            rig.bind(PASID);
            let page = rig.guest.page();
            let leaf = rig.guest.map(PASID, ADDRESS, page, entry::USER);
            rig.port.write(Guest::with_pasid(PASID), ADDRESS + 3, b"nested").unwrap();
            assert_eq!(rig.guest.memory.read_obj::<[u8; 6]>(GuestAddress(page + 3)).unwrap(), *b"nested");
            assert_eq!(rig.guest.load(leaf) & (entry::A | entry::D), entry::A | entry::D);
            let host_pasid = rig.assigned.host_pasid(PASID).unwrap();
            assert_eq!(host_pasid == PASID, identical_pasids);
            let followed = rig.host.follow(rig.device, host_pasid, ADDRESS + 3).unwrap();
            assert_eq!(followed.entry.pgtt(), Some(PasidGranularTranslationType::Nested));
            assert_eq!(followed.guest_physical, page + 3);
            assert_ne!(followed.host_physical, page + 3, "host addresses are not guest addresses");
            assert_eq!(rig.host.memory().read_obj::<u8>(GuestAddress(followed.host_physical)).unwrap(), b'n');
            assert_eq!(followed.entries.len(), 4);
            assert!(rig.host.statistics().nested_walks > 0);
        }
    }
}

#[test]
fn what_the_guest_unmaps_is_gone_when_its_wait_completes() {
    for ats in [false, true] {
        let rig = Rig::new();
        rig.port.set_ats_enabled(ats);
        rig.bind(PASID);
        let page = rig.guest.page();
        rig.guest.map(PASID, ADDRESS, page, entry::USER);
        rig.port.write(Guest::with_pasid(PASID), ADDRESS, &[1]).unwrap();
        rig.unmap(PASID, ADDRESS);
        assert!(rig.port.write(Guest::with_pasid(PASID), ADDRESS, &[2]).is_err());
        assert_eq!(rig.guest.memory.read_obj::<u8>(GuestAddress(page)).unwrap(), 1);
        rig.guest.map(PASID, ADDRESS, page, entry::USER);
        rig.port.write(Guest::with_pasid(PASID), ADDRESS, &[3]).unwrap();
        rig.unbind(PASID);
        assert!(rig.port.write(Guest::with_pasid(PASID), ADDRESS, &[4]).is_err());
        assert_eq!(rig.guest.memory.read_obj::<u8>(GuestAddress(page)).unwrap(), 3);
        assert_eq!(rig.host.allocated_pasids(), 0);
    }
}

#[test]
fn what_the_host_unmaps_is_gone_when_it_returns() {
    for ats in [false, true] {
        let rig = Rig::new();
        rig.port.set_ats_enabled(ats);
        rig.bind(PASID);
        let page = rig.guest.pages(512, 512);
        rig.guest.map(PASID, ADDRESS, page, entry::USER);
        rig.port.write(Guest::with_pasid(PASID), ADDRESS, &[1]).unwrap();
        rig.host.set_mapped(page, 512 * 4096, false).unwrap();
        assert!(rig.port.write(Guest::with_pasid(PASID), ADDRESS, &[2]).is_err());
        rig.host.set_mapped(page, 512 * 4096, true).unwrap();
        rig.port.write(Guest::with_pasid(PASID), ADDRESS, &[3]).unwrap();
        assert_eq!(rig.guest.memory.read_obj::<u8>(GuestAddress(page)).unwrap(), 3);
    }
}

#[test]
fn what_the_host_takes_and_gives_back_may_lie_in_several_pieces() {
    let rig = Rig::new();
    rig.guest.command_off(1 << 31);
    // Addresses of guest memory, 1 MiB apart.
    let every: Vec<u64> = (0..rig::common::MEMORY_BYTES).step_by(1 << 20).map(|at| at + 0xfff).collect();
    let (start, length) = (2 << 20, rig::common::MEMORY_BYTES - (4 << 20));
    rig.host.set_mapped(start, length, false).unwrap();
    for at in &every {
        let taken = (start..start + length).contains(at);
        assert_eq!(rig.port.write(Requester::default(), *at, &[1]).is_err(), taken, "{at:#x}");
    }
    rig.host.set_mapped(start, length, true).unwrap();
    for at in &every {
        let byte = (at >> 20) as u8;
        rig.port.write(Requester::default(), *at, &[byte]).unwrap();
        assert_eq!(rig.guest.memory.read_obj::<u8>(GuestAddress(*at)).unwrap(), byte, "{at:#x}");
    }
    assert!(
        rig.host.set_mapped(start, rig::common::MEMORY_BYTES, false).is_err(),
        "beyond the guest's memory"
    );
    rig.port.write(Requester::default(), every[9], &[1]).unwrap();
}

#[test]
fn a_table_is_replaced_and_the_old_one_no_longer_used() {
    let rig = Rig::new();
    rig.bind(PASID);
    let (first, second) = (rig.guest.page(), rig.guest.page());
    rig.guest.map(PASID, ADDRESS, first, entry::USER);
    rig.port.write(Guest::with_pasid(PASID), ADDRESS, &[1]).unwrap();
    let before = rig.assigned.host_pasid(PASID);
    rig.guest.bind(PASID);
    rig.guest.map(PASID, ADDRESS, second, entry::USER);
    rig.guest.submit(&pasid_cache(PASID));
    rig.port.write(Guest::with_pasid(PASID), ADDRESS, &[2]).unwrap();
    assert_eq!(rig.guest.memory.read_obj::<u8>(GuestAddress(first)).unwrap(), 1);
    assert_eq!(rig.guest.memory.read_obj::<u8>(GuestAddress(second)).unwrap(), 2);
    assert_eq!(rig.assigned.host_pasid(PASID), before, "the same PASID of the host");
}

#[test]
fn a_page_request_of_the_device_is_served_by_the_guest() {
    let rig = Rig::new();
    rig.port.set_ats_enabled(true);
    rig.bind(PASID);
    let requester = Guest::with_pasid(PASID);
    let error = rig.port.read(requester, ADDRESS, &mut [0]);
    assert_eq!(error, Err(DmaError::PageFault { address: ADDRESS, write: false }));
    let request = PageRequest { requester, address: ADDRESS, read: true, write: false, last: true, group: 7 };
    rig.port.page_request(request);
    rig.eventually("the request in the guest's queue", || rig.guest.read64(vtd_spec::offset::PQT) == 32);
    let queued = rig.guest.load(rig::common::PAGE_REQUEST_QUEUE);
    assert_eq!(queued >> 32 & 0xf_ffff, u64::from(PASID.get()), "the guest's PASID");
    assert_eq!(queued >> 16 & 0xffff, u64::from(SOURCE_ID.0), "the guest's source-id");
    rig.guest.map(PASID, ADDRESS, rig.guest.page(), entry::USER);
    rig.guest.submit(&Descriptor::PageGroupResponse(ResponseDescriptor {
        pasid: Some(PASID),
        rid: SOURCE_ID,
        rc: ResponseCode::Success,
        prgi: 7,
    }));
    rig.eventually("the response at the device", || !rig.sink.responses.lock().unwrap().is_empty());
    let response = rig.sink.responses.lock().unwrap()[0];
    assert_eq!((response.pasid, response.group, response.code), (Some(PASID), 7, ResponseCode::Success));
    rig.port.read(requester, ADDRESS, &mut [0]).unwrap();
}

#[test]
fn a_request_that_waits_is_answered_when_its_process_dies() {
    let rig = Rig::new();
    rig.port.set_ats_enabled(true);
    rig.bind(PASID);
    let requester = Guest::with_pasid(PASID);
    let request = PageRequest { requester, address: ADDRESS, read: true, write: false, last: true, group: 7 };
    rig.port.page_request(request);
    rig.eventually("the request in the guest's queue", || rig.guest.read64(vtd_spec::offset::PQT) == 32);
    rig.unbind(PASID);
    rig.eventually("an answer", || !rig.sink.responses.lock().unwrap().is_empty());
    let response = rig.sink.responses.lock().unwrap()[0];
    assert_eq!((response.pasid, response.code), (Some(PASID), ResponseCode::InvalidRequest));
}

#[test]
fn faults_of_the_physical_unit_are_recorded_in_the_guests() {
    let rig = Rig::new();
    rig.bind(PASID);
    assert!(rig.port.read(Guest::with_pasid(PASID), ADDRESS, &mut [0]).is_err());
    rig.eventually("a record", || rig.guest.read32(vtd_spec::offset::FSTS) & 2 != 0);
    let fault = rig.guest.take_fault(0).unwrap();
    assert_eq!((fault.fr(), fault.pv(), fault.sid()), (0x71, PASID, SOURCE_ID));
    assert_eq!(fault.fi(), ADDRESS);
    rig.guest.write32(vtd_spec::offset::FSTS, 1);
    // PASIDs that the guest never bound: in a table of its, and where it has none.
    for (index, number, code) in [(1, 0x43, 0x59), (2, 9, 0x51)] {
        assert!(rig.port.read(Guest::with_pasid(pasid(number)), ADDRESS, &mut [0]).is_err());
        rig.eventually("a record", || rig.guest.read32(vtd_spec::offset::FSTS) & 2 != 0);
        let fault = rig.guest.take_fault(index).unwrap();
        assert_eq!((fault.fr(), fault.pv()), (code, pasid(number)));
        rig.guest.write32(vtd_spec::offset::FSTS, 1);
    }
}

#[test]
fn requests_without_pasid_use_the_guests_table_for_them() {
    let rig = Rig::new();
    assert!(rig.port.write(Requester::default(), 0x5000, &[1]).is_err(), "blocked: no entry");
    rig.bind(Pasid::ZERO);
    let page = rig.guest.page();
    rig.guest.map(Pasid::ZERO, 0x5000, page, entry::USER);
    rig.port.write(Requester::default(), 0x5000, &[1]).unwrap();
    assert_eq!(rig.guest.memory.read_obj::<u8>(GuestAddress(page)).unwrap(), 1);
    rig.unmap(Pasid::ZERO, 0x5000);
    assert!(rig.port.write(Requester::default(), 0x5000, &[2]).is_err());
    // With remapping off, addresses are guest physical ones.
    rig.guest.command_off(1 << 31);
    rig.port.write(Requester::default(), page + 1, &[9]).unwrap();
    assert_eq!(rig.guest.memory.read_obj::<u8>(GuestAddress(page + 1)).unwrap(), 9);
}

#[test]
fn the_quota_bounds_what_a_guest_can_bind() {
    let host = SoftHostConfig { pasid_quota: 3, ..SoftHostConfig::default() };
    let rig = Rig::with(&UnitConfig::default(), &host);
    for number in 1..=5 {
        rig.bind(pasid(number));
    }
    assert_eq!(rig.assigned.bound_count(), 3);
    assert_eq!(rig.guest.take_fault(0).unwrap().fr(), 0x59, "the guest reads of it");
    rig.unbind(pasid(1));
    rig.guest.submit(&pasid_cache(pasid(4)));
    assert_eq!(rig.assigned.bound_count(), 3);
    assert!(rig.assigned.host_pasid(pasid(4)).is_some());
}

#[test]
fn a_table_outside_the_guests_memory_reaches_nothing() {
    let rig = Rig::new();
    rig.bind(PASID);
    let outside = Guest::first_stage(vtd_spec::DomainId(1), 0x7000_0000);
    rig.guest.write_pasid_entry(PASID, outside);
    rig.guest.submit(&pasid_cache(PASID));
    assert!(rig.port.read(Guest::with_pasid(PASID), ADDRESS, &mut [0]).is_err());
    rig.eventually("a record", || rig.guest.take_fault(0).is_some());
}

#[test]
fn everything_is_given_back_when_the_joint_goes() {
    let rig = Rig::new();
    rig.bind(PASID);
    rig.bind(Pasid::ZERO);
    let page = rig.guest.page();
    rig.guest.map(PASID, ADDRESS, page, entry::USER);
    rig.port.write(Guest::with_pasid(PASID), ADDRESS, &[1]).unwrap();
    let Rig { joint, host, port, .. } = rig;
    drop(joint);
    assert_eq!(host.allocated_pasids(), 0);
    assert!(port.write(Guest::with_pasid(PASID), ADDRESS, &[2]).is_err());
    assert!(port.write(Requester::default(), 0x5000, &[2]).is_err());
    assert_eq!(host.nesting_info().pasid_bits, 20);
}
