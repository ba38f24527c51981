// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::vec;

use vtd_spec::FirstStagePagingMode;

use super::*;
use crate::fake::{DEVICE, Fake, Mishap, OTHER, PASID, capabilities};
use crate::{Ats, NestedTable};

const FIRST: Stage = Stage::First(FirstStagePagingMode::Level4);
const SECOND: Stage = Stage::Second(AddressWidth::Bits48);
const MIB: u64 = 1 << 20;

#[test]
fn ids_begin_at_2_end_where_the_unit_ends_and_come_back() {
    let (cap, ecap) = capabilities();
    let fake = Fake::with(cap.with_nd(1), ecap);
    let mut iommu = fake.driver();
    let domains: Vec<_> = (2..64)
        .map(|id| {
            let domain = iommu.create_domain(FIRST).unwrap();
            assert_eq!(iommu.domain_id(domain), Ok(DomainId(id)));
            domain
        })
        .collect();
    let outstanding = fake.outstanding();
    assert_eq!(iommu.create_domain(FIRST), Err(Error::NoDomainId));
    assert_eq!(fake.outstanding(), outstanding);
    iommu.destroy_domain(domains[5]).unwrap();
    let again = iommu.create_domain(FIRST).unwrap();
    assert_eq!(iommu.domain_id(again), Ok(DomainId(7)));
    assert_eq!(iommu.destroy_domain(domains[5]), Err(Error::NoSuchDomain));
}

#[test]
fn stages_need_their_capability() {
    let (cap, ecap) = capabilities();
    let fake = Fake::with(cap.with_fs5lp(false), ecap.with_ssts(false).with_nest(false));
    let mut iommu = fake.driver();
    for stage in [SECOND, Stage::First(FirstStagePagingMode::Level5)] {
        assert!(matches!(iommu.create_domain(stage), Err(Error::Unsupported { .. })));
    }
    iommu.create_domain(FIRST).unwrap();
}

#[test]
fn unmapping_reaches_everybody_and_frees_tables_afterwards() {
    let fake = Fake::new();
    let mut iommu = fake.driver();
    let first = iommu.create_domain(FIRST).unwrap();
    iommu.attach(first, DEVICE, Pasid::ZERO).unwrap();
    iommu.attach(first, DEVICE, PASID).unwrap();
    iommu.attach(first, OTHER, PASID).unwrap();
    iommu.map(first, 0, 0x1000, 2 * MIB, Access::ReadWrite).unwrap();
    let before = fake.outstanding();
    fake.clear();
    iommu.unmap(first, 0x1000, 0x1000).unwrap();
    let (did, ats) = (iommu.domain_id(first).unwrap(), Ats::default());
    let page = AddressRange::new(0x1000, 0);
    let expected = [
        cache::pasid_iotlb_pages(did, Pasid::ZERO, page, true),
        cache::pasid_iotlb_pages(did, PASID, page, true),
        cache::device_tlb(DEVICE, ats, page),
        cache::pasid_device_tlb(DEVICE, ats, PASID, page),
        cache::pasid_device_tlb(OTHER, ats, PASID, page),
    ];
    assert_eq!(fake.take(), expected);
    iommu.unmap(first, 0x1000, 0x1000).unwrap();
    assert_eq!(fake.take(), [], "nothing was mapped");
    iommu.unmap(first, 0, 2 * MIB).unwrap();
    let all = AddressRange::new(0, 9);
    let flushed = fake.take();
    assert_eq!(flushed[0], cache::pasid_iotlb_pages(did, Pasid::ZERO, all, false), "a table went");
    assert_eq!(fake.outstanding(), before - 1);
}

#[test]
fn tables_that_a_device_may_still_walk_are_not_freed() {
    let fake = Fake::new();
    let mut iommu = fake.driver();
    let domain = iommu.create_domain(SECOND).unwrap();
    iommu.attach(domain, DEVICE, Pasid::ZERO).unwrap();
    iommu.map(domain, 0, 0x1000, 2 * MIB, Access::ReadWrite).unwrap();
    let before = fake.outstanding();
    fake.mishap(Mishap::Hang);
    assert_eq!(iommu.unmap(domain, 0, 2 * MIB), Err(Error::QueueTimeout));
    assert_eq!(fake.outstanding(), before);
    assert_eq!(iommu.lookup(domain, 0), Ok(None));
    iommu.shutdown().unwrap();
    assert_eq!(fake.outstanding(), 0, "a unit that is off walks nothing");
}

