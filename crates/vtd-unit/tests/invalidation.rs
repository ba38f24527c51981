// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Which cached translations each invalidation removes. A unit may always forget more, so only what must go is asked
//! for; that there was something to go is checked too, so that each test can fail.

mod common;

use std::sync::Arc;

use common::descriptors::{
    context, context_device, device_tlb, global_device_tlb, iotlb, iotlb_domain, pasid_cache,
    pasid_cache_entry, pasid_device_tlb, pasid_iotlb, pasid_iotlb_pages,
};
use common::{Guest, Memory, SOURCE_ID, Sink, entry, pasid};
use vm_memory::{Bytes, GuestAddress};
use vtd_spec::descriptors::{
    ContextGranularity, FunctionMask, IotlbGranularity, PasidCacheGranularity, PasidIotlb,
    PasidIotlbGranularity,
};
use vtd_spec::{AddressRange, Descriptor, DomainId, Pasid, PasidGranularTranslationType, SourceId};
use vtd_unit::{DeviceTlbInvalidation, DmaError, Endpoint, Requester, UnitConfig};

const PASID: Pasid = Pasid::truncated(0x42);
const OTHER_PASID: Pasid = Pasid::truncated(0x43);
/// The domain of what `Guest::bind` binds.
const DOMAIN: DomainId = DomainId(1);
const OTHER_DOMAIN: DomainId = DomainId(9);
const ADDRESS: u64 = 0x7f12_3456_7000;

const fn page(address: u64) -> AddressRange {
    AddressRange::new(address, 0)
}

/// A guest with a page mapped, read by two functions, and then mapped elsewhere.
struct Moved {
    guest: Guest,
    requester: Requester,
    endpoints: [Endpoint<Memory>; 2],
    sinks: [Arc<Sink>; 2],
}

const NEIGHBOUR: SourceId = SourceId::new(0, 0x13, 7);

impl Moved {
    fn new(pasid: Option<Pasid>, ats: bool) -> Self {
        Self::with_config(pasid, ats, &UnitConfig::default())
    }

    fn with_config(pasid: Option<Pasid>, ats: bool, config: &UnitConfig) -> Self {
        let guest = Guest::with_config(config);
        let (neighbour, sink) = guest.endpoint_at(NEIGHBOUR);
        let endpoints = [guest.endpoint.clone(), neighbour];
        let sinks = [Arc::clone(&guest.sink), sink];
        endpoints.iter().for_each(|endpoint| endpoint.set_ats_enabled(ats));
        guest.bind(pasid.unwrap_or_default());
        let moved = Self { guest, requester: Requester { pasid, privileged: false }, endpoints, sinks };
        moved.point_at(0xaa);
        assert_eq!(moved.seen(), [0xaa; 2]);
        moved.point_at(0xbb);
        assert_eq!(
            moved.seen(),
            [0xaa; 2],
            "nothing was invalidated, so this unit still has the page cached"
        );
        moved
    }

    fn pasid(&self) -> Pasid {
        self.requester.pasid.unwrap_or_default()
    }

    /// Maps ADDRESS to a new page with this first byte.
    fn point_at(&self, byte: u8) {
        let page = self.guest.page();
        self.guest.memory.write_obj(byte, GuestAddress(page)).unwrap();
        self.guest.map(self.pasid(), ADDRESS, page, entry::USER);
    }

    /// What each function reads.
    fn seen(&self) -> [u8; 2] {
        [0, 1].map(|index| self.read(index).unwrap())
    }

    fn read(&self, index: usize) -> Result<u8, DmaError> {
        let mut data = [0];
        self.endpoints[index].read(self.requester, ADDRESS, &mut data).map(|()| data[0])
    }
}

