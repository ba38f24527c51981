// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Page requests: the queue that software reads, its overflow, events, responses, stop markers and draining.

mod common;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use common::descriptors::{device_tlb, pasid_iotlb, response};
use common::{Guest, Memory, PAGE_REQUEST_QUEUE, SOURCE_ID, WAIT_STATUS, entry, pasid};
use patience::Raise;
use vm_memory::{Bytes, GuestAddress};
use vtd_spec::descriptors::Wait;
use vtd_spec::registers::offset;
use vtd_spec::{
    AddressRange, AddressWidth, Descriptor, DomainId, PageRequestDescriptor, Pasid,
    PasidGranularTranslationType as Pgtt, SourceId,
};
use vtd_unit::{
    DeviceTlbInvalidation, Endpoint, EndpointSink, Message, PageGroupResponse, PageRequest, Requester,
    ResponseCode, UnitConfig,
};

const PASID: Pasid = Pasid::truncated(0xabcde);
const ADDRESS: u64 = 0x7f12_3456_7000;
const PPR: u32 = 1;
const PRO: u32 = 2;
const EVENT: Message = Message { address: 0xfee0_0000, data: 0x42 };

/// A guest with ATS on, and PASIDs bound with and without one.
fn guest() -> Guest {
    let guest = Guest::new();
    guest.endpoint.set_ats_enabled(true);
    guest.bind(PASID);
    guest.bind(Pasid::ZERO);
    guest
}

fn request(group: u16, last: bool) -> PageRequest {
    let requester = Guest::with_pasid(PASID);
    PageRequest { requester, address: ADDRESS, read: true, write: false, last, group }
}

fn marker() -> PageRequest {
    PageRequest { read: false, ..request(0, true) }
}

fn queued(guest: &Guest, index: u64) -> PageRequestDescriptor {
    PageRequestDescriptor::from_qwords(
        [0, 8, 16, 24].map(|at| guest.load(PAGE_REQUEST_QUEUE + index * 32 + at)),
    )
}

fn responses(guest: &Guest) -> Vec<PageGroupResponse> {
    std::mem::take(&mut *guest.sink.responses.lock().unwrap())
}

/// Entries of the fixture's queue (PQS 0), one of which stays free.
const ENTRIES: u64 = 128;

#[test]
fn a_request_is_queued_as_it_was_sent() {
    let guest = Guest::with_config(&UnitConfig { srs: true, ..UnitConfig::default() });
    guest.bind(PASID);
    guest.bind(Pasid::ZERO);
    let with = |privileged| Requester { pasid: Some(PASID), privileged };
    let base = 1 | u64::from(SOURCE_ID.0) << 16;
    let with_pasid = base | 1 << 8 | 0xabcde << 32;
    for (index, (requester, address, read, write, last, group, low, high)) in [
        (with(false), ADDRESS | 0xfff, true, false, true, 0x1ff, with_pasid, ADDRESS | 0x1ff << 3 | 5),
        (with(true), ADDRESS, false, true, false, 1, with_pasid | 1 << 53, ADDRESS | 1 << 3 | 2),
        (Requester::default(), !0, true, true, true, 0, base, !0xfff | 7),
        // Privilege comes with a PASID only; ten bits of group are nine.
        (
            Requester { pasid: None, privileged: true },
            0x5000,
            true,
            true,
            false,
            0x3ff,
            base,
            0x5000 | 0x1ff << 3 | 3,
        ),
    ]
    .into_iter()
    .enumerate()
    {
        guest.endpoint.page_request(PageRequest { requester, address, read, write, last, group });
        let descriptor = queued(&guest, index as u64);
        assert_eq!(descriptor.to_qwords(), [low, high, 0, 0], "{index}");
        assert!(!descriptor.reserved());
        assert_eq!(guest.read64(offset::PQT), 32 * (index as u64 + 1));
    }
    assert!(responses(&guest).is_empty());
    assert_eq!(guest.read32(offset::FSTS), 0);
}

