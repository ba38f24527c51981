// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use vtd_spec::{FirstStagePagingMode, PasidEntry};

use super::*;
use crate::fake::{DEVICE, Driver, Fake, OTHER, capabilities};
use crate::{Ats, nested};

const TABLE: FirstStageTable = FirstStageTable { root: 0x1234_5000, mode: FirstStagePagingMode::Level4 };

fn system(fake: &Fake) -> (Driver, Pasids, SetId, Pasid) {
    let iommu = fake.driver();
    let mut pasids = Pasids::new(1..=ioasid::MAX_ID).unwrap();
    let set = pasids.create_set(10).unwrap();
    let pasid = Pasid::truncated(pasids.allocate(set, 1..=ioasid::MAX_ID, None).unwrap());
    (iommu, pasids, set, pasid)
}

#[test]
fn a_process_is_bound_to_devices_counted_and_unbound() {
    let fake = Fake::new();
    let (mut iommu, mut pasids, set, pasid) = system(&fake);
    for device in [DEVICE, OTHER, DEVICE] {
        bind(&mut iommu, &mut pasids, set, device, pasid, TABLE).unwrap();
    }
    let entry = iommu.pasid_entry(DEVICE, pasid).unwrap();
    assert_eq!((entry.did(), entry.fsptptr(), entry.pwsnp()), (FIRST_STAGE_DID, TABLE.root, true));
    let other = FirstStageTable { root: 0x6000, ..TABLE };
    let mine = Err(Error::OtherAddressSpace { pasid });
    assert_eq!(bind(&mut iommu, &mut pasids, set, OTHER, pasid, other), mine);
    assert_eq!(pasids.free(set, pasid.get()), Err(ioasid::Error::Bound { id: pasid.get() }));
    unbind(&mut iommu, &mut pasids, set, DEVICE, pasid).unwrap();
    assert!(iommu.pasid_entry(DEVICE, pasid).unwrap().p(), "one user is left");
    unbind(&mut iommu, &mut pasids, set, DEVICE, pasid).unwrap();
    unbind(&mut iommu, &mut pasids, set, OTHER, pasid).unwrap();
    assert_eq!(iommu.pasid_entry(DEVICE, pasid), Ok(PasidEntry::new()));
    let gone = Err(Error::NotBound { source_id: OTHER, pasid });
    assert_eq!(unbind(&mut iommu, &mut pasids, set, OTHER, pasid), gone);
    pasids.free(set, pasid.get()).unwrap();
}

#[test]
fn a_change_of_the_table_reaches_the_iotlb_and_every_device() {
    let fake = Fake::new();
    let (mut iommu, mut pasids, set, pasid) = system(&fake);
    let range = AddressRange::new(0x7f00_0000_0000, 4);
    invalidate(&mut iommu, &pasids, pasid, range, true).unwrap();
    bind(&mut iommu, &mut pasids, set, DEVICE, pasid, TABLE).unwrap();
    bind(&mut iommu, &mut pasids, set, OTHER, pasid, TABLE).unwrap();
    fake.clear();
    invalidate(&mut iommu, &pasids, pasid, range, true).unwrap();
    let expected = [
        cache::pasid_iotlb_pages(FIRST_STAGE_DID, pasid, range, true),
        cache::pasid_device_tlb(DEVICE, Ats::default(), pasid, range),
        cache::pasid_device_tlb(OTHER, Ats::default(), pasid, range),
    ];
    assert_eq!(fake.take(), expected);
}

#[test]
fn a_process_that_ends_is_silenced_until_it_is_unbound() {
    let fake = Fake::new();
    let (mut iommu, mut pasids, set, pasid) = system(&fake);
    bind(&mut iommu, &mut pasids, set, DEVICE, pasid, TABLE).unwrap();
    fake.clear();
    release(&mut iommu, &mut pasids, pasid).unwrap();
    assert_eq!(iommu.pasid_entry(DEVICE, pasid), Ok(PasidEntry::new().with_fpd(true)));
    let expected = [
        cache::pasid_cache_pasid(FIRST_STAGE_DID, pasid),
        cache::pasid_iotlb(FIRST_STAGE_DID, pasid),
        cache::pasid_device_tlb(DEVICE, Ats::default(), pasid, AddressRange::ALL),
    ];
    assert_eq!(fake.take(), expected, "no drain");
    unbind(&mut iommu, &mut pasids, set, DEVICE, pasid).unwrap();
    assert_eq!(iommu.pasid_entry(DEVICE, pasid), Ok(PasidEntry::new()));
    assert_eq!(fake.take().first(), Some(&cache::barrier()), "nothing but the drain");
}