#[test]
fn every_iotlb_invalidation_that_covers_a_page_removes_it_from_every_function() {
    let with_hint = Descriptor::PasidIotlb(PasidIotlb {
        granularity: PasidIotlbGranularity::Page,
        did: DOMAIN,
        pasid: PASID,
        am: 0,
        ih: true,
        addr: ADDRESS,
    });
    let mut descriptors = vec![
        iotlb(IotlbGranularity::Global, OTHER_DOMAIN, page(0)),
        iotlb_domain(DOMAIN),
        // Of first-stage translations a page-selective invalidation takes the whole domain.
        iotlb(IotlbGranularity::Page, DOMAIN, page(0x1000)),
        iotlb(IotlbGranularity::Page, DOMAIN, page(ADDRESS)),
        pasid_iotlb(DOMAIN, PASID),
        with_hint,
    ];
    // CAP.MAMV does not limit the PASID-based one: every mask of the field is defined.
    descriptors
        .extend((0..=52).map(|order| pasid_iotlb_pages(DOMAIN, PASID, AddressRange::new(ADDRESS, order))));
    descriptors.extend((53..64).map(|am| {
        let granularity = PasidIotlbGranularity::Page;
        Descriptor::PasidIotlb(PasidIotlb {
            granularity,
            did: DOMAIN,
            pasid: PASID,
            am,
            ih: false,
            addr: ADDRESS,
        })
    }));
    for descriptor in descriptors {
        let moved = Moved::new(Some(PASID), false);
        moved.guest.submit(&descriptor);
        assert_eq!(moved.seen(), [0xbb; 2], "{descriptor:?}");
        assert_eq!(moved.guest.read32(vtd_spec::offset::FSTS), 0);
    }
}

#[test]
fn requests_without_pasid_are_invalidated_under_the_pasid_that_stands_for_them() {
    for descriptor in [
        iotlb(IotlbGranularity::Global, OTHER_DOMAIN, page(0)),
        iotlb_domain(DOMAIN),
        iotlb(IotlbGranularity::Page, DOMAIN, page(ADDRESS)),
        pasid_iotlb(DOMAIN, Pasid::ZERO),
        pasid_iotlb_pages(DOMAIN, Pasid::ZERO, page(ADDRESS)),
        pasid_cache_entry(DOMAIN, Pasid::ZERO),
        pasid_cache(PasidCacheGranularity::Domain, DOMAIN, PASID),
    ] {
        let moved = Moved::new(None, false);
        moved.guest.submit_all(&[descriptor, iotlb_domain(DOMAIN)]);
        assert_eq!(moved.seen(), [0xbb; 2], "{descriptor:?}");
        let moved = Moved::new(None, false);
        if !matches!(descriptor, Descriptor::PasidCache(_)) {
            moved.guest.submit(&descriptor);
            assert_eq!(moved.seen(), [0xbb; 2], "{descriptor:?}");
        }
    }
}

#[test]
fn an_iotlb_invalidation_of_something_else_completes_silently() {
    for descriptor in [
        iotlb_domain(OTHER_DOMAIN),
        iotlb(IotlbGranularity::Page, OTHER_DOMAIN, page(ADDRESS)),
        // Linux drains an SVA PASID with the domain-id of the RID's domain (prq.c:intel_iommu_drain_pasid_prq).
        pasid_iotlb(OTHER_DOMAIN, PASID),
        pasid_iotlb(DOMAIN, OTHER_PASID),
        pasid_iotlb(DOMAIN, Pasid::MAX),
        pasid_iotlb_pages(OTHER_DOMAIN, PASID, AddressRange::ALL),
        pasid_cache_entry(OTHER_DOMAIN, OTHER_PASID),
        pasid_cache(PasidCacheGranularity::Domain, OTHER_DOMAIN, PASID),
        context_device(SourceId(0xffff)),
    ] {
        let moved = Moved::new(Some(PASID), false);
        moved.guest.submit(&descriptor);
        assert_eq!(moved.guest.read32(vtd_spec::offset::FSTS), 0);
        let seen = moved.seen();
        assert!(seen == [0xaa; 2] || seen == [0xbb; 2], "the one page or the other, whole");
    }
}