#[test]
fn a_group_raises_one_event_and_gets_one_response() {
    let guest = guest();
    for index in 0..3 {
        guest.endpoint.page_request(request(7, index == 2));
        assert_eq!(guest.read32(offset::PRS), PPR);
    }
    assert_eq!(guest.messages.take(), [EVENT]);
    // Linux: PPR off first, then the entries, then the head.
    guest.write32(offset::PRS, PPR);
    guest.write64(offset::PQH, guest.read64(offset::PQT));
    guest.submit(&response(SOURCE_ID, Some(PASID), 7, ResponseCode::Success));
    let expected = PageGroupResponse { pasid: Some(PASID), group: 7, code: ResponseCode::Success };
    assert_eq!(responses(&guest), [expected]);
    // A request that is not the last of its group is announced as well.
    guest.endpoint.page_request(request(8, false));
    assert_eq!((guest.read32(offset::PRS), guest.messages.take()), (PPR, vec![EVENT]));
}

#[test]
fn every_response_code_reaches_the_function_that_asked_and_no_other() {
    let guest = guest();
    let (_other, sink) = guest.endpoint_at(SourceId::new(0, 9, 0));
    for code in [ResponseCode::Success, ResponseCode::InvalidRequest, ResponseCode::ResponseFailure] {
        for id in [Some(PASID), None] {
            guest.submit(&response(SOURCE_ID, id, 0x1ff, code));
            assert_eq!(responses(&guest), [PageGroupResponse { pasid: id, group: 0x1ff, code }]);
        }
    }
    assert!(sink.responses.lock().unwrap().is_empty());
    guest.submit(&response(SourceId(0x7777), Some(PASID), 0, ResponseCode::Success));
    assert!(responses(&guest).is_empty() && sink.responses.lock().unwrap().is_empty());
    assert_eq!(guest.read32(offset::FSTS), 0, "a response to nobody is discarded");
}

#[test]
fn the_queue_holds_all_but_one_entry_and_then_overflows() {
    let guest = guest();
    for index in 0..ENTRIES - 1 {
        guest.endpoint.page_request(request(index as u16, true));
    }
    assert_eq!((guest.read32(offset::PRS), guest.read64(offset::PQT)), (PPR, 32 * (ENTRIES - 1)));
    assert_eq!(guest.messages.take(), [EVENT]);
    assert!(responses(&guest).is_empty());
    for (last, group) in [(false, 0x100), (true, 0x101)] {
        guest.endpoint.page_request(request(group, last));
        assert_eq!((guest.read32(offset::PRS), guest.read64(offset::PQT)), (PPR | PRO, 32 * (ENTRIES - 1)));
    }
    assert!(guest.messages.take().is_empty(), "PPR stood already");
    // The device is told to ask again; for a request that is not the last it hears nothing.
    let expected = PageGroupResponse { pasid: Some(PASID), group: 0x101, code: ResponseCode::Success };
    assert_eq!(responses(&guest), [expected]);
    for index in 0..ENTRIES - 1 {
        assert_eq!(u64::from(queued(&guest, index).prgi()), index);
    }
    // While PRO stands everything is dropped, also with room.
    guest.write64(offset::PQH, 32 * (ENTRIES - 1));
    guest.write32(offset::PRS, PPR);
    guest.endpoint.page_request(request(0x102, true));
    guest.endpoint.page_request(request(0x103, false));
    assert_eq!((guest.read32(offset::PRS), guest.read64(offset::PQT)), (PRO, 32 * (ENTRIES - 1)));
    let expected = PageGroupResponse { pasid: Some(PASID), group: 0x102, code: ResponseCode::Success };
    assert_eq!(responses(&guest), [expected]);
    assert!(guest.messages.take().is_empty());
    guest.write32(offset::PRS, PRO);
    guest.endpoint.page_request(request(0x104, true));
    assert_eq!((guest.read32(offset::PRS), guest.read64(offset::PQT)), (PPR, 0), "the queue wraps");
    assert_eq!(queued(&guest, ENTRIES - 1).prgi(), 0x104);
    assert_eq!(guest.messages.take(), [EVENT]);
}

#[test]
fn overflow_raises_the_event_where_nothing_is_pending() {
    for masked in [false, true] {
        let guest = guest();
        guest.write64(offset::PQH, 32);
        if masked {
            guest.write32(offset::PECTL, 1 << 31);
        }
        guest.endpoint.page_request(request(0, true));
        assert_eq!(guest.read32(offset::PRS), PRO);
        let sent = guest.messages.take();
        if masked {
            assert!(sent.is_empty());
            assert_eq!(guest.read32(offset::PECTL), 3 << 30);
            guest.write32(offset::PECTL, 0);
            assert_eq!(guest.messages.take(), [EVENT]);
            assert_eq!(guest.read32(offset::PECTL), 0);
        } else {
            assert_eq!(sent, [EVENT]);
        }
        assert_eq!(responses(&guest)[0].code, ResponseCode::Success);
    }
}

