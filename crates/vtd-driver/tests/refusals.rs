// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the series refuses, against a unit in software: each time nothing has changed for the devices. A PASID that is
//! bound goes on, one that was refused reaches nothing.

mod common;

use common::{Device, System};
use vtd_driver::nested::{self, BindData, Invalidate, cache_type, granularity, vtd_flag};
use vtd_driver::{Access, DeviceConfig, DomainHandle, Error, Memory, NestedTable, PageRequest, Stage};
use vtd_spec::{AddressWidth, FirstStageEntry, Pasid, ResponseCode, SourceId};
use vtd_unit::UnitConfig;

const DEVICE: SourceId = SourceId::new(0, 3, 0);
const OTHER: SourceId = SourceId::new(1, 0, 0);
/// A device that is not there.
const NOBODY: SourceId = SourceId::new(9, 0, 0);
const ADDRESS: u64 = 0x7f12_3456_7000;
/// Where the guest has its tables and its page, and how far from there the host has them.
const GUEST: u64 = 0x4000_0000;

fn config() -> UnitConfig {
    UnitConfig { ssts: true, nest: true, srs: true, eafs: true, ..UnitConfig::default() }
}

/// A machine with a table that has one page mapped at [`ADDRESS`], bound to `bound` on both devices.
struct Machine {
    system: System,
    domain: DomainHandle,
    devices: [Device; 2],
    bound: Pasid,
    /// Allocated and not bound.
    free: Pasid,
    /// Host address of the page.
    page: u64,
}

impl Machine {
    fn new(config: &UnitConfig) -> Self {
        Self::with_parent(config, AddressWidth::Bits48)
    }

    fn with_parent(config: &UnitConfig, width: AddressWidth) -> Self {
        let mut system = System::with(config);
        let devices = [system.add_device(DEVICE, true), system.add_device(OTHER, false)];
        let domain = system.iommu.create_nest_parent(width).unwrap();
        // Four tables and the page.
        let host = system.host.allocate(5).unwrap();
        system.iommu.map(domain, GUEST, host, 5 * 4096, Access::ReadWrite).unwrap();
        for level in (1..=4u64).rev() {
            let slot = 8 * (ADDRESS >> (12 + 9 * (level - 1)) & 511);
            let (table, next) = (host + (4 - level) * 4096, GUEST + (5 - level) * 4096);
            let entry = FirstStageEntry::new().with_p(true).with_rw(true).with_us(true).with_addr(next);
            system.host.store(table + slot, entry.into_bits());
        }
        let (bound, free) = (system.allocate_pasid(), system.allocate_pasid());
        let mut machine = Self { system, domain, devices, bound, free, page: host + 4 * 4096 };
        for device in [DEVICE, OTHER] {
            machine.bind(device, &BindData::new(GUEST, bound)).unwrap();
        }
        machine
    }

    fn bind(&mut self, device: SourceId, data: &BindData) -> Result<(), Error> {
        let System { iommu, pasids, set, .. } = &mut self.system;
        nested::bind_gpasid(iommu, pasids, *set, self.domain, device, data)
    }

    fn unbind(&mut self, device: SourceId, hpasid: u64) -> Result<(), Error> {
        let System { iommu, pasids, set, .. } = &mut self.system;
        nested::unbind_gpasid(iommu, pasids, *set, device, hpasid)
    }

    fn invalidate(&mut self, device: SourceId, info: &Invalidate) -> Result<(), Error> {
        let System { iommu, pasids, set, .. } = &mut self.system;
        nested::invalidate(iommu, pasids, *set, self.domain, device, info)
    }

    /// The PASID that is bound works on both devices, and nothing else does.
    fn goes_on(&mut self, what: &str) {
        for device in &self.devices {
            let value = self.system.host.load(self.page).wrapping_add(1);
            assert!(device.write(self.bound, ADDRESS, &value.to_le_bytes()), "{what}");
            assert_eq!(self.system.host.load(self.page), value, "{what}");
            for pasid in [self.free, Pasid::ZERO, Pasid::MAX] {
                assert!(!device.write(pasid, ADDRESS, &[0xff]), "{what}: {pasid}");
            }
        }
        let bound = self.system.pasids.is_bound(self.free.get());
        assert_eq!(bound, Ok(false), "{what}");
        self.system.take_faults();
    }

    fn refuses(&mut self, data: &BindData, error: Error) {
        assert_eq!(self.bind(DEVICE, data), Err(error), "{data:?}");
        self.goes_on(&format!("{data:?}"));
    }
}

