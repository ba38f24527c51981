// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::collections::BTreeMap;
use std::vec;

use proptest::prelude::*;
use vtd_spec::FirstStagePagingMode;

use super::*;
use crate::fake::{Fake, capabilities};

const FIRST: Stage = Stage::First(FirstStagePagingMode::Level4);
const SECOND: Stage = Stage::Second(AddressWidth::Bits48);
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

fn caps() -> Capabilities {
    let (cap, ecap) = capabilities();
    Capabilities { cap: cap.with_sagaw(0b110), ecap, haw: 46 }
}

fn table(fake: &Fake, stage: Stage) -> PageTable {
    PageTable::new(fake, stage, &caps(), true).unwrap()
}

#[test]
fn the_largest_pages_that_fit_are_used() {
    for stage in [FIRST, SECOND] {
        let fake = Fake::new();
        let table = table(&fake, stage);
        // From 4 KiB below 1 GiB to 4 KiB beyond 2 GiB + 2 MiB.
        let (first, length) = (GIB - 4096, GIB + 2 * MIB + 2 * 4096);
        table.map(&fake, first, 4 * GIB + first, length, Access::ReadWrite).unwrap();
        for (address, size) in [
            (first, 4096),
            (GIB, GIB),
            (2 * GIB - 1, GIB),
            (2 * GIB, 2 * MIB),
            (2 * GIB + 2 * MIB, 4096),
            (2 * GIB + 2 * MIB + 4095, 4096),
        ] {
            let expected = Mapping { physical: 4 * GIB + address, size, access: Access::ReadWrite };
            assert_eq!(table.lookup(&fake, address), Some(expected), "{stage:?} {address:#x}");
        }
        assert_eq!(table.lookup(&fake, first - 1), None);
        assert_eq!(table.lookup(&fake, first + length), None);
        // The root, two tables of level 3 are one (same 512 GiB), two of level 2, two of level 1.
        assert_eq!(fake.outstanding(), 1 + 1 + 2 + 2);
    }
}

#[test]
fn small_pages_are_used_where_the_physical_address_does_not_fit() {
    let fake = Fake::new();
    let table = table(&fake, SECOND);
    table.map(&fake, 0, 0x1000, 2 * MIB, Access::Read).unwrap();
    assert_eq!(table.lookup(&fake, 0x5000).unwrap().size, 4096);
}

#[test]
fn large_pages_need_their_capability() {
    let fake = Fake::new();
    let mut caps = caps();
    caps.cap = caps.cap.with_sslps(1).with_fs1gp(false);
    for stage in [FIRST, SECOND] {
        let table = PageTable::new(&fake, stage, &caps, true).unwrap();
        table.map(&fake, 0, 0, GIB, Access::Read).unwrap();
        assert_eq!(table.lookup(&fake, 0).unwrap().size, 2 * MIB);
    }
    caps.cap = caps.cap.with_sslps(0);
    let table = PageTable::new(&fake, SECOND, &caps, true).unwrap();
    table.map(&fake, 0, 0, 2 * MIB, Access::Read).unwrap();
    assert_eq!(table.lookup(&fake, 0).unwrap().size, 4096);
}

#[test]
fn entries_have_the_units_format_and_no_reserved_bit() {
    let caps = caps();
    let fake = Fake::new();
    let first = table(&fake, FIRST);
    let second = table(&fake, SECOND);
    for level in 1..=3 {
        for access in [Access::Read, Access::Write, Access::ReadWrite] {
            let entry = FirstStageEntry::from_bits(first.leaf_entry(GIB, level, access));
            assert!(entry.p() && entry.us() && entry.a() && entry.is_leaf(level));
            assert!(!entry.reserved(level, &caps));
            assert_eq!((entry.rw(), entry.d()), (access != Access::Read, access != Access::Read));
            let entry = SecondStageEntry::from_bits(second.leaf_entry(GIB, level, access));
            assert!(entry.is_leaf(level) && !entry.reserved(level, false, &caps));
            assert_eq!((entry.r(), entry.w()), (access != Access::Write, access != Access::Read));
            assert_eq!(entry.address(level), GIB);
        }
        assert!(!FirstStageEntry::from_bits(first.table_entry(0x5000)).reserved(level + 1, &caps));
        assert!(!SecondStageEntry::from_bits(second.table_entry(0x5000)).reserved(level + 1, false, &caps));
    }
}

