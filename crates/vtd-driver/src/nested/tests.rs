// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::sync::{Arc, Mutex};
use std::vec;

use ioasid::{Event, SetId};
use vtd_spec::{
    AddressRange, AddressWidth, Capability, Descriptor, DomainId, ExtendedCapability, Pasid, PasidEntry,
    ResponseCode, SourceId,
};

use super::*;
use crate::address_space::SpaceKind;
use crate::cache;
use crate::fake::{DEVICE, Driver, Fake, Mishap, OTHER, capabilities};
use crate::{Ats, DeviceConfig, DomainHandle, Error, NestedTable, PageRequest, Pasids, Stage};

const ROOT: u64 = 0x1234_5000;

struct Host {
    fake: Fake,
    iommu: Driver,
    pasids: Pasids,
    set: SetId,
    domain: DomainHandle,
    pasid: Pasid,
}

impl Host {
    fn new() -> Self {
        let (cap, ecap) = capabilities();
        Self::with(cap, ecap)
    }

    fn with(cap: Capability, ecap: ExtendedCapability) -> Self {
        let fake = Fake::with(cap, ecap);
        let mut iommu = fake.driver();
        let domain = iommu.create_nest_parent(AddressWidth::Bits48).unwrap();
        let mut pasids = Pasids::new(1..=ioasid::MAX_ID).unwrap();
        let set = pasids.create_set(ioasid::DEFAULT_QUOTA).unwrap();
        let pasid = Pasid::truncated(pasids.allocate(set, 0x100..=0x200, None).unwrap());
        Self { fake, iommu, pasids, set, domain, pasid }
    }

    fn data(&self) -> BindData {
        BindData::new(ROOT, self.pasid)
    }

    fn bind(&mut self, device: SourceId, data: &BindData) -> Result<(), Error> {
        bind_gpasid(&mut self.iommu, &mut self.pasids, self.set, self.domain, device, data)
    }

    fn unbind(&mut self, device: SourceId) -> Result<(), Error> {
        let hpasid = self.pasid.get().into();
        unbind_gpasid(&mut self.iommu, &mut self.pasids, self.set, device, hpasid)
    }

    fn invalidate(&mut self, info: &Invalidate) -> Result<(), Error> {
        invalidate(&mut self.iommu, &self.pasids, self.set, self.domain, DEVICE, info)
    }

    /// An invalidation of everything of the PASID.
    fn of(&self, cache: u8) -> Invalidate {
        Invalidate::of_pasid(cache, self.pasid)
    }

    fn entry(&self, device: SourceId) -> PasidEntry {
        self.iommu.pasid_entry(device, self.pasid).unwrap()
    }

    fn space(&self) -> Option<&crate::AddressSpace> {
        self.pasids.find(None, self.pasid.get()).unwrap()
    }
}

#[test]
fn a_guests_table_is_bound_unbound_and_the_pasid_stays() {
    let mut host = Host::new();
    let heard = Arc::new(Mutex::new(vec![]));
    let listener = Arc::clone(&heard);
    host.pasids.register_notifier(None, move |n| listener.lock().unwrap().push(n.event)).unwrap();
    let data = BindData { flags: FLAG_GUEST_PASID, gpasid: 0x77, ..host.data() };
    host.bind(DEVICE, &data).unwrap();
    host.bind(OTHER, &data).unwrap();
    for device in [DEVICE, OTHER] {
        let entry = host.entry(device);
        assert_eq!((entry.fsptptr(), entry.pgtt_bits(), entry.p()), (ROOT, 3, true));
    }
    assert_eq!(host.space().unwrap().kind(), SpaceKind::Guest { guest_pasid: Some(Pasid::truncated(0x77)) });
    assert_eq!(*heard.lock().unwrap(), [Event::Bind]);
    host.unbind(DEVICE).unwrap();
    assert_eq!(host.entry(DEVICE), PasidEntry::new());
    assert!(host.entry(OTHER).p());
    let not_bound = Err(Error::NotBound { source_id: DEVICE, pasid: host.pasid });
    assert_eq!(host.unbind(DEVICE), not_bound);
    host.unbind(OTHER).unwrap();
    assert_eq!(host.unbind(DEVICE), not_bound);
    assert_eq!(host.space(), None);
    assert_eq!(host.pasids.allocated(), 1, "its owner frees it");
    host.pasids.free(host.set, host.pasid.get()).unwrap();
    assert_eq!(*heard.lock().unwrap(), [Event::Bind, Event::Unbind, Event::Free]);
}

