// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Second-stage and nested translation.

mod common;

use common::{Guest, entry};
use vm_memory::{Bytes, GuestAddress};
use vtd_spec::descriptors::{Iotlb, IotlbGranularity, PasidIotlb, PasidIotlbGranularity};
use vtd_spec::{AddressWidth, Descriptor, DomainId, Pasid, PasidEntry, PasidGranularTranslationType};
use vtd_unit::{DmaError, UnitConfig};

const PASID: Pasid = Pasid::truncated(0x42);
const DOMAIN: DomainId = DomainId(7);
const ADDRESS: u64 = 0x7f12_3456_7000;
/// Guest physical addresses of the nested guest: far from where its memory is.
const GUEST_PHYSICAL: u64 = 0x40_0000_0000;

mod second {
    pub const R: u64 = 1;
    pub const W: u64 = 2;
    pub const A: u64 = 1 << 8;
    pub const D: u64 = 1 << 9;
    pub const PS: u64 = 1 << 7;
}

/// A guest whose PASID 0x42 is nested: a first stage of its own at guest physical addresses, a second stage below.
struct Nested {
    guest: Guest,
    second: u64,
    next_page: std::cell::Cell<u64>,
    first: u64,
    ade: bool,
}

fn config(structure_entries: usize, ssads: bool) -> UnitConfig {
    UnitConfig { ssts: true, nest: true, ssads, structure_entries, ..UnitConfig::default() }
}

impl Nested {
    fn new(config: &UnitConfig) -> Self {
        let guest = Guest::with_config(config);
        let second = guest.page();
        let nested = Self {
            guest,
            second,
            next_page: std::cell::Cell::new(GUEST_PHYSICAL),
            first: 0,
            ade: config.ssads,
        };
        let first = nested.guest_page(second::R | second::W);
        let nested = Self { first, ..nested };
        nested.guest.write_pasid_entry(PASID, nested.entry());
        nested
    }

    fn entry(&self) -> PasidEntry {
        Guest::first_stage(DOMAIN, self.first)
            .with_pgtt(PasidGranularTranslationType::Nested)
            .with_ssptptr(self.second)
            .with_aw(AddressWidth::Bits48.into_bits())
            .with_ssade(self.ade)
    }

    /// Maps a guest physical page in the second stage; returns the leaf entry's address.
    fn map_second(&self, guest_physical: u64, page: u64, rights: u64) -> u64 {
        let mut table = self.second;
        for level in (2..=4).rev() {
            let at = table + ((guest_physical >> (12 + 9 * (level - 1))) & 0x1ff) * 8;
            let mut next = self.guest.load(at);
            if next == 0 {
                next = self.guest.page() | second::R | second::W;
                self.guest.store(at, next);
            }
            table = next & 0x000f_ffff_ffff_f000;
        }
        let at = table + ((guest_physical >> 12) & 0x1ff) * 8;
        self.guest.store(at, page | rights);
        at
    }

    /// A fresh guest physical page with memory behind it.
    fn guest_page(&self, rights: u64) -> u64 {
        let guest_physical = self.next_page.get();
        self.next_page.set(guest_physical + 0x1000);
        // Pages in between keep host pages apart: neighbours in the guest are not neighbours here.
        self.guest.page();
        self.map_second(guest_physical, self.guest.page(), rights);
        guest_physical
    }

    /// The host page behind a guest physical one.
    fn host(&self, guest_physical: u64) -> u64 {
        let mut table = self.second;
        for level in (1..=4).rev() {
            let at = table + ((guest_physical >> (12 + 9 * (level - 1))) & 0x1ff) * 8;
            table = self.guest.load(at) & 0x000f_ffff_ffff_f000;
        }
        table
    }

