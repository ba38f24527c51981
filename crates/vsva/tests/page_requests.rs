// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Page requests from a device behind the physical unit up to the guest's kernel, and its answers down again: a thousand
//! pages in groups and out of order, every answer there is and none at all, and queues that are too small on either
//! side. Each group is answered once, whatever happens.

mod rig;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use patience::{Patience, Raise};
use rig::common::descriptors as d;
use rig::common::{Guest, PAGE_REQUEST_QUEUE, SOURCE_ID, Sink, entry, pasid};
use rig::{Device, Rig, pasid_cache, piotlb_all};
use vm_memory::{Bytes, GuestAddress};
use vsva::{Event, SoftHostConfig, Tracer};
use vtd_spec::registers::offset;
use vtd_spec::{AddressRange, Descriptor, PageRequestDescriptor, Pasid, ResponseCode, SourceId};
use vtd_unit::{DmaError, PageGroupResponse, PageRequest, Requester, UnitConfig};

const ADDRESS: u64 = 0x7f00_0000_0000;
/// PRS: requests are pending; the queue overflowed.
const PPR: u32 = 1;
const PRO: u32 = 2;
/// Requests that the guest's queue of one page holds: one entry stays free.
const GUEST_QUEUE: usize = 127;

fn request(pasid: Option<Pasid>, address: u64, last: bool, group: u16) -> PageRequest {
    let requester = Requester { pasid, privileged: false };
    PageRequest { requester, address, read: true, write: true, last, group }
}

/// What a kernel's interrupt handler does: takes all that is in the guest's queue.
fn take_requests(guest: &Guest) -> Vec<PageRequestDescriptor> {
    guest.write32(offset::PRS, PPR);
    let tail = guest.read64(offset::PQT);
    let mut head = guest.read64(offset::PQH);
    let mut taken = Vec::new();
    while head != tail {
        let qwords = [0, 8, 16, 24].map(|at| guest.load(PAGE_REQUEST_QUEUE + head + at));
        taken.push(PageRequestDescriptor::from_qwords(qwords));
        head = (head + 32) % 4096;
    }
    guest.write64(offset::PQH, head);
    if guest.read32(offset::PRS) & PRO != 0 && guest.read64(offset::PQT) == head {
        guest.write32(offset::PRS, PRO);
    }
    taken
}

fn answer(request: &PageRequestDescriptor, code: ResponseCode) -> Descriptor {
    d::response(request.rid(), request.pp().then_some(request.pasid()), request.prgi(), code)
}

/// Answers that a device got, by PASID and group.
fn answers(sink: &Sink) -> BTreeMap<(Option<Pasid>, u16), Vec<ResponseCode>> {
    let mut answers: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for PageGroupResponse { pasid, group, code } in sink.responses.lock().unwrap().iter() {
        answers.entry((*pasid, *group)).or_default().push(*code);
    }
    answers
}

fn answer_count(sink: &Sink) -> usize {
    sink.responses.lock().unwrap().len()
}

/// Takes requests off the guest's queue until `count` are there.
fn await_requests(rig: &Rig, count: usize) -> Vec<PageRequestDescriptor> {
    let taken = Mutex::new(Vec::new());
    rig.eventually("requests in the guest's queue", || {
        let mut taken = taken.lock().unwrap();
        taken.extend(take_requests(&rig.guest));
        taken.len() >= count
    });
    taken.into_inner().unwrap()
}

const GROUPS: u64 = 125;
const PAGES: u64 = 4;
const OUTSTANDING: usize = 8;
/// The last groups of a process, which its kernel does not answer at all.
const UNANSWERED: u64 = 6;

fn page_of(group: u64, page: u64) -> u64 {
    ADDRESS + (group * PAGES + page) * 4096
}

fn group_index(group: u64) -> u16 {
    (group * 37 % 512) as u16
}

