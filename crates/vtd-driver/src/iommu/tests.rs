// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Random histories, with a unit that refuses, stands still and has devices that do not answer: whatever the unit may
//! still reach is memory that the driver has not given back.

use std::collections::BTreeSet;
use std::vec;

use proptest::prelude::*;
use vtd_spec::{AddressWidth, Descriptor, FirstStageEntry, FirstStagePagingMode, Pasid, SecondStageEntry};

use super::*;
use crate::fake::{DEVICE, Driver, Fake, Mishap, OTHER, capabilities};
use crate::{Access, DeviceConfig, Error, NestedTable, Stage};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const DEVICES: [SourceId; 2] = [DEVICE, OTHER];
const PASIDS: [Pasid; 4] = [Pasid::ZERO, Pasid::truncated(1), Pasid::truncated(63), Pasid::truncated(64)];
/// The last ones are wider than the unit.
const STAGES: [Stage; 4] = [
    Stage::First(FirstStagePagingMode::Level4),
    Stage::First(FirstStagePagingMode::Level5),
    Stage::Second(AddressWidth::Bits48),
    Stage::Second(AddressWidth::Bits57),
];

#[derive(Clone, Debug)]
enum Step {
    Create(usize, bool),
    Destroy(usize),
    Map(usize, u64, u64),
    Unmap(usize, u64, u64),
    Attach(usize, usize, usize),
    Nest(usize, usize, usize),
    Detach(usize, usize),
    Remove(usize),
    Add(usize),
    Mishap(usize),
    Recover,
}

fn step() -> impl Strategy<Value = Step> {
    let (domain, device, pasid) = (0..5usize, 0..DEVICES.len(), 0..PASIDS.len());
    let address = prop::sample::select(vec![0, 4096, 2 * MIB, GIB, 3 * GIB, 1 << 39, (1 << 47) - GIB]);
    let mapped = prop::sample::select(vec![4096, 2 * MIB, 6 * MIB, GIB]);
    let unmapped = prop::sample::select(vec![4096, 2 * MIB, GIB, 1 << 39, 1 << 47, 1 << 48]);
    prop_oneof![
        2 => (0..STAGES.len(), any::<bool>()).prop_map(|(stage, parent)| Step::Create(stage, parent)),
        3 => domain.clone().prop_map(Step::Destroy),
        8 => (domain.clone(), address.clone(), mapped).prop_map(|(d, at, length)| Step::Map(d, at, length)),
        6 => (domain.clone(), address, unmapped).prop_map(|(d, at, length)| Step::Unmap(d, at, length)),
        8 => (domain.clone(), device.clone(), pasid.clone()).prop_map(|(d, s, p)| Step::Attach(d, s, p)),
        8 => (domain, device.clone(), pasid.clone()).prop_map(|(d, s, p)| Step::Nest(d, s, p)),
        6 => (device.clone(), pasid).prop_map(|(s, p)| Step::Detach(s, p)),
        1 => device.clone().prop_map(Step::Remove),
        2 => device.prop_map(Step::Add),
        3 => (0..3usize).prop_map(Step::Mishap),
        6 => Just(Step::Recover),
    ]
}

/// The tables from `root` down, by reading.
fn tables(fake: &Fake, root: u64, level: u8, first_stage: bool, found: &mut BTreeSet<u64>) {
    assert!(fake.is_allocated(root), "a table at {root:#x} that was given back");
    found.insert(root);
    if level == 1 {
        return;
    }
    for slot in 0..512 {
        let bits = crate::Memory::load(fake, root + 8 * slot);
        let next = match first_stage {
            true => Some(FirstStageEntry::from_bits(bits))
                .filter(|entry| entry.p() && !entry.is_leaf(level))
                .map(|entry| entry.address(level)),
            false => Some(SecondStageEntry::from_bits(bits))
                .filter(|entry| entry.present(false) && !entry.is_leaf(level))
                .map(|entry| entry.address(level)),
        };
        if let Some(next) = next {
            tables(fake, next, level - 1, first_stage, found);
        }
    }
}

/// Where the unit enters, by the PASID entries that are present: root, levels, whether of a first stage.
fn roots(iommu: &Driver) -> BTreeSet<(u64, u8, bool)> {
    let mut roots = BTreeSet::new();
    for device in DEVICES {
        for entry in PASIDS.iter().filter_map(|pasid| iommu.pasid_entry(device, *pasid).ok()) {
            match entry.pgtt().filter(|_| entry.p()) {
                Some(pgtt) if pgtt.uses_second_stage() => {
                    roots.insert((entry.ssptptr(), entry.aw() + 2, false));
                }
                Some(_) => {
                    roots.insert((entry.fsptptr(), 4 + entry.fspm(), true));
                }
                None => {}
            }
        }
    }
    roots
}

