// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Bring-up, and DMA through domains, against a unit in software.

mod common;

use common::System;
use vtd_driver::{Access, Error, Stage};
use vtd_spec::{FaultReason, FirstStagePagingMode, Pasid, SourceId};
use vtd_unit::UnitConfig;

const DEVICE: SourceId = SourceId::new(0, 3, 0);
const FIRST: Stage = Stage::First(FirstStagePagingMode::Level4);
const MIB: u64 = 1 << 20;
const BUFFER: u64 = 128 * MIB;

#[test]
fn a_device_without_attachment_reaches_nothing() {
    let mut system = System::new();
    let device = system.add_device(DEVICE, false);
    assert!(!device.write(Pasid::ZERO, 0x1000, &[1]));
    assert!(!device.write(Pasid::truncated(5), 0x1000, &[1]));
    assert_eq!(system.messages.take(), [0x22], "one event for both");
    // The unit keeps one record of a device until it is cleared.
    assert_eq!(system.take_faults(), [FaultReason::Spd2.code()]);
    assert_eq!(system.take_faults(), []);
    system.end(0);
}

#[test]
fn dma_follows_map_and_unmap() {
    for ats in [false, true] {
        let mut system = System::new();
        let device = system.add_device(DEVICE, ats);
        let domain = system.iommu.create_domain(FIRST).unwrap();
        for pasid in [Pasid::ZERO, Pasid::truncated(0x1234)] {
            system.iommu.attach(domain, DEVICE, pasid).unwrap();
        }
        for pasid in [Pasid::ZERO, Pasid::truncated(0x1234)] {
            for (address, length) in [(0x5000, 0x3000), (2 * MIB, 2 * MIB), (0x1_0000_0000, 0x1000)] {
                assert!(!device.write(pasid, address, b"x"), "nothing is mapped");
                system.iommu.map(domain, address, BUFFER, length, Access::ReadWrite).unwrap();
                let last = address + length - 8;
                assert!(device.write(pasid, last, &last.to_le_bytes()));
                assert_eq!(device.read(pasid, last), Some(last));
                assert_eq!(vtd_driver::Memory::load(&*system.host, BUFFER + length - 8), last);
                system.iommu.unmap(domain, address, length).unwrap();
                assert!(!device.write(pasid, last, b"x"), "the old translation is gone");
                assert_eq!(device.read(pasid, address), None);
            }
        }
        system.take_faults();
        system.end(0);
    }
}

#[test]
fn a_read_only_mapping_is_not_written() {
    let mut system = System::new();
    let device = system.add_device(DEVICE, false);
    let domain = system.iommu.create_domain(FIRST).unwrap();
    system.iommu.attach(domain, DEVICE, Pasid::ZERO).unwrap();
    system.iommu.map(domain, 0x1000, BUFFER, 0x1000, Access::Read).unwrap();
    assert!(device.read(Pasid::ZERO, 0x1000).is_some());
    assert!(!device.write(Pasid::ZERO, 0x1000, &[1]));
    assert_eq!(system.take_faults(), [0x85]);
    system.end(0);
}

#[test]
fn pass_through_reaches_physical_addresses_until_it_is_detached() {
    let mut system = System::new();
    let device = system.add_device(DEVICE, false);
    system.iommu.attach_pass_through(DEVICE, Pasid::ZERO).unwrap();
    assert!(device.write(Pasid::ZERO, BUFFER, &7u64.to_le_bytes()));
    assert_eq!(device.read(Pasid::ZERO, BUFFER), Some(7));
    system.iommu.detach(DEVICE, Pasid::ZERO).unwrap();
    assert_eq!(device.read(Pasid::ZERO, BUFFER), None);
    system.end(0);
}

#[test]
fn a_domain_is_exchanged_for_another_under_the_same_pasid() {
    let mut system = System::new();
    let device = system.add_device(DEVICE, true);
    let pasid = Pasid::truncated(9);
    let domains = [0, 1].map(|number| {
        let domain = system.iommu.create_domain(FIRST).unwrap();
        let buffer = BUFFER + number * MIB;
        system.iommu.map(domain, 0x1000, buffer, 0x1000, Access::ReadWrite).unwrap();
        vtd_driver::Memory::store(&*system.host, buffer, number + 100);
        domain
    });
    for round in 0..6 {
        let number = round % 2;
        system.iommu.attach(domains[number], DEVICE, pasid).unwrap();
        assert_eq!(device.read(pasid, 0x1000), Some(number as u64 + 100));
        system.iommu.detach(DEVICE, pasid).unwrap();
        assert_eq!(device.read(pasid, 0x1000), None);
    }
    system.take_faults();
    domains.iter().for_each(|domain| system.iommu.destroy_domain(*domain).unwrap());
    system.end(0);
}

#[test]
fn devices_on_every_bus_have_their_own_tables() {
    let mut system = System::new();
    let domain = system.iommu.create_domain(FIRST).unwrap();
    system.iommu.map(domain, 0x1000, BUFFER, 0x1000, Access::ReadWrite).unwrap();
    let devices = [0x0018, 0x0080, 0x00ff, 0x7f00, 0xffff].map(|rid| {
        let device = system.add_device(SourceId(rid), false);
        system.iommu.attach(domain, SourceId(rid), Pasid::ZERO).unwrap();
        device
    });
    assert!(devices.iter().all(|device| device.write(Pasid::ZERO, 0x1000, &[1])));
    system.iommu.remove_device(SourceId(0x0080)).unwrap();
    let reached: Vec<bool> = devices.iter().map(|device| device.write(Pasid::ZERO, 0x1000, &[1])).collect();
    assert_eq!(reached, [true, false, true, true, true]);
    assert_eq!(system.take_faults(), [FaultReason::Sct2.code()]);
    system.end(0);
}

#[test]
fn units_of_every_kind_are_brought_up() {
    let base = UnitConfig::default();
    for config in [
        base.clone(),
        UnitConfig { cm: false, ..base.clone() },
        UnitConfig { esrtps: false, ..base.clone() },
        UnitConfig { c: false, ..base.clone() },
        UnitConfig { prs: false, sms: false, pds: false, ..base.clone() },
        UnitConfig { ir: true, ..base.clone() },
    ] {
        let mut system = System::with(&config);
        let sink = std::sync::Arc::new(common::Sink::default());
        let port = system.unit.endpoint(DEVICE, sink).unwrap();
        system.iommu.add_device(vtd_driver::DeviceConfig::new(DEVICE)).unwrap();
        let domain = system.iommu.create_domain(FIRST).unwrap();
        system.iommu.attach(domain, DEVICE, Pasid::ZERO).unwrap();
        system.iommu.map(domain, 0, BUFFER, 0x1000, Access::ReadWrite).unwrap();
        port.write(common::requester(Pasid::ZERO), 0, &[1]).unwrap();
        assert_eq!(system.take_faults(), []);
        system.end(0);
    }
}

#[test]
fn what_the_unit_lacks_is_said() {
    let system = System::with(&UnitConfig { ssts: false, ..UnitConfig::default() });
    let mut iommu = system.iommu;
    let second = Stage::Second(vtd_spec::AddressWidth::Bits48);
    assert!(matches!(iommu.create_domain(second), Err(Error::Unsupported { .. })));
    assert!(iommu.create_domain(FIRST).is_ok());
}