#[test]
fn a_nested_set_up_is_checked() {
    let mut machine = Machine::new(&config());
    let (free, domain) = (machine.free, machine.domain);
    let table = NestedTable::new(GUEST, 48);
    let plain = machine.system.iommu.create_domain(Stage::Second(AddressWidth::Bits48)).unwrap();
    for (device, pasid, domain, table, error) in [
        (DEVICE, machine.bound, domain, table, Error::PasidBusy { source_id: DEVICE, pasid: machine.bound }),
        (NOBODY, free, domain, table, Error::NoSuchDevice { source_id: NOBODY }),
        (DEVICE, free, plain, table, Error::NotNestParent),
        (DEVICE, free, domain, NestedTable { address_width: 39, ..table }, Error::AddressWidth { bits: 39 }),
        (DEVICE, free, domain, NestedTable { memory_types: true, ..table }, Error::MemoryTypes),
        (
            DEVICE,
            free,
            domain,
            NestedTable { root: 1 << 48, ..table },
            Error::TableOutOfRange { address: 1 << 48 },
        ),
    ] {
        assert_eq!(machine.system.iommu.setup_nested(device, pasid, domain, table), Err(error));
        machine.goes_on(&format!("{error}"));
    }
}

#[test]
fn what_the_unit_lacks_is_refused_one_by_one() {
    for (unit, missing, width, flags) in [
        (UnitConfig { fs5lp: false, ..config() }, "FS5LP", 57, 0),
        (UnitConfig { srs: false, ..config() }, "SRS", 48, vtd_flag::SRE),
        (UnitConfig { eafs: false, ..config() }, "EAFS", 48, vtd_flag::EAFE),
    ] {
        let mut machine = Machine::new(&unit);
        let data = BindData { addr_width: width, vtd_flags: flags, ..BindData::new(GUEST, machine.free) };
        let Err(Error::Unsupported { capability }) = machine.bind(DEVICE, &data) else { panic!("{missing}") };
        assert!(capability.contains(missing), "{capability}");
        machine.goes_on(missing);
        let mut machine = Machine::new(&config());
        let data = BindData { hpasid: machine.free.get().into(), ..data };
        machine.bind(DEVICE, &data).unwrap();
    }
    let mut system = System::with(&UnitConfig { nest: false, ..config() });
    let refused = system.iommu.create_nest_parent(AddressWidth::Bits48);
    assert!(matches!(refused, Err(Error::Unsupported { .. })));
}

#[test]
fn levels_that_the_unit_lacks_are_skipped_and_dma_goes_through_those_that_are_left() {
    let unit = UnitConfig { fs5lp: false, ..config() };
    let mut machine = Machine::with_parent(&unit, AddressWidth::Bits57);
    let entry = machine.system.iommu.pasid_entry(DEVICE, machine.bound).unwrap();
    assert_eq!(entry.aw(), AddressWidth::Bits48.into_bits());
    machine.goes_on("a level is skipped");
    // Everything goes, and comes back at the table that the unit knows.
    let (domain, host) = (machine.domain, machine.page - 4 * 4096);
    machine.system.iommu.unmap(domain, 0, 1 << 48).unwrap();
    assert!(!machine.devices[1].write(machine.bound, ADDRESS, &[1]));
    machine.system.iommu.map(domain, GUEST, host, 5 * 4096, Access::ReadWrite).unwrap();
    machine.goes_on("mapped anew");
    // Without anything mapped there is no level to go on with.
    let empty = machine.system.iommu.create_nest_parent(AddressWidth::Bits57).unwrap();
    let table = NestedTable::new(GUEST, 48);
    let refused = machine.system.iommu.setup_nested(DEVICE, machine.free, empty, table);
    assert_eq!(refused, Err(Error::LevelsNotSkippable));
    machine.goes_on("no level");
}