    /// Maps `address` to a guest physical page in the first stage; returns the leaf entry's host address.
    fn map_first(&self, address: u64, guest_physical: u64, flags: u64) -> u64 {
        let mut table = self.first;
        for level in (2..=4).rev() {
            let at = self.host(table) + ((address >> (12 + 9 * (level - 1))) & 0x1ff) * 8;
            let mut next = self.guest.load(at);
            if next == 0 {
                next = self.guest_page(second::R | second::W) | entry::USER;
                self.guest.store(at, next);
            }
            table = next & 0x000f_ffff_ffff_f000;
        }
        let at = self.host(table) + ((address >> 12) & 0x1ff) * 8;
        self.guest.store(at, guest_physical | flags);
        at
    }

    fn write(&self, address: u64, data: &[u8]) -> Result<(), DmaError> {
        self.guest.endpoint.write(Guest::with_pasid(PASID), address, data)
    }

    fn read(&self, address: u64) -> Result<u8, DmaError> {
        let mut data = [0];
        self.guest.endpoint.read(Guest::with_pasid(PASID), address, &mut data).map(|()| data[0])
    }
}

#[test]
fn a_pointer_walks_both_stages() {
    for structure_entries in [0, 64] {
        let nested = Nested::new(&config(structure_entries, true));
        let page = nested.guest_page(second::R | second::W);
        let leaf = nested.map_first(ADDRESS, page, entry::USER);
        nested.write(ADDRESS + 5, b"hello").unwrap();
        let host = nested.host(page);
        assert_eq!(nested.guest.memory.read_obj::<[u8; 5]>(GuestAddress(host + 5)).unwrap(), *b"hello");
        assert_eq!(nested.guest.load(leaf) & (entry::A | entry::D), entry::A | entry::D);
        let second_leaf = nested.map_second(page, host, 0);
        assert_eq!(nested.guest.load(second_leaf), host, "the fixture rewrote it");
        // The same address as a guest physical one is not reachable: no stage went missing.
        assert!(nested.read(page).is_err());
        assert_eq!(nested.guest.take_fault_reason(), Some(0x71));
    }
}

#[test]
fn both_stages_keep_accessed_and_dirty_bits() {
    let nested = Nested::new(&config(64, true));
    let page = nested.guest_page(0);
    let host = nested.guest.page();
    let second_leaf = nested.map_second(page, host, second::R | second::W);
    let first_leaf = nested.map_first(ADDRESS, page, entry::USER);
    nested.read(ADDRESS).unwrap();
    assert_eq!(nested.guest.load(first_leaf) & (entry::A | entry::D), entry::A);
    assert_eq!(nested.guest.load(second_leaf) & (second::A | second::D), second::A);
    nested.write(ADDRESS, &[1]).unwrap();
    assert_eq!(nested.guest.load(first_leaf) & (entry::A | entry::D), entry::A | entry::D);
    assert_eq!(nested.guest.load(second_leaf) & (second::A | second::D), second::A | second::D);
}

#[test]
fn rights_are_those_that_both_stages_grant() {
    let cases = [
        (entry::USER, second::R | second::W, Ok(()), Ok(())),
        (entry::P | entry::US, second::R | second::W, Ok(()), Err(0x85)),
        (entry::USER, second::R, Ok(()), Err(0x85)),
        (entry::USER, second::W, Err(0x86), Ok(())),
        (entry::P | entry::RW, second::R | second::W, Err(0x81), Err(0x81)),
        (entry::USER, 0, Err(0x79), Err(0x79)),
    ];
    for (first, second, read, write) in cases {
        let nested = Nested::new(&config(64, false));
        let page = nested.guest_page(second);
        let leaf = nested.map_first(ADDRESS, page, first);
        for _ in 0..2 {
            let result = nested.read(ADDRESS).map(drop);
            assert_eq!(result.map_err(|_| nested.guest.take_fault_reason().unwrap()), read);
            let result = nested.write(ADDRESS, &[1]);
            assert_eq!(result.map_err(|_| nested.guest.take_fault_reason().unwrap()), write);
        }
        assert_eq!(nested.guest.load(leaf) & entry::D != 0, write.is_ok(), "dirty only if written");
    }
}