#[test]
fn second_stage_changes_are_announced_in_caching_mode_and_take_nested_translations() {
    let fake = Fake::new();
    let mut iommu = fake.driver();
    let parent = iommu.create_nest_parent(AddressWidth::Bits48).unwrap();
    iommu.map(parent, 0, 0, 4096, Access::ReadWrite).unwrap();
    assert_eq!(fake.take(), [], "nobody uses it");
    iommu.setup_nested(DEVICE, PASID, parent, NestedTable::new(0x1000, 48)).unwrap();
    iommu.setup_nested(DEVICE, Pasid::truncated(7), parent, NestedTable::new(0x1000, 48)).unwrap();
    iommu.setup_nested(OTHER, Pasid::ZERO, parent, NestedTable::new(0x1000, 48)).unwrap();
    iommu.attach(parent, OTHER, PASID).unwrap();
    fake.clear();
    let did = iommu.domain_id(parent).unwrap();
    let caps = iommu.capabilities();
    let range = AddressRange::new(0x8000, 2);
    iommu.map(parent, 0x8000, 0x8000, 0x3000, Access::ReadWrite).unwrap();
    let nested = [(DEVICE, Pasid::truncated(7)), (DEVICE, PASID), (OTHER, Pasid::ZERO)]
        .map(|(source_id, pasid)| cache::iotlb_domain(iommu.domain_id_of(source_id, pasid).unwrap()));
    let page = cache::iotlb_pages(did, range, false, &caps);
    assert_eq!(fake.take(), [page, nested[0], nested[1], nested[2]]);
    iommu.unmap(parent, 0x8000, 0x3000).unwrap();
    let ats = Ats::default();
    let expected = [
        cache::iotlb_pages(did, range, true, &caps),
        nested[0],
        nested[1],
        nested[2],
        cache::pasid_device_tlb(OTHER, ats, PASID, range),
        // All of the device's: the addresses are the guest's.
        cache::pasid_device_tlb(DEVICE, ats, Pasid::truncated(7), AddressRange::ALL),
        cache::pasid_device_tlb(DEVICE, ats, PASID, AddressRange::ALL),
        cache::device_tlb(OTHER, ats, AddressRange::ALL),
    ];
    assert_eq!(fake.take(), expected);
}

#[test]
fn each_nested_pasid_has_a_domain_id_as_long_as_there_are_any() {
    let fake = Fake::new();
    let mut iommu = fake.driver();
    let parent = iommu.create_nest_parent(AddressWidth::Bits48).unwrap();
    iommu.map(parent, 0, 0, 4096, Access::ReadWrite).unwrap();
    let own = iommu.domain_id(parent).unwrap();
    let table = NestedTable::new(0x1000, 48);
    let nest = |iommu: &mut crate::Iommu<_, _>, number| {
        let pasid = Pasid::truncated(number);
        iommu.setup_nested(DEVICE, pasid, parent, table).unwrap();
        let id = iommu.domain_id_of(DEVICE, pasid).unwrap();
        assert_eq!(iommu.pasid_entry(DEVICE, pasid).unwrap().did(), id, "as the unit sees it");
        id
    };
    let ids: BTreeSet<_> = (1..=17).map(|number| nest(&mut iommu, number)).collect();
    assert!(ids.len() == 17 && !ids.contains(&own));

    // With that many, one descriptor for all.
    fake.clear();
    iommu.map(parent, 0x8000, 0x8000, 4096, Access::ReadWrite).unwrap();
    assert_eq!(fake.take(), [cache::iotlb_global()]);

    iommu.detach(DEVICE, Pasid::truncated(5)).unwrap();
    let again = nest(&mut iommu, 5);
    assert!(ids.contains(&again), "what was given back is used again");

    while iommu.domain_ids.allocate().is_ok() {}
    assert_eq!(nest(&mut iommu, 18), own);
    iommu.detach(DEVICE, Pasid::truncated(18)).unwrap();
    assert_eq!(iommu.domain_id(parent), Ok(own));
    assert_eq!(iommu.domain_ids.allocate(), Err(Error::NoDomainId), "the domain's stays its own");
}

