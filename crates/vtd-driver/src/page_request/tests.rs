// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use super::*;
use crate::DeviceConfig;
use crate::fake::{DEVICE, Driver, Fake, OTHER, PASID};
use crate::state::FirstStageTable;

const ADDRESS: u64 = 0x7f12_3456_7000;

fn descriptor(group: u16) -> PageRequestDescriptor {
    PageRequestDescriptor::new()
        .with_descriptor_type(PageRequestDescriptor::TYPE)
        .with_pp(true)
        .with_rid(DEVICE)
        .with_pasid(PASID)
        .with_rdr(true)
        .with_lpig(true)
        .with_prgi(group)
        .with_addr(ADDRESS)
}

/// The unit queues a request.
fn queue(fake: &Fake, request: PageRequestDescriptor) {
    let base = fake.read64(offset::PQA) & !0xfff;
    let tail = fake.read64(offset::PQT);
    for (index, qword) in request.to_qwords().into_iter().enumerate() {
        fake.store(base + tail + 8 * index as u64, qword);
    }
    fake.set(offset::PQT, (tail + 32) & RING_MASK);
    fake.set(offset::PRS, u64::from(fake.read32(offset::PRS)) | 1);
}

fn taken(group: u16) -> PageRequest {
    PageRequest {
        source_id: DEVICE,
        pasid: Some(PASID),
        address: ADDRESS,
        read: true,
        write: false,
        group,
        last: true,
    }
}

fn answer(group: u16, code: ResponseCode) -> Descriptor {
    cache::response(DEVICE, Some(PASID), group, code)
}

fn bound(fake: &Fake) -> Driver {
    let mut iommu = fake.driver();
    let table = FirstStageTable { root: 0x5000, mode: vtd_spec::FirstStagePagingMode::Level4 };
    iommu.set_up_first_stage(DEVICE, PASID, table, None).unwrap();
    fake.clear();
    iommu
}

#[test]
fn requests_are_taken_in_order_and_the_event_is_acknowledged_first() {
    let fake = Fake::new();
    let mut iommu = fake.driver();
    let without = descriptor(2).with_pp(false).with_wrr(true).with_rdr(false).with_lpig(false);
    queue(&fake, descriptor(1));
    queue(&fake, without);
    fake.clear();
    let requests = iommu.take_page_requests().unwrap();
    let second = PageRequest { pasid: None, read: false, write: true, last: false, ..taken(2) };
    assert_eq!(requests, PageRequests { requests: [taken(1), second].into(), overflow: false });
    let log: Vec<_> = fake.state().log.iter().map(|access| (access.0, access.1)).collect();
    let expected = [
        (true, offset::PRS),
        (false, offset::PQT),
        (false, offset::PQH),
        (true, offset::PQH),
        (false, offset::PRS),
    ];
    assert_eq!(log, expected);
    assert_eq!(fake.read64(offset::PQH), 64);
    assert_eq!(iommu.take_page_requests(), Ok(PageRequests::default()));
}

#[test]
fn requests_that_cannot_be_served_are_answered_where_they_close_a_group() {
    let fake = Fake::new();
    let mut iommu = fake.driver();
    let unknown = SourceId(0x7777);
    for bad in [
        descriptor(1).with_addr(1 << 57),
        descriptor(2).with_pmr(true),
        descriptor(3).with_exr(true),
        descriptor(4).with_rid(unknown),
        descriptor(5).with_addr(1 << 60).with_lpig(false),
        descriptor(6).with_pp(false).with_pmr(true),
        // A stop marker.
        descriptor(7).with_rdr(false),
    ] {
        queue(&fake, bad);
    }
    assert_eq!(iommu.take_page_requests(), Ok(PageRequests::default()));
    let invalid = ResponseCode::InvalidRequest;
    let expected = [
        answer(1, invalid),
        answer(2, invalid),
        answer(3, invalid),
        cache::response(unknown, Some(PASID), 4, invalid),
        cache::response(DEVICE, None, 6, invalid),
    ];
    assert_eq!(fake.take(), expected);
}

#[test]
fn a_device_without_page_requests_is_unknown() {
    let fake = Fake::new();
    let mut iommu = fake.driver();
    let quiet = SourceId(0x55);
    iommu.add_device(DeviceConfig::new(quiet)).unwrap();
    fake.clear();
    queue(&fake, descriptor(1).with_rid(quiet));
    assert!(iommu.take_page_requests().unwrap().requests.is_empty());
    assert_eq!(fake.take(), [cache::response(quiet, Some(PASID), 1, ResponseCode::InvalidRequest)]);
}