/// What the kernel says of a group.
fn verdict(group: u64) -> Option<ResponseCode> {
    match group % 5 {
        _ if group >= GROUPS - UNANSWERED => None,
        1 => Some(ResponseCode::InvalidRequest),
        2 => Some(ResponseCode::ResponseFailure),
        _ => Some(ResponseCode::Success),
    }
}

/// A device that wants all pages of a process, some groups at a time, until all but the unanswered ones are answered.
fn want_all_pages(device: &Device, of: Pasid) {
    let requester = Guest::with_pasid(of);
    let mut waiting: HashMap<u16, u64> = HashMap::new();
    let (mut next, mut heard) = (0, 0);
    let mut patience = Patience::default();
    while (heard as u64) < GROUPS - UNANSWERED || next < GROUPS {
        while next < GROUPS && waiting.len() < OUTSTANDING {
            // What DMA says of the page, then a request for all pages of its group, the first one last.
            let error = device.port.write(requester, page_of(next, 0), &[1]).unwrap_err();
            assert!(matches!(error, DmaError::PageFault { .. }), "{error}");
            for page in [2, 1, 3, 0] {
                let last = page == 0;
                device.port.page_request(request(Some(of), page_of(next, page), last, group_index(next)));
            }
            waiting.insert(group_index(next), next);
            next += 1;
        }
        let responses: Vec<PageGroupResponse> = device.sink.responses.lock().unwrap()[heard..].to_vec();
        heard += responses.len();
        if responses.is_empty() {
            patience.pause("answers to all groups");
        } else {
            patience = Patience::default();
        }
        for response in responses {
            let group = waiting.remove(&response.group).expect("a group that waits");
            assert_eq!((response.pasid, Some(response.code)), (Some(of), verdict(group)));
            for page in 0..PAGES {
                let data = [(group * PAGES + page) as u8, 0x77];
                let written = device.port.write(requester, page_of(group, page) + 8, &data);
                assert_eq!(written.is_ok(), response.code == ResponseCode::Success);
            }
        }
    }
}

/// The guest's kernel: collects groups of several devices, and answers those that are complete in another order.
fn serve_all_pages(rig: &Rig, devices: usize) {
    let mut partial: HashMap<(u16, u32, u16), Vec<u64>> = HashMap::new();
    let mut complete: Vec<(PageRequestDescriptor, Vec<u64>)> = Vec::new();
    let mut done = 0;
    let mut patience = Patience::default();
    while done < devices as u64 * GROUPS {
        for taken in take_requests(&rig.guest) {
            let key = (taken.rid().0, taken.pasid().get(), taken.prgi());
            let pages = partial.entry(key).or_default();
            pages.push(taken.addr());
            if taken.lpig() {
                complete.push((taken, partial.remove(&key).unwrap()));
            }
        }
        // The youngest first.
        let Some((last, pages)) = complete.pop() else {
            patience.pause("all groups");
            continue;
        };
        patience = Patience::default();
        let group = (last.addr() - ADDRESS) / 4096 / PAGES;
        let whole = [2, 1, 3, 0].map(|page| page_of(group, page));
        assert_eq!(pages, whole, "a whole group, in the order it was sent");
        let verdict = verdict(group);
        if verdict == Some(ResponseCode::Success) {
            pages.iter().for_each(|page| {
                rig.guest.map(last.pasid(), *page, rig.guest.page(), entry::USER);
            });
        }
        if let Some(code) = verdict {
            rig.guest.submit(&answer(&last, code));
        }
        done += 1;
    }
    assert!(partial.is_empty());
}

