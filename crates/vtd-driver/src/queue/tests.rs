// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::vec::Vec;

use vtd_spec::{AddressRange, DomainId, Pasid};

use super::*;
use crate::cache;
use crate::fake::{DEVICE, Fake, Mishap, OTHER};
use crate::state::Ats;

const ATS: Ats = Ats { invalidate_queue_depth: 0, pfsid: SourceId(0), global_invalidate: false };

fn domain(did: u16) -> Descriptor {
    cache::iotlb_domain(DomainId(did))
}

fn device(source_id: SourceId) -> Descriptor {
    cache::device_tlb(source_id, ATS, AddressRange::ALL)
}

#[test]
fn descriptors_are_carried_out_in_order_with_one_wait_a_batch() {
    let fake = Fake::new();
    let mut iommu = fake.driver();
    let all: Vec<_> = (0..150).map(domain).collect();
    iommu.submit(&all).unwrap();
    assert_eq!((fake.take(), fake.state().waits), (all, 3));
    iommu.submit(&[]).unwrap();
    assert_eq!((fake.take(), fake.state().waits), (Vec::new(), 3));
}

#[test]
fn the_queue_wraps_around() {
    let fake = Fake::new();
    let mut iommu = fake.driver();
    for round in 0..300 {
        iommu.submit(&[domain(round), domain(round + 1)]).unwrap();
        assert_eq!(fake.take(), [domain(round), domain(round + 1)]);
    }
}

#[test]
fn a_refused_descriptor_is_left_out_and_reported() {
    let fake = Fake::new();
    let mut iommu = fake.driver();
    let bad = |descriptor: &Descriptor| *descriptor == domain(1);
    fake.mishap(Mishap::Refuse(bad, Some(QueueError::ReservedField)));
    let error = iommu.submit(&[domain(0), domain(1), domain(2)]).unwrap_err();
    assert_eq!(error, Error::InvalidDescriptor { index: 1, reason: Some(QueueError::ReservedField) });
    assert_eq!(fake.take(), [domain(0), cache::barrier(), domain(2)], "the others were carried out");
    iommu.submit(&[domain(1)]).unwrap();
    assert_eq!(fake.take(), [domain(1)], "the queue works on");
}

#[test]
fn several_refusals_in_different_batches_report_the_first() {
    let fake = Fake::new();
    let mut iommu = fake.driver();
    fake.mishap(Mishap::Refuse(|descriptor| *descriptor == domain(80), Some(QueueError::InvalidType)));
    fake.mishap(Mishap::Refuse(|descriptor| *descriptor == domain(70), None));
    let all: Vec<_> = (0..100).map(domain).collect();
    assert_eq!(iommu.submit(&all), Err(Error::InvalidDescriptor { index: 70, reason: None }));
    assert_eq!(fake.take().iter().filter(|d| matches!(d, Descriptor::Iotlb(_))).count(), 98);
}

#[test]
fn a_refused_wait_fails_its_batch_and_a_refused_tail_every_one() {
    let fake = Fake::new();
    let mut iommu = fake.driver();
    let wait = |descriptor: &Descriptor| matches!(descriptor, Descriptor::Wait(_));
    fake.mishap(Mishap::Refuse(wait, Some(QueueError::FetchError)));
    let reason = Some(QueueError::FetchError);
    assert_eq!(iommu.submit(&[domain(1)]), Err(Error::QueueStopped { reason }));
    iommu.submit(&[domain(2)]).unwrap();
    assert_eq!(fake.take().last(), Some(&domain(2)), "it is not stopped for good");
    let fake = Fake::new();
    let mut iommu = fake.driver();
    fake.mishap(Mishap::Refuse(|_| true, Some(QueueError::InvalidTail)));
    assert_eq!(
        iommu.submit(&[domain(1)]),
        Err(Error::QueueStopped { reason: Some(QueueError::InvalidTail) })
    );
}

#[test]
fn a_time_out_has_everything_submitted_again() {
    let fake = Fake::new();
    let mut iommu = fake.driver();
    fake.mishap(Mishap::TimeOut(DEVICE, 1));
    iommu.submit(&[domain(1), device(DEVICE)]).unwrap();
    assert_eq!(fake.take(), [domain(1), device(DEVICE), domain(1), device(DEVICE)]);
}

#[test]
fn a_device_that_never_completes_is_given_up_and_the_rest_is_done() {
    let fake = Fake::new();
    let mut iommu = fake.driver();
    fake.mishap(Mishap::TimeOut(DEVICE, u32::MAX));
    let all = [domain(1), device(DEVICE), device(OTHER)];
    assert_eq!(iommu.submit(&all), Err(Error::DeviceTimedOut { source_id: DEVICE }));
    assert!(fake.take().ends_with(&[domain(1), device(OTHER)]));
}

#[test]
fn a_device_that_is_gone_is_given_up_at_once() {
    let fake = Fake::new();
    let mut iommu = fake.driver();
    let gone = SourceId::new(9, 0, 0);
    fake.mishap(Mishap::TimeOut(gone, u32::MAX));
    assert_eq!(iommu.submit(&[device(gone), domain(1)]), Err(Error::DeviceTimedOut { source_id: gone }));
    assert_eq!(fake.take(), [device(gone), domain(1), domain(1)]);
}

