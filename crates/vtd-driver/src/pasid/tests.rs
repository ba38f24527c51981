// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::vec;
use std::vec::Vec;

use vtd_spec::Descriptor;

use super::*;
use crate::fake::{DEVICE, Driver, Fake, Mishap, OTHER, PASID, capabilities};
use crate::{Access, DeviceConfig, Stage};

const TABLE: FirstStageTable = FirstStageTable { root: 0x1234_5000, mode: FirstStagePagingMode::Level4 };

fn parent(iommu: &mut Driver) -> DomainHandle {
    iommu.create_nest_parent(AddressWidth::Bits48).unwrap()
}

fn all_of(sid: SourceId, pasid: Pasid) -> Descriptor {
    cache::device_tlb_of_pasid(sid, crate::Ats::default(), pasid, AddressRange::ALL)
}

/// The drain of page requests after a teardown.
fn drain(did: DomainId, pasid: Pasid) -> Vec<Descriptor> {
    let wait = vtd_spec::descriptors::Wait { sw: true, pd: true, ..Default::default() };
    vec![
        cache::barrier(),
        if pasid == Pasid::ZERO { cache::iotlb_domain(did) } else { cache::pasid_iotlb(did, pasid) },
        all_of(DEVICE, pasid),
        Descriptor::Wait(wait),
    ]
}

#[test]
fn each_type_is_written_as_linux_writes_it() {
    let fake = Fake::new();
    let mut iommu = fake.driver();
    let caps = iommu.capabilities();
    let second = iommu.create_domain(Stage::Second(AddressWidth::Bits48)).unwrap();
    let parent = parent(&mut iommu);
    let roots = [second, parent].map(|domain| iommu.domain(domain).unwrap().root());
    let pasids = [1, 2, 3, 4].map(Pasid::truncated);
    iommu.set_up_first_stage(DEVICE, pasids[0], TABLE, None).unwrap();
    iommu.attach(second, DEVICE, pasids[1]).unwrap();
    iommu.setup_nested(DEVICE, pasids[2], parent, NestedTable::new(0x7777_7018, 57)).unwrap();
    iommu.attach_pass_through(DEVICE, pasids[3]).unwrap();
    let entries = pasids.map(|pasid| iommu.pasid_entry(DEVICE, pasid).unwrap());
    for entry in entries {
        assert!(!entry.reserved(&caps), "{entry:?}");
        assert_eq!(entry.to_qwords()[3..], [0; 5]);
    }
    let (p, pwsnp) = (1, 1 << 23);
    let words = entries.map(|entry| entry.to_qwords()).map(|words| [words[0], words[1], words[2]]);
    assert_eq!(words[0], [p | 2 << 2 | 1 << 6, 1 | pwsnp, TABLE.root]);
    assert_eq!(words[1], [p | 2 << 2 | 2 << 6 | roots[0], 2 | pwsnp, 0]);
    assert_eq!(words[2], [p | 2 << 2 | 3 << 6 | roots[1], 4 | pwsnp, 0x7777_7000 | 1 << 2]);
    assert_eq!(words[3], [p | 2 << 2 | 4 << 6, 1 | pwsnp, 0]);
}

#[test]
fn a_new_entry_is_announced_in_caching_mode_only() {
    let fake = Fake::new();
    let mut iommu = fake.driver();
    iommu.set_up_first_stage(DEVICE, PASID, TABLE, None).unwrap();
    let did = FIRST_STAGE_DID;
    assert_eq!(fake.take(), [cache::pasid_cache_pasid(did, PASID), cache::pasid_iotlb(did, PASID)]);
    let (cap, ecap) = capabilities();
    let fake = Fake::with(cap.with_cm(false), ecap);
    let mut iommu = fake.driver();
    iommu.set_up_first_stage(DEVICE, PASID, TABLE, None).unwrap();
    assert_eq!((fake.take(), fake.take_writes()), (vec![], vec![]));
    let fake = Fake::with(cap.with_cm(false).with_rwbf(true), ecap);
    let mut iommu = fake.driver();
    iommu.set_up_first_stage(DEVICE, PASID, TABLE, None).unwrap();
    assert_eq!(fake.take_writes(), [(0x18, 4, 0x0c00_0000)], "the write buffer is flushed instead");
}