#[test]
fn an_overflow_is_cleared_once_the_queue_is_empty() {
    let fake = Fake::new();
    let mut iommu = fake.driver();
    queue(&fake, descriptor(1));
    fake.set(offset::PRS, 3);
    fake.clear();
    let taken = iommu.take_page_requests().unwrap();
    assert!(taken.overflow && taken.requests.len() == 1);
    assert_eq!(fake.read32(offset::PRS), 0);
    // More came meanwhile: the overflow stays until they are taken.
    fake.set(offset::PRS, 3);
    fake.state().script.insert(offset::PQT, [32, 64].into());
    assert!(!iommu.take_page_requests().unwrap().overflow);
    assert_eq!(fake.read32(offset::PRS), 2);
}

#[test]
fn the_queue_wraps_around() {
    let fake = Fake::new();
    let mut iommu = fake.driver();
    fake.set(offset::PQT, RING_MASK);
    fake.set(offset::PQH, RING_MASK);
    queue(&fake, descriptor(1));
    queue(&fake, descriptor(2));
    assert_eq!(iommu.take_page_requests().unwrap().requests, [taken(1), taken(2)]);
    assert_eq!(fake.read64(offset::PQH), 32);
}

#[test]
fn only_the_last_request_of_a_group_is_answered() {
    let fake = Fake::new();
    let mut iommu = fake.driver();
    iommu.respond(&PageRequest { last: false, ..taken(1) }, ResponseCode::Success).unwrap();
    assert_eq!(fake.take(), []);
    iommu.respond(&taken(1), ResponseCode::ResponseFailure).unwrap();
    assert_eq!(fake.take(), [answer(1, ResponseCode::ResponseFailure)]);
}

#[test]
fn a_pasid_that_goes_leaves_no_request_behind() {
    let fake = Fake::new();
    let mut iommu = bound(&fake);
    let other = descriptor(9).with_rid(OTHER);
    queue(&fake, descriptor(1));
    queue(&fake, other);
    queue(&fake, descriptor(2).with_lpig(false));
    queue(&fake, descriptor(2));
    iommu.detach(DEVICE, PASID).unwrap();
    let sent = fake.take();
    let invalid = ResponseCode::InvalidRequest;
    assert_eq!(sent[3..5], [answer(1, invalid), answer(2, invalid)], "behind the teardown");
    let drained = Wait { sw: true, pd: true, ..Wait::default() };
    assert_eq!(sent[5], cache::barrier());
    assert_eq!(sent[8], Descriptor::Wait(drained));
    let kept = iommu.take_page_requests().unwrap().requests;
    assert_eq!(kept, [PageRequest { source_id: OTHER, ..taken(9) }]);
}

#[test]
fn requests_that_wait_here_are_answered_when_their_pasid_goes() {
    let fake = Fake::new();
    let mut iommu = bound(&fake);
    let other = Pasid::truncated(7);
    let table = FirstStageTable { root: 0x5000, mode: vtd_spec::FirstStagePagingMode::Level4 };
    iommu.set_up_first_stage(DEVICE, other, table, None).unwrap();
    queue(&fake, descriptor(1));
    // Taken off the queue by the drain of another PASID.
    iommu.detach(DEVICE, other).unwrap();
    assert_eq!(fake.take().iter().filter(|d| matches!(d, Descriptor::PageGroupResponse(_))).count(), 0);
    iommu.detach(DEVICE, PASID).unwrap();
    assert!(fake.take().contains(&answer(1, ResponseCode::InvalidRequest)));
    assert!(iommu.take_page_requests().unwrap().requests.is_empty());
}

#[test]
fn a_drain_is_repeated_for_an_overflow_and_ends() {
    let fake = Fake::new();
    let mut iommu = bound(&fake);
    fake.state().script.insert(offset::PRS, [0, 2, 2, 0].into());
    iommu.detach(DEVICE, PASID).unwrap();
    let drains = |fake: &Fake| {
        fake.take().iter().filter(|d| matches!(d, Descriptor::Wait(Wait { pd: true, .. }))).count()
    };
    assert_eq!(drains(&fake), 2);
    let mut iommu = bound(&Fake::new());
    assert!(iommu.detach(DEVICE, PASID).is_ok());
    let fake = Fake::new();
    let mut iommu = bound(&fake);
    fake.state().script.insert(offset::PRS, [2; 1000].into());
    iommu.detach(DEVICE, PASID).unwrap();
    assert_eq!(drains(&fake), DRAINS as usize);
}

#[test]
fn requests_that_nobody_takes_do_not_pile_up() {
    let fake = Fake::new();
    let mut iommu = bound(&fake);
    for _ in 0..3 {
        for group in 0..1000 {
            queue(&fake, descriptor(group & 0x1ff).with_rid(OTHER));
        }
        iommu.collect_page_requests(None).unwrap();
    }
    let taken = iommu.take_page_requests().unwrap();
    assert_eq!((taken.requests.len(), taken.overflow), (PENDING, true));
    let answers = fake.take();
    assert_eq!(answers.len(), 3000 - PENDING);
    assert_eq!(answers.last(), Some(&cache::response(OTHER, Some(PASID), 487, ResponseCode::Success)));
}