#[test]
fn tables_that_the_second_stage_denies_fault_by_place() {
    // The top table unreadable, a lower one unreadable, a lower one not writable for accessed bits.
    for (which, rights, reason) in [(0, second::W, 0x75), (3, second::W, 0x76), (3, second::R, 0x77)] {
        let nested = Nested::new(&config(64, false));
        let page = nested.guest_page(second::R | second::W);
        nested.map_first(ADDRESS, page, entry::USER);
        let table = nested.first + if which == 0 { 0 } else { 0x2000 + which * 0x1000 - 0x1000 };
        nested.map_second(table, nested.host(table), rights);
        assert!(nested.read(ADDRESS).is_err());
        assert_eq!(nested.guest.take_fault_reason(), Some(reason), "table {which}");
    }
}

#[test]
fn addresses_beyond_the_second_stage_fault_by_place() {
    let nested = Nested::new(&config(64, false));
    nested.map_first(ADDRESS, 1 << 47 << 1 & !0xfff, entry::USER);
    let width = UnitConfig { haw: 52, ..config(64, false) };
    let nested_wide = Nested::new(&width);
    nested_wide.map_first(ADDRESS, 1 << 50, entry::USER);
    assert!(nested_wide.read(ADDRESS).is_err());
    assert_eq!(nested_wide.guest.take_fault_reason(), Some(0x74));
    let entry = nested_wide.entry().with_fsptptr(1 << 50);
    let nested = Nested::new(&width);
    nested.guest.write_pasid_entry(PASID, entry);
    assert!(nested.read(ADDRESS).is_err());
    assert_eq!(nested.guest.take_fault_reason(), Some(0x5b));
}

fn piotlb() -> Descriptor {
    Descriptor::PasidIotlb(PasidIotlb {
        granularity: PasidIotlbGranularity::Page,
        did: DOMAIN,
        pasid: PASID,
        am: 0,
        ih: false,
        addr: ADDRESS,
    })
}

fn iotlb(granularity: IotlbGranularity, addr: u64) -> Descriptor {
    Descriptor::Iotlb(Iotlb { granularity, dw: true, dr: true, did: DOMAIN, am: 0, ih: false, addr })
}

#[test]
fn unmapping_in_either_stage_is_seen_after_its_invalidation() {
    for structure_entries in [0, 64] {
        let nested = Nested::new(&config(structure_entries, false));
        let page = nested.guest_page(second::R | second::W);
        nested.map_first(ADDRESS, page, entry::USER);
        nested.write(ADDRESS, &[1]).unwrap();
        nested.map_first(ADDRESS, 0, 0);
        nested.guest.submit(&piotlb());
        assert!(nested.read(ADDRESS).is_err(), "unmapped by the guest");
        nested.map_first(ADDRESS, page, entry::USER);
        nested.write(ADDRESS, &[1]).unwrap();
        for granularity in [IotlbGranularity::Page, IotlbGranularity::Domain, IotlbGranularity::Global] {
            let host = nested.host(page);
            nested.map_second(page, 0, 0);
            nested.guest.submit(&iotlb(granularity, page));
            assert!(nested.read(ADDRESS).is_err(), "unmapped by the host: {granularity:?}");
            nested.map_second(page, host, second::R | second::W);
            nested.write(ADDRESS, &[1]).unwrap();
        }
        // A table of the guest moves in host memory.
        let table = nested.first;
        let moved = nested.guest.page();
        let mut content = vec![0; 4096];
        nested.guest.memory.read_slice(&mut content, GuestAddress(nested.host(table))).unwrap();
        nested.guest.memory.write_slice(&[0; 4096], GuestAddress(nested.host(table))).unwrap();
        nested.guest.memory.write_slice(&content, GuestAddress(moved)).unwrap();
        nested.map_second(table, moved, second::R | second::W);
        nested.guest.submit(&iotlb(IotlbGranularity::Page, table));
        nested.write(ADDRESS, &[1]).unwrap();
    }
}