#[test]
fn pages_outside_the_range_still_translate() {
    let guest = Guest::new();
    guest.bind(PASID);
    for index in 0..64 {
        let page = guest.page();
        guest.store(page, index);
        guest.map(PASID, ADDRESS + index * 4096, page, entry::USER);
    }
    let check = || {
        for index in 0..64u64 {
            let mut data = [0; 8];
            guest.endpoint.read(Guest::with_pasid(PASID), ADDRESS + index * 4096, &mut data).unwrap();
            assert_eq!(u64::from_le_bytes(data), index);
        }
    };
    check();
    for order in 0..7 {
        guest.submit(&pasid_iotlb_pages(DOMAIN, PASID, AddressRange::new(ADDRESS + 0x5000, order)));
        check();
    }
}

#[test]
fn a_large_page_goes_with_any_address_in_it() {
    for (level, address) in [(2u32, ADDRESS & !0x1f_ffff), (3, ADDRESS & !0x3fff_ffff)] {
        let bytes = 1u64 << (12 + 9 * (level - 1));
        for offset in [0, 0x1000, bytes / 2, bytes - 0x1000] {
            let guest = Guest::new();
            guest.bind(PASID);
            // The 1 GiB page starts at 0, where the fixture's memory is; either way its first page is enough.
            let page = if level == 2 { guest.pages(512, 512) } else { 0 };
            guest.map_level(PASID, address, page, entry::USER, level);
            let at = address + if level == 2 { 0 } else { 0x8000 };
            guest.endpoint.write(Guest::with_pasid(PASID), at, &[1]).unwrap();
            guest.map_level(PASID, address, 0, 0, level);
            guest.submit(&pasid_iotlb_pages(DOMAIN, PASID, self::page(address + offset)));
            assert_eq!(
                guest.endpoint.write(Guest::with_pasid(PASID), at, &[2]),
                Err(DmaError::Refused { address: at })
            );
        }
    }
}

/// A table in the middle is replaced: the paging-structure caches must go too, unless the hint says that they need not.
#[test]
fn replaced_tables_are_seen_after_an_invalidation_of_a_page_under_them() {
    for descriptor in [
        pasid_iotlb_pages(DOMAIN, PASID, page(ADDRESS)),
        pasid_iotlb_pages(DOMAIN, PASID, AddressRange::new(ADDRESS, 18)),
        pasid_iotlb(DOMAIN, PASID),
        iotlb(IotlbGranularity::Page, DOMAIN, page(0)),
        iotlb_domain(DOMAIN),
        iotlb(IotlbGranularity::Global, DomainId(0), page(0)),
    ] {
        for level in 1..=4 {
            let guest = Guest::new();
            guest.bind(PASID);
            let old = guest.page();
            guest.map(PASID, ADDRESS, old, entry::USER);
            let requester = Guest::with_pasid(PASID);
            guest.endpoint.write(requester, ADDRESS, &[1]).unwrap();
            let walk = guest.walk_addresses(PASID, ADDRESS);
            // From this level down everything is new.
            let page = guest.page();
            let mut next = page;
            for below in 1..level {
                let table = guest.page();
                let index = ADDRESS >> (12 + 9 * (below - 1)) & 0x1ff;
                guest.store(table + index * 8, next | entry::USER);
                next = table;
            }
            guest.store(walk[4 - level as usize], next | entry::USER);
            guest.submit(&descriptor);
            guest.endpoint.write(requester, ADDRESS, &[2]).unwrap();
            let bytes = [old, page].map(|page| guest.memory.read_obj::<u8>(GuestAddress(page)).unwrap());
            assert_eq!(bytes, [1, 2], "level {level}, {descriptor:?}");
        }
    }
}