#[test]
fn bindings_that_cannot_be_are_refused() {
    let fake = Fake::new();
    let (mut iommu, mut pasids, set, pasid) = system(&fake);
    let mut bind = |device, pasid, table| bind(&mut iommu, &mut pasids, set, device, pasid, table);
    let nobody = SourceId(9);
    assert_eq!(bind(nobody, pasid, TABLE), Err(Error::NoSuchDevice { source_id: nobody }));
    assert_eq!(bind(DEVICE, Pasid::ZERO, TABLE), Err(Error::InvalidPasid { pasid: 0 }));
    let free = Pasid::truncated(77);
    assert_eq!(bind(DEVICE, free, TABLE), Err(Error::Pasid(ioasid::Error::NotAllocated { id: 77 })));
    for root in [0x1001, 1 << 46] {
        let table = FirstStageTable { root, ..TABLE };
        assert_eq!(bind(DEVICE, pasid, table), Err(Error::TableOutOfRange { address: root }));
    }
    let (cap, ecap) = capabilities();
    for (cap, ecap, mode) in [
        (cap, ecap.with_smpwc(false).with_eafs(false), FirstStagePagingMode::Level4),
        (cap.with_fs5lp(false), ecap, FirstStagePagingMode::Level5),
    ] {
        let fake = Fake::with(cap, ecap);
        let (mut iommu, mut pasids, set, pasid) = system(&fake);
        let refused =
            super::bind(&mut iommu, &mut pasids, set, DEVICE, pasid, FirstStageTable { mode, ..TABLE });
        assert!(matches!(refused, Err(Error::Unsupported { .. })));
        assert_eq!(pasids.find(None, pasid.get()), Ok(None));
    }
}

#[test]
fn processes_and_guests_do_not_share_a_pasid() {
    let fake = Fake::new();
    let (mut iommu, mut pasids, set, pasid) = system(&fake);
    bind(&mut iommu, &mut pasids, set, DEVICE, pasid, TABLE).unwrap();
    let domain = iommu.create_nest_parent(vtd_spec::AddressWidth::Bits48).unwrap();
    let data = nested::BindData::new(0x1000, pasid);
    let other = Err(Error::OtherAddressSpace { pasid });
    assert_eq!(nested::bind_gpasid(&mut iommu, &mut pasids, set, domain, OTHER, &data), other);
    let not_bound = Err(Error::NotBound { source_id: DEVICE, pasid });
    let hpasid = pasid.get().into();
    assert_eq!(nested::unbind_gpasid(&mut iommu, &mut pasids, set, DEVICE, hpasid), not_bound);
    unbind(&mut iommu, &mut pasids, set, DEVICE, pasid).unwrap();
    nested::bind_gpasid(&mut iommu, &mut pasids, set, domain, OTHER, &data).unwrap();
    assert_eq!(
        unbind(&mut iommu, &mut pasids, set, OTHER, pasid),
        Err(Error::NotBound { source_id: OTHER, pasid })
    );
    assert_eq!(invalidate(&mut iommu, &pasids, pasid, AddressRange::ALL, false), other);
    assert_eq!(release(&mut iommu, &mut pasids, pasid), other);
    nested::release_set(&mut iommu, &mut pasids, set).unwrap();
}

#[test]
fn nothing_more_is_bound_for_a_process_that_has_ended() {
    let fake = Fake::new();
    let (mut iommu, mut pasids, set, pasid) = system(&fake);
    bind(&mut iommu, &mut pasids, set, DEVICE, pasid, TABLE).unwrap();
    release(&mut iommu, &mut pasids, pasid).unwrap();
    for device in [DEVICE, OTHER] {
        let ended = Err(Error::ProcessEnded { pasid });
        assert_eq!(bind(&mut iommu, &mut pasids, set, device, pasid, TABLE), ended, "its table is gone");
        assert!(!iommu.pasid_entry(device, pasid).unwrap().p());
    }
    unbind(&mut iommu, &mut pasids, set, DEVICE, pasid).unwrap();
    bind(&mut iommu, &mut pasids, set, OTHER, pasid, TABLE).unwrap();
}

#[test]
fn a_device_is_bound_at_its_own_unit() {
    let (here, there) = (Fake::new(), Fake::new());
    let (mut iommu, mut pasids, set, pasid) = system(&here);
    let mut other = there.driver();
    other.remove_device(DEVICE).unwrap();
    bind(&mut iommu, &mut pasids, set, DEVICE, pasid, TABLE).unwrap();
    let stranger = Err(Error::NoSuchDevice { source_id: DEVICE });
    assert_eq!(bind(&mut other, &mut pasids, set, DEVICE, pasid, TABLE), stranger);
    assert_eq!(pasids.find(None, pasid.get()).unwrap().unwrap().devices()[0].users, 1);
}