#[test]
fn bind_data_that_cannot_be_is_refused_with_an_error_of_its_own() {
    let mut host = Host::new();
    let good = host.data();
    let id = host.pasid;
    for (data, error) in [
        (BindData { version: 0, ..good }, Error::Version { version: 0 }),
        (BindData { version: 2, ..good }, Error::Version { version: 2 }),
        (BindData { format: 0, ..good }, Error::Format { format: 0 }),
        (BindData { format: 2, ..good }, Error::Format { format: 2 }),
        (BindData { flags: 2, ..good }, Error::Flags { flags: 2 }),
        (BindData { vtd_flags: 1 << 6, ..good }, Error::Flags { flags: 1 << 6 }),
        (BindData { hpasid: 0, ..good }, Error::InvalidPasid { pasid: 0 }),
        (BindData { hpasid: 0x10_0000, ..good }, Error::InvalidPasid { pasid: 0x10_0000 }),
        (
            BindData { hpasid: good.hpasid | 1 << 32, ..good },
            Error::InvalidPasid { pasid: good.hpasid | 1 << 32 },
        ),
        (
            BindData { flags: FLAG_GUEST_PASID, gpasid: 1 << 32 | 5, ..good },
            Error::InvalidPasid { pasid: 1 << 32 | 5 },
        ),
        (BindData { hpasid: 5, ..good }, Error::Pasid(ioasid::Error::NotAllocated { id: 5 })),
        (BindData { addr_width: 39, ..good }, Error::AddressWidth { bits: 39 }),
        (BindData { gpgd: 1 << 48, ..good }, Error::TableOutOfRange { address: 1 << 48 }),
        (BindData { vtd_flags: vtd_flag::PCD, ..good }, Error::MemoryTypes),
        (BindData { vtd_flags: vtd_flag::PWT, ..good }, Error::MemoryTypes),
        (BindData { vtd_flags: vtd_flag::EMTE, ..good }, Error::MemoryTypes),
        (BindData { vtd_flags: vtd_flag::CD, ..good }, Error::MemoryTypes),
    ] {
        assert_eq!(host.bind(DEVICE, &data), Err(error), "{data:?}");
        assert_eq!((host.space(), host.entry(DEVICE)), (None, PasidEntry::new()));
    }
    let nobody = SourceId(0x99);
    assert_eq!(host.bind(nobody, &good), Err(Error::NoSuchDevice { source_id: nobody }));
    host.iommu.add_device(DeviceConfig { pasid_bits: 19, ..DeviceConfig::with_sva(nobody) }).unwrap();
    assert_eq!(host.bind(nobody, &good), Err(Error::PasidWidth { source_id: nobody, bits: 19 }));
    host.domain = host.iommu.create_domain(Stage::Second(AddressWidth::Bits48)).unwrap();
    assert_eq!(host.bind(DEVICE, &good), Err(Error::NotNestParent));
    assert!(!host.pasids.is_bound(id.get()).unwrap());
}

#[test]
fn options_need_their_capability() {
    let (cap, ecap) = capabilities();
    for (cap, ecap, width, flags) in [
        (cap.with_fs5lp(false), ecap, 57, 0),
        (cap, ecap.with_srs(false), 48, vtd_flag::SRE),
        (cap, ecap.with_eafs(false), 48, vtd_flag::EAFE),
    ] {
        let mut host = Host::with(cap, ecap);
        let data = BindData { addr_width: width, vtd_flags: flags, ..host.data() };
        assert!(matches!(host.bind(DEVICE, &data), Err(Error::Unsupported { .. })));
        let mut host = Host::new();
        host.bind(DEVICE, &data).unwrap();
    }
}

#[test]
fn options_reach_the_entry() {
    let mut host = Host::new();
    let all = BindData { vtd_flags: vtd_flag::SRE | vtd_flag::EAFE, wpe: true, ..host.data() };
    host.bind(DEVICE, &all).unwrap();
    host.bind(OTHER, &host.data()).unwrap();
    let options = |entry: PasidEntry| [entry.sre(), entry.eafe(), entry.wpe()];
    assert_eq!((options(host.entry(DEVICE)), options(host.entry(OTHER))), ([true; 3], [false; 3]));
}