#[test]
fn second_stage_alone_translates_with_large_pages() {
    let nested = Nested::new(&config(64, true));
    let entry = nested.entry().with_pgtt(PasidGranularTranslationType::SecondStage);
    let pasid = Pasid::truncated(0x43);
    nested.guest.write_pasid_entry(pasid, entry);
    let page = nested.guest.pages(512, 512);
    // A 2 MiB leaf beside the pages that exist already.
    let table = nested.guest.load(nested.second + ((GUEST_PHYSICAL >> 39) & 0x1ff) * 8) & !0xfff;
    let directory = nested.guest.load(table + ((GUEST_PHYSICAL >> 30) & 0x1ff) * 8) & !0xfff;
    nested.guest.store(directory + 5 * 8, page | second::R | second::W | second::PS);
    let address = GUEST_PHYSICAL + 5 * 0x20_0000 + 0x12_3456;
    nested.guest.endpoint.write(Guest::with_pasid(pasid), address, &[9]).unwrap();
    assert_eq!(nested.guest.memory.read_obj::<u8>(GuestAddress(page + 0x12_3456)).unwrap(), 9);
    let leaf = nested.guest.load(directory + 5 * 8);
    assert_eq!(leaf & (second::A | second::D), second::A | second::D);
    for (address, reason) in [(1 << 48, 0x84), (GUEST_PHYSICAL + 0x4000_0000, 0x79)] {
        assert!(nested.guest.endpoint.write(Guest::with_pasid(pasid), address, &[9]).is_err());
        assert_eq!(nested.guest.take_fault_reason(), Some(reason));
    }
}

#[test]
fn widths_and_types_that_the_unit_lacks_are_refused() {
    let nested = Nested::new(&config(64, false));
    nested.guest.write_pasid_entry(PASID, nested.entry().with_ssade(false).with_aw(4));
    assert!(nested.read(ADDRESS).is_err());
    assert_eq!(nested.guest.take_fault_reason(), Some(0x5b));
    let plain = Guest::new();
    let entry = Guest::first_stage(DOMAIN, plain.page()).with_pgtt(PasidGranularTranslationType::Nested);
    plain.write_pasid_entry(PASID, entry);
    assert!(plain.endpoint.write(Guest::with_pasid(PASID), ADDRESS, &[0]).is_err());
    assert_eq!(plain.take_fault_reason(), Some(0x5b));
}

#[test]
fn a_right_that_is_added_needs_no_invalidation() {
    for structure_entries in [0, 64] {
        let nested = Nested::new(&config(structure_entries, false));
        let page = nested.guest_page(second::R);
        nested.map_first(ADDRESS, page, entry::P | entry::US);
        // A directory entry that denies writing, cached by a read.
        let top = nested.host(nested.first) + ((ADDRESS >> 39) & 0x1ff) * 8;
        let next = nested.guest.load(top);
        nested.guest.store(top, next & !entry::RW);
        nested.read(ADDRESS).unwrap();
        assert!(nested.write(ADDRESS, &[1]).is_err());
        nested.guest.take_fault_reason();
        nested.guest.store(top, next);
        nested.map_first(ADDRESS, page, entry::USER);
        nested.map_second(page, nested.host(page), second::R | second::W);
        nested.write(ADDRESS, &[1]).unwrap();
    }
}