#[test]
fn a_thousand_pages_in_groups_out_of_order_with_every_answer_there_is_and_none() {
    let rig = Rig::new();
    let devices = [rig.first(), rig.plug(SourceId::new(0, 9, 0))];
    // Each device has a PASID of its own, and both use the same group indices.
    let pasids = [pasid(5), pasid(0xf_0001)];
    pasids.iter().for_each(|at| rig.bind(*at));
    devices.iter().for_each(|device| device.port.set_ats_enabled(true));
    std::thread::scope(|scope| {
        for (device, of) in devices.iter().zip(pasids) {
            scope.spawn(move || want_all_pages(device, of));
        }
        serve_all_pages(&rig, devices.len());
    });
    for (device, of) in devices.iter().zip(pasids) {
        assert_eq!(answer_count(&device.sink) as u64, GROUPS - UNANSWERED, "one answer each");
        for group in (0..GROUPS).filter(|group| verdict(*group) == Some(ResponseCode::Success)) {
            for page in 0..PAGES {
                let mut data = [0; 2];
                device.port.read(Guest::with_pasid(of), page_of(group, page) + 8, &mut data).unwrap();
                assert_eq!(data, [(group * PAGES + page) as u8, 0x77]);
            }
        }
    }
    // The processes die with what they have not been answered.
    for (device, of) in devices.iter().zip(pasids) {
        rig.guest.write_pasid_entry(of, Default::default());
        rig.guest.submit_all(&[pasid_cache(of), piotlb_all(of)]);
        rig.guest.queue(&d::pasid_device_tlb(device.source_id, of, AddressRange::ALL));
        rig.guest.submit_wait(1 << 7);
        rig.eventually("all answers", || answer_count(&device.sink) as u64 == GROUPS);
        let got = answers(&device.sink);
        for group in 0..GROUPS {
            let code = verdict(group).unwrap_or(ResponseCode::InvalidRequest);
            assert_eq!(got[&(Some(of), group_index(group))], [code], "group {group}");
        }
    }
    assert_eq!(rig.host.allocated_pasids(), 0);
}

#[test]
fn every_answer_arrives_as_it_was_given_and_a_process_that_dies_answers_all() {
    let rig = Rig::new();
    rig.port.set_ats_enabled(true);
    rig.bind(pasid(5));
    rig.bind(pasid(6));
    for group in 0..40 {
        let of = pasid(5 + u32::from(group % 2));
        rig.port.page_request(request(Some(of), ADDRESS + u64::from(group) * 4096, true, group));
    }
    let taken = await_requests(&rig, 40);
    let codes = [ResponseCode::Success, ResponseCode::InvalidRequest, ResponseCode::ResponseFailure];
    let answered: Vec<_> =
        taken.iter().filter(|taken| taken.prgi() < 24).zip(codes.into_iter().cycle()).collect();
    for (taken, code) in answered.iter().rev() {
        rig.guest.submit(&answer(taken, *code));
    }
    rig.eventually("24 answers", || answer_count(&rig.sink) == 24);
    let got = answers(&rig.sink);
    for (taken, code) in &answered {
        assert_eq!(got[&(Some(taken.pasid()), taken.prgi())], [*code]);
    }
    // The processes die: first one, then the other.
    rig.unbind(pasid(5));
    rig.eventually("answers for the first", || answer_count(&rig.sink) == 32);
    rig.unbind(pasid(6));
    rig.eventually("answers for the second", || answer_count(&rig.sink) == 40);
    let got = answers(&rig.sink);
    for group in 24..40 {
        assert_eq!(got[&(Some(pasid(5 + u32::from(group % 2))), group)], [ResponseCode::InvalidRequest]);
    }
    // What the kernel says now is too late.
    taken.iter().for_each(|taken| rig.guest.submit(&answer(taken, ResponseCode::Success)));
    assert_eq!(answer_count(&rig.sink), 40);
    assert!(rig.guest.take_faults().is_empty(), "dying is no fault");
}