#[test]
fn a_time_out_of_an_unnamed_device_ends_too() {
    let fake = Fake::new();
    let mut iommu = fake.driver();
    fake.mishap(Mishap::TimeOut(SourceId(0), u32::MAX));
    let unnamed = cache::pasid_device_tlb(SourceId(0), ATS, Pasid::ZERO, AddressRange::ALL);
    let error = iommu.submit(&[unnamed, device(OTHER), domain(1)]).unwrap_err();
    assert_eq!(error, Error::DeviceTimedOut { source_id: SourceId(0) });
    assert_eq!(fake.take().last(), Some(&domain(1)));
}

#[test]
fn a_completion_error_is_cleared_and_harmless() {
    let fake = Fake::new();
    let mut iommu = fake.driver();
    // The status is looked at while a time-out holds the wait back.
    fake.mishap(Mishap::TimeOut(DEVICE, 1));
    fake.state().script.insert(offset::FSTS, [1 << 5].into());
    iommu.submit(&[device(DEVICE)]).unwrap();
    assert!(fake.take_writes().contains(&(offset::FSTS, 4, 1 << 5)));
}

#[test]
fn a_queue_that_stands_still_is_reported_and_goes_on_when_it_moves() {
    let fake = Fake::new();
    let mut iommu = fake.driver();
    fake.mishap(Mishap::Hang);
    for _ in 0..10 {
        assert_eq!(iommu.submit(&[domain(1); 50]), Err(Error::QueueTimeout), "never beyond its entries");
    }
    fake.state().mishaps.clear();
    iommu.submit(&[domain(3)]).unwrap();
    assert_eq!(fake.take().last(), Some(&domain(3)));
}

#[test]
fn a_descriptor_of_a_batch_that_was_given_up_is_refused_without_harm() {
    let fake = Fake::new();
    let mut iommu = fake.driver();
    fake.mishap(Mishap::Hang);
    assert_eq!(iommu.submit(&[domain(1), domain(2)]), Err(Error::QueueTimeout));
    fake.state().mishaps.clear();
    fake.mishap(Mishap::Refuse(|descriptor| *descriptor == domain(2), None));
    iommu.submit(&[domain(3)]).unwrap();
    assert_eq!(fake.take(), [domain(1), cache::barrier(), domain(3)]);
}

#[test]
fn a_refused_descriptor_is_not_hidden_by_a_device_that_times_out() {
    let fake = Fake::new();
    let mut iommu = fake.driver();
    // The device is given up first; the descriptor is refused on the way that is left, and keeps its place.
    fake.mishap(Mishap::TimeOut(DEVICE, TIME_OUTS));
    let bad = |descriptor: &Descriptor| *descriptor == domain(1);
    (0..=TIME_OUTS).for_each(|_| fake.mishap(Mishap::Refuse(bad, None)));
    let error = iommu.submit(&[device(DEVICE), domain(1)]).unwrap_err();
    assert_eq!(error, Error::InvalidDescriptor { index: 1, reason: None });
    // In a later batch likewise.
    let fake = Fake::new();
    let mut iommu = fake.driver();
    fake.mishap(Mishap::TimeOut(DEVICE, u32::MAX));
    fake.mishap(Mishap::Refuse(|descriptor| *descriptor == domain(70), None));
    let mut all: Vec<_> = (0..100).map(domain).collect();
    all[0] = device(DEVICE);
    assert_eq!(iommu.submit(&all), Err(Error::InvalidDescriptor { index: 70, reason: None }));
}

#[test]
fn a_unit_that_is_gone_is_not_followed_anywhere() {
    let fake = Fake::new();
    let mut iommu = fake.driver();
    let before = fake.outstanding();
    fake.mishap(Mishap::Hang);
    {
        let mut state = fake.state();
        for register in [offset::FSTS, offset::IQH, offset::IQERCD] {
            state.script.insert(register, std::vec![u64::MAX; 1000].into());
        }
    }
    assert!(iommu.submit(&[domain(1); 200]).is_err());
    // Its queue is full of what it never fetched.
    for _ in 0..10 {
        assert!(iommu.submit(&[domain(1), device(DEVICE)]).is_err());
    }
    assert_eq!(fake.outstanding(), before);
}

#[test]
fn a_full_queue_that_stopped_is_repaired() {
    let fake = Fake::new();
    let mut iommu = fake.driver();
    fake.mishap(Mishap::Hang);
    for _ in 0..5 {
        assert_eq!(iommu.submit(&[domain(1), device(DEVICE)].repeat(25)), Err(Error::QueueTimeout));
    }
    fake.state().mishaps.clear();
    fake.mishap(Mishap::Refuse(|descriptor| *descriptor == domain(1), None));
    fake.mishap(Mishap::TimeOut(DEVICE, 1));
    iommu.submit(&[domain(3); 60]).unwrap();
    assert_eq!(fake.take().last(), Some(&domain(3)));
}