#[test]
fn a_function_that_was_replaced_reaches_nothing() {
    let nested = Nested::new(&config(64, false));
    let page = nested.guest_page(second::R | second::W);
    nested.map_first(ADDRESS, page, entry::USER);
    nested.write(ADDRESS, &[1]).unwrap();
    let sink = std::sync::Arc::clone(&nested.guest.sink) as std::sync::Arc<dyn vtd_unit::EndpointSink>;
    assert!(nested.guest.unit.endpoint(common::SOURCE_ID, sink.clone()).is_err(), "it is there already");
    assert!(nested.guest.unit.remove_endpoint(common::SOURCE_ID));
    let replacement = nested.guest.unit.endpoint(common::SOURCE_ID, sink).unwrap();
    assert!(nested.write(ADDRESS, &[2]).is_err(), "nothing would invalidate what it has cached");
    replacement.write(Guest::with_pasid(PASID), ADDRESS, &[3]).unwrap();
}

/// PASIDs of one unit, by the type of their entries.
const TYPES: [(Pasid, PasidGranularTranslationType); 4] = [
    (Pasid::truncated(0x100), PasidGranularTranslationType::FirstStage),
    (Pasid::truncated(0x101), PasidGranularTranslationType::SecondStage),
    (Pasid::truncated(0x102), PasidGranularTranslationType::Nested),
    (Pasid::truncated(0x103), PasidGranularTranslationType::PassThrough),
];

/// The same address under each type, each to a page of its own; those pages. Nested and second-stage share a domain.
fn side_by_side(nested: &Nested, address: u64) -> [u64; 4] {
    let guest = &nested.guest;
    let page = || guest.page();
    let [first, second, nested_page] = [page(), page(), page()];
    // A table of host addresses beside the one of guest physical addresses.
    let (host_table, tables) = (page(), [page(), page(), page()]);
    let mut table = host_table;
    for (level, next) in (2..=4).rev().zip(tables) {
        guest.store(table + (address >> (12 + 9 * (level - 1)) & 0x1ff) * 8, next | entry::USER);
        table = next;
    }
    guest.store(table + (address >> 12 & 0x1ff) * 8, first | entry::USER);
    nested.map_second(address, second, second::R | second::W);
    let guest_physical = GUEST_PHYSICAL + 0x10_0000;
    nested.map_second(guest_physical, nested_page, second::R | second::W);
    nested.map_first(address, guest_physical, entry::USER);
    for (pasid, pgtt) in TYPES {
        let plain = Guest::first_stage(DomainId(0x20), host_table).with_pgtt(pgtt);
        let entry = match pgtt {
            PasidGranularTranslationType::FirstStage => plain,
            PasidGranularTranslationType::PassThrough => plain.with_did(DomainId(0x21)).with_fsptptr(0),
            PasidGranularTranslationType::SecondStage => nested.entry().with_pgtt(pgtt).with_fsptptr(0),
            PasidGranularTranslationType::Nested => nested.entry(),
        };
        guest.write_pasid_entry(pasid, entry);
    }
    [first, second, nested_page, address]
}

#[test]
fn all_types_of_translation_work_side_by_side() {
    for (structure_entries, ats) in [(0, false), (64, false), (64, true)] {
        let nested = Nested::new(&config(structure_entries, true));
        nested.guest.endpoint.set_ats_enabled(ats);
        let address = nested.guest.page();
        let pages = side_by_side(&nested, address);
        let write = |which: usize, value: u8| {
            nested.guest.endpoint.write(Guest::with_pasid(TYPES[which].0), address + 9, &[value])
        };
        let content =
            || pages.map(|page| nested.guest.memory.read_obj::<u8>(GuestAddress(page + 9)).unwrap());
        for round in [1, 2] {
            (0..4).for_each(|which| write(which, 10 * round + which as u8).unwrap());
            assert_eq!(content(), [0, 1, 2, 3].map(|which| 10 * round + which));
        }
        // A change of the second stage and the invalidation of its domain concern the two types that it is part of.
        let moved = [nested.guest.page(), nested.guest.page()];
        nested.map_second(address, moved[0], second::R | second::W);
        nested.map_second(GUEST_PHYSICAL + 0x10_0000, moved[1], second::R | second::W);
        let all = vtd_spec::AddressRange::ALL;
        nested.guest.submit_all(&[
            iotlb(IotlbGranularity::Domain, 0),
            common::descriptors::global_device_tlb(common::SOURCE_ID, all),
        ]);
        (0..4).for_each(|which| write(which, 40 + which as u8).unwrap());
        assert_eq!(content(), [40, 21, 22, 43]);
        let there = moved.map(|page| nested.guest.memory.read_obj::<u8>(GuestAddress(page + 9)).unwrap());
        assert_eq!(there, [41, 42]);
        assert_eq!(nested.guest.take_fault_reason(), None);
    }
}

