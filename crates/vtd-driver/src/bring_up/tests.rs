// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::vec;
use std::vec::Vec;

use vtd_spec::{Pasid, SourceId};

use super::*;
use crate::fake::{Fake, capabilities};
use crate::{DeviceConfig, Stage};

/// The register writes of Debian's Linux 7.3.4 in scalable mode with caching mode and interrupt remapping, from the first
/// one to remapping enabled, as traced. Left out: what is for interrupts of devices, and the second of two writes of
/// the same message. Addresses of tables are 0.
const LINUX: [(u64, u8, u64); 21] = [
    (0x88, 4, 0),
    (0x90, 8, 0x801),
    (0x18, 4, 0x0400_0000),
    (0xb8, 8, 0xf),
    (0x18, 4, 0x0500_0000),
    (0x88, 4, 0x40),
    (0x18, 4, 0x0600_0000),
    (0x20, 8, 0x400),
    (0x18, 4, 0x4600_0000),
    (0xe4, 4, 0x21),
    (0xe8, 4, 0xfee0_0000),
    (0xec, 4, 0),
    (0xe0, 4, 0),
    (0xc0, 8, 0),
    (0xc8, 8, 0),
    (0xd0, 8, 4),
    (0x3c, 4, 0x22),
    (0x40, 4, 0xfee0_0000),
    (0x44, 4, 0),
    (0x38, 4, 0),
    (0x18, 4, 0x8600_0000),
];

#[test]
fn the_registers_are_written_as_linux_writes_them() {
    let fake = Fake::with(
        Capability::from_bits(0x81d2_008c_222f_0686),
        ExtendedCapability::from_bits(0x8d9a_20f0_0f4e),
    );
    let config = Config { interrupt_remapping: Some(false), ..Config::new(46) };
    let mut iommu = Iommu::bring_up(fake.clone(), fake.clone(), config).unwrap();
    iommu.enable_translation().unwrap();
    let without_addresses = |(register, bytes, value): (u64, u8, u64)| match register {
        0x90 | 0xb8 | 0x20 | 0xd0 => (register, bytes, value & 0xfff),
        _ => (register, bytes, value),
    };
    let writes: Vec<_> = fake.take_writes().into_iter().map(without_addresses).collect();
    assert_eq!(writes, LINUX);
}

#[test]
fn a_device_is_announced_as_linux_announces_it() {
    let fake = Fake::new();
    let mut iommu = Iommu::bring_up(fake.clone(), fake.clone(), Config::new(46)).unwrap();
    let device = SourceId(0x18);
    iommu.add_device(DeviceConfig::with_sva(device)).unwrap();
    iommu.attach_pass_through(device, Pasid::ZERO).unwrap();
    let words: Vec<_> = fake.take().iter().map(|descriptor| descriptor.encode()[0]).collect();
    assert_eq!(words, [0x18_0000_0031, 0xe2, 0x1_0017, 0x1_0026]);
}

#[test]
fn caches_are_invalidated_by_software_where_setting_the_root_does_not() {
    let (cap, ecap) = capabilities();
    let fake = Fake::with(cap.with_esrtps(false), ecap);
    Iommu::bring_up(fake.clone(), fake.clone(), Config::new(46)).unwrap();
    assert_eq!(fake.take(), [cache::context_global(), cache::pasid_cache_global(), cache::iotlb_global()]);
}

#[test]
fn units_that_cannot_do_it_are_refused() {
    let (cap, ecap) = capabilities();
    let bring_up = |cap, ecap, config| {
        let fake = Fake::with(cap, ecap);
        let error = Iommu::bring_up(fake.clone(), fake.clone(), config).err();
        assert_eq!((fake.take_writes(), fake.outstanding()), (vec![], 0));
        error
    };
    let config = Config::new(46);
    let ones = (Capability::from_bits(u64::MAX), ExtendedCapability::from_bits(u64::MAX));
    assert_eq!(bring_up(ones.0, ones.1, config), Some(Error::NoUnit));
    let x2apic = Config { interrupt_remapping: Some(true), ..config };
    for (ecap, config) in
        [(ecap.with_smts(false), config), (ecap.with_qi(false), config), (ecap.with_eim(false), x2apic)]
    {
        assert!(matches!(bring_up(cap, ecap, config), Some(Error::Unsupported { .. })));
    }
}

