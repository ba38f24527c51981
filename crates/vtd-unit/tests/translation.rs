// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! DMA by PASID through first-stage tables, from the register page to the byte.

mod common;

use common::{Guest, SOURCE_ID, entry, pasid};
use vm_memory::{Bytes, GuestAddress};
use vtd_spec::descriptors::{PasidIotlb, PasidIotlbGranularity};
use vtd_spec::{Descriptor, DomainId, Pasid};
use vtd_unit::{DmaError, PageRequest, Requester, ResponseCode};

const PASID: Pasid = Pasid::truncated(0x42);
const ADDRESS: u64 = 0x7f12_3456_7000;

fn invalidate_page(address: u64) -> Descriptor {
    Descriptor::PasidIotlb(PasidIotlb {
        granularity: PasidIotlbGranularity::Page,
        did: DomainId(1),
        pasid: PASID,
        am: 0,
        ih: false,
        addr: address,
    })
}

#[test]
fn dma_by_pasid_reaches_the_page_and_marks_it() {
    let guest = Guest::new();
    guest.bind(PASID);
    let page = guest.page();
    let leaf = guest.map(PASID, ADDRESS, page, entry::USER);
    guest.store(page + 8, 0x1122_3344_5566_7788);
    let requester = Guest::with_pasid(PASID);
    let mut data = [0; 8];
    guest.endpoint.read(requester, ADDRESS + 8, &mut data).unwrap();
    assert_eq!(u64::from_le_bytes(data), 0x1122_3344_5566_7788);
    assert_eq!(guest.load(leaf) & (entry::A | entry::D), entry::A, "a read marks the page accessed");
    // The cached translation came from a read: the write must still set the dirty bit.
    guest.endpoint.write(requester, ADDRESS, b"abc").unwrap();
    assert_eq!(guest.load(leaf) & (entry::A | entry::D), entry::A | entry::D);
    assert_eq!(guest.memory.read_obj::<[u8; 3]>(GuestAddress(page)).unwrap(), *b"abc");
    assert_eq!(guest.take_fault_reason(), None);
}

#[test]
fn an_access_crosses_pages_that_lie_apart() {
    let guest = Guest::new();
    guest.bind(PASID);
    let (first, _, second) = (guest.page(), guest.page(), guest.page());
    guest.map(PASID, ADDRESS, first, entry::USER);
    guest.map(PASID, ADDRESS + 4096, second, entry::USER);
    guest.endpoint.write(Guest::with_pasid(PASID), ADDRESS + 4090, b"0123456789ab").unwrap();
    assert_eq!(guest.memory.read_obj::<[u8; 6]>(GuestAddress(first + 4090)).unwrap(), *b"012345");
    assert_eq!(guest.memory.read_obj::<[u8; 6]>(GuestAddress(second)).unwrap(), *b"6789ab");
}

#[test]
fn a_removed_page_is_gone_when_its_wait_completes() {
    for ats in [false, true] {
        let guest = Guest::new();
        guest.endpoint.set_ats_enabled(ats);
        guest.bind(PASID);
        let page = guest.page();
        guest.map(PASID, ADDRESS, page, entry::USER);
        let requester = Guest::with_pasid(PASID);
        guest.endpoint.write(requester, ADDRESS, &[1]).unwrap();
        guest.map(PASID, ADDRESS, 0, 0);
        let mut descriptors = vec![invalidate_page(ADDRESS)];
        if ats {
            descriptors.push(Descriptor::PasidDeviceTlb(vtd_spec::descriptors::PasidDeviceTlb {
                sid: SOURCE_ID,
                pfsid: vtd_spec::SourceId(0),
                mip: 0,
                pasid: PASID,
                gi: false,
                range: vtd_spec::AddressRange::new(ADDRESS, 0),
            }));
        }
        guest.submit_all(&descriptors);
        let error = guest.endpoint.write(requester, ADDRESS, &[2]).unwrap_err();
        if ats {
            assert_eq!(error, DmaError::PageFault { address: ADDRESS, write: true });
            assert_eq!(guest.take_fault_reason(), None, "a page request may cure it");
            assert_eq!(guest.sink.invalidations.lock().unwrap().len(), 1);
        } else {
            assert_eq!(error, DmaError::Refused { address: ADDRESS });
            assert_eq!(guest.take_fault_reason(), Some(0x71));
        }
        assert_eq!(guest.memory.read_obj::<u8>(GuestAddress(page)).unwrap(), 1);
    }
}

