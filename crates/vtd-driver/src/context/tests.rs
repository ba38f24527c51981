// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use vtd_spec::Descriptor;

use super::*;
use crate::fake::{DEVICE, Driver, Fake, Mishap, OTHER, capabilities};

fn entry(iommu: &Driver, source_id: SourceId) -> ScalableContextEntry {
    let address = iommu.context_address(source_id).unwrap();
    ScalableContextEntry::from_qwords([0, 8, 16, 24].map(|at| iommu.memory.load(address + at)))
}

#[test]
fn the_directory_is_as_large_as_the_devices_pasids_need() {
    for (bits, pages, pdts) in [(0, 1, 2), (6, 1, 2), (15, 1, 2), (16, 2, 3), (19, 16, 6), (20, 32, 7)] {
        let fake = Fake::new();
        let mut iommu = fake.driver();
        let before = fake.outstanding();
        let device = SourceId::new(0, 0x1f, 0);
        iommu.add_device(DeviceConfig { pasid_bits: bits, ..DeviceConfig::new(device) }).unwrap();
        // One more for the upper half of the bus's context table.
        assert_eq!(fake.outstanding() - before, pages + 1, "{bits} bits");
        let entry = entry(&iommu, device);
        assert_eq!((entry.pdts(), entry.paside()), (pdts, bits != 0));
        assert!(entry.pasid_limit() >= iommu.device(device).unwrap().pasid_limit());
        assert_eq!(entry.pasid_limit() as usize / 64 * 8, pages * 4096);
    }
}

#[test]
fn the_context_entry_says_what_the_device_may_do() {
    let fake = Fake::new();
    let mut iommu = fake.driver();
    let caps = iommu.capabilities();
    let full = entry(&iommu, DEVICE);
    assert!(full.present() && full.dte() && full.paside() && full.pre() && !full.fpd());
    assert_ne!(full.pasid_dir_ptr(), entry(&iommu, OTHER).pasid_dir_ptr());
    let plain = SourceId(0x20);
    iommu.add_device(DeviceConfig::new(plain)).unwrap();
    let none = entry(&iommu, plain);
    assert!(none.present() && !none.dte() && !none.paside() && !none.pre());
    assert!(!full.reserved(&caps) && !none.reserved(&caps));
    iommu.remove_device(DEVICE).unwrap();
    assert_eq!(entry(&iommu, DEVICE), ScalableContextEntry::new());
}

#[test]
fn devices_that_the_unit_cannot_serve_are_refused() {
    let (cap, ecap) = capabilities();
    let device = SourceId(0x20);
    let sva = DeviceConfig::with_sva(device);
    for (ecap, config) in [
        (ecap.with_pasid(false), sva),
        (ecap.with_pss(15), sva),
        (ecap.with_dt(false), sva),
        (ecap.with_pds(false), sva),
        (ecap, DeviceConfig { ats: None, ..sva }),
        (ecap, DeviceConfig { pasid_bits: 21, ..sva }),
    ] {
        let fake = Fake::with(cap, ecap);
        let mut iommu = Iommu::bring_up(fake.clone(), fake.clone(), crate::Config::new(46)).unwrap();
        let before = fake.outstanding();
        assert!(matches!(iommu.add_device(config), Err(Error::Unsupported { .. })), "{config:?}");
        assert_eq!(fake.outstanding(), before);
    }
    let fake = Fake::new();
    let mut iommu = fake.driver();
    let exists = Err(Error::DeviceExists { source_id: DEVICE });
    assert_eq!(iommu.add_device(DeviceConfig::with_sva(DEVICE)), exists);
    fake.limit_pages(Some(0));
    assert_eq!(iommu.add_device(sva), Err(Error::OutOfMemory));
    fake.limit_pages(None);
    iommu.add_device(sva).unwrap();
}

#[test]
fn a_device_that_cannot_be_announced_is_not_added() {
    let fake = Fake::new();
    let mut iommu = fake.driver();
    let before = fake.outstanding();
    let device = SourceId::new(0, 9, 0);
    fake.mishap(Mishap::Refuse(|descriptor| matches!(descriptor, Descriptor::ContextCache(_)), None));
    let refused = Err(Error::InvalidDescriptor { index: 0, reason: None });
    assert_eq!(iommu.add_device(DeviceConfig::new(device)), refused);
    assert_eq!((iommu.devices().count(), fake.outstanding()), (2, before));
    iommu.add_device(DeviceConfig::new(device)).unwrap();
}

#[test]
fn a_directory_that_the_unit_may_still_use_is_given_back_with_the_unit() {
    let fake = Fake::new();
    let mut iommu = fake.driver();
    iommu.attach_pass_through(DEVICE, crate::fake::PASID).unwrap();
    let before = fake.outstanding();
    fake.mishap(Mishap::Hang);
    assert_eq!(iommu.remove_device(DEVICE), Err(Error::QueueTimeout));
    assert_eq!((iommu.devices().count(), fake.outstanding()), (1, before));
    iommu.shutdown().unwrap();
    assert_eq!(fake.outstanding(), 0);
}