#[test]
fn both_conditions_must_be_cleared_before_a_pending_event_goes() {
    let guest = guest();
    guest.write32(offset::PECTL, 1 << 31);
    guest.write64(offset::PQH, 64);
    guest.endpoint.page_request(request(0, true));
    guest.endpoint.page_request(request(1, true));
    assert_eq!(guest.read32(offset::PRS), PPR | PRO);
    for clear in [PPR, PRO] {
        assert_eq!(guest.read32(offset::PECTL), 3 << 30);
        guest.write32(offset::PRS, clear);
    }
    assert_eq!((guest.read32(offset::PRS), guest.read32(offset::PECTL)), (0, 1 << 31));
    guest.write32(offset::PECTL, 0);
    assert!(guest.messages.take().is_empty());
}

#[test]
fn a_stop_marker_is_queued_and_never_answered() {
    let guest = guest();
    guest.endpoint.page_request(marker());
    assert!(queued(&guest, 0).is_stop_marker());
    assert_eq!((guest.read32(offset::PRS), guest.read64(offset::PQT)), (PPR, 32));
    // Nor where it is dropped: no room, PRO, or no right to ask. The first is no overflow that software need hear of.
    guest.write64(offset::PQH, 64);
    guest.write32(offset::PRS, PPR);
    guest.messages.take();
    guest.endpoint.page_request(marker());
    assert_eq!((guest.read32(offset::PRS), guest.read64(offset::PQT)), (0, 32));
    assert!(guest.messages.take().is_empty());
    guest.endpoint.page_request(request(0, true));
    assert_eq!(responses(&guest).len(), 1);
    assert_eq!(guest.read32(offset::PRS) & PRO, PRO);
    guest.endpoint.page_request(marker());
    guest.write_context(SOURCE_ID, Guest::context().with_pre(false));
    guest.submit(&common::descriptors::context_device(SOURCE_ID));
    guest.endpoint.page_request(marker());
    assert!(responses(&guest).is_empty());
}

#[test]
fn every_size_of_queue_wraps_at_its_end() {
    for shift in 0..8 {
        let guest = guest();
        let size = 4096u64 << shift;
        let base = guest.pages(1 << shift, 1);
        guest.write64(offset::PQA, base | shift);
        for (at, next) in [(size - 64, size - 32), (size - 32, 0), (0, 32)] {
            guest.write64(offset::PQH, at);
            guest.write64(offset::PQT, at);
            guest.endpoint.page_request(request(3, true));
            assert_eq!(guest.read64(offset::PQT), next);
            assert_eq!(guest.load(base + at + 8), ADDRESS | 3 << 3 | 5);
        }
        // The entry before the head is the free one.
        guest.write64(offset::PQH, 0);
        guest.write64(offset::PQT, size - 32);
        guest.endpoint.page_request(request(3, true));
        assert_eq!(guest.read32(offset::PRS), PPR | PRO);
    }
}

#[test]
fn hostile_queue_registers_do_no_harm() {
    for (head, tail, queue) in [
        (0x7_ffe0, 0, PAGE_REQUEST_QUEUE),
        (0, 0x7_ffe0, PAGE_REQUEST_QUEUE),
        (0x7_ffe0, 0x7_ffe0, PAGE_REQUEST_QUEUE),
        (!0, !0, PAGE_REQUEST_QUEUE),
        (0, 0, common::MEMORY_BYTES),
        (0, 0, 0xffff_ffff_ffff_f007),
        (0x7_ffe0, 0x7_ffc0, 0xffff_ffff_ffff_f007),
    ] {
        let guest = guest();
        guest.write64(offset::PQA, queue);
        guest.write64(offset::PQH, head);
        guest.write64(offset::PQT, tail);
        for group in 0..200 {
            guest.endpoint.page_request(request(group, true));
        }
        // Queued within the queue, or answered.
        let answered = responses(&guest).len();
        if queue != PAGE_REQUEST_QUEUE {
            assert_eq!(answered, 200, "a queue without memory loses everything, and says so");
        }
        assert!(guest.read64(offset::PQT) < 0x8_0000);
        assert_eq!(guest.load(PAGE_REQUEST_QUEUE + 4096), 0, "nothing behind the queue is written");
        guest.submit(&pasid_iotlb(DomainId(1), PASID));
    }
}

