// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Devices that never stop: while they read and write, by PASID and without, with ATS and without, the guest unmaps,
//! rebinds and unbinds, and the host takes memory away. Once a wait or a call has returned, nothing that used the old
//! state may read or write a byte any more, nor set an accessed bit.

mod rig;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use patience::Raise;
use rig::common::descriptors as d;
use rig::common::{Guest, SOURCE_ID, entry, pasid};
use rig::{Device, Rig};
use vm_memory::{Bytes, GuestAddress};
use vsva::SoftHostConfig;
use vtd_spec::{
    AddressRange, Descriptor, DomainId, Pasid, PasidEntry, PasidGranularTranslationType, SourceId,
};
use vtd_unit::{Requester, UnitConfig};

const ADDRESS: u64 = 0x7f12_3450_0000;
const PAGES: u64 = 4;
/// In pages that a device may use: before it has written there, and after.
const GOOD: u8 = 0x11;
const WRITTEN: u8 = 0x22;
/// In pages that no device may reach: whoever reads it has come too late.
const POISON: u8 = 0xee;

/// One stream of requests of one device.
struct Stream<'a> {
    device: &'a Device,
    pasid: Option<Pasid>,
}

/// What streams have done.
#[derive(Default)]
struct Tally {
    done: AtomicU64,
    refused: AtomicU64,
    stale: AtomicU64,
    stop: AtomicBool,
}

impl Tally {
    fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Lets the streams do something: `count` more requests that came to an end, whatever end.
    fn let_run(&self, count: u64) {
        let until = self.done() + self.refused() + count;
        while self.done() + self.refused() < until {
            std::thread::yield_now();
        }
    }
}

impl Stream<'_> {
    fn run(&self, tally: &Tally, seed: u64) {
        let requester = Requester { pasid: self.pasid, privileged: false };
        let mut random = seed;
        while !tally.stop.load(Ordering::Relaxed) {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            // Anywhere, also across two pages.
            let address = ADDRESS + (random >> 33) % (PAGES * 4096 - 16);
            let mut data = [WRITTEN; 16];
            let result = match random >> 60 & 1 {
                0 => self.device.port.read(requester, address, &mut data),
                _ => self.device.port.write(requester, address, &data),
            };
            if data.contains(&POISON) {
                tally.stale.fetch_add(1, Ordering::Relaxed);
            }
            let counter = if result.is_ok() { &tally.done } else { &tally.refused };
            counter.fetch_add(1, Ordering::Relaxed);
            // Where processors are few the guest is to have its turn.
            if random >> 40 & 3 == 0 {
                std::thread::yield_now();
            }
        }
    }
}

/// Runs `guest` while each stream has a thread of its own.
fn while_running(streams: &[Stream<'_>], guest: impl FnOnce(&Tally)) {
    struct Stop<'a>(&'a Tally);
    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.stop.store(true, Ordering::Relaxed);
        }
    }
    let tally = Tally::default();
    std::thread::scope(|scope| {
        for (index, stream) in streams.iter().enumerate() {
            let tally = &tally;
            scope.spawn(move || stream.run(tally, index as u64 * 77 + 5));
        }
        // Also where the guest's side panics.
        let _stop = Stop(&tally);
        guest(&tally);
    });
    assert_eq!(tally.stale.load(Ordering::Relaxed), 0, "reads of what is no longer mapped");
    assert!(tally.done() > 0 && tally.refused() > 0, "the streams met both states: {}", tally.done());
}

fn fill(rig: &Rig, page: u64, byte: u8) {
    rig.guest.memory.write_slice(&[byte; 4096], GuestAddress(page)).unwrap();
}

#[track_caller]
fn assert_poisoned(rig: &Rig, page: u64) {
    let mut bytes = [0; 4096];
    rig.guest.memory.read_slice(&mut bytes, GuestAddress(page)).unwrap();
    assert_eq!(bytes.iter().position(|byte| *byte != POISON), None, "a write to {page:#x} came too late");
}

