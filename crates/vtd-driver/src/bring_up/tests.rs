// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::vec;
use std::vec::Vec;

use vtd_spec::{Pasid, SourceId};

use super::*;
use crate::fake::{Fake, Mishap, capabilities};
use crate::{DeviceConfig, Stage};

/// The register accesses of Debian's Linux 7.3.4 in scalable mode with caching mode and interrupt remapping, from the
/// first one to remapping enabled, as traced: written or not, offset, bytes, value. Left out: what is for interrupts of
/// devices, the second of two writes of the same message and of two looks at the capabilities, and looks at GSTS
/// again for the same command. Addresses of tables are 0, and so are values read.
const LINUX: [(bool, u64, u8, u64); 36] = [
    (false, 0x8, 8, 0),
    (false, 0x10, 8, 0),
    (false, 0x0, 4, 0),
    (false, 0x1c, 4, 0),
    (false, 0x34, 4, 0),
    (false, 0x1c, 4, 0),
    (true, 0x88, 4, 0),
    (true, 0x90, 8, 0x801),
    (true, 0x18, 4, 0x0400_0000),
    (false, 0x1c, 4, 0),
    (true, 0xb8, 8, 0xf),
    (true, 0x18, 4, 0x0500_0000),
    (false, 0x1c, 4, 0),
    (true, 0x88, 4, 0x40),
    (true, 0x18, 4, 0x0600_0000),
    (false, 0x1c, 4, 0),
    (true, 0x20, 8, 0x400),
    (true, 0x18, 4, 0x4600_0000),
    (false, 0x1c, 4, 0),
    (true, 0xe4, 4, 0x21),
    (true, 0xe8, 4, 0xfee0_0000),
    (true, 0xec, 4, 0),
    (true, 0xe0, 4, 0),
    (false, 0xe0, 4, 0),
    (true, 0xc0, 8, 0),
    (true, 0xc8, 8, 0),
    (true, 0xd0, 8, 4),
    (true, 0x3c, 4, 0x22),
    (true, 0x40, 4, 0xfee0_0000),
    (true, 0x44, 4, 0),
    (true, 0x38, 4, 0),
    (false, 0x38, 4, 0),
    (true, 0x18, 4, 0x8600_0000),
    (false, 0x1c, 4, 0),
    // Shutdown.
    (true, 0x18, 4, 0x0600_0000),
    (false, 0x1c, 4, 0),
];

#[test]
fn the_registers_are_used_as_linux_uses_them() {
    let fake = Fake::with(
        Capability::from_bits(0x81d2_008c_222f_0686),
        ExtendedCapability::from_bits(0x8d9a_20f0_0f4e),
    );
    let config = Config { interrupt_remapping: Some(false), ..Config::new(46) };
    let mut iommu = Iommu::bring_up(fake.clone(), fake.clone(), config).unwrap();
    iommu.enable_translation().unwrap();
    iommu.disable_translation().unwrap();
    let log = std::mem::take(&mut fake.state().log);
    let without_addresses = |(written, register, bytes, value): (bool, u64, u8, u64)| match register {
        _ if !written => (written, register, bytes, 0),
        0x90 | 0xb8 | 0x20 | 0xd0 => (written, register, bytes, value & 0xfff),
        _ => (written, register, bytes, value),
    };
    let accesses: Vec<_> = log.into_iter().map(without_addresses).collect();
    assert_eq!(accesses, LINUX);
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
    fake.set(offset::GSTS, 0x8700_0000);
    fake.set(offset::FSTS, 1);
    Iommu::bring_up(fake.clone(), fake.clone(), Config::new(46)).unwrap();
    let writes = fake.take_writes();
    let off = [(0x18, 4, 0x0600_0000), (0x34, 4, 1), (0x18, 4, 0x0400_0000), (0x18, 4, 0)];
    assert_eq!(writes[..4], off, "translation, faults, interrupts, the queue");
}