#[test]
fn what_is_mapped_is_not_mapped_over() {
    let fake = Fake::new();
    let table = table(&fake, SECOND);
    table.map(&fake, 0x4000, 0x4000, 0x1000, Access::Read).unwrap();
    table.map(&fake, 2 * MIB, 0, 2 * MIB, Access::Read).unwrap();
    let over = table.map(&fake, 0x2000, 0, 0x4000, Access::Read);
    assert_eq!(over, Err((Error::AlreadyMapped { address: 0x4000 }, 0x2000)));
    let over = table.map(&fake, 2 * MIB + 0x3000, 0, 0x1000, Access::Read);
    assert_eq!(over, Err((Error::AlreadyMapped { address: 2 * MIB + 0x3000 }, 0)));
}

#[test]
fn ranges_are_checked() {
    let fake = Fake::new();
    for (stage, end) in [(FIRST, 1 << 47), (SECOND, 1 << 48), (Stage::Second(AddressWidth::Bits39), 1 << 39)]
    {
        let table = table(&fake, stage);
        table.map(&fake, end - 4096, 0, 4096, Access::Read).unwrap();
        for (address, length) in [(end, 4096), (end - 4096, 8192), (u64::MAX - 4095, 8192)] {
            let error = Error::OutOfRange { address, length };
            assert_eq!(table.map(&fake, address, 0, length, Access::Read), Err((error, 0)));
        }
        for (address, physical, length) in [(1, 0, 4096), (0, 1, 4096), (0, 0, 4095), (0, 0, 0)] {
            let error = table.map(&fake, address, physical, length, Access::Read).unwrap_err();
            assert!(matches!(error, (Error::Misaligned { .. }, 0)));
        }
        let beyond = table.map(&fake, 0, (1 << 46) - 4096, 8192, Access::Read);
        assert!(matches!(beyond, Err((Error::OutOfRange { .. }, 0))), "beyond the host address width");
    }
}

#[test]
fn unmapping_takes_tables_out_that_nothing_needs() {
    for stage in [FIRST, SECOND] {
        let fake = Fake::new();
        let table = table(&fake, stage);
        table.map(&fake, 0, 0x1000, 4 * MIB, Access::Read).unwrap();
        let mut freed = vec![];
        // The first 2 MiB need their table no more, of the second a page goes.
        assert_eq!(table.unmap(&fake, 0, 2 * MIB + 4096, &mut freed), Ok(true));
        assert_eq!(freed.len(), 1);
        assert_eq!(table.lookup(&fake, 0), None);
        assert_eq!(table.lookup(&fake, 2 * MIB), None);
        assert_eq!(table.lookup(&fake, 2 * MIB + 4096).unwrap().physical, 2 * MIB + 0x2000);
        assert_eq!(table.unmap(&fake, 0, 2 * MIB, &mut freed), Ok(false));
        assert_eq!(table.unmap(&fake, 0, GIB, &mut freed), Ok(true));
        assert_eq!(freed.len(), 3, "one of level 1, one of level 2");
        freed.push(table.root);
        freed.push(table.address(fake.load(table.root), table.levels()));
        let mut all = table.tables(&fake);
        all.sort_unstable();
        let mut left: vec::Vec<_> = freed.split_off(3);
        left.sort_unstable();
        assert_eq!(all, left, "the root and level 3 remain");
    }
}

#[test]
fn a_large_page_is_unmapped_as_a_whole() {
    let fake = Fake::new();
    let table = table(&fake, SECOND);
    table.map(&fake, 2 * MIB, 0, 2 * MIB, Access::Read).unwrap();
    table.map(&fake, 0, 0, 4096, Access::Read).unwrap();
    let mut freed = vec![];
    let within = Err(Error::WithinLargePage { address: 2 * MIB, size: 2 * MIB });
    assert_eq!(table.unmap(&fake, 2 * MIB + 4096, 4096, &mut freed), within);
    assert_eq!(table.unmap(&fake, 0, 2 * MIB + 4096, &mut freed), within);
    assert!(table.lookup(&fake, 0).is_some(), "nothing was changed");
    assert_eq!(table.unmap(&fake, 0, 4 * MIB, &mut freed), Ok(true));
}