#[test]
fn teardown_flushes_in_order_and_by_type() {
    let fake = Fake::new();
    let mut iommu = fake.driver();
    let second = iommu.create_domain(Stage::Second(AddressWidth::Bits48)).unwrap();
    let parent = parent(&mut iommu);
    iommu.set_up_first_stage(DEVICE, Pasid::truncated(1), TABLE, None).unwrap();
    iommu.attach(second, DEVICE, Pasid::truncated(2)).unwrap();
    iommu.setup_nested(DEVICE, Pasid::truncated(3), parent, NestedTable::new(0x1000, 48)).unwrap();
    iommu.attach_pass_through(DEVICE, Pasid::truncated(4)).unwrap();
    iommu.attach(second, DEVICE, Pasid::ZERO).unwrap();
    fake.clear();
    for (pasid, did, by_domain) in [(1, 1, false), (2, 2, true), (3, 4, true), (4, 1, false), (0, 2, true)] {
        let (pasid, did) = (Pasid::truncated(pasid), DomainId(did));
        iommu.detach(DEVICE, pasid).unwrap();
        let iotlb = if by_domain { cache::iotlb_domain(did) } else { cache::pasid_iotlb(did, pasid) };
        let mut expected = vec![cache::pasid_cache_pasid(did, pasid), iotlb, all_of(DEVICE, pasid)];
        expected.extend(drain(did, pasid));
        assert_eq!(fake.take(), expected);
        assert_eq!(iommu.pasid_entry(DEVICE, pasid), Ok(PasidEntry::new()));
        assert_eq!(iommu.detach(DEVICE, pasid), Err(Error::NotBound { source_id: DEVICE, pasid }));
    }
    assert_eq!(iommu.destroy_domain(second), Ok(()));
    assert_eq!(iommu.destroy_domain(parent), Ok(()));
}

#[test]
fn an_entry_is_gone_also_where_its_device_does_not_answer() {
    let fake = Fake::new();
    let mut iommu = fake.driver();
    iommu.set_up_first_stage(DEVICE, PASID, TABLE, None).unwrap();
    fake.mishap(Mishap::TimeOut(DEVICE, u32::MAX));
    assert_eq!(iommu.detach(DEVICE, PASID), Err(Error::DeviceTimedOut { source_id: DEVICE }));
    assert_eq!(iommu.pasid_entry(DEVICE, PASID), Ok(PasidEntry::new()));
    assert!(iommu.device(DEVICE).unwrap().attachments.is_empty());
}

#[test]
fn the_present_bit_is_stored_last_and_cleared_first() {
    // Without a snooping unit every store order shows in the write-backs.
    let (cap, ecap) = capabilities();
    let fake = Fake::with(cap, ecap.with_c(false));
    let mut iommu = fake.driver();
    iommu.set_up_first_stage(DEVICE, PASID, TABLE, None).unwrap();
    let flushed = std::mem::take(&mut fake.state().flushed);
    let entry = flushed.last().unwrap().0;
    let of_entry = flushed.iter().filter(|flush| **flush == (entry, 64)).count();
    assert_eq!(of_entry, 4, "zeroed, then written: the rest and then P, each written back");
    iommu.detach(DEVICE, PASID).unwrap();
    let flushed = std::mem::take(&mut fake.state().flushed);
    assert_eq!(flushed[0], (entry, 8), "P cleared, before anything is invalidated");
}