#[test]
fn large_pages_translate_and_are_invalidated_by_any_address_in_them() {
    let guest = Guest::new();
    guest.bind(PASID);
    let page = guest.pages(512, 512);
    let base = ADDRESS & !0x1f_ffff;
    guest.map_level(PASID, base, page, entry::USER, 2);
    let requester = Guest::with_pasid(PASID);
    guest.endpoint.write(requester, base + 0x12_3456, &[7]).unwrap();
    assert_eq!(guest.memory.read_obj::<u8>(GuestAddress(page + 0x12_3456)).unwrap(), 7);
    guest.map_level(PASID, base, 0, 0, 2);
    guest.submit(&invalidate_page(base + 0x1f_f000));
    assert!(guest.endpoint.write(requester, base, &[7]).is_err());
}

#[test]
fn a_page_request_is_queued_and_answered() {
    let guest = Guest::new();
    guest.bind(PASID);
    guest.endpoint.set_ats_enabled(true);
    let requester = Guest::with_pasid(PASID);
    let request = PageRequest { requester, address: ADDRESS, read: true, write: false, last: true, group: 5 };
    guest.endpoint.page_request(request);
    let messages = guest.messages.take();
    assert_eq!(messages.len(), 1);
    assert_eq!(messages[0].data, 0x42);
    assert_eq!(guest.read64(vtd_spec::registers::offset::PQT), 32);
    let descriptor = [0, 8].map(|at| guest.load(common::PAGE_REQUEST_QUEUE + at));
    assert_eq!(descriptor[0], 1 | 1 << 8 | u64::from(SOURCE_ID.0) << 16 | 0x42 << 32);
    assert_eq!(descriptor[1], ADDRESS | 5 << 3 | 1 << 2 | 1);
    guest.map(PASID, ADDRESS, guest.page(), entry::USER);
    guest.submit(&Descriptor::PageGroupResponse(vtd_spec::descriptors::PageGroupResponse {
        pasid: Some(PASID),
        rid: SOURCE_ID,
        rc: ResponseCode::Success,
        prgi: 5,
    }));
    let responses = guest.sink.responses.lock().unwrap().clone();
    assert_eq!(responses.len(), 1);
    assert_eq!((responses[0].group, responses[0].code), (5, ResponseCode::Success));
    let mut data = [0];
    guest.endpoint.read(requester, ADDRESS, &mut data).unwrap();
}

#[test]
fn requests_without_pasid_use_pasid_zero() {
    let guest = Guest::new();
    guest.bind(Pasid::ZERO);
    let page = guest.page();
    guest.map(Pasid::ZERO, 0x5000, page, entry::USER);
    guest.endpoint.write(Requester::default(), 0x5000, &[9]).unwrap();
    assert_eq!(guest.memory.read_obj::<u8>(GuestAddress(page)).unwrap(), 9);
    let refused = guest.endpoint.write(Guest::with_pasid(pasid(0)), 0x5000, &[9]);
    assert_eq!(refused, Err(DmaError::Refused { address: 0x5000 }));
    assert_eq!(guest.take_fault_reason(), Some(0x48), "RID_PASID is not for requests with PASID");
}