/// What Linux sends for a range of a PASID's table, to every device.
fn flush(pasid: Pasid, devices: &[SourceId], range: AddressRange) -> Vec<Descriptor> {
    let did = DomainId(1);
    let mut descriptors = vec![match range {
        AddressRange::ALL => d::pasid_iotlb(did, pasid),
        range => d::pasid_iotlb_pages(did, pasid, range),
    }];
    descriptors.extend(devices.iter().map(|sid| match pasid {
        Pasid::ZERO => d::device_tlb(*sid, range),
        pasid => d::pasid_device_tlb(*sid, pasid, range),
    }));
    descriptors
}

/// What Linux sends when an entry has changed or gone.
fn announce(pasid: Pasid, devices: &[SourceId]) -> Vec<Descriptor> {
    let mut descriptors = vec![d::pasid_cache_entry(DomainId(1), pasid)];
    descriptors.extend(flush(pasid, devices, AddressRange::ALL));
    descriptors
}

/// Two devices, one with ATS, and a table with pages for each PASID; PASID 0 stands for requests without.
struct Scene {
    rig: Rig,
    devices: Vec<Device>,
}

const PASIDS: [Pasid; 3] = [Pasid::ZERO, Pasid::truncated(5), Pasid::truncated(0x1_2345)];

impl Scene {
    fn new(identical_pasids: bool) -> Self {
        let host = SoftHostConfig { identical_pasids, ..SoftHostConfig::default() };
        let rig = Rig::with(&UnitConfig::default(), &host);
        let devices = vec![rig.first(), rig.plug(SourceId::new(0, 4, 0))];
        devices[0].port.set_ats_enabled(true);
        Self { rig, devices }
    }

    fn sources(&self) -> Vec<SourceId> {
        self.devices.iter().map(|device| device.source_id).collect()
    }

    /// Every device by every PASID, and without.
    fn streams(&self) -> Vec<Stream<'_>> {
        let of = |device| {
            PASIDS.map(|pasid| Stream { device, pasid: Some(pasid).filter(|pasid| *pasid != Pasid::ZERO) })
        };
        self.devices.iter().flat_map(of).collect()
    }

    /// A new table with good pages, bound to `pasid` but not announced: its entry and its pages.
    fn table(&self, pasid: Pasid) -> (PasidEntry, Vec<u64>) {
        let guest = &self.rig.guest;
        guest.bind(pasid);
        let pages: Vec<u64> = (0..PAGES).map(|_| guest.page()).collect();
        let mut top = 0;
        for (index, page) in pages.iter().enumerate() {
            fill(&self.rig, *page, GOOD);
            let address = ADDRESS + index as u64 * 4096;
            guest.map(pasid, address, *page, entry::USER);
            top = guest.walk_addresses(pasid, address)[0] & !0xfff;
        }
        (Guest::first_stage(DomainId(1), top), pages)
    }
}

#[test]
fn nothing_reaches_a_page_once_the_guest_has_unmapped_it() {
    for identical in [false, true] {
        let scene = Scene::new(identical);
        let (rig, sources) = (&scene.rig, scene.sources());
        let mut pages: Vec<Vec<u64>> = PASIDS.iter().map(|pasid| scene.table(*pasid).1).collect();
        PASIDS.iter().for_each(|pasid| rig.guest.submit_all(&announce(*pasid, &sources)));
        let mut spare = rig.guest.page();
        while_running(&scene.streams(), |tally| {
            for round in 0..2000 {
                let (which, page) = (round % PASIDS.len(), (round / PASIDS.len()) % PAGES as usize);
                let (pasid, address) = (PASIDS[which], ADDRESS + page as u64 * 4096);
                rig.guest.map(pasid, address, 0, 0);
                rig.guest.submit_all(&flush(pasid, &sources, AddressRange::new(address, 0)));
                let old = std::mem::replace(&mut pages[which][page], spare);
                fill(rig, old, POISON);
                // The page before is still poisoned, and this one is for a while.
                tally.let_run(20);
                fill(rig, spare, GOOD);
                rig.guest.map(pasid, address, spare, entry::USER);
                tally.let_run(20);
                assert_poisoned(rig, old);
                spare = old;
            }
        });
    }
}