#[test]
fn a_guests_queue_that_overflows_loses_requests_but_no_answers() {
    let rig = Rig::new();
    rig.port.set_ats_enabled(true);
    rig.bind(pasid(5));
    for group in 0..400 {
        rig.port.page_request(request(Some(pasid(5)), ADDRESS, true, group));
    }
    // Those that it does not hold are answered with Success: the device asks again.
    rig.eventually("answers", || answer_count(&rig.sink) == 400 - GUEST_QUEUE);
    assert_eq!(rig.guest.read32(offset::PRS) & PRO, PRO);
    let taken = await_requests(&rig, GUEST_QUEUE);
    assert_eq!(taken.len(), GUEST_QUEUE);
    assert_eq!(rig.guest.read32(offset::PRS), 0);
    rig.guest
        .submit_all(&taken.iter().map(|at| answer(at, ResponseCode::InvalidRequest)).collect::<Vec<_>>());
    rig.eventually("all answers", || answer_count(&rig.sink) == 400);
    let got = answers(&rig.sink);
    assert!(got.values().all(|codes| codes.len() == 1), "one each");
    let refused = got.values().filter(|codes| codes[0] == ResponseCode::InvalidRequest).count();
    assert_eq!(refused, GUEST_QUEUE);
    // And it works again.
    rig.port.page_request(request(Some(pasid(5)), ADDRESS, true, 9));
    assert_eq!(await_requests(&rig, 1)[0].prgi(), 9);
}

/// Stops whoever carries page requests up, until it is let through.
#[derive(Default)]
struct Gate {
    permits: Mutex<usize>,
    changed: Condvar,
    /// Requests that came to it.
    arrived: AtomicU64,
}

impl Gate {
    fn let_through(&self, count: usize) {
        *self.permits.lock().unwrap() = count;
        self.changed.notify_all();
    }
}

impl Tracer for Gate {
    fn event(&self, _: SourceId, event: &Event) {
        if matches!(event, Event::PageRequest(_)) {
            self.arrived.fetch_add(1, Ordering::Relaxed);
            let mut permits = self.permits.lock().unwrap();
            while *permits == 0 {
                permits = self.changed.wait(permits).unwrap();
            }
            *permits -= 1;
        }
    }
}

#[test]
fn a_hosts_queue_that_overflows_loses_requests_but_no_answers() {
    let gate = Arc::new(Gate::default());
    let tracer = Arc::clone(&gate) as Arc<dyn Tracer>;
    let rig = Rig::joined(&UnitConfig::default(), &SoftHostConfig::default(), Some(tracer), |host| host);
    rig.port.set_ats_enabled(true);
    const PASIDS: u32 = 8;
    (1..=PASIDS).for_each(|at| rig.bind(pasid(at)));
    rig.port.page_request(request(Some(pasid(1)), ADDRESS, true, 0));
    rig.eventually("the first one on its way", || gate.arrived.load(Ordering::Relaxed) == 1);
    // With the first one stuck, the host's queue of 2047 requests fills.
    let mut sent = BTreeSet::from([(Some(pasid(1)), 0)]);
    for at in 1..=PASIDS {
        for group in u16::from(at == 1)..500 {
            rig.port.page_request(request(Some(pasid(at)), ADDRESS, true, group));
            sent.insert((Some(pasid(at)), group));
        }
    }
    assert_eq!(answer_count(&rig.sink), sent.len() - 1 - 2047, "the rest were answered by the physical unit");
    gate.let_through(usize::MAX);
    // The guest holds its own share; what exceeds that is answered on the way.
    rig.eventually("answers but for the guest's", || answer_count(&rig.sink) == sent.len() - GUEST_QUEUE);
    let taken = await_requests(&rig, GUEST_QUEUE);
    rig.guest.submit_all(&taken.iter().map(|at| answer(at, ResponseCode::Success)).collect::<Vec<_>>());
    rig.eventually("all answers", || answer_count(&rig.sink) == sent.len());
    let got = answers(&rig.sink);
    assert!(got.values().all(|codes| codes.len() == 1));
    assert_eq!(got.into_keys().collect::<BTreeSet<_>>(), sent);
    // Both queues work again.
    rig.port.page_request(request(Some(pasid(3)), ADDRESS, true, 17));
    assert_eq!(await_requests(&rig, 1)[0].pasid(), pasid(3));
}

