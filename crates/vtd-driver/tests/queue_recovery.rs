// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The invalidation queue against a unit in software: batches, refused descriptors, devices that do not complete.

mod common;

use common::System;
use vtd_driver::{Access, Ats, Error, Stage, cache};
use vtd_spec::descriptors::{HptCache, HptGranularity, HptLevels};
use vtd_spec::{
    AddressRange, Descriptor, DomainId, FaultStatus, FirstStagePagingMode, Pasid, QueueError, SourceId,
    offset,
};

const DEVICE: SourceId = SourceId::new(0, 3, 0);
const GONE: SourceId = SourceId::new(0, 9, 0);

fn fault_status(system: &System) -> FaultStatus {
    let mut data = [0; 4];
    system.unit.read(offset::FSTS, &mut data);
    FaultStatus::from_bits(u32::from_le_bytes(data))
}

/// A descriptor that no unit here knows.
fn unknown() -> Descriptor {
    Descriptor::HptCache(HptCache {
        granularity: HptGranularity::Global,
        hptdid: DomainId(0),
        am: 0,
        ih: HptLevels::All,
        addr: 0,
    })
}

#[test]
fn a_refused_descriptor_does_not_keep_the_others_from_being_carried_out() {
    let mut system = System::new();
    let device = system.add_device(DEVICE, true);
    device.sink.take_invalidations();
    let page = cache::device_tlb(DEVICE, Ats::default(), AddressRange::new(0x1000, 0));
    let error = system.iommu.submit(&[page, unknown(), page, page]).unwrap_err();
    assert_eq!(error, Error::InvalidDescriptor { index: 1, reason: Some(QueueError::InvalidType) });
    assert_eq!(device.sink.take_invalidations().len(), 3);
    assert!(!fault_status(&system).iqe());
    system.iommu.submit(&[page]).unwrap();
    assert_eq!(device.sink.take_invalidations().len(), 1);
    system.end(0);
}

#[test]
fn a_batch_of_nothing_but_refused_descriptors_ends() {
    let mut system = System::new();
    let error = system.iommu.submit(&[unknown(); 200]).unwrap_err();
    assert_eq!(error, Error::InvalidDescriptor { index: 0, reason: Some(QueueError::InvalidType) });
    system.iommu.submit(&[cache::iotlb_global()]).unwrap();
    system.end(0);
}

#[test]
fn a_device_that_is_gone_times_out_and_the_others_are_invalidated() {
    let mut system = System::new();
    let device = system.add_device(DEVICE, true);
    let ats = Ats::default();
    let of = |device| cache::device_tlb(device, ats, AddressRange::ALL);
    let error = system.iommu.submit(&[of(GONE), of(DEVICE)]).unwrap_err();
    assert_eq!(error, Error::DeviceTimedOut { source_id: GONE });
    assert!(!device.sink.take_invalidations().is_empty());
    assert!(!fault_status(&system).ite());
    system.iommu.submit(&[of(DEVICE)]).unwrap();
    system.end(0);
}

#[test]
fn unmapping_with_a_dead_device_in_the_domain_still_reaches_the_living() {
    let mut system = System::new();
    let device = system.add_device(DEVICE, true);
    let domain = system.iommu.create_domain(Stage::First(FirstStagePagingMode::Level4)).unwrap();
    // It was added, but there is nothing at its source-id that could complete.
    system.iommu.add_device(vtd_driver::DeviceConfig::with_sva(GONE)).unwrap();
    system.iommu.attach(domain, DEVICE, Pasid::ZERO).unwrap();
    system.iommu.attach(domain, GONE, Pasid::ZERO).unwrap();
    system.iommu.map(domain, 0x20_0000, 0x800_0000 + 0x1000, 0x20_0000, Access::ReadWrite).unwrap();
    assert!(device.write(Pasid::ZERO, 0x20_0000, &[1]));
    let timed_out = Err(Error::DeviceTimedOut { source_id: GONE });
    assert_eq!(system.iommu.unmap(domain, 0x20_0000, 0x20_0000), timed_out);
    assert!(!device.write(Pasid::ZERO, 0x20_0000, &[1]));
    assert_eq!(system.iommu.remove_device(GONE), timed_out);
    assert_eq!(system.iommu.devices().collect::<Vec<_>>(), [DEVICE]);
    system.end(0);
}

#[test]
fn long_submissions_wrap_the_queue_many_times() {
    let mut system = System::new();
    let device = system.add_device(DEVICE, true);
    device.sink.take_invalidations();
    let pages: Vec<_> = (0..5000)
        .map(|page| cache::device_tlb(DEVICE, Ats::default(), AddressRange::new(page * 4096, 0)))
        .collect();
    system.iommu.submit(&pages).unwrap();
    let heard: Vec<u64> =
        device.sink.take_invalidations().iter().map(|one| one.range.base() / 4096).collect();
    assert_eq!(heard, (0..5000).collect::<Vec<_>>());
    system.end(0);
}