#[test]
fn nothing_uses_a_table_once_the_guest_has_replaced_it() {
    for identical in [false, true] {
        let scene = Scene::new(identical);
        let (rig, sources) = (&scene.rig, scene.sources());
        // Two tables for each PASID, by turns.
        let mut tables: Vec<[(PasidEntry, Vec<u64>); 2]> =
            PASIDS.iter().map(|pasid| [scene.table(*pasid), scene.table(*pasid)]).collect();
        for ([(_, pages), _], pasid) in tables.iter().zip(PASIDS) {
            rig.guest.submit_all(&announce(pasid, &sources));
            pages.iter().for_each(|page| fill(rig, *page, POISON));
        }
        while_running(&scene.streams(), |tally| {
            for round in 0..1000 {
                let which = round % PASIDS.len();
                let [idle, active] = &mut tables[which];
                idle.1.iter().for_each(|page| assert_poisoned(rig, *page));
                idle.1.iter().for_each(|page| fill(rig, *page, GOOD));
                // In place, as a guest's kernel does that changes one quadword.
                let at = rig.guest.pasid_entry_address(PASIDS[which]) + 16;
                rig.guest.store(at, idle.0.to_qwords()[2]);
                rig.guest.submit_all(&announce(PASIDS[which], &sources));
                active.1.iter().for_each(|page| fill(rig, *page, POISON));
                tables[which].swap(0, 1);
                tally.let_run(40);
            }
            // The streams are to meet a refusal as well.
            rig.guest.write_pasid_entry(PASIDS[1], PasidEntry::new());
            rig.guest.submit_all(&announce(PASIDS[1], &sources));
            let before = tally.refused();
            while tally.refused() == before {
                std::thread::yield_now();
            }
        });
    }
}

#[test]
fn nothing_uses_a_table_once_the_guest_has_unbound_it() {
    for identical in [false, true] {
        let scene = Scene::new(identical);
        let (rig, sources) = (&scene.rig, scene.sources());
        let tables: Vec<(PasidEntry, Vec<u64>)> = PASIDS.iter().map(|pasid| scene.table(*pasid)).collect();
        PASIDS.iter().for_each(|pasid| rig.guest.submit_all(&announce(*pasid, &sources)));
        while_running(&scene.streams(), |tally| {
            for round in 0..600 {
                let which = round % PASIDS.len();
                let (entry, pages) = &tables[which];
                rig.guest.write_pasid_entry(PASIDS[which], PasidEntry::new());
                rig.guest.submit_all(&announce(PASIDS[which], &sources));
                pages.iter().for_each(|page| fill(rig, *page, POISON));
                tally.let_run(40);
                pages.iter().for_each(|page| assert_poisoned(rig, *page));
                pages.iter().for_each(|page| fill(rig, *page, GOOD));
                rig.guest.write_pasid_entry(PASIDS[which], *entry);
                rig.guest.submit_all(&announce(PASIDS[which], &sources));
                tally.let_run(20);
            }
        });
        drop(scene.rig.joint);
        assert_eq!(scene.rig.host.allocated_pasids(), 0);
    }
}