#[test]
fn a_binding_is_checked() {
    let mut machine = Machine::new(&config());
    let good = BindData::new(GUEST, machine.free);
    let (free, foreign) = (machine.free, machine.system.pasids.create_set(1).unwrap());
    let foreign = machine.system.pasids.allocate(foreign, common::PASIDS, None).unwrap();
    for (data, error) in [
        (BindData { version: 2, ..good }, Error::Version { version: 2 }),
        (BindData { format: 2, ..good }, Error::Format { format: 2 }),
        (BindData { flags: 2, ..good }, Error::Flags { flags: 2 }),
        (BindData { vtd_flags: vtd_flag::LAST, ..good }, Error::Flags { flags: vtd_flag::LAST }),
        (BindData { hpasid: 0, ..good }, Error::InvalidPasid { pasid: 0 }),
        (BindData { hpasid: 1 << 20, ..good }, Error::InvalidPasid { pasid: 1 << 20 }),
        (
            BindData { flags: nested::FLAG_GUEST_PASID, gpasid: 1 << 20, ..good },
            Error::InvalidPasid { pasid: 1 << 20 },
        ),
        (BindData { hpasid: 77, ..good }, Error::Pasid(ioasid::Error::NotAllocated { id: 77 })),
        (BindData { hpasid: foreign.into(), ..good }, Error::Pasid(ioasid::Error::NotInSet { id: foreign })),
        (BindData { addr_width: 49, ..good }, Error::AddressWidth { bits: 49 }),
        (BindData { gpgd: 1 << 50, ..good }, Error::TableOutOfRange { address: 1 << 50 }),
        (BindData { vtd_flags: vtd_flag::CD, ..good }, Error::MemoryTypes),
        (
            BindData { hpasid: machine.bound.get().into(), ..good },
            Error::PasidBusy { source_id: DEVICE, pasid: machine.bound },
        ),
    ] {
        machine.refuses(&data, error);
    }
    let narrow = SourceId::new(2, 0, 0);
    let of_narrow = DeviceConfig { pasid_bits: 19, ..DeviceConfig::new(narrow) };
    machine.system.iommu.add_device(of_narrow).unwrap();
    for (device, error) in [
        (NOBODY, Error::NoSuchDevice { source_id: NOBODY }),
        (narrow, Error::PasidWidth { source_id: narrow, bits: 19 }),
    ] {
        assert_eq!(machine.bind(device, &good), Err(error));
        machine.goes_on(&format!("{error}"));
    }
    // The PASID stands for itself on one device: not for another guest PASID on the next.
    machine.bind(DEVICE, &good).unwrap();
    let other = BindData { flags: nested::FLAG_GUEST_PASID, gpasid: 9, ..good };
    assert_eq!(machine.bind(OTHER, &other), Err(Error::OtherAddressSpace { pasid: free }));
    assert!(machine.devices[0].write(free, ADDRESS, &[1]) && !machine.devices[1].write(free, ADDRESS, &[1]));
    machine.unbind(DEVICE, free.get().into()).unwrap();
    machine.goes_on("unbound");
}

#[test]
fn an_unbinding_is_checked() {
    let mut machine = Machine::new(&config());
    let (bound, free) = (machine.bound, machine.free);
    for (device, hpasid, error) in [
        (DEVICE, 0, Error::InvalidPasid { pasid: 0 }),
        (DEVICE, 77, Error::Pasid(ioasid::Error::NotAllocated { id: 77 })),
        (DEVICE, free.get().into(), Error::NotBound { source_id: DEVICE, pasid: free }),
        (NOBODY, bound.get().into(), Error::NoSuchDevice { source_id: NOBODY }),
    ] {
        assert_eq!(machine.unbind(device, hpasid), Err(error));
        machine.goes_on(&format!("{error}"));
    }
    let own = std::mem::replace(&mut machine.system.set, machine.system.pasids.create_set(1).unwrap());
    let foreign = Err(Error::Pasid(ioasid::Error::NotInSet { id: bound.get() }));
    assert_eq!(machine.unbind(DEVICE, bound.get().into()), foreign);
    machine.system.set = own;
    let held = machine.system.pasids.free(own, bound.get());
    assert_eq!(held, Err(ioasid::Error::Bound { id: bound.get() }), "not freed while it is bound");
    machine.goes_on("foreign");
}

#[test]
fn a_group_is_not_bound_in_part() {
    let mut machine = Machine::new(&config());
    let data = BindData::new(GUEST, machine.free);
    let System { iommu, pasids, set, .. } = &mut machine.system;
    let refused =
        nested::bind_gpasid_group(iommu, pasids, *set, machine.domain, &[DEVICE, OTHER, NOBODY], &data);
    assert_eq!(refused, Err(Error::NoSuchDevice { source_id: NOBODY }));
    machine.goes_on("undone");
}