#[test]
fn machines_do_not_reach_each_others_pasids() {
    let mut host = Host::new();
    let data = host.data();
    host.bind(DEVICE, &data).unwrap();
    let id = host.pasid.get();
    let foreign = Err(Error::Pasid(ioasid::Error::NotInSet { id }));
    host.set = host.pasids.create_set(10).unwrap();
    assert_eq!(host.bind(OTHER, &data), foreign);
    assert_eq!(host.unbind(DEVICE), foreign);
    let info = Invalidate::of_pasid(cache_type::IOTLB, host.pasid);
    assert_eq!(host.invalidate(&info), foreign);
    assert!(host.entry(DEVICE).p());
}

#[test]
fn a_device_is_bound_once_unless_its_parts_share_it() {
    let mut host = Host::new();
    let data = host.data();
    host.bind(DEVICE, &data).unwrap();
    let busy = Err(Error::PasidBusy { source_id: DEVICE, pasid: host.pasid });
    assert_eq!(host.bind(DEVICE, &data), busy);

    let shared = SourceId(0x88);
    host.iommu.add_device(DeviceConfig { shared: true, ..DeviceConfig::with_sva(shared) }).unwrap();
    host.bind(shared, &data).unwrap();
    host.bind(shared, &data).unwrap();
    let other = BindData { gpgd: 0x9000, ..data };
    let busy = Err(Error::PasidBusy { source_id: shared, pasid: host.pasid });
    assert_eq!(host.bind(shared, &other), busy, "one entry has one table");
    host.unbind(shared).unwrap();
    assert!(host.entry(shared).p());
    host.unbind(shared).unwrap();
    assert!(!host.entry(shared).p());
    assert!(host.entry(DEVICE).p());
}

#[test]
fn a_host_pasid_stands_for_one_guest_pasid() {
    let mut host = Host::new();
    let data = BindData { flags: FLAG_GUEST_PASID, gpasid: 1, ..host.data() };
    host.bind(DEVICE, &data).unwrap();
    let other = Err(Error::OtherAddressSpace { pasid: host.pasid });
    assert_eq!(host.bind(OTHER, &BindData { gpasid: 2, ..data }), other);
    assert_eq!(host.bind(OTHER, &BindData { flags: 0, ..data }), other);
    host.bind(OTHER, &data).unwrap();
}

#[test]
fn a_failed_set_up_unwinds_and_leaves_the_other_devices_alone() {
    let mut host = Host::new();
    let data = host.data();
    host.bind(OTHER, &data).unwrap();
    for mishap in [
        Mishap::Refuse(|descriptor| matches!(descriptor, Descriptor::PasidCache(_)), None),
        Mishap::TimeOut(DEVICE, 0),
    ] {
        host.fake.mishap(mishap);
    }
    assert!(matches!(host.bind(DEVICE, &data), Err(Error::InvalidDescriptor { .. })));
    assert_eq!((host.entry(DEVICE), host.entry(OTHER).p()), (PasidEntry::new(), true));
    assert_eq!(host.space().unwrap().devices().len(), 1);
    host.bind(DEVICE, &data).unwrap();
    host.unbind(DEVICE).unwrap();
    host.unbind(OTHER).unwrap();
    assert_eq!(host.space(), None);
}

#[test]
fn a_group_is_bound_as_a_whole_or_not_at_all() {
    let mut host = Host::new();
    let data = host.data();
    let missing = SourceId(0x99);
    let mut bind = |group: &[SourceId]| {
        bind_gpasid_group(&mut host.iommu, &mut host.pasids, host.set, host.domain, group, &data)
    };
    assert_eq!(bind(&[DEVICE, OTHER, missing]), Err(Error::NoSuchDevice { source_id: missing }));
    assert_eq!(
        (host.space(), host.entry(DEVICE), host.entry(OTHER)),
        (None, PasidEntry::new(), PasidEntry::new())
    );
    let mut bind = |group: &[SourceId]| {
        bind_gpasid_group(&mut host.iommu, &mut host.pasids, host.set, host.domain, group, &data)
    };
    bind(&[DEVICE, OTHER]).unwrap();
    assert_eq!(host.space().unwrap().devices().len(), 2);
}