#[test]
fn with_translation_off_there_is_nobody_to_ask() {
    let guest = guest();
    guest.command_off(1 << 31);
    guest.endpoint.page_request(request(5, false));
    assert!(responses(&guest).is_empty());
    guest.endpoint.page_request(request(5, true));
    assert_eq!(responses(&guest)[0].code, ResponseCode::InvalidRequest);
    assert_eq!((guest.read64(offset::PQT), guest.read32(offset::PRS)), (0, 0));
}

/// The unit forgets the page before software hears of the request. [S 6.5.3.1]
#[test]
fn a_page_request_is_an_implicit_invalidation_of_its_page() {
    for id in [Some(PASID), None] {
        for level in 1..=2 {
            let guest = guest();
            guest.endpoint.set_ats_enabled(false);
            let requester = Requester { pasid: id, privileged: false };
            let number = id.unwrap_or_default();
            let (old, new) = (guest.page(), guest.page());
            guest.memory.write_obj(1u8, GuestAddress(new)).unwrap();
            guest.map(number, ADDRESS, old, entry::USER);
            let read = || {
                let mut data = [0];
                guest.endpoint.read(requester, ADDRESS, &mut data).unwrap();
                data[0]
            };
            assert_eq!(read(), 0);
            if level == 1 {
                guest.map(number, ADDRESS, new, entry::USER);
            } else {
                let table = guest.page();
                guest.store(table + (ADDRESS >> 12 & 0x1ff) * 8, new | entry::USER);
                guest.store(guest.walk_addresses(number, ADDRESS)[2], table | entry::USER);
            }
            assert_eq!(read(), 0, "cached");
            guest.endpoint.page_request(PageRequest { requester, ..request(0, true) });
            assert_eq!(read(), 1, "level {level}");
        }
    }
}

/// What a page request takes, by the type of its PASID's translation, from the function that asks and from another with the
/// same tags. Tables change without an invalidation: what has gone from the caches is seen to be new. [S 6.5.3.1]
#[test]
fn a_page_request_takes_what_its_type_implies_from_every_function_with_the_same_tags() {
    const OTHER: SourceId = SourceId::new(0, 9, 0);
    // Names of PASID entries: the one that asks, one more of its domain, and one of another domain.
    const ASKS: Pasid = Pasid::truncated(5);
    const SAME: Pasid = Pasid::truncated(6);
    const FAR: Pasid = Pasid::truncated(7);
    const PAGES: [u64; 2] = [0x10_0000, 0x10_5000];
    for (pgtt, taken) in [
        // The page, of the PASID.
        (Pgtt::FirstStage, &[(ASKS, 0)][..]),
        // The page, of the domain.
        (Pgtt::SecondStage, &[(ASKS, 0), (SAME, 0)]),
        // The domain.
        (Pgtt::Nested, &[(ASKS, 0), (ASKS, 1), (SAME, 0), (SAME, 1)]),
    ] {
        for held in [false, true] {
            let guest = Guest::with_config(&UnitConfig { ssts: true, nest: true, ..UnitConfig::default() });
            let (other, _) = guest.endpoint_at(OTHER);
            let endpoints = [&guest.endpoint, &other];
            // One table for all of a stage, so that what is new to one is new to all.
            let (first, second) = (guest.page(), guest.page());
            for (pasid, domain) in [(ASKS, 5), (SAME, 5), (FAR, 6)] {
                let table = if pgtt == Pgtt::SecondStage { 0 } else { first };
                let entry = Guest::first_stage(DomainId(domain), table)
                    .with_pgtt(pgtt)
                    .with_ssptptr(if pgtt == Pgtt::FirstStage { 0 } else { second })
                    .with_aw(AddressWidth::Bits48.into_bits());
                guest.write_pasid_entry(pasid, entry);
            }
            if pgtt == Pgtt::Nested {
                // The lowest 512 GiB are where they are.
                let giants = guest.page();
                guest.store(second, giants | 3);
                (0..512).for_each(|gib| guest.store(giants + gib * 8, gib << 30 | 3 | 1 << 7));
            }
            let (root, flags) = if pgtt == Pgtt::SecondStage { (second, 3) } else { (first, entry::USER) };
            let frames = [guest.page(), guest.page()];
            guest.memory.write_obj(1u8, GuestAddress(frames[1])).unwrap();
            let tables = [guest.page(), guest.page(), guest.page()];
            let mut at = root;
            for (level, table) in (2..=4).rev().zip(tables) {
                guest.store(at + (PAGES[0] >> (12 + 9 * (level - 1)) & 0x1ff) * 8, table | flags);
                at = table;
            }
            let point = |frame: u64| {
                PAGES.iter().for_each(|page| guest.store(at + (page >> 12 & 0x1ff) * 8, frame | flags));
            };
            let read = |endpoint: &Endpoint<Memory>, pasid, page: u64| {
                let mut data = [9];
                endpoint.read(Guest::with_pasid(pasid), page, &mut data).unwrap();
                data[0]
            };
            let all = || {
                let each = [ASKS, SAME, FAR].into_iter().flat_map(|pasid| [(pasid, 0), (pasid, 1)]);
                endpoints
                    .into_iter()
                    .flat_map(move |endpoint| each.clone().map(move |(p, n)| (endpoint, p, n)))
            };
            point(frames[0]);
            assert!(all().all(|(endpoint, pasid, page)| read(endpoint, pasid, PAGES[page]) == 0));
            point(frames[1]);
            assert!(all().all(|(endpoint, pasid, page)| read(endpoint, pasid, PAGES[page]) == 0), "cached");
            let requester = Guest::with_pasid(ASKS);
            let request = PageRequest { requester, address: PAGES[0], ..request(0, true) };
            // A function that holds something asks as well: nothing waits for it.
            let pins = held.then(|| endpoints.map(|endpoint| endpoint.pin(requester, PAGES[1]).unwrap()));
            guest.endpoint.page_request(request);
            drop(pins);
            for (endpoint, pasid, page) in all() {
                let gone = read(endpoint, pasid, PAGES[page]) == 1;
                assert_eq!(gone, taken.contains(&(pasid, page)), "{pgtt:?} {pasid:?} {page} held {held}");
            }
        }
    }
}