#[test]
fn a_map_that_fails_midway_leaves_nothing() {
    let fake = Fake::new();
    let mut iommu = fake.driver();
    let domain = iommu.create_domain(SECOND).unwrap();
    iommu.map(domain, 0x5000, 0x5000, 0x1000, Access::Read).unwrap();
    let over = iommu.map(domain, 0, 0, 0x10000, Access::Read);
    assert_eq!(over, Err(Error::AlreadyMapped { address: 0x5000 }));
    assert_eq!(iommu.lookup(domain, 0), Ok(None));
    assert!(iommu.lookup(domain, 0x5000).unwrap().is_some());
    fake.limit_pages(Some(1));
    let long = iommu.map(domain, MIB, 0x1000, 4 * MIB, Access::Read);
    assert_eq!(long, Err(Error::OutOfMemory));
    assert_eq!(iommu.lookup(domain, MIB), Ok(None));
}

#[test]
fn an_attached_domain_is_not_destroyed_and_its_tables_go_with_it() {
    let fake = Fake::new();
    let mut iommu = fake.driver();
    let before = fake.outstanding();
    let domain = iommu.create_domain(FIRST).unwrap();
    iommu.map(domain, 0, 0x1000, 8 * MIB, Access::Read).unwrap();
    iommu.attach(domain, DEVICE, Pasid::ZERO).unwrap();
    assert_eq!(iommu.destroy_domain(domain), Err(Error::DomainBusy));
    let busy = Error::PasidBusy { source_id: DEVICE, pasid: Pasid::ZERO };
    assert_eq!(iommu.attach(domain, DEVICE, Pasid::ZERO), Err(busy));
    iommu.detach(DEVICE, Pasid::ZERO).unwrap();
    iommu.destroy_domain(domain).unwrap();
    assert_eq!(fake.outstanding(), before + 1, "but for the device's PASID table");
    let gone = Err(Error::NoSuchDomain);
    assert_eq!(iommu.map(domain, 0, 0, 4096, Access::Read), gone);
    assert_eq!(iommu.attach(domain, DEVICE, Pasid::ZERO), gone);
}

#[test]
fn a_device_that_is_removed_leaves_every_domain() {
    let fake = Fake::new();
    let mut iommu = fake.driver();
    let before = fake.outstanding();
    let domain = iommu.create_domain(FIRST).unwrap();
    for pasid in [0, 1, 64, 0xf_ffff] {
        iommu.attach(domain, DEVICE, Pasid::truncated(pasid)).unwrap();
    }
    fake.clear();
    iommu.remove_device(DEVICE).unwrap();
    let ats = Ats::default();
    let expected = [
        cache::context_device(DEVICE),
        cache::pasid_cache_global(),
        cache::iotlb_global(),
        cache::device_tlb(DEVICE, ats, AddressRange::ALL),
    ];
    assert!(fake.take().ends_with(&expected));
    iommu.destroy_domain(domain).unwrap();
    assert_eq!(fake.outstanding(), before - 32, "its directory is gone");
    assert_eq!(iommu.remove_device(DEVICE), Err(Error::NoSuchDevice { source_id: DEVICE }));
    iommu.add_device(crate::DeviceConfig::with_sva(DEVICE)).unwrap();
    assert_eq!(iommu.devices().collect::<Vec<_>>(), vec![DEVICE, OTHER]);
}

#[test]
fn a_domain_that_the_unit_may_still_use_keeps_its_tables_and_its_id_out_of_use() {
    for attach_nested in [false, true] {
        let fake = Fake::new();
        let mut iommu = fake.driver();
        let domain = iommu.create_nest_parent(AddressWidth::Bits48).unwrap();
        iommu.map(domain, 0, 0x1000, 8 * MIB, Access::Read).unwrap();
        match attach_nested {
            true => iommu.setup_nested(DEVICE, PASID, domain, NestedTable::new(0x1000, 48)).unwrap(),
            false => iommu.attach(domain, DEVICE, PASID).unwrap(),
        }
        fake.mishap(Mishap::Hang);
        assert_eq!(iommu.detach(DEVICE, PASID), Err(Error::QueueTimeout));
        fake.state().mishaps.clear();
        let (id, before) = (iommu.domain_id(domain).unwrap(), fake.outstanding());
        iommu.destroy_domain(domain).unwrap();
        assert_eq!(fake.outstanding(), before, "an IOTLB or a walk may still lead there");
        let next = iommu.create_domain(SECOND).unwrap();
        assert_ne!(iommu.domain_id(next), Ok(id));
        iommu.shutdown().unwrap();
        assert_eq!(fake.outstanding(), 0);
    }
}