#[test]
fn the_queue_of_whoever_ran_before_may_finish_and_its_errors_are_cleared() {
    let fake = Fake::new();
    fake.set(offset::GSTS, 0x0400_0000);
    fake.set(offset::IQT, 0x40);
    fake.mishap(Mishap::Hang);
    fake.state().script.insert(offset::IQH, [0, 0x20, 0x40].into());
    Iommu::bring_up(fake.clone(), fake.clone(), Config::new(46)).unwrap();
    assert!(fake.state().script[&offset::IQH].is_empty(), "it was waited for");
    for on in [0x0400_0000, 0] {
        let fake = Fake::new();
        fake.set(offset::GSTS, on);
        fake.set(offset::IQT, 0x40);
        // IQE, ICE and ITE: it will never be empty.
        fake.set(offset::FSTS, 0x70);
        let (cap, ecap) = capabilities();
        fake.set(offset::CAP, cap.with_esrtps(false).into_bits());
        fake.set(offset::ECAP, ecap.into_bits());
        Iommu::bring_up(fake.clone(), fake.clone(), Config::new(46)).unwrap();
        assert!(fake.take_writes().contains(&(0x34, 4, 0x70)), "{on:#x}");
        assert_eq!(fake.take().len(), 3, "the new queue works");
    }
}

#[test]
fn a_unit_that_may_take_a_command_too_late_keeps_the_memory() {
    let fake = Fake::new();
    // Two looks at what is on, then 101 for the queue to come on, and it does after the last.
    let late = [vec![0; 2 + 101], vec![0x0400_0000; 101]].concat();
    fake.state().script.insert(offset::GSTS, late.into());
    let error = Iommu::bring_up(fake.clone(), fake.clone(), Config::new(46)).err();
    assert_eq!(error, Some(Error::CommandTimeout { command: 0x0400_0000 }));
    assert_eq!(fake.take_writes().last(), Some(&(0x18, 4, 0)), "it is told to leave it");
    assert_ne!(fake.outstanding(), 0, "but has not answered");
}

#[test]
fn a_unit_that_takes_no_command_is_reported() {
    let fake = Fake::new();
    fake.state().script.insert(offset::GSTS, vec![0; 1000].into());
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

#[test]
fn memory_that_firmware_had_protected_is_opened() {
    let (cap, ecap) = capabilities();
    for cap in [cap.with_plmr(true), cap.with_phmr(true)] {
        let fake = Fake::with(cap, ecap);
        let mut iommu = fake.driver();
        fake.state().script.insert(offset::PMEN, [0x8000_0001, 1, 1, 0].into());
        iommu.enable_translation().unwrap();
        assert_eq!(fake.take_writes(), [(0x18, 4, 0x8400_0000), (0x64, 4, 1)]);
        assert!(fake.state().script[&offset::PMEN].is_empty(), "until the status says so");
        fake.set(offset::PMEN, 1);
        assert_eq!(iommu.enable_translation(), Err(Error::ProtectedMemory));
    }
    let fake = Fake::new();
    fake.driver().enable_translation().unwrap();
    assert!(fake.state().log.iter().all(|access| access.1 != offset::PMEN));
}

#[test]
fn the_write_buffer_is_flushed_before_the_root_table_is_read() {
    let (cap, ecap) = capabilities();
    let fake = Fake::with(cap.with_rwbf(true), ecap);
    Iommu::bring_up(fake.clone(), fake.clone(), Config::new(46)).unwrap();
    let writes = fake.take_writes();
    let flush = writes.iter().position(|write| *write == (0x18, 4, 0x0c00_0000)).unwrap();
    assert_eq!(writes[flush + 1].0, offset::RTADDR);
}

#[test]
fn interrupts_that_name_no_entry_are_blocked_once_remapping_is_on() {
    let fake = Fake::new();
    fake.set(offset::GSTS, 0x0080_0000);
    let config = Config { interrupt_remapping: Some(false), ..Config::new(46) };
    Iommu::bring_up(fake.clone(), fake.clone(), config).unwrap();
    let commands: Vec<_> = fake.take_writes().into_iter().filter(|write| write.0 == 0x18).collect();
    assert_eq!(commands[2..4], [(0x18, 4, 0x0680_0000), (0x18, 4, 0x0600_0000)]);
}