/// The same PASID bound to another table: what the PASID cache holds must go.
#[test]
fn every_pasid_cache_invalidation_that_covers_an_entry_has_it_read_again() {
    let rebind = |guest: &Guest, number: Pasid, domain: DomainId| {
        let page = guest.page();
        guest.memory.write_obj(0xccu8, GuestAddress(page)).unwrap();
        guest.bind(number);
        guest.map(number, ADDRESS, page, entry::USER);
        let table = guest.walk_addresses(number, ADDRESS)[0] & !0xfff;
        guest.write_pasid_entry(number, Guest::first_stage(domain, table));
    };
    for number in [Some(PASID), None] {
        let id = number.unwrap_or_default();
        // The invalidation names the domain that was cached, also where the entry has a new one.
        for domain in [DOMAIN, OTHER_DOMAIN] {
            for descriptor in [
                pasid_cache_entry(DOMAIN, id),
                pasid_cache(PasidCacheGranularity::Domain, DOMAIN, Pasid::MAX),
                pasid_cache(PasidCacheGranularity::Global, OTHER_DOMAIN, Pasid::MAX),
            ] {
                let moved = Moved::new(number, false);
                rebind(&moved.guest, id, domain);
                moved.guest.submit_all(&[descriptor, pasid_iotlb(DOMAIN, id)]);
                assert_eq!(moved.seen(), [0xcc; 2], "{descriptor:?} {domain:?}");
            }
        }
    }
}

#[test]
fn an_entry_that_was_removed_blocks_and_one_that_appears_serves() {
    let moved = Moved::new(Some(PASID), false);
    let guest = &moved.guest;
    let address = guest.pasid_entry_address(PASID);
    let first = guest.load(address);
    // Linux clears P first, with FPD left set where the process is being torn down.
    guest.store(address, 2);
    guest.submit_all(&[pasid_cache_entry(DOMAIN, PASID), pasid_iotlb(DOMAIN, PASID)]);
    for index in 0..2 {
        assert_eq!(moved.read(index), Err(DmaError::Refused { address: ADDRESS }));
    }
    assert_eq!(guest.take_faults(), [], "FPD");
    guest.store(address, first);
    guest.submit_all(&[pasid_cache_entry(DOMAIN, PASID), pasid_iotlb(DOMAIN, PASID)]);
    assert_eq!(moved.seen(), [0xbb; 2]);
}

/// A domain switched between DMA and identity (what broke in QEMU until 2025).
#[test]
fn a_function_moves_between_translation_and_pass_through() {
    let guest = Guest::new();
    guest.bind(Pasid::ZERO);
    let page = guest.page();
    guest.map(Pasid::ZERO, 0x9000, page, entry::USER);
    let table = guest.walk_addresses(Pasid::ZERO, 0x9000)[0] & !0xfff;
    let none = Requester::default();
    let first_stage = Guest::first_stage(DomainId(4), table);
    let identity = Guest::first_stage(DomainId(5), 0).with_pgtt(PasidGranularTranslationType::PassThrough);
    let mut domain = DOMAIN;
    for round in 0..4u8 {
        for (entry, target) in [(identity, 0x9000), (first_stage, page)] {
            guest.write_pasid_entry(Pasid::ZERO, entry);
            guest.submit_all(&[pasid_cache_entry(domain, Pasid::ZERO), iotlb_domain(domain)]);
            domain = entry.did();
            guest.endpoint.write(none, 0x9000, &[0x40 + round]).unwrap();
            assert_eq!(guest.memory.read_obj::<u8>(GuestAddress(target)).unwrap(), 0x40 + round);
            guest.memory.write_obj(0u8, GuestAddress(target)).unwrap();
        }
    }
}