/// Each check of a nested set-up, and its own error.
#[test]
fn nested_set_up_refuses_what_cannot_be() {
    let (cap, ecap) = capabilities();
    let try_with = |cap, ecap, table: NestedTable| {
        let fake = Fake::with(cap, ecap);
        let mut iommu = fake.driver();
        let parent = parent(&mut iommu);
        let error = iommu.setup_nested(DEVICE, PASID, parent, table).unwrap_err();
        assert_eq!(iommu.pasid_entry(DEVICE, PASID), Ok(PasidEntry::new()));
        assert!(fake.take().is_empty());
        error
    };
    let table = NestedTable::new(0x1000, 48);
    let wide = NestedTable::new(0x1000, 57);
    for bits in [0, 39, 47, 49, 56, 58, 64, u32::MAX] {
        let error = try_with(cap, ecap, NestedTable { address_width: bits, ..table });
        assert_eq!(error, Error::AddressWidth { bits });
    }
    for (cap, ecap, table, what) in [
        (cap.with_fs5lp(false), ecap, wide, "FS5LP"),
        (cap, ecap.with_srs(false), NestedTable { sre: true, ..table }, "SRS"),
        (cap, ecap.with_eafs(false), NestedTable { eafe: true, ..table }, "EAFS"),
        (cap, ecap.with_fsts(false), table, "FSTS"),
    ] {
        let Error::Unsupported { capability } = try_with(cap, ecap, table) else { panic!("{what}") };
        assert!(capability.contains(what), "{capability}");
    }
    let types = NestedTable { memory_types: true, ..table };
    assert_eq!(try_with(cap, ecap, types), Error::MemoryTypes);
    for root in [1 << 48, u64::MAX, 1 << 46] {
        let error = try_with(cap, ecap, NestedTable { root, ..table });
        assert_eq!(error, Error::TableOutOfRange { address: root });
    }

    let fake = Fake::new();
    let mut iommu = fake.driver();
    let first = iommu.create_domain(Stage::First(FirstStagePagingMode::Level4)).unwrap();
    let second = iommu.create_domain(Stage::Second(AddressWidth::Bits48)).unwrap();
    for domain in [first, second] {
        assert_eq!(iommu.setup_nested(DEVICE, PASID, domain, table), Err(Error::NotNestParent));
    }
    let parent = parent(&mut iommu);
    iommu.setup_nested(DEVICE, PASID, parent, table).unwrap();
    let busy = Err(Error::PasidBusy { source_id: DEVICE, pasid: PASID });
    assert_eq!(iommu.setup_nested(DEVICE, PASID, parent, table), busy);
    assert_eq!(iommu.destroy_domain(parent), Err(Error::DomainBusy));
    let nobody = SourceId(7);
    assert_eq!(
        iommu.setup_nested(nobody, PASID, parent, table),
        Err(Error::NoSuchDevice { source_id: nobody })
    );
    iommu.add_device(DeviceConfig { pasid_bits: 6, ..DeviceConfig::new(nobody) }).unwrap();
    let beyond = Pasid::truncated(64);
    assert_eq!(
        iommu.setup_nested(nobody, beyond, parent, table),
        Err(Error::PasidOutOfRange { source_id: nobody, pasid: beyond })
    );
    iommu.setup_nested(nobody, Pasid::truncated(63), parent, table).unwrap();

    let fake = Fake::with(cap, ecap.with_nest(false));
    let mut iommu = fake.driver();
    assert!(matches!(iommu.create_nest_parent(AddressWidth::Bits48), Err(Error::Unsupported { .. })));
    let domain = iommu.create_domain(Stage::Second(AddressWidth::Bits48)).unwrap();
    let error = iommu.setup_nested(DEVICE, PASID, domain, table).unwrap_err();
    assert_eq!(error, Error::lacks("nested translation (ECAP.NEST)"));
}

#[test]
fn nested_options_reach_the_entry() {
    let fake = Fake::new();
    let mut iommu = fake.driver();
    let parent = parent(&mut iommu);
    let all = NestedTable { sre: true, eafe: true, wpe: true, ..NestedTable::new(0x5fff, 48) };
    iommu.setup_nested(DEVICE, PASID, parent, all).unwrap();
    let entry = iommu.pasid_entry(DEVICE, PASID).unwrap();
    assert!(entry.sre() && entry.eafe() && entry.wpe() && entry.pwsnp() && !entry.fpd());
    assert_eq!((entry.fsptptr(), entry.pgtt_bits()), (0x5000, 3));
    assert_eq!(Some(entry.did()), iommu.domain_id_of(DEVICE, PASID));
    assert_ne!(entry.did(), iommu.domain_id(parent).unwrap());
    iommu.setup_nested(OTHER, PASID, parent, NestedTable { sre: false, ..all }).unwrap();
    assert!(
        !iommu.pasid_entry(OTHER, PASID).unwrap().wpe(),
        "write protection goes with supervisor requests"
    );
}

#[test]
fn levels_that_the_unit_lacks_are_skipped() {
    let fake = Fake::new();
    let mut iommu = fake.driver();
    let deep = iommu.create_nest_parent(AddressWidth::Bits57).unwrap();
    let table = NestedTable::new(0x1000, 48);
    assert_eq!(iommu.setup_nested(DEVICE, PASID, deep, table), Err(Error::LevelsNotSkippable));
    iommu.map(deep, 0, 0x10_0000, 4096, Access::ReadWrite).unwrap();
    let root = iommu.domain(deep).unwrap().root();
    let below = SecondStageEntry::from_bits(iommu.memory.load(root)).address(5);
    iommu.setup_nested(DEVICE, PASID, deep, table).unwrap();
    let entry = iommu.pasid_entry(DEVICE, PASID).unwrap();
    assert_eq!((entry.ssptptr(), entry.aw()), (below, AddressWidth::Bits48.into_bits()));
}