#[test]
fn a_device_that_does_not_answer_keeps_no_tables() {
    let fake = Fake::new();
    let mut iommu = fake.driver();
    let domain = iommu.create_domain(SECOND).unwrap();
    iommu.attach(domain, DEVICE, Pasid::ZERO).unwrap();
    let before = fake.outstanding();
    fake.mishap(Mishap::TimeOut(DEVICE, u32::MAX));
    for _ in 0..10 {
        iommu.map(domain, 0, 0x1000, 2 * MIB, Access::ReadWrite).unwrap();
        assert_eq!(iommu.unmap(domain, 0, 2 * MIB), Err(Error::DeviceTimedOut { source_id: DEVICE }));
    }
    assert!(fake.outstanding() <= before + 2, "only the unit walks them");
    assert_eq!(iommu.detach(DEVICE, Pasid::ZERO), Err(Error::DeviceTimedOut { source_id: DEVICE }));
    iommu.destroy_domain(domain).unwrap();
    assert!(fake.outstanding() < before);
}

#[test]
fn the_table_at_which_a_narrower_unit_enters_stays_where_it_is() {
    let fake = Fake::new();
    let mut iommu = fake.driver();
    let deep = iommu.create_nest_parent(AddressWidth::Bits57).unwrap();
    iommu.map(deep, 0, 0x1000, MIB, Access::ReadWrite).unwrap();
    iommu.setup_nested(DEVICE, PASID, deep, NestedTable::new(0x1000, 48)).unwrap();
    let root = iommu.pasid_entry(DEVICE, PASID).unwrap().ssptptr();
    let before = fake.outstanding();
    // Everything that can be mapped.
    iommu.unmap(deep, 0, 1 << 48).unwrap();
    assert_eq!(fake.outstanding(), before - 3, "the levels below went");
    assert_eq!(fake.load(root), 0, "the unit walks an empty table");
    iommu.map(deep, 0x5000, 0x1000, 0x1000, Access::ReadWrite).unwrap();
    assert_ne!(fake.load(root), 0, "and finds what is mapped anew");
    let beyond = 1 << 48;
    let error = Error::OutOfRange { address: beyond, length: 0x1000 };
    assert_eq!(iommu.map(deep, beyond, 0x1000, 0x1000, Access::Read), Err(error), "the unit cannot reach it");
}

#[test]
fn widths_that_the_unit_cannot_walk_are_refused() {
    let (cap, ecap) = capabilities();
    let fake = Fake::with(cap.with_sagaw(0b1000).with_mgaw(56), ecap);
    let mut iommu = fake.driver();
    let before = fake.outstanding();
    for width in [AddressWidth::Bits39, AddressWidth::Bits48] {
        assert!(matches!(iommu.create_domain(Stage::Second(width)), Err(Error::Unsupported { .. })));
    }
    assert_eq!(fake.outstanding(), before);
    iommu.create_domain(Stage::Second(AddressWidth::Bits57)).unwrap();
}

#[test]
fn no_host_address_is_wider_than_an_entry() {
    let fake = Fake::new();
    let mut iommu = crate::Iommu::bring_up(fake.clone(), fake.clone(), crate::Config::new(64)).unwrap();
    let domain = iommu.create_domain(SECOND).unwrap();
    let beyond = Err(Error::OutOfRange { address: 1 << 52, length: 4096 });
    assert_eq!(iommu.map(domain, 0, 1 << 52, 4096, Access::Read), beyond);
    iommu.map(domain, 0, (1 << 52) - 4096, 4096, Access::Read).unwrap();
}