#[test]
fn stores_are_written_back_for_walks_that_do_not_snoop() {
    let fake = Fake::new();
    let table = PageTable::new(&fake, SECOND, &caps(), false).unwrap();
    table.map(&fake, 0, 0, 4096, Access::Read).unwrap();
    // Four tables and four entries.
    let flushed = std::mem::take(&mut fake.state().flushed);
    assert_eq!(flushed.iter().filter(|flush| flush.1 == 4096).count(), 4);
    assert_eq!(flushed.iter().filter(|flush| flush.1 == 8).count(), 4);
}

/// Pages of the space that the random histories below map and unmap.
const SPACE: u64 = 4096;

fn page_range() -> impl Strategy<Value = (u64, u64)> {
    // Whole large pages are as likely as anything else.
    prop_oneof![
        (0..SPACE, 1..64u64),
        (0..SPACE / 512, 1..4u64).prop_map(|(page, count)| (page * 512, count * 512)),
        (0..SPACE, 1..1500u64),
    ]
    .prop_map(|(page, count)| (page, count.min(SPACE - page)))
}

proptest! {
    /// Against the simplest page table there is: a map from page to page.
    #[test]
    fn random_histories_leave_what_they_should(
        second: bool,
        steps in proptest::collection::vec((any::<bool>(), page_range(), 0..3u64), 1..40),
    ) {
        let fake = Fake::new();
        let table = table(&fake, if second { SECOND } else { FIRST });
        // The space lies across a border of 1 GiB.
        let base = GIB - SPACE / 2 * 4096;
        let mut model: BTreeMap<u64, u64> = BTreeMap::new();
        let mut sizes: BTreeMap<u64, u64> = BTreeMap::new();
        let mut tables = 0;
        for (map, (page, count), shift) in steps {
            let address = base + page * 4096;
            if map {
                let physical = address + 8 * GIB + shift * 4096;
                let taken = (page..page + count).find(|page| model.contains_key(page));
                let result = table.map(&fake, address, physical, count * 4096, Access::ReadWrite);
                let until = match (taken, result) {
                    (None, Ok(())) => page + count,
                    (Some(taken), Err((Error::AlreadyMapped { address: at }, mapped))) => {
                        prop_assert!((at - base) / 4096 <= taken && at + 2 * MIB > base + taken * 4096);
                        page + mapped / 4096
                    }
                    (taken, result) => panic!("{taken:?} {result:?}"),
                };
                prop_assert!(until <= taken.unwrap_or(until));
                for page in page..until {
                    let address = base + page * 4096;
                    model.insert(page, address + 8 * GIB + shift * 4096);
                    sizes.insert(page, table.lookup(&fake, address).unwrap().size);
                }
            } else {
                let cut = |edge: u64, outside: Option<u64>| {
                    let size = sizes.get(&edge).copied().unwrap_or(4096);
                    outside.is_some_and(|outside| {
                        size > 4096 && (base + edge * 4096) / size == (base + outside * 4096) / size
                    })
                };
                let expected = cut(page, page.checked_sub(1)) || cut(page + count - 1, Some(page + count));
                let mut freed = vec![];
                let result = table.unmap(&fake, address, count * 4096, &mut freed);
                tables += freed.len();
                if expected {
                    let refused = matches!(result, Err(Error::WithinLargePage { .. }));
                    prop_assert!(refused);
                    prop_assert!(freed.is_empty());
                } else {
                    let mapped = (page..page + count).any(|page| model.contains_key(&page));
                    prop_assert!(result == Ok(mapped) || !freed.is_empty());
                    (page..page + count).for_each(|page| {
                        model.remove(&page);
                        sizes.remove(&page);
                    });
                }
            }
        }
        for page in 0..SPACE {
            let found = table.lookup(&fake, base + page * 4096).map(|mapping| mapping.physical);
            prop_assert_eq!(found, model.get(&page).copied(), "page {}", page);
        }
        prop_assert_eq!(table.tables(&fake).len() + tables, fake.outstanding(), "no table is lost");
    }
}