#[test]
fn a_table_is_replaced_in_place_and_kept_where_the_new_one_is_refused() {
    let mut host = Host::new();
    let data = host.data();
    let rebind = |host: &mut Host, data: &BindData| {
        rebind_gpasid(&mut host.iommu, &mut host.pasids, host.set, host.domain, DEVICE, data)
    };
    let not_bound = Err(Error::NotBound { source_id: DEVICE, pasid: host.pasid });
    assert_eq!(rebind(&mut host, &data), not_bound);
    host.bind(DEVICE, &data).unwrap();
    let bad = BindData { gpgd: 1 << 50, ..data };
    assert_eq!(rebind(&mut host, &bad), Err(Error::TableOutOfRange { address: 1 << 50 }));
    assert_eq!(host.entry(DEVICE).fsptptr(), ROOT);
    rebind(&mut host, &BindData { gpgd: 0x9000, ..data }).unwrap();
    assert_eq!((host.entry(DEVICE).fsptptr(), host.entry(DEVICE).p()), (0x9000, true));
    host.unbind(DEVICE).unwrap();
}

#[test]
fn all_of_a_machine_is_unbound_first_and_then_freed() {
    let mut host = Host::new();
    let data = host.data();
    host.bind(DEVICE, &data).unwrap();
    host.bind(OTHER, &data).unwrap();
    for _ in 0..10 {
        host.pasids.allocate(host.set, 1..=ioasid::MAX_ID, None).unwrap();
    }
    let heard = Arc::new(Mutex::new(vec![]));
    let listener = Arc::clone(&heard);
    host.pasids.register_notifier(None, move |n| listener.lock().unwrap().push(n.event)).unwrap();
    release_set(&mut host.iommu, &mut host.pasids, host.set).unwrap();
    assert_eq!((host.entry(DEVICE), host.entry(OTHER)), (PasidEntry::new(), PasidEntry::new()));
    let heard = heard.lock().unwrap();
    assert_eq!((heard[0], heard.len(), host.pasids.allocated()), (Event::Unbind, 12, 0));
    host.iommu.destroy_domain(host.domain).unwrap();
}

#[test]
fn each_cell_of_the_invalidation_table() {
    let mut host = Host::new();
    let data = host.data();
    host.bind(DEVICE, &data).unwrap();
    host.fake.clear();
    let (did, pasid, ats) = (DomainId(3), host.pasid, Ats::default());
    let range = AddressRange::new(0x40_0000, 3);
    let all_device = cache::pasid_device_tlb(DEVICE, ats, pasid, AddressRange::ALL);
    let pages_device = cache::pasid_device_tlb(DEVICE, ats, pasid, range);
    for (caches, granularity, expected) in [
        (cache_type::IOTLB, granularity::DOMAIN, None),
        (cache_type::IOTLB, granularity::PASID, Some(vec![cache::pasid_iotlb(did, pasid), all_device])),
        (
            cache_type::IOTLB,
            granularity::ADDR,
            Some(vec![cache::pasid_iotlb_pages(did, pasid, range, true), pages_device]),
        ),
        (cache_type::DEV_IOTLB, granularity::DOMAIN, Some(vec![all_device])),
        (cache_type::DEV_IOTLB, granularity::PASID, Some(vec![all_device])),
        (cache_type::DEV_IOTLB, granularity::ADDR, Some(vec![pages_device])),
        (cache_type::PASID, granularity::DOMAIN, Some(vec![cache::pasid_cache_pasid(did, pasid)])),
        (cache_type::PASID, granularity::PASID, Some(vec![cache::pasid_cache_pasid(did, pasid)])),
        (cache_type::PASID, granularity::ADDR, None),
        (cache_type::PASID | cache_type::IOTLB, granularity::ADDR, None),
        (
            cache_type::PASID | cache_type::IOTLB | cache_type::DEV_IOTLB,
            granularity::PASID,
            Some(vec![cache::pasid_cache_pasid(did, pasid), cache::pasid_iotlb(did, pasid), all_device]),
        ),
    ] {
        let info = match granularity {
            granularity::DOMAIN => {
                Invalidate { granularity, flags: 0, ..Invalidate::of_pasid(caches, pasid) }
            }
            granularity::PASID => Invalidate::of_pasid(caches, pasid),
            _ => Invalidate::of_pages(caches, pasid, 0x40_0000, 8, true),
        };
        match expected {
            Some(expected) => {
                host.invalidate(&info).unwrap();
                assert_eq!(host.fake.take(), expected, "{caches} {granularity}");
            }
            None => {
                assert!(matches!(host.invalidate(&info), Err(Error::Granularity { .. })));
                assert_eq!(host.fake.take(), [], "{caches} {granularity}");
            }
        }
    }
}