#[test]
fn nothing_reaches_memory_once_the_host_has_taken_it_away() {
    for identical in [false, true] {
        let scene = Scene::new(identical);
        let (rig, sources) = (&scene.rig, scene.sources());
        // The data of each PASID in one piece that the host takes, and the last level of its tables with them.
        let chunks: Vec<(u64, u64, Vec<u64>)> = PASIDS
            .iter()
            .map(|pasid| {
                let chunk = rig.guest.pages(512, 512);
                rig.guest.bind(*pasid);
                let pages: Vec<u64> = (1..=PAGES).map(|page| chunk + page * 4096).collect();
                for (address, page) in (ADDRESS..).step_by(4096).zip(&pages) {
                    fill(rig, *page, GOOD);
                    rig.guest.map(*pasid, address, *page, entry::USER);
                }
                let walk = rig.guest.walk_addresses(*pasid, ADDRESS);
                let mut leaves = [0; 4096];
                rig.guest.memory.read_slice(&mut leaves, GuestAddress(walk[3] & !0xfff)).unwrap();
                rig.guest.memory.write_slice(&leaves, GuestAddress(chunk)).unwrap();
                rig.guest.store(walk[2], chunk | entry::USER);
                rig.guest.submit_all(&announce(*pasid, &sources));
                (chunk, chunk + (walk[3] & 0xfff), pages)
            })
            .collect();
        while_running(&scene.streams(), |tally| {
            for round in 0..500 {
                let (chunk, leaf, pages) = &chunks[round % PASIDS.len()];
                rig.host.set_mapped(*chunk, 512 * 4096, false).unwrap();
                pages.iter().for_each(|page| fill(rig, *page, POISON));
                let marks = entry::A | entry::D;
                for page in 0..PAGES {
                    rig.guest.store(leaf + page * 8, rig.guest.load(leaf + page * 8) & !marks);
                }
                tally.let_run(40);
                pages.iter().for_each(|page| assert_poisoned(rig, *page));
                for page in 0..PAGES {
                    assert_eq!(rig.guest.load(leaf + page * 8) & marks, 0, "a walk came too late");
                }
                pages.iter().for_each(|page| fill(rig, *page, GOOD));
                rig.host.set_mapped(*chunk, 512 * 4096, true).unwrap();
                tally.let_run(20);
            }
        });
        // What the host gave back is in use again.
        let mut data = [0];
        scene.devices[0].port.read(Guest::with_pasid(pasid(5)), ADDRESS, &mut data).unwrap();
        assert!([GOOD, WRITTEN].contains(&data[0]));
        assert_eq!(scene.devices[0].source_id, SOURCE_ID);
    }
}

#[test]
fn an_entry_changes_between_pass_through_and_a_table_without_a_moment_of_neither() {
    for (number, first) in [(Pasid::ZERO, 0), (pasid(5), 0), (pasid(5), 1)] {
        let rig = Rig::new();
        let requester = Requester { pasid: Some(number).filter(|at| *at != Pasid::ZERO), privileged: false };
        // The table maps the first of two pages to where pass-through has it.
        let page = rig.guest.pages(2, 1);
        rig.guest.bind(number);
        rig.guest.map(number, page, page, entry::USER);
        let top = rig.guest.walk_addresses(number, page)[0] & !0xfff;
        let table = Guest::first_stage(DomainId(1), top);
        let through = Guest::first_stage(DomainId(1), 0).with_pgtt(PasidGranularTranslationType::PassThrough);
        rig.guest.write_pasid_entry(number, if first == 0 { table } else { through });
        rig.guest.submit_all(&announce(number, &[SOURCE_ID]));
        let (done, stop) = (AtomicU64::new(0), AtomicBool::new(false));
        std::thread::scope(|scope| {
            let _stop = Raise(&stop);
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let written = rig.port.write(requester, page, &[1]);
                    if written.is_err() {
                        stop.store(true, Ordering::Relaxed);
                        panic!("refused after {} writes", done.load(Ordering::Relaxed));
                    }
                    done.fetch_add(1, Ordering::Relaxed);
                }
            });
            for round in 0..300 {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                rig.guest.write_pasid_entry(number, if round % 2 == 0 { through } else { table });
                rig.guest.submit_all(&announce(number, &[SOURCE_ID]));
                // What only pass-through reaches tells them apart.
                let elsewhere = rig.port.write(requester, page + 4096, &[1]);
                assert_eq!(elsewhere.is_ok(), round % 2 == 0, "round {round}");
            }
        });
        rig.guest.write_pasid_entry(number, PasidEntry::new());
        rig.guest.submit_all(&announce(number, &[SOURCE_ID]));
        assert!(rig.port.write(requester, page, &[1]).is_err());
        assert_eq!(rig.host.allocated_pasids(), 0);
    }
}