#[test]
fn every_context_cache_invalidation_that_covers_a_function_has_its_context_read_again() {
    let sibling = SourceId(SOURCE_ID.0 | 5);
    for (descriptor, sid) in [
        (context(ContextGranularity::Global, SourceId(0xffff), FunctionMask::None), SOURCE_ID),
        // Not tagged with domains: processed as global.
        (context(ContextGranularity::Domain, SourceId(0xffff), FunctionMask::None), SOURCE_ID),
        (context_device(SOURCE_ID), SOURCE_ID),
        (context(ContextGranularity::Device, SourceId(sibling.0 & !4), FunctionMask::Bit2), sibling),
        (context(ContextGranularity::Device, SourceId(sibling.0 | 6), FunctionMask::Bits2To1), sibling),
        (context(ContextGranularity::Device, SOURCE_ID, FunctionMask::Bits2To0), sibling),
    ] {
        let guest = Guest::new();
        let (endpoint, _) = guest.endpoint_at(sid);
        guest.bind(PASID);
        guest.map(PASID, ADDRESS, guest.page(), entry::USER);
        let read = || endpoint.read(Guest::with_pasid(PASID), ADDRESS, &mut [0]);
        read().unwrap();
        guest.write_context(sid, Guest::context().with_paside(false));
        read().unwrap();
        guest.submit(&descriptor);
        assert_eq!(read(), Err(DmaError::Refused { address: ADDRESS }), "{descriptor:?}");
        assert_eq!(guest.take_fault_reason(), Some(0x45));
    }
}

/// Linux 6.7-rc2 left the PASID-cache invalidation out after one of the context cache.
#[test]
fn a_context_cache_invalidation_takes_along_what_was_found_through_the_context() {
    let moved = Moved::new(Some(PASID), false);
    let directory = moved.guest.page();
    for index in 0..2 {
        let sid = [SOURCE_ID, NEIGHBOUR][index];
        moved.guest.write_context(sid, Guest::context().with_pasid_dir_ptr(directory));
        moved.guest.submit(&context_device(sid));
        assert_eq!(moved.read(index), Err(DmaError::Refused { address: ADDRESS }));
        assert_eq!(moved.guest.take_fault_reason(), Some(0x51));
    }
}

#[test]
fn set_root_pointer_and_translation_off_forget_everything() {
    for command in [30, 31] {
        for ats in [false, true] {
            let moved = Moved::new(Some(PASID), ats);
            if command == 31 {
                moved.guest.command_off(1 << 31);
            }
            moved.guest.command(1 << command);
            assert_eq!(moved.seen(), [0xbb; 2], "GCMD bit {command}, ats: {ats}");
        }
    }
}

#[test]
fn every_device_tlb_invalidation_that_covers_a_page_removes_it_from_its_function() {
    let all = AddressRange::ALL;
    for (number, descriptor) in [
        (None, device_tlb(SOURCE_ID, page(ADDRESS))),
        (None, device_tlb(SOURCE_ID, AddressRange::new(ADDRESS, 1))),
        (None, device_tlb(SOURCE_ID, AddressRange::new(ADDRESS, 9))),
        (None, device_tlb(SOURCE_ID, AddressRange::new(ADDRESS, 30))),
        (None, device_tlb(SOURCE_ID, all)),
        (Some(PASID), pasid_device_tlb(SOURCE_ID, PASID, page(ADDRESS))),
        (Some(PASID), pasid_device_tlb(SOURCE_ID, PASID, AddressRange::new(ADDRESS, 5))),
        (Some(PASID), pasid_device_tlb(SOURCE_ID, PASID, AddressRange::new(ADDRESS, 35))),
        (Some(PASID), pasid_device_tlb(SOURCE_ID, PASID, all)),
        (Some(PASID), global_device_tlb(SOURCE_ID, page(ADDRESS))),
        (Some(PASID), global_device_tlb(SOURCE_ID, all)),
    ] {
        let moved = Moved::new(number, true);
        // The unit's own caches first, else the new translation request would be answered from them.
        moved.guest.submit_all(&[pasid_iotlb(DOMAIN, moved.pasid()), descriptor]);
        assert_eq!(moved.read(0), Ok(0xbb), "{descriptor:?}");
        assert_eq!(moved.read(1), Ok(0xaa), "the neighbour was not told, and its cache is its own");
        let heard = moved.sinks[0].invalidations.lock().unwrap().clone();
        let expected = match descriptor {
            Descriptor::DeviceTlb(device) => {
                DeviceTlbInvalidation { pasid: None, global: false, range: device.range }
            }
            Descriptor::PasidDeviceTlb(device) => {
                DeviceTlbInvalidation { pasid: Some(device.pasid), global: device.gi, range: device.range }
            }
            _ => unreachable!(),
        };
        assert_eq!(heard, [expected]);
        assert!(moved.sinks[1].invalidations.lock().unwrap().is_empty());
    }
}