#[test]
fn an_invalidation_is_checked_and_a_refused_one_does_nothing() {
    let mut machine = Machine::new(&config());
    machine.goes_on("warm");
    // Both devices have the page in their caches; the guest takes it away and says so wrongly.
    let leaf = machine.page - 4096 + 8 * (ADDRESS >> 12 & 511);
    machine.system.host.store(leaf, 0);
    let good = Invalidate::of_pages(cache_type::IOTLB, machine.bound, ADDRESS, 1, true);
    let (bound, free) = (machine.bound, machine.free);
    for (device, info, error) in [
        (DEVICE, Invalidate { version: 0, ..good }, Error::Version { version: 0 }),
        (DEVICE, Invalidate { cache: 8, ..good }, Error::CacheType { caches: 8 }),
        (
            DEVICE,
            Invalidate { granularity: granularity::DOMAIN, flags: 0, ..good },
            Error::Granularity { cache: cache_type::IOTLB, granularity: granularity::DOMAIN },
        ),
        (
            DEVICE,
            Invalidate { cache: cache_type::IOTLB | cache_type::PASID, ..good },
            Error::Granularity { cache: cache_type::PASID, granularity: granularity::ADDR },
        ),
        (DEVICE, Invalidate { flags: 0, ..good }, Error::PasidMissing),
        (DEVICE, Invalidate { flags: 8 | 1, ..good }, Error::Flags { flags: 9 }),
        (DEVICE, Invalidate { pasid: 0, ..good }, Error::InvalidPasid { pasid: 0 }),
        (
            DEVICE,
            Invalidate { pasid: free.get().into(), ..good },
            Error::NotBound { source_id: DEVICE, pasid: free },
        ),
        (DEVICE, Invalidate { nb_granules: 2, ..good }, Error::Unaligned { address: ADDRESS, order: 1 }),
        (DEVICE, Invalidate { nb_granules: 0, ..good }, Error::OutOfRange { address: ADDRESS, length: 0 }),
        (NOBODY, good, Error::NoSuchDevice { source_id: NOBODY }),
    ] {
        assert_eq!(machine.invalidate(device, &info), Err(error), "{info:?}");
        assert!(machine.devices.iter().all(|device| device.write(bound, ADDRESS, &[1])), "{info:?}");
    }
    for device in [DEVICE, OTHER] {
        machine.invalidate(device, &good).unwrap();
    }
    assert!(
        machine.devices.iter().all(|device| !device.write(bound, ADDRESS, &[1])),
        "and the right one does"
    );
}

#[test]
fn a_response_is_checked() {
    let mut machine = Machine::new(&config());
    let (bound, free) = (machine.bound, machine.free);
    machine.devices[0].ask(bound, ADDRESS + 0x1000, true, 7, true);
    let request = machine.system.iommu.take_page_requests().unwrap().requests[0];
    let respond = |machine: &mut Machine, request: PageRequest| {
        let System { iommu, pasids, set, .. } = &mut machine.system;
        nested::respond(iommu, pasids, *set, &request, ResponseCode::Success)
    };
    for (request, error) in [
        (PageRequest { pasid: None, ..request }, Error::PasidMissing),
        (PageRequest { pasid: Some(free), ..request }, Error::NotBound { source_id: DEVICE, pasid: free }),
        (PageRequest { source_id: NOBODY, ..request }, Error::NotBound { source_id: NOBODY, pasid: bound }),
    ] {
        assert_eq!(respond(&mut machine, request), Err(error));
        assert_eq!(machine.devices[0].sink.take_responses(), []);
    }
    respond(&mut machine, request).unwrap();
    assert_eq!(machine.devices[0].sink.take_responses(), [(7, ResponseCode::Success)]);
    machine.goes_on("answered");
}

#[test]
fn a_quota_is_kept_and_bounds_what_can_be_bound() {
    let mut machine = Machine::new(&config());
    let set = machine.system.set;
    assert_eq!(machine.system.pasids.usage(set), Ok((1000, 2)), "the default");
    let too_small = Err(ioasid::Error::QuotaTooSmall { quota: 1, allocated: 2 });
    assert_eq!(machine.system.pasids.set_quota(set, 1), too_small);
    machine.system.pasids.set_quota(set, 3).unwrap();
    let third = machine.system.allocate_pasid();
    let fourth = machine.system.pasids.allocate(set, common::PASIDS, None);
    assert_eq!(fourth, Err(ioasid::Error::QuotaExceeded { quota: 3 }));
    machine.goes_on("the quota is used up");
    machine.bind(DEVICE, &BindData::new(GUEST, third)).unwrap();
    assert!(machine.devices[0].write(third, ADDRESS, &[1]));
}

#[test]
fn only_a_domain_to_nest_on_has_nesting_information() {
    let mut machine = Machine::new(&config());
    let info = machine.system.iommu.nesting_info(machine.domain).unwrap();
    assert_eq!((info.format, info.pasid_bits), (nested::FORMAT_INTEL_VTD, 20));
    assert!(info.cap.fs5lp() && !info.cap.cm() && info.ecap.srs() && !info.ecap.nest(), "masked");
    let plain = machine.system.iommu.create_domain(Stage::Second(AddressWidth::Bits48)).unwrap();
    assert_eq!(machine.system.iommu.nesting_info(plain), Err(Error::NotNestParent));
    machine.system.iommu.destroy_domain(plain).unwrap();
    assert_eq!(machine.system.iommu.nesting_info(plain), Err(Error::NoSuchDomain));
}