#[test]
fn a_request_on_its_way_up_never_becomes_another_pasids() {
    let gate = Arc::new(Gate::default());
    let tracer = Arc::clone(&gate) as Arc<dyn Tracer>;
    let rig = Rig::joined(&UnitConfig::default(), &SoftHostConfig::default(), Some(tracer), |host| host);
    rig.port.set_ats_enabled(true);
    let (other, dying, next) = (pasid(6), pasid(5), pasid(7));
    rig.bind(other);
    rig.bind(dying);
    rig.port.page_request(request(Some(other), ADDRESS, true, 0));
    rig.eventually("the first one on its way", || gate.arrived.load(Ordering::Relaxed) == 1);
    rig.port.page_request(request(Some(other), ADDRESS, true, 1));
    rig.port.page_request(request(Some(dying), ADDRESS, true, 2));
    // The host takes both off its queue and is stopped at the first of them.
    gate.let_through(1);
    rig.eventually("the second one on its way", || gate.arrived.load(Ordering::Relaxed) == 2);
    std::thread::scope(|scope| {
        // Meanwhile one process dies and another is born, whose PASID may be the same on the host.
        scope.spawn(|| {
            rig.unbind(dying);
            rig.bind(next);
        });
        std::thread::sleep(Duration::from_millis(20));
        gate.let_through(usize::MAX);
    });
    rig.eventually("an answer to the dead", || answer_count(&rig.sink) == 1);
    assert_eq!(answers(&rig.sink), BTreeMap::from([((Some(dying), 2), vec![ResponseCode::InvalidRequest])]));
    let taken = await_requests(&rig, 2);
    assert!(taken.iter().all(|at| at.pasid() != next), "nothing of the newborn");
    rig.unbind(other);
    rig.unbind(next);
    assert_eq!(rig.host.allocated_pasids(), 0);
}

#[test]
fn page_requests_of_pasids_that_are_not_bound_are_refused_however_many() {
    let rig = Rig::new();
    let other = rig.plug(SourceId::new(0, 9, 0));
    rig.bind(pasid(5));
    let requests = 5000;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in 0..requests {
                let of = pasid(0x100 + number % 7777);
                rig.port.page_request(request(Some(of), ADDRESS, true, (number % 512) as u16));
            }
        });
        // Meanwhile another device is served.
        for group in 0..50 {
            other.port.page_request(request(Some(pasid(5)), ADDRESS, true, group));
            let taken = await_requests(&rig, 1);
            assert_eq!((taken.len(), taken[0].rid(), taken[0].prgi()), (1, other.source_id, group));
            rig.guest.submit(&answer(&taken[0], ResponseCode::Success));
            rig.eventually("its answer", || answer_count(&other.sink) == usize::from(group) + 1);
        }
    });
    assert_eq!(answer_count(&rig.sink), requests as usize);
    let got = answers(&rig.sink);
    assert!(got.values().flatten().all(|code| *code == ResponseCode::InvalidRequest));
    assert!(got.keys().all(|(of, _)| of.is_some_and(|of| of.get() >= 0x100)), "the device's own PASIDs");
    // The guest reads of the first one.
    let faults = rig.guest.take_faults();
    assert_eq!(faults.len(), 1);
    assert_eq!((faults[0].sid(), faults[0].pv()), (SOURCE_ID, pasid(0x100)));
}