#[test]
fn a_nested_table_is_replaced_without_a_gap() {
    let fake = Fake::new();
    let mut iommu = fake.driver();
    let parent = parent(&mut iommu);
    let table = NestedTable::new(0x1000, 48);
    let not_bound = Err(Error::NotBound { source_id: DEVICE, pasid: PASID });
    assert_eq!(iommu.replace_nested(DEVICE, PASID, parent, table), not_bound);
    iommu.setup_nested(DEVICE, PASID, parent, table).unwrap();
    let before = iommu.pasid_entry(DEVICE, PASID).unwrap();
    fake.clear();
    let bad = NestedTable { address_width: 50, ..table };
    assert_eq!(iommu.replace_nested(DEVICE, PASID, parent, bad), Err(Error::AddressWidth { bits: 50 }));
    assert_eq!(iommu.pasid_entry(DEVICE, PASID), Ok(before));
    iommu.replace_nested(DEVICE, PASID, parent, NestedTable::new(0x9000, 57)).unwrap();
    let after = iommu.pasid_entry(DEVICE, PASID).unwrap();
    assert_eq!(after, before.with_fsptptr(0x9000).with_fspm(1));
    let did = before.did();
    let expected =
        [cache::pasid_cache_pasid(did, PASID), cache::pasid_iotlb(did, PASID), all_of(DEVICE, PASID)];
    assert_eq!(fake.take(), expected);
}

#[test]
fn tables_that_are_left_empty_are_given_back() {
    let fake = Fake::new();
    let mut iommu = fake.driver();
    let before = fake.outstanding();
    for number in 1..1000 {
        let pasid = Pasid::truncated(number * 64 + 5);
        iommu.set_up_first_stage(DEVICE, pasid, TABLE, None).unwrap();
        // One stays, in a table that is never empty.
        if number == 7 {
            continue;
        }
        iommu.detach(DEVICE, pasid).unwrap();
        assert!(fake.outstanding() <= before + EMPTY_TABLES + 2, "{number}: {}", fake.outstanding());
    }
    assert!(iommu.pasid_entry(DEVICE, Pasid::truncated(7 * 64 + 5)).unwrap().p());
    // One that was given back is made again.
    let again = Pasid::truncated(64 + 5);
    iommu.set_up_first_stage(DEVICE, again, TABLE, None).unwrap();
    assert!(iommu.pasid_entry(DEVICE, again).unwrap().p());
    iommu.shutdown().unwrap();
    assert_eq!(fake.outstanding(), 0);
}

#[test]
fn tables_stay_out_of_use_where_the_unit_may_still_know_them() {
    let fake = Fake::new();
    let mut iommu = fake.driver();
    let pasids = (1..=EMPTY_TABLES as u32 + 1).map(|number| Pasid::truncated(number * 64));
    pasids.clone().for_each(|pasid| iommu.set_up_first_stage(DEVICE, pasid, TABLE, None).unwrap());
    let full = fake.outstanding();
    let mut pasids: Vec<_> = pasids.collect();
    let last = pasids.pop().unwrap();
    pasids.into_iter().for_each(|pasid| iommu.detach(DEVICE, pasid).unwrap());
    fake.mishap(Mishap::Hang);
    assert!(iommu.detach(DEVICE, last).is_err());
    assert_eq!(fake.outstanding(), full, "nothing is freed");
}

#[test]
fn tables_run_out_without_harm() {
    let fake = Fake::new();
    let mut iommu = fake.driver();
    fake.limit_pages(Some(0));
    assert_eq!(iommu.set_up_first_stage(DEVICE, PASID, TABLE, None), Err(Error::OutOfMemory));
    fake.limit_pages(None);
    iommu.set_up_first_stage(DEVICE, PASID, TABLE, None).unwrap();
    // One table holds 64 PASIDs.
    let outstanding = fake.outstanding();
    iommu.set_up_first_stage(DEVICE, Pasid::truncated(0x7f), TABLE, None).unwrap();
    assert_eq!(fake.outstanding(), outstanding);
    iommu.set_up_first_stage(DEVICE, Pasid::MAX, TABLE, None).unwrap();
    assert_eq!(fake.outstanding(), outstanding + 1);
}

#[test]
fn an_entry_whose_announcement_fails_is_taken_back() {
    let fake = Fake::new();
    let mut iommu = fake.driver();
    let refused = |descriptor: &Descriptor| matches!(descriptor, Descriptor::PasidCache(_));
    fake.mishap(Mishap::Refuse(refused, None));
    let error = iommu.set_up_first_stage(DEVICE, PASID, TABLE, None).unwrap_err();
    assert_eq!(error, Error::InvalidDescriptor { index: 0, reason: None });
    assert_eq!(iommu.pasid_entry(DEVICE, PASID), Ok(PasidEntry::new()));
    iommu.set_up_first_stage(DEVICE, PASID, TABLE, None).unwrap();
}