/// Asks again from within the response, as a device may that runs on the thread which delivers it.
#[derive(Default)]
struct Insistent {
    endpoint: OnceLock<Endpoint<Memory>>,
    asked: Mutex<u32>,
}

impl EndpointSink for Insistent {
    fn page_group_response(&self, _: PageGroupResponse) {
        let mut asked = self.asked.lock().unwrap();
        *asked += 1;
        if *asked < 10 {
            drop(asked);
            self.endpoint.get().unwrap().page_request(request(0, true));
        }
    }

    fn device_tlb_invalidation(&self, _: DeviceTlbInvalidation) {
        // Requests that are on their way go ahead of the completion. [S 7.10]
        for group in 0..5 {
            self.endpoint.get().unwrap().page_request(request(group, group == 4));
        }
    }
}

fn insistent(guest: &Guest) -> Arc<Insistent> {
    const DEVICE: SourceId = SourceId::new(0, 0xa, 0);
    guest.add_function(DEVICE);
    let sink = Arc::new(Insistent::default());
    let endpoint = guest.unit.endpoint(DEVICE, Arc::clone(&sink) as Arc<dyn EndpointSink>).unwrap();
    sink.endpoint.set(endpoint).ok().unwrap();
    sink
}

#[test]
fn a_request_from_within_a_response_does_not_lock_up() {
    let guest = guest();
    guest.write64(offset::PQH, 32);
    let sink = insistent(&guest);
    sink.endpoint.get().unwrap().page_request(request(0, true));
    assert_eq!(*sink.asked.lock().unwrap(), 10, "each was answered at once: the queue is full");
}