#[test]
fn invalidations_that_cannot_be_are_refused_and_do_nothing() {
    let mut host = Host::new();
    let data = host.data();
    let pasid = host.pasid;
    let good = Invalidate::of_pages(cache_type::IOTLB, pasid, 0x8000, 8, false);
    let not_bound = Error::NotBound { source_id: DEVICE, pasid };
    assert_eq!(host.invalidate(&good), Err(not_bound));
    host.bind(DEVICE, &data).unwrap();
    host.fake.clear();
    for (info, error) in [
        (Invalidate { version: 2, ..good }, Error::Version { version: 2 }),
        (Invalidate { cache: 0, ..good }, Error::CacheType { caches: 0 }),
        (Invalidate { cache: 9, ..good }, Error::CacheType { caches: 9 }),
        (Invalidate { granularity: 3, ..good }, Error::Granularity { cache: 1, granularity: 3 }),
        (Invalidate { flags: 0, ..good }, Error::PasidMissing),
        (Invalidate { flags: 9, ..good }, Error::Flags { flags: 9 }),
        (Invalidate { flags: 3, ..good }, Error::Flags { flags: 3 }),
        (Invalidate { pasid: 0, ..good }, Error::InvalidPasid { pasid: 0 }),
        (Invalidate { pasid: 1 << 20, ..good }, Error::InvalidPasid { pasid: 1 << 20 }),
        (Invalidate { pasid: 9, ..good }, Error::Pasid(ioasid::Error::NotAllocated { id: 9 })),
        (Invalidate { addr: 0x9000, ..good }, Error::Unaligned { address: 0x9000, order: 3 }),
        // Five pages round up to eight.
        (Invalidate { addr: 0x4000, nb_granules: 5, ..good }, Error::Unaligned { address: 0x4000, order: 3 }),
        (Invalidate { addr: 0x8001, nb_granules: 1, ..good }, Error::Unaligned { address: 0x8001, order: 0 }),
        (Invalidate { nb_granules: 0, ..good }, Error::OutOfRange { address: 0x8000, length: 0 }),
        (
            Invalidate { granule_size: 1 << 40, nb_granules: 1 << 40, ..good },
            Error::OutOfRange { address: 0x8000, length: u64::MAX },
        ),
    ] {
        assert_eq!(host.invalidate(&info), Err(error), "{info:?}");
        assert_eq!(host.fake.take(), []);
    }
    host.invalidate(&Invalidate { addr: 0, nb_granules: u64::MAX / 4096, ..good }).unwrap();
    assert_eq!(host.fake.take()[0], cache::pasid_iotlb(DomainId(3), pasid), "everything");
}

#[test]
fn a_device_forgets_all_pasids_of_a_domain_at_once_only_where_it_can() {
    let mut host = Host::new();
    let global = SourceId(0x66);
    let ats = Ats { global_invalidate: true, ..Ats::default() };
    host.iommu.add_device(DeviceConfig { ats: Some(ats), ..DeviceConfig::with_sva(global) }).unwrap();
    let all = Invalidate { granularity: granularity::DOMAIN, flags: 0, ..host.of(cache_type::DEV_IOTLB) };
    let forget = |host: &mut Host, device| {
        host.fake.clear();
        invalidate(&mut host.iommu, &host.pasids, host.set, host.domain, device, &all).unwrap();
        host.fake.take()
    };
    assert_eq!(forget(&mut host, DEVICE), [], "nothing of the domain is there");
    let table = NestedTable::new(ROOT, 48);
    let pasids = [0, 5, 9].map(Pasid::truncated);
    for device in [DEVICE, global] {
        for pasid in pasids {
            host.iommu.setup_nested(device, pasid, host.domain, table).unwrap();
        }
    }
    let one = |device, ats, pasid| cache::device_tlb_of_pasid(device, ats, pasid, AddressRange::ALL);
    assert_eq!(forget(&mut host, DEVICE), pasids.map(|pasid| one(DEVICE, Ats::default(), pasid)));
    let at_once = cache::global_device_tlb(global, ats, AddressRange::ALL);
    assert_eq!(forget(&mut host, global), [one(global, ats, Pasid::ZERO), at_once]);
}