#[test]
fn no_memory_at_any_point_leaves_nothing_behind() {
    let config = Config { interrupt_remapping: Some(false), ..Config::new(46) };
    for pages in 0..300 {
        let fake = Fake::new();
        fake.limit_pages(Some(pages));
        match Iommu::bring_up(fake.clone(), fake.clone(), config) {
            Err(error) => assert_eq!((error, fake.outstanding()), (Error::OutOfMemory, 0), "{pages} pages"),
            Ok(iommu) => {
                assert_eq!(pages, 2 + 1 + 1 + 256 + 16);
                iommu.shutdown().unwrap();
                assert_eq!(fake.outstanding(), 0);
                return;
            }
        }
    }
    panic!("300 pages are enough");
}

#[test]
fn what_ran_before_is_turned_off_first() {
    let fake = Fake::new();
    fake.set(vtd_spec::offset::GSTS, 0x8400_0000);
    fake.set(vtd_spec::offset::FSTS, 1);
    Iommu::bring_up(fake.clone(), fake.clone(), Config::new(46)).unwrap();
    let writes = fake.take_writes();
    assert_eq!(writes[..3], [(0x18, 4, 0x0400_0000), (0x34, 4, 1), (0x18, 4, 0)]);
}

#[test]
fn a_unit_that_takes_no_command_is_reported() {
    let fake = Fake::new();
    fake.state().script.insert(vtd_spec::offset::GSTS, vec![0; 1000].into());
    let error = Iommu::bring_up(fake.clone(), fake.clone(), Config::new(46)).err();
    assert_eq!(error, Some(Error::CommandTimeout { command: 0x0400_0000 }));
}

#[test]
fn shutdown_gives_all_memory_back_whatever_is_attached() {
    let fake = Fake::new();
    let mut iommu = fake.driver();
    let domain = iommu.create_domain(Stage::Second(vtd_spec::AddressWidth::Bits48)).unwrap();
    iommu.map(domain, 0x1000, 0x5000, 0x40_0000, crate::Access::Read).unwrap();
    iommu.attach(domain, crate::fake::DEVICE, crate::fake::PASID).unwrap();
    iommu.enable_translation().unwrap();
    fake.clear();
    iommu.shutdown().unwrap();
    assert_eq!(fake.outstanding(), 0);
    let commands: Vec<_> = fake.take_writes().into_iter().filter(|write| write.0 == 0x18).collect();
    assert_eq!(commands, [(0x18, 4, 0x0400_0000), (0x18, 4, 0)]);
}

#[test]
fn interrupt_entries_are_written_and_invalidated() {
    let fake = Fake::new();
    let config = Config { interrupt_remapping: Some(false), ..Config::new(46) };
    let mut iommu = Iommu::bring_up(fake.clone(), fake.clone(), config).unwrap();
    assert_eq!(fake.take(), [cache::interrupt_global()]);
    let entry = vtd_spec::InterruptRemapEntry::from_qwords([0x1234_0001, 0x18]);
    iommu.set_interrupt_entry(7, entry).unwrap();
    assert_eq!(fake.take(), [cache::interrupt_index(7)]);
    let table = fake.state().log.iter().find(|entry| entry.0 && entry.1 == 0xb8).unwrap().3 & !0xfff;
    assert_eq!([fake.load(table + 0x70), fake.load(table + 0x78)], entry.to_qwords());
    let fake = Fake::new();
    let mut iommu = fake.driver();
    assert!(matches!(iommu.set_interrupt_entry(7, entry), Err(Error::Unsupported { .. })));
}