#[test]
fn requests_sent_before_an_invalidation_completion_are_in_the_queue_when_the_drain_completes() {
    for round in 0..50u32 {
        let guest = guest();
        let sink = insistent(&guest);
        let sid = sink.endpoint.get().unwrap().source_id();
        let status = WAIT_STATUS + 0x40;
        guest.queue(&Descriptor::Wait(Wait { fn_: true, ..Wait::default() }));
        guest.queue(&pasid_iotlb(DomainId(1), PASID));
        guest.queue(&device_tlb(sid, AddressRange::ALL));
        let drain = Wait { sw: true, pd: true, status_data: 2, status_address: status, ..Wait::default() };
        guest.queue(&Descriptor::Wait(drain));
        // Push it behind the budget of a doorbell every other time.
        for _ in 0..(round % 2) * 200 {
            guest.queue(&pasid_iotlb(DomainId(1), PASID));
        }
        guest.ring();
        guest.await_status(status);
        assert_eq!((guest.read64(offset::PQT), guest.read32(offset::PRS)), (5 * 32, PPR));
        for group in 0..5 {
            assert_eq!(u64::from(queued(&guest, group).prgi()), group);
        }
    }
}

/// Several devices fault at once while software serves them: each last request gets exactly one response.
#[test]
fn concurrent_requests_are_each_answered_once() {
    const DEVICES: u8 = 4;
    const ROUNDS: u16 = 300;
    let guest = guest();
    let devices: Vec<_> =
        (0..DEVICES).map(|device| guest.endpoint_at(SourceId::new(0, 0xa + device, 0))).collect();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _done = Raise(&done);
        let software = scope.spawn(|| {
            let mut overflowed = 0;
            loop {
                let last_look = done.load(Ordering::Acquire);
                // prq.c:prq_event_thread
                guest.write32(offset::PRS, PPR);
                let (mut head, tail) = (guest.read64(offset::PQH), guest.read64(offset::PQT));
                let mut answers = Vec::new();
                while head != tail {
                    let descriptor = queued(&guest, head / 32);
                    assert!(!descriptor.reserved() && descriptor.lpig());
                    answers.push(response(
                        descriptor.rid(),
                        Some(descriptor.pasid()),
                        descriptor.prgi(),
                        ResponseCode::InvalidRequest,
                    ));
                    head = (head + 32) % 4096;
                }
                guest.write64(offset::PQH, tail);
                if guest.read32(offset::PRS) & PRO != 0 && guest.read64(offset::PQT) == tail {
                    overflowed += 1;
                    guest.write32(offset::PRS, PRO);
                }
                let served = answers.len();
                for some in answers.chunks(16) {
                    guest.submit_all(some);
                }
                if last_look && served == 0 {
                    return overflowed;
                }
            }
        });
        let workers: Vec<_> = devices
            .iter()
            .map(|(endpoint, _)| {
                scope.spawn(move || {
                    for group in 0..ROUNDS {
                        endpoint.page_request(request(group, true));
                    }
                })
            })
            .collect();
        for worker in workers {
            worker.join().unwrap();
        }
        done.store(true, Ordering::Release);
        software.join().unwrap();
    });
    for (_, sink) in &devices {
        let heard = sink.responses.lock().unwrap();
        let groups: BTreeSet<u16> = heard.iter().map(|response| response.group).collect();
        assert_eq!((heard.len(), groups.len()), (usize::from(ROUNDS), usize::from(ROUNDS)));
        // Served by software, or told to ask again because of an overflow.
        assert!(heard.iter().all(|response| response.pasid == Some(PASID)));
    }
    assert_eq!(guest.read32(offset::FSTS), 0);
}

#[test]
fn a_function_asks_for_each_of_its_pasids() {
    let guest = guest();
    for number in 1..100u32 {
        guest.bind(pasid(number));
        guest
            .endpoint
            .page_request(PageRequest { requester: Guest::with_pasid(pasid(number)), ..request(1, true) });
        assert_eq!(queued(&guest, u64::from(number) - 1).pasid(), pasid(number));
    }
}

#[test]
fn a_refusals_reason_does_not_depend_on_what_is_cached() {
    let guest = Guest::new();
    guest.bind(PASID);
    guest.bind(Pasid::ZERO);
    guest.write_context(SOURCE_ID, Guest::context().with_paside(false).with_pre(false));
    for warm in [false, true] {
        if warm {
            // By a request that the context admits.
            let _ = guest.endpoint.read(Requester::default(), ADDRESS, &mut [0]);
            guest.take_faults();
        }
        guest.endpoint.page_request(request(1, true));
        assert_eq!(guest.take_fault_reason(), Some(0x45), "warm: {warm}");
        guest.endpoint.page_request(PageRequest { requester: Requester::default(), ..request(1, true) });
        assert_eq!(guest.take_fault_reason(), Some(0x47), "warm: {warm}");
    }
}