#[test]
fn requests_without_pasid_have_groups_of_their_own() {
    let rig = Rig::new();
    rig.port.set_ats_enabled(true);
    rig.bind(Pasid::ZERO);
    rig.bind(pasid(5));
    let address = 0x5000;
    rig.port.page_request(request(None, address, true, 3));
    rig.port.page_request(request(Some(pasid(5)), address, true, 3));
    let taken = await_requests(&rig, 2);
    assert_eq!(taken.iter().map(|at| (at.pp(), at.prgi())).collect::<Vec<_>>(), [(false, 3), (true, 3)]);
    let page = rig.guest.page();
    rig.guest.map(Pasid::ZERO, address, page, entry::USER);
    rig.guest.submit(&answer(&taken[0], ResponseCode::Success));
    rig.eventually("an answer", || answer_count(&rig.sink) == 1);
    assert_eq!(answers(&rig.sink), BTreeMap::from([((None, 3), vec![ResponseCode::Success])]));
    rig.port.write(Requester::default(), address, b"!").unwrap();
    assert_eq!(rig.guest.memory.read_obj::<u8>(GuestAddress(page)).unwrap(), b'!');
    rig.guest.submit(&answer(&taken[1], ResponseCode::InvalidRequest));
    rig.eventually("the other answer", || answer_count(&rig.sink) == 2);
    // The entry for requests without PASID goes, and with it what waits there.
    rig.port.page_request(request(None, 0x9000, true, 4));
    await_requests(&rig, 1);
    rig.unbind(Pasid::ZERO);
    rig.eventually("an answer", || answer_count(&rig.sink) == 3);
    assert_eq!(answers(&rig.sink)[&(None, 4)], [ResponseCode::InvalidRequest]);
}

#[test]
fn unbinding_under_a_flood_of_requests_leaves_none_unanswered() {
    let rig = Rig::new();
    rig.port.set_ats_enabled(true);
    let stop = AtomicBool::new(false);
    let of = pasid(5);
    std::thread::scope(|scope| {
        let _stop = Raise(&stop);
        let flood = scope.spawn(|| {
            let mut sent = 0;
            while !stop.load(Ordering::Relaxed) {
                // As a device does: a group index is used again once it was answered.
                for group in 0..32 {
                    rig.port.page_request(request(Some(of), ADDRESS, true, group));
                    sent += 1;
                }
                while answer_count(&rig.sink) < sent && !stop.load(Ordering::Relaxed) {
                    std::thread::yield_now();
                }
            }
            sent
        });
        for round in 0..200 {
            rig.bind(of);
            (0..round % 7).for_each(|_| std::thread::yield_now());
            // The kernel answers some of them, and lets the rest wait when the process dies.
            let taken = take_requests(&rig.guest);
            for taken in taken.iter().take(round % 20) {
                rig.guest.submit(&answer(taken, ResponseCode::Success));
            }
            rig.unbind(of);
        }
        stop.store(true, Ordering::Relaxed);
        let sent = flood.join().unwrap();
        rig.eventually("every answer", || answer_count(&rig.sink) == sent);
    });
    assert!(answers(&rig.sink).keys().all(|(at, group)| *at == Some(of) && *group < 32));
}

#[test]
fn answers_to_no_request_reach_no_device() {
    let rig = Rig::new();
    rig.port.set_ats_enabled(true);
    rig.bind(pasid(5));
    rig.port.page_request(request(Some(pasid(5)), ADDRESS, true, 7));
    let taken = await_requests(&rig, 1);
    let mut flood = Vec::new();
    for number in 0..500u32 {
        let group = (number % 512) as u16;
        let code = if number % 2 == 0 { ResponseCode::Success } else { ResponseCode::ResponseFailure };
        flood.push(d::response(SOURCE_ID, Some(pasid(number)), group, code));
        flood.push(d::response(SOURCE_ID, None, group, code));
        flood.push(d::response(SourceId(number as u16), Some(pasid(5)), 7, code));
    }
    // All but the one that is meant, whatever its source-id.
    flood.retain(|at| {
        !matches!(at, Descriptor::PageGroupResponse(at)
        if (at.rid, at.pasid, at.prgi) == (SOURCE_ID, Some(pasid(5)), 7))
    });
    for batch in flood.chunks(100) {
        rig.guest.submit_all(batch);
    }
    assert_eq!(answer_count(&rig.sink), 0);
    rig.guest
        .submit_all(&[answer(&taken[0], ResponseCode::Success), answer(&taken[0], ResponseCode::Success)]);
    rig.eventually("the answer", || answer_count(&rig.sink) == 1);
}