#[test]
fn each_type_of_translation_is_an_option() {
    let options = |fsts, ssts, nest, pt| UnitConfig {
        fsts,
        ssts,
        nest,
        pt,
        fs1gp: fsts,
        fs5lp: fsts,
        ..UnitConfig::default()
    };
    for (fsts, ssts, nest, pt) in [
        (true, true, true, true),
        (true, true, false, true),
        (true, false, false, false),
        (false, true, false, false),
        (false, false, false, true),
    ] {
        let nested = Nested::new(&UnitConfig { ssads: ssts, ..options(fsts, ssts, nest, pt) });
        let address = nested.guest.page();
        side_by_side(&nested, address);
        for ((pasid, pgtt), offered) in TYPES.into_iter().zip([fsts, ssts, nest, pt]) {
            let result = nested.guest.endpoint.write(Guest::with_pasid(pasid), address, &[1]);
            let reason = nested.guest.take_fault_reason();
            assert_eq!(result.is_ok(), offered, "{pgtt:?} {fsts} {ssts} {nest} {pt}");
            // Pointers that no type of the unit uses are reserved bits.
            assert!(offered || matches!(reason, Some(0x5a | 0x5b)), "{pgtt:?} {reason:x?}");
        }
    }
}

#[test]
fn an_invalidation_reaches_each_of_many_pasids() {
    const MANY: u32 = 1500;
    for granularity in [IotlbGranularity::Page, IotlbGranularity::Domain, IotlbGranularity::Global] {
        let nested = Nested::new(&config(64, false));
        let page = nested.guest_page(second::R | second::W);
        nested.map_first(ADDRESS, page, entry::USER);
        let host = nested.host(page);
        let pasids = || (0x1000..0x1000 + MANY).map(|number| Guest::with_pasid(Pasid::truncated(number)));
        for requester in pasids() {
            nested.guest.write_pasid_entry(requester.pasid.unwrap(), nested.entry());
        }
        for rights in [second::R | second::W, 0, second::R | second::W, 0] {
            nested.map_second(page, host, rights);
            nested.guest.submit(&iotlb(granularity, page));
            for requester in pasids() {
                let result = nested.guest.endpoint.write(requester, ADDRESS, &[1]);
                assert_eq!(result.is_ok(), rights != 0, "{granularity:?} {requester:?}");
            }
        }
    }
}

/// CAP.ZLR: where the second stage grants writes alone, a read of nothing succeeds, and no other.
#[test]
fn a_zero_length_read_needs_either_right() {
    let nested = Nested::new(&config(64, false));
    let guest = &nested.guest;
    let page = guest.page();
    nested.map_second(GUEST_PHYSICAL + (1 << 30), page, second::W);
    guest.write_pasid_entry(
        PASID,
        nested.entry().with_pgtt(PasidGranularTranslationType::SecondStage).with_fsptptr(0),
    );
    let requester = Guest::with_pasid(PASID);
    let address = GUEST_PHYSICAL + (1 << 30);
    for _ in 0..2 {
        guest.endpoint.read(requester, address, &mut []).unwrap();
        guest.endpoint.write(requester, address, &[1]).unwrap();
        assert!(guest.endpoint.read(requester, address, &mut [0]).is_err());
        assert_eq!(guest.take_fault_reason(), Some(0x86), "SGN.7");
    }
}