fn run(iommu: &mut Driver, domains: &mut Vec<DomainHandle>, fake: &Fake, step: Step) -> Result<(), Error> {
    let domain = |domains: &Vec<DomainHandle>, number: usize| {
        domains.get(number % domains.len().max(1)).copied().ok_or(Error::NoSuchDomain)
    };
    match step {
        Step::Create(stage, parent) => {
            let created = match STAGES[stage] {
                Stage::Second(width) if parent => iommu.create_nest_parent(width),
                stage => iommu.create_domain(stage),
            };
            domains.push(created?);
        }
        Step::Destroy(number) => {
            let gone = domain(domains, number)?;
            iommu.destroy_domain(gone)?;
            domains.retain(|domain| *domain != gone);
        }
        // To where the largest pages fit.
        Step::Map(number, at, length) => {
            iommu.map(domain(domains, number)?, at, at, length, Access::ReadWrite)?;
        }
        Step::Unmap(number, at, length) => iommu.unmap(domain(domains, number)?, at, length)?,
        Step::Attach(number, device, pasid) => {
            iommu.attach(domain(domains, number)?, DEVICES[device], PASIDS[pasid])?;
        }
        Step::Nest(number, device, pasid) => {
            let table = NestedTable::new(0x1000, 48);
            iommu.setup_nested(DEVICES[device], PASIDS[pasid], domain(domains, number)?, table)?;
        }
        Step::Detach(device, pasid) => iommu.detach(DEVICES[device], PASIDS[pasid])?,
        Step::Remove(device) => iommu.remove_device(DEVICES[device])?,
        Step::Add(device) => {
            let config = DeviceConfig { pasid_bits: 7, ..DeviceConfig::with_sva(DEVICES[device]) };
            iommu.add_device(config)?;
        }
        Step::Mishap(which) => fake.mishap(match which {
            0 => Mishap::Hang,
            1 => Mishap::TimeOut(DEVICE, 5),
            _ => Mishap::Refuse(|descriptor| matches!(descriptor, Descriptor::PasidCache(_)), None),
        }),
        Step::Recover => fake.state().mishaps.clear(),
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn nothing_that_the_unit_may_use_is_given_back(steps in prop::collection::vec(step(), 1..60)) {
        let (cap, ecap) = capabilities();
        let fake = Fake::with(cap, ecap);
        let config = crate::Config::new(52);
        let mut iommu = Iommu::bring_up(fake.clone(), fake.clone(), config).unwrap();
        let mut domains = Vec::new();
        // A domain of each kind and both devices, to begin with.
        let kinds = (0..STAGES.len()).map(|stage| Step::Create(stage, true));
        for step in kinds.chain([Step::Add(0), Step::Add(1)]) {
            run(&mut iommu, &mut domains, &fake, step).unwrap();
        }
        // What stays as long as the unit is on, since an invalidation failed.
        let (mut lingering, mut kept) = (BTreeSet::new(), BTreeSet::new());
        for step in steps {
            let before = roots(&iommu);
            let mut reached = BTreeSet::new();
            for (root, level, first) in &before {
                tables(&fake, *root, *level, *first, &mut reached);
            }
            // Also what is taken out of such a domain later on.
            for (root, level, first) in &lingering {
                tables(&fake, *root, *level, *first, &mut kept);
            }
            // Of a removal that a refusal met, some detachments were invalidated.
            let whole = !matches!(step, Step::Remove(_));
            let done = run(&mut iommu, &mut domains, &fake, step);
            let after = roots(&iommu);
            let failed = matches!(done, Err(Error::QueueTimeout))
                || whole && matches!(done, Err(Error::QueueStopped { .. } | Error::InvalidDescriptor { .. }));
            if failed {
                lingering.extend(before.difference(&after).copied());
            }
            let mut now = BTreeSet::new();
            for (root, level, first) in after.union(&lingering) {
                tables(&fake, *root, *level, *first, &mut now);
            }
            if failed {
                kept.extend(reached.difference(&now).copied());
            }
            for page in &kept {
                prop_assert!(fake.is_allocated(*page), "{:#x} was given back", page);
            }
        }
        fake.state().mishaps.clear();
        iommu.shutdown().unwrap();
        prop_assert_eq!(fake.outstanding(), 0);
    }
}