#[test]
fn what_linux_sends_to_flush_a_whole_device_tlb_flushes_it() {
    // iommu.c: S=1 with address 0x7fffffff_fffff000, as raw descriptors of types 3 and 8.
    let sid = u64::from(SOURCE_ID.0);
    for (number, qwords) in [
        (None, [3 | sid << 32, 0x7fff_ffff_ffff_f001, 0, 0]),
        (Some(PASID), [8 | sid << 16 | 0x42 << 32, 0x7fff_ffff_ffff_f800, 0, 0]),
    ] {
        let moved = Moved::new(number, true);
        moved.guest.queue_qwords(qwords);
        moved.guest.submit(&pasid_iotlb(DOMAIN, moved.pasid()));
        // In this order the device asks again before the IOTLB is clean only if someone reads in between.
        assert_eq!(moved.read(0), Ok(0xbb));
    }
}

/// Without ATS nothing is cached in the endpoint: the invalidation is answered all the same.
#[test]
fn a_device_tlb_invalidation_reaches_functions_that_have_ats_off() {
    let guest = Guest::new();
    guest.submit(&pasid_device_tlb(SOURCE_ID, PASID, AddressRange::ALL));
    assert_eq!(guest.sink.invalidations.lock().unwrap().len(), 1);
}

#[test]
fn turning_ats_off_and_on_forgets_the_device_tlb() {
    let moved = Moved::new(Some(PASID), true);
    moved.guest.submit(&pasid_iotlb(DOMAIN, PASID));
    assert_eq!(moved.seen(), [0xaa; 2], "the device-TLB holds it");
    for endpoint in &moved.endpoints {
        endpoint.set_ats_enabled(false);
        endpoint.set_ats_enabled(true);
    }
    assert_eq!(moved.seen(), [0xbb; 2]);
}

/// What was cached for a read does not let a write through, and the other way round nothing is lost.
#[test]
fn rights_that_were_added_are_used_and_rights_that_were_cached_are_not_exceeded() {
    for ats in [false, true] {
        let guest = Guest::new();
        guest.endpoint.set_ats_enabled(ats);
        guest.bind(PASID);
        let requester = Guest::with_pasid(PASID);
        let page = guest.page();
        let leaf = guest.map(PASID, ADDRESS, page, entry::P | entry::US);
        guest.endpoint.read(requester, ADDRESS, &mut [0]).unwrap();
        assert!(guest.endpoint.write(requester, ADDRESS, &[1]).is_err());
        assert_eq!(guest.load(leaf) & entry::D, 0);
        guest.store(leaf, page | entry::USER);
        guest.endpoint.write(requester, ADDRESS, &[1]).unwrap();
        assert_eq!(guest.load(leaf) & (entry::A | entry::D), entry::A | entry::D);
    }
}

#[test]
fn many_spaces_of_one_function_are_each_their_own() {
    let guest = Guest::new();
    let (page, other) = (guest.page(), guest.page());
    guest.memory.write_obj(1u8, GuestAddress(page)).unwrap();
    guest.memory.write_obj(2u8, GuestAddress(other)).unwrap();
    for number in 1..300 {
        guest.bind(pasid(number));
        guest.map(pasid(number), ADDRESS, if number % 2 == 0 { page } else { other }, entry::USER);
    }
    let read = |number| {
        let mut data = [0];
        guest.endpoint.read(Guest::with_pasid(pasid(number)), ADDRESS, &mut data).map(|()| data[0])
    };
    for number in 1..300 {
        assert_eq!(read(number), Ok(if number % 2 == 0 { 1 } else { 2 }));
    }
    for number in (1..300).step_by(3) {
        guest.store(guest.pasid_entry_address(pasid(number)), 0);
        guest.submit_all(&[pasid_cache_entry(DOMAIN, pasid(number)), pasid_iotlb(DOMAIN, pasid(number))]);
    }
    for number in 1..300 {
        let expected = if number % 3 == 1 {
            Err(DmaError::Refused { address: ADDRESS })
        } else {
            Ok(2 - (number % 2 == 0) as u8)
        };
        assert_eq!(read(number), expected);
    }
    guest.submit(&pasid_cache(PasidCacheGranularity::Domain, DOMAIN, Pasid::ZERO));
    assert_eq!(read(2), Ok(1));
}