#[test]
fn virtio_style_memory_is_translated_and_pinned() {
    let guest = Guest::new();
    guest.bind(Pasid::ZERO);
    let (first, second) = (guest.page(), guest.page());
    guest.map(Pasid::ZERO, 0x5000, second, entry::USER);
    guest.map(Pasid::ZERO, 0x6000, first, entry::USER);
    {
        let memory = guest.endpoint.pin(Requester::default(), 0x5000).unwrap();
        memory.write_slice(&[3; 0x1800], GuestAddress(0x5400)).unwrap();
        assert!(memory.write_obj(1u8, GuestAddress(0x9000)).is_err());
    }
    assert_eq!(guest.memory.read_obj::<u8>(GuestAddress(second + 0x400)).unwrap(), 3);
    assert_eq!(guest.memory.read_obj::<u8>(GuestAddress(first + 0xbff)).unwrap(), 3);
    assert_eq!(guest.take_fault_reason(), Some(0x71));
}

#[test]
fn a_pinned_range_is_one_slice_up_to_the_end_of_its_memory() {
    use vm_memory::{GuestMemory, Permissions};
    let guest = Guest::new();
    guest.command_off(1 << 31);
    let memory = guest.endpoint.pin(Requester::default(), 0).unwrap();
    // What a descriptor may claim; without translation every page of it lies behind the one before.
    let mut slices = memory.get_slices(GuestAddress(0x1004), 1 << 32, Permissions::Read).unwrap();
    let length = slices.next().unwrap().unwrap().len() as u64;
    assert_eq!(length, common::MEMORY_BYTES - 0x1004);
    assert!(slices.next().unwrap().is_err(), "there is no memory behind");
    assert!(slices.next().is_none());
}

#[test]
fn a_cached_translation_is_of_no_use_where_the_context_denies_translated_requests() {
    let guest = Guest::new();
    guest.endpoint.set_ats_enabled(true);
    guest.bind(PASID);
    let page = guest.page();
    guest.map(PASID, ADDRESS, page, entry::USER);
    let requester = Guest::with_pasid(PASID);
    guest.endpoint.write(requester, ADDRESS, &[1]).unwrap();
    // Software that has no time for the device-TLB.
    guest.write_context(SOURCE_ID, Guest::context().with_dte(false).with_pre(false));
    guest.submit(&common::descriptors::context_device(SOURCE_ID));
    for _ in 0..2 {
        let refused = DmaError::TranslationRefused { address: ADDRESS, completer_abort: false };
        assert_eq!(guest.endpoint.write(requester, ADDRESS, &[2]), Err(refused));
        assert_eq!(guest.take_fault_reason(), Some(0x44));
        let request =
            PageRequest { requester, address: ADDRESS, read: true, write: true, last: false, group: 0 };
        guest.endpoint.page_request(request);
        assert_eq!(guest.take_fault_reason(), Some(0x47));
    }
    assert_eq!(guest.memory.read_obj::<u8>(GuestAddress(page)).unwrap(), 1);
}

/// CAP.ZLR: reads of nothing are requests, translated as others are. \[S 11.4.2\]
#[test]
fn a_zero_length_read_is_translated_and_faults() {
    for ats in [false, true] {
        let guest = Guest::new();
        guest.endpoint.set_ats_enabled(ats);
        guest.bind(PASID);
        let requester = Guest::with_pasid(PASID);
        assert!(guest.endpoint.read(requester, ADDRESS, &mut []).is_err(), "nothing is mapped");
        assert_eq!(guest.take_fault_reason(), if ats { None } else { Some(0x71) });
        // Where there is a page, there need not be memory.
        guest.map(PASID, ADDRESS, 0x7000_0000_0000, entry::P | entry::US);
        guest.endpoint.read(requester, ADDRESS, &mut []).unwrap();
        guest.endpoint.read(requester, ADDRESS, &mut []).unwrap();
        assert!(guest.endpoint.write(requester, ADDRESS, &[]).is_ok(), "a write of nothing is none");
        assert_eq!(guest.take_fault_reason(), None);
    }
}