#[test]
fn a_device_without_ats_has_no_device_tlb_to_invalidate() {
    let mut host = Host::new();
    let plain = SourceId(0x66);
    host.iommu.add_device(DeviceConfig { pasid_bits: 20, ..DeviceConfig::new(plain) }).unwrap();
    let data = host.data();
    host.bind(plain, &data).unwrap();
    host.fake.clear();
    let all = Invalidate::of_pasid(cache_type::IOTLB | cache_type::DEV_IOTLB, host.pasid);
    invalidate(&mut host.iommu, &host.pasids, host.set, host.domain, plain, &all).unwrap();
    assert_eq!(host.fake.take(), [cache::pasid_iotlb(DomainId(3), host.pasid)]);
    host.unbind(plain).unwrap();
}

#[test]
fn responses_are_for_the_owners_of_the_pasid() {
    let mut host = Host::new();
    let data = host.data();
    host.bind(DEVICE, &data).unwrap();
    host.fake.clear();
    let request = PageRequest {
        source_id: DEVICE,
        pasid: Some(host.pasid),
        address: 0,
        read: true,
        write: false,
        group: 3,
        last: true,
    };
    let code = ResponseCode::Success;
    respond(&mut host.iommu, &host.pasids, host.set, &request, code).unwrap();
    assert_eq!(host.fake.take(), [cache::response(DEVICE, Some(host.pasid), 3, code)]);
    let other = host.pasids.create_set(1).unwrap();
    for (set, request, error) in [
        (host.set, PageRequest { pasid: None, ..request }, Error::PasidMissing),
        (host.set, PageRequest { pasid: Some(Pasid::ZERO), ..request }, Error::InvalidPasid { pasid: 0 }),
        (
            host.set,
            PageRequest { source_id: OTHER, ..request },
            Error::NotBound { source_id: OTHER, pasid: host.pasid },
        ),
        (other, request, Error::Pasid(ioasid::Error::NotInSet { id: host.pasid.get() })),
    ] {
        assert_eq!(respond(&mut host.iommu, &host.pasids, set, &request, code), Err(error));
    }
    assert_eq!(host.fake.take(), []);
}

#[test]
fn nesting_information_shows_masked_capabilities() {
    let mut host = Host::new();
    let info = host.iommu.nesting_info(host.domain).unwrap();
    assert_eq!((info.format, info.features, info.addr_width, info.pasid_bits), (1, 3, 48, 20));
    assert_eq!(info.cap.into_bits(), 1 << 56 | 1 << 60);
    assert_eq!(info.ecap.into_bits(), 1 << 29 | 1 << 31 | 1 << 34 | 1 << 40);
    assert_eq!(NestingInfo::ECAP_MASK, 1 << 29 | 1 << 30 | 1 << 31 | 1 << 34 | 1 << 40);
    let plain = host.iommu.create_domain(Stage::Second(AddressWidth::Bits48)).unwrap();
    assert_eq!(host.iommu.nesting_info(plain), Err(Error::NotNestParent));
}

#[test]
fn the_structure_is_read_as_the_uapi_lays_it_out() {
    let mut bytes = [0; BindData::SIZE];
    let fields: [(usize, &[u8]); 8] = [
        (0, &72u32.to_le_bytes()),
        (4, &1u32.to_le_bytes()),
        (8, &1u32.to_le_bytes()),
        (12, &57u32.to_le_bytes()),
        (16, &1u64.to_le_bytes()),
        (24, &ROOT.to_le_bytes()),
        (32, &0x42u64.to_le_bytes()),
        (40, &0x77u64.to_le_bytes()),
    ];
    for (offset, value) in fields {
        bytes[offset..offset + value.len()].copy_from_slice(value);
    }
    bytes[56] = 3;
    let expected = BindData {
        version: 1,
        format: 1,
        addr_width: 57,
        flags: FLAG_GUEST_PASID,
        gpgd: ROOT,
        hpasid: 0x42,
        gpasid: 0x77,
        vtd_flags: vtd_flag::SRE | vtd_flag::EAFE,
        wpe: false,
    };
    assert_eq!(BindData::from_bytes(&bytes), Ok(expected));
    assert_eq!(BindData::from_bytes(&bytes[..71]), Err(Error::Size { size: 71, needed: 72 }));
    let short = {
        bytes[0] = 71;
        bytes
    };
    assert_eq!(BindData::from_bytes(&short), Err(Error::Size { size: 71, needed: 72 }));
    bytes[0] = 72;
    bytes[55] = 1;
    assert_eq!(BindData::from_bytes(&bytes), Err(Error::Padding));
}