/// With caching mode, Linux before 6.10 removes a PASID without invalidating the device-TLB.
#[test]
fn whatever_takes_a_pasid_from_its_cache_takes_its_device_tlb_entries_along() {
    for number in [Some(PASID), None] {
        let id = number.unwrap_or_default();
        for descriptors in [
            vec![pasid_cache_entry(DOMAIN, id)],
            vec![pasid_cache(PasidCacheGranularity::Domain, DOMAIN, Pasid::MAX)],
            vec![pasid_cache(PasidCacheGranularity::Global, OTHER_DOMAIN, Pasid::MAX)],
            vec![context(ContextGranularity::Global, SourceId(0), FunctionMask::None)],
            vec![context(ContextGranularity::Domain, SourceId(0), FunctionMask::None)],
            vec![context_device(SOURCE_ID), context_device(NEIGHBOUR)],
        ] {
            let moved = Moved::new(number, true);
            moved.guest.submit_all(&[descriptors.clone(), vec![pasid_iotlb(DOMAIN, id)]].concat());
            assert_eq!(moved.seen(), [0xbb; 2], "{descriptors:?}");
        }
    }
}

/// Gone from the PASID cache by itself: then no PASID-cache invalidation finds it there.
#[test]
fn a_pasid_that_left_the_cache_by_itself_leaves_nothing_in_the_device_tlb() {
    let moved = Moved::new(Some(PASID), true);
    // So many that an invalidation of them all forgets them instead of looking at each.
    for number in 0x1000..0x1000 + 1100 {
        moved.guest.share(pasid(number), PASID);
        for endpoint in &moved.endpoints {
            endpoint.read(Guest::with_pasid(pasid(number)), ADDRESS, &mut [0]).unwrap();
        }
    }
    moved.guest.submit(&iotlb(IotlbGranularity::Global, OTHER_DOMAIN, page(0)));
    moved.guest.submit_all(&[pasid_cache_entry(DOMAIN, PASID), pasid_iotlb(DOMAIN, PASID)]);
    assert_eq!(moved.seen(), [0xbb; 2]);
}

/// Only the bits that tables use count: the rest of a descriptor's address may be zeroes or the sign.
#[test]
fn an_address_matches_whatever_its_upper_bits() {
    const NEGATIVE: u64 = 0xffff_8f12_3456_7000;
    for ats in [false, true] {
        for address in [NEGATIVE, NEGATIVE & 0x0000_ffff_ffff_ffff, NEGATIVE & 0x01ff_ffff_ffff_ffff] {
            let guest = Guest::new();
            guest.endpoint.set_ats_enabled(ats);
            guest.bind(PASID);
            guest.map(PASID, NEGATIVE, guest.page(), entry::USER);
            guest.endpoint.write(Guest::with_pasid(PASID), NEGATIVE, &[1]).unwrap();
            guest.map(PASID, NEGATIVE, 0, 0);
            guest.submit(&pasid_iotlb_pages(DOMAIN, PASID, page(address)));
            if ats {
                guest.submit(&pasid_device_tlb(SOURCE_ID, PASID, page(address)));
            }
            assert!(
                guest.endpoint.write(Guest::with_pasid(PASID), NEGATIVE, &[2]).is_err(),
                "{address:#x} (ats: {ats})"
            );
        }
    }
}
