// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Guests that write what they like into their PASID tables and say what they like to their unit, hosts that refuse, and
//! resets at any time. The host has what the guest's entries say or what they said before, never anything else; other
//! devices go on; the work of one descriptor is bounded.

mod rig;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use patience::{Raise, eventually};
use rig::common::descriptors as d;
use rig::common::{Guest, PASID_DIRECTORY, SOURCE_ID, WAIT_STATUS, entry, pasid};
use rig::{Device, Rig};
use vm_memory::{Bytes, GuestAddress};
use vsva::{Attachment, Event, SoftHostConfig, Tracer};
use vtd_spec::descriptors::{IotlbGranularity, PasidCacheGranularity};
use vtd_spec::{
    AddressRange, Descriptor, DomainId, FaultReason, FaultRequestType, Pasid, PasidDirectoryEntry,
    PasidEntry, PasidGranularTranslationType, ResponseCode, SourceId,
};
use vtd_unit::{Endpoint, FirstStageTable, PageRequest, Requester, UnitConfig};

const ADDRESS: u64 = 0x7f00_0000_0000;

fn global() -> Descriptor {
    d::pasid_cache(PasidCacheGranularity::Global, DomainId(0), Pasid::ZERO)
}

/// A device that another guest program uses, and that nothing may disturb.
struct Bystander {
    device: Device,
    page: u64,
}

impl Bystander {
    const PASID: Pasid = Pasid::truncated(0x3_0001);

    fn new(rig: &Rig) -> Self {
        let device = rig.plug(SourceId::new(2, 4, 1));
        rig.bind(Self::PASID);
        let page = rig.guest.page();
        rig.guest.map(Self::PASID, ADDRESS, page, entry::USER);
        device.port.set_ats_enabled(true);
        Self { device, page }
    }

    #[track_caller]
    fn goes_on(&self, rig: &Rig, byte: u8) {
        self.device.port.write(Guest::with_pasid(Self::PASID), ADDRESS, &[byte]).unwrap();
        assert_eq!(rig.guest.memory.read_obj::<u8>(GuestAddress(self.page)).unwrap(), byte);
    }
}

/// Numbers without a pattern, the same ones each time.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

/// What the tables now say, read plainly.
fn tables_say(guest: &Guest) -> BTreeMap<Pasid, Attachment> {
    let mut said = BTreeMap::new();
    guest.unit.bindings(SOURCE_ID, Pasid::ZERO, &|| false, &mut |at, binding| {
        let to = match binding.translation {
            vtd_unit::Translation::PassThrough => Some(Attachment::SecondStage),
            vtd_unit::Translation::FirstStage(table) => Some(Attachment::Nested(table)),
            vtd_unit::Translation::SecondStage => None,
        };
        said.extend(to.map(|to| (at, to)));
        std::ops::ControlFlow::Continue(())
    });
    said
}

#[test]
fn garbage_in_directories_and_tables_binds_nothing_that_is_not_valid() {
    let rig = Rig::new();
    let bystander = Bystander::new(&rig);
    let mut random = Random(0x1234_5678_9abc_def1);
    let tables: Vec<u64> = (0..8).map(|_| rig.guest.page()).collect();
    for round in 0..60u64 {
        for _ in 0..64 {
            let table = tables[random.below(8) as usize];
            let value = match random.below(4) {
                0 => random.next(),
                1 => 1 << random.below(64),
                2 => tables[random.below(8) as usize] | random.below(256),
                _ => 0x41 | random.below(8) << 6,
            };
            rig.guest.store(table + random.below(512) * 8, value);
        }
        // The bystander's part of the directory is its own.
        let at = PASID_DIRECTORY + random.below(0x800) * 8;
        let directory = match random.below(4) {
            0 => random.next(),
            _ => tables[random.below(8) as usize] | 1,
        };
        rig.guest.store(at, directory);
        let number = pasid(random.below(1 << 17) as u32);
        rig.guest.submit_all(&[
            global(),
            d::pasid_cache_entry(DomainId(random.next() as u16), number),
            d::pasid_cache(PasidCacheGranularity::Domain, DomainId(random.next() as u16), Pasid::ZERO),
        ]);
        // All that is bound is in the tables and valid; what the host refused is not bound.
        let said = tables_say(&rig.guest);
        for (at, _, to) in rig.assigned.bound() {
            assert_eq!(said.get(&at), Some(&to), "round {round}");
            let _ = rig.port.write(Guest::with_pasid(at), random.next() >> 16, &[1; 64]);
            let _ = rig.port.read(Guest::with_pasid(at), random.below(1 << 26), &mut [0; 64]);
        }
        bystander.goes_on(&rig, round as u8);
        rig.guest.take_faults();
    }
}

#[test]
fn aliased_leaf_tables_cost_no_more_than_the_quota_and_hold_up_nobody_else() {
    let host = SoftHostConfig { pasid_quota: 500, ..SoftHostConfig::default() };
    let rig = Rig::with(&UnitConfig::default(), &host);
    let bystander = Bystander::new(&rig);
    // One table of 64 valid entries behind each of the 16384 directory entries: a million PASIDs in 132 KiB.
    let table = rig.guest.page();
    for index in 0..64 {
        let entry = Guest::first_stage(DomainId(1), 0x100_0000).to_qwords();
        for (word, qword) in entry.into_iter().enumerate() {
            rig.guest.store(table + index * 64 + word as u64 * 8, qword);
        }
    }
    let bits = PasidDirectoryEntry::new().with_p(true).with_smptblptr(table).into_bits();
    let kept = PASID_DIRECTORY + u64::from(Bystander::PASID.get() >> 6) * 8;
    for at in (PASID_DIRECTORY..).step_by(8).take(1 << 14).filter(|at| *at != kept) {
        rig.guest.store(at, bits);
    }
    let traffic = AtomicU64::new(0);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _stop = Raise(&stop);
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                bystander.goes_on(&rig, traffic.fetch_add(1, Ordering::Relaxed) as u8);
                std::thread::yield_now();
            }
        });
        // Two readings of two million entries.
        rig.guest.submit_all(&[global(), global()]);
        eventually("traffic", || traffic.load(Ordering::Relaxed) > 10);
    });
    assert!(rig.host.allocated_pasids() <= 500);
    // One of them, and the rest, and it is over.
    rig.guest.store(table, 0);
    for at in (PASID_DIRECTORY..).step_by(8).take(1 << 14).filter(|at| *at != kept) {
        rig.guest.store(at, 0);
    }
    rig.guest.submit(&global());
    assert_eq!(rig.host.allocated_pasids(), 1);
    bystander.goes_on(&rig, 0x77);
}

/// Counts what is bound, and holds the tenth binding up until it is told to go on.
#[derive(Default)]
struct Gate {
    bound: AtomicU64,
    open: AtomicBool,
}

impl Tracer for Gate {
    fn event(&self, _: SourceId, event: &Event) {
        if matches!(event, Event::Bind { guest: Some(_), .. })
            && self.bound.fetch_add(1, Ordering::SeqCst) == 9
        {
            eventually("the gate", || self.open.load(Ordering::SeqCst));
        }
    }
}

#[test]
fn disabling_the_queue_ends_the_reading_of_tables_within_one_of_them_for_all_functions() {
    let gate = Arc::new(Gate::default());
    let host = SoftHostConfig { pasid_quota: 4000, ..SoftHostConfig::default() };
    let tracer = Some(Arc::clone(&gate) as Arc<dyn Tracer>);
    let rig = Rig::joined(&UnitConfig::default(), &host, tracer, |host| host);
    // Each of them would read the same tables.
    let others = [1, 2, 3].map(|function| rig.plug(SourceId::new(2, 4, function)));
    for number in 0..640 {
        rig.guest.write_pasid_entry(pasid(64 + number), Guest::first_stage(DomainId(1), 0x100_0000));
    }
    for descriptor in [global(), d::wait(WAIT_STATUS, 1)] {
        rig.guest.queue(&descriptor);
    }
    rig.guest.ring();
    eventually("the tenth", || gate.bound.load(Ordering::SeqCst) == 10);
    let enabled = rig.guest.read32(vtd_spec::offset::GSTS) & 0x96ff_ffff;
    rig.guest.write32(vtd_spec::offset::GCMD, enabled & !(1 << 26));
    gate.open.store(true, Ordering::SeqCst);
    eventually("disabled", || rig.guest.read32(vtd_spec::offset::GSTS) & 1 << 26 == 0);
    assert_eq!(gate.bound.load(Ordering::SeqCst), 64);
    // Nothing is forgotten, either.
    rig.guest.restart_queue();
    rig.guest.submit(&global());
    let bound = [&rig.assigned].into_iter().chain(others.iter().map(|device| &device.assigned));
    assert_eq!(bound.map(|assigned| assigned.bound_count()).collect::<Vec<_>>(), [640; 4]);
}

/// One DMA by a PASID that the host has nothing for, and the reason that the guest reads of it.
fn fault_of(rig: &Rig, number: Pasid) -> FaultReason {
    rig.guest.take_faults();
    assert!(rig.port.write(Guest::with_pasid(number), ADDRESS, &[1]).is_err());
    rig.eventually("a record", || rig.guest.read32(vtd_spec::offset::FSTS) & 2 != 0);
    let faults = rig.guest.take_faults();
    assert_eq!((faults.len(), faults[0].sid(), faults[0].pv()), (1, SOURCE_ID, number));
    assert_eq!((faults[0].fi(), faults[0].request_type()), (ADDRESS, FaultRequestType::Write));
    *FaultReason::ALL.iter().find(|reason| reason.code() == faults[0].fr()).unwrap()
}

#[test]
fn pasids_out_of_range_and_reserved_bits_bind_nothing_and_are_the_specifications_faults() {
    use FaultReason as R;
    for identical_pasids in [false, true] {
        // 10 PASID bits: what lies behind them in the directory is nobody's.
        let host = SoftHostConfig { identical_pasids, ..SoftHostConfig::default() };
        let rig = Rig::with(&UnitConfig { pss: 9, ..UnitConfig::default() }, &host);
        for number in [0x400, 0x401, 0xf_ffff] {
            rig.guest.write_pasid_entry(pasid(number), Guest::first_stage(DomainId(1), 0x100_0000));
            rig.guest.submit_all(&[d::pasid_cache_entry(DomainId(1), pasid(number)), global()]);
            assert_eq!(fault_of(&rig, pasid(number)), R::Sgn10);
        }
        assert_eq!(rig.assigned.bound_count(), 0);
        let valid = Guest::first_stage(DomainId(1), 0x100_0000);
        let with_bit = |word: usize, bit: u32| {
            let mut qwords = valid.to_qwords();
            qwords[word] |= 1 << bit;
            PasidEntry::from_qwords(qwords)
        };
        for (entry, reason, why) in [
            (valid.with_p(false), R::Spt2, "not present"),
            (valid.with_pgtt_bits(0), R::Spt4_1, "type 0"),
            (valid.with_pgtt_bits(6), R::Spt4_1, "type 6"),
            (valid.with_pgtt(PasidGranularTranslationType::SecondStage), R::Spt4_1, "a stage that it lacks"),
            (valid.with_pgtt(PasidGranularTranslationType::Nested), R::Spt4_1, "stages that it lacks"),
            (valid.with_sre(true), R::Spt3, "supervisor requests, which it lacks"),
            (valid.with_eafe(true), R::Spt3, "the extended-accessed flag, which it lacks"),
            (valid.with_fspm(2), R::Spt4_1, "a paging mode that does not exist"),
            (valid.with_fsptptr(1 << 50), R::Spt3, "an address beyond the host address width"),
            (with_bit(0, 10), R::Spt3, "a reserved bit"),
            (with_bit(1, 63), R::Spt3, "a reserved bit"),
            (with_bit(6, 0), R::Spt3, "a reserved bit"),
        ] {
            rig.guest.write_pasid_entry(pasid(5), entry);
            rig.guest.submit(&global());
            assert_eq!(rig.assigned.bound_count(), 0, "{why}");
            assert_eq!(fault_of(&rig, pasid(5)).code(), reason.code(), "{why}");
        }
        // And what lies before the entry: the directory, and the context.
        let directory = PASID_DIRECTORY + 8 * (0x3c0 >> 6);
        for (bits, reason) in [(0, R::Spd2), (0x101 << 4 | 1, R::Spd3), (1 << 40 | 1, R::Spt1)] {
            rig.guest.store(directory, bits);
            rig.guest.submit(&global());
            assert_eq!(fault_of(&rig, pasid(0x3c5)), reason, "{bits:#x}");
        }
        let context = Guest::context();
        for (entry, reason) in [
            (context.with_paside(false), R::Sct6),
            (context.with_present(false), R::Sct2),
            (context.with_pasid_dir_ptr(1 << 40), R::Spd1),
        ] {
            rig.guest.write_context(SOURCE_ID, entry);
            rig.guest.submit(&d::context_device(SOURCE_ID));
            assert_eq!(fault_of(&rig, pasid(5)), reason);
        }
        // A directory that is smaller than what PASIDs could be.
        let rig = Rig::with(&UnitConfig::default(), &host);
        rig.guest.write_context(SOURCE_ID, context.with_pdts(0));
        rig.guest.write_pasid_entry(pasid(1 << 13), valid);
        rig.guest.submit(&d::context_device(SOURCE_ID));
        assert_eq!(fault_of(&rig, pasid(1 << 13)), R::Sct7);
        // RID_PASID is not for requests with PASID.
        rig.guest.write_pasid_entry(Pasid::ZERO, valid);
        rig.guest.submit(&global());
        assert_eq!(fault_of(&rig, Pasid::ZERO), R::Sct9);
    }
}

#[test]
fn an_entry_that_is_rewritten_while_it_is_read_is_one_of_its_versions() {
    let (rig, ledger) = Rig::with_ledger(&UnitConfig::default(), &SoftHostConfig::default());
    let (guest, device) = (&rig.guest, rig.device);
    let number = pasid(7);
    // Addresses that go with a number of levels, and one that goes with a reserved value of it.
    let version = |index: u64| {
        let address = 0x100_0000 + index * 0x1000;
        Guest::first_stage(DomainId(1), address).with_fspm((index % 2) as u8)
    };
    let wrong = Guest::first_stage(DomainId(1), 0x200_0000).with_fspm(3).to_qwords()[2];
    guest.write_pasid_entry(number, version(0));
    let at = guest.pasid_entry_address(number);
    let stop = AtomicBool::new(false);
    let seen = std::thread::scope(|scope| {
        let _stop = Raise(&stop);
        // Meanwhile the device uses whatever is there.
        scope.spawn(|| traffic(&rig.port, &stop));
        scope.spawn(|| {
            let mut index = 0;
            while !stop.load(Ordering::Relaxed) {
                index += 1;
                guest.store(at + 16, if index % 3 == 0 { wrong } else { version(index % 16).to_qwords()[2] });
                if index % 5 == 0 {
                    // Present or not, and the domain.
                    guest.store(at, version(0).to_qwords()[0] & !(index / 5 % 2));
                }
            }
        });
        let mut seen = BTreeSet::new();
        for round in 0..400 {
            let announcement = match round % 3 {
                0 => global(),
                1 => d::pasid_cache(PasidCacheGranularity::Domain, DomainId(1), Pasid::ZERO),
                _ => d::pasid_cache_entry(DomainId(1), number),
            };
            guest.submit(&announcement);
            seen.extend(ledger.take_history().into_iter().filter_map(|to| match to {
                Attachment::Nested(table) => Some((table.address, table.levels)),
                Attachment::SecondStage => None,
            }));
            let bound: BTreeMap<_, _> =
                rig.assigned.bound().into_iter().map(|(at, _, to)| (at, to)).collect();
            assert_eq!(ledger.reached(device), bound, "shadow and host");
            // What the host's own entry says is the same.
            for (_, host, to) in rig.assigned.bound() {
                let Attachment::Nested(table) = to else { panic!("{to:?}") };
                let entry = rig.host.entry(device, host).unwrap();
                assert_eq!((entry.fsptptr(), entry.fspm() + 4), (table.address, table.levels));
            }
        }
        seen
    });
    assert!(seen.len() > 2, "versions were seen: {seen:x?}");
    for (address, levels) in seen {
        let index = (address - 0x100_0000) / 0x1000;
        assert!(index < 16 && u64::from(levels) == 4 + index % 2, "{address:#x} with {levels} levels");
    }
    // At rest, the last version is what is attached.
    guest.write_pasid_entry(number, version(9));
    guest.submit(&global());
    let table = FirstStageTable { address: 0x100_9000, levels: 5, sre: false, eafe: false, wpe: false };
    assert_eq!(ledger.reached(device), BTreeMap::from([(number, Attachment::Nested(table))]));
}

#[test]
fn floods_of_invalidations_and_responses_hold_up_nobody_else() {
    let rig = Rig::new();
    let bystander = Bystander::new(&rig);
    for number in 1..=200 {
        rig.bind(pasid(number));
    }
    let mut random = Random(0xfeed_beef_0bad_cafe);
    for round in 0..40 {
        let batch: Vec<Descriptor> = (0..120)
            .map(|_| {
                let (number, did) =
                    (pasid(random.next() as u32 & 0xf_ffff), DomainId(random.next() as u16 & 3));
                let bound = pasid(random.below(256) as u32);
                let range = AddressRange::new(random.next(), random.below(53) as u8);
                let sid = SourceId(random.next() as u16);
                let code =
                    [ResponseCode::Success, ResponseCode::InvalidRequest, ResponseCode::ResponseFailure];
                let code = code[random.below(3) as usize];
                let prgi = random.below(512) as u16;
                match random.below(9) {
                    0 => d::pasid_cache_entry(did, bound),
                    1 => d::pasid_iotlb(did, bound),
                    2 => d::pasid_iotlb_pages(
                        DomainId(1),
                        bound,
                        AddressRange::new(range.base(), range.order() % 19),
                    ),
                    3 => d::pasid_device_tlb(SOURCE_ID, bound, range),
                    4 => d::global_device_tlb(SOURCE_ID, range),
                    5 => d::device_tlb(SOURCE_ID, range),
                    6 => d::response(SOURCE_ID, Some(bound), prgi, code),
                    7 => d::response(sid, Some(number).filter(|_| prgi & 1 == 0), prgi, code),
                    _ => d::iotlb(IotlbGranularity::Domain, did, AddressRange::ALL),
                }
            })
            .collect();
        rig.guest.submit_all(&batch);
        bystander.goes_on(&rig, round);
    }
    assert!(rig.sink.responses.lock().unwrap().is_empty(), "answers to no request");
    assert_eq!(rig.assigned.bound_count(), 201, "and the bystander's, whose directory is the same");
}

#[test]
fn a_host_that_refuses_now_and_then_and_the_shadow_agree() {
    for identical in [false, true] {
        let host = SoftHostConfig { identical_pasids: identical, ..SoftHostConfig::default() };
        let (rig, ledger) = Rig::with_ledger(&UnitConfig::default(), &host);
        let other = rig.plug(SourceId::new(0, 9, 0));
        let tables: Vec<u64> = (0..4).map(|_| rig.guest.page()).collect();
        let mut random = Random(77);
        for round in 0..300u64 {
            ledger.refuse(3, 1000 + round);
            for _ in 0..4 {
                let number = pasid(1 + random.below(40) as u32);
                let entry = match random.below(6) {
                    0 => PasidEntry::new(),
                    1 => Guest::first_stage(DomainId(1), 0)
                        .with_pgtt(PasidGranularTranslationType::PassThrough),
                    _ => Guest::first_stage(DomainId(1), tables[random.below(4) as usize]),
                };
                rig.guest.write_pasid_entry(if random.below(20) == 0 { Pasid::ZERO } else { number }, entry);
            }
            let number = pasid(1 + random.below(40) as u32);
            rig.guest.submit_all(&[
                if round % 4 == 0 { d::pasid_cache_entry(DomainId(1), number) } else { global() },
                d::pasid_iotlb(DomainId(1), number),
                d::iotlb(IotlbGranularity::Domain, DomainId(1), AddressRange::ALL),
            ]);
            for (assigned, id) in [(&rig.assigned, rig.device), (&other.assigned, other.id)] {
                let by_guest: BTreeMap<_, _> =
                    assigned.bound().into_iter().map(|(at, _, to)| (at, to)).collect();
                let by_host: BTreeMap<_, _> =
                    assigned.bound().into_iter().map(|(_, at, to)| (at, to)).collect();
                assert_eq!(ledger.reached(id), by_guest, "round {round}");
                assert_eq!(ledger.attached(id), by_host, "round {round}");
            }
            assert_eq!(rig.host.allocated_pasids() as usize, ledger.allocated());
        }
        assert!(ledger.take_counts().refused > 100, "it did refuse");
        // Once it does not any more, all is as the guest says.
        ledger.refuse(0, 0);
        rig.guest.submit(&global());
        let said = tables_say(&rig.guest);
        assert!(said.len() > 10);
        assert_eq!(ledger.reached(rig.device), said);
        assert_eq!(ledger.reached(other.id), said);
        let Rig { joint, host, .. } = rig;
        drop(joint);
        assert!(ledger.is_empty());
        assert_eq!(host.allocated_pasids(), 0);
    }
}

/// DMA and page requests of a device until told to stop.
fn traffic(port: &Endpoint<vsva::HostMemory>, stop: &AtomicBool) {
    let mut random = Random(99);
    while !stop.load(Ordering::Relaxed) {
        let number = pasid(random.below(8) as u32);
        let requester = Requester { pasid: Some(number).filter(|at| *at != Pasid::ZERO), privileged: false };
        let address = ADDRESS + random.below(4) * 4096;
        let _ = port.write(requester, address, &[1; 8]);
        let group = random.below(512) as u16;
        port.page_request(PageRequest { requester, address, read: true, write: true, last: true, group });
        std::thread::yield_now();
    }
}

#[test]
fn resets_of_the_machine_at_any_time_leave_nothing_behind() {
    let (rig, ledger) = Rig::with_ledger(&UnitConfig::default(), &SoftHostConfig::default());
    rig.port.set_ats_enabled(true);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _stop = Raise(&stop);
        scope.spawn(|| traffic(&rig.port, &stop));
        for round in 0..60 {
            for number in 0..8 {
                rig.guest.bind(pasid(number));
                rig.guest.map(pasid(number), ADDRESS, rig.guest.page(), entry::USER);
            }
            // Some of it before the reset, some during it.
            let announcements = vec![global(); 1 + round % 7];
            announcements.iter().for_each(|announcement| rig.guest.queue(announcement));
            rig.guest.ring();
            (0..round % 5).for_each(|_| std::thread::yield_now());
            rig.guest.unit.reset();
            assert!(ledger.reached(rig.device).is_empty(), "nothing of the guest that ran");
            assert_eq!(rig.host.allocated_pasids(), 0);
            assert_eq!(ledger.without_pasid(rig.device), Some(Attachment::SecondStage), "as after power-up");
            boot(&rig.guest);
        }
    });
    rig.guest.submit(&global());
    assert_eq!(rig.assigned.bound_count(), 7);
}

/// What a kernel does first, for the second time.
fn boot(guest: &Guest) {
    guest.restart_queue();
    guest.write64(vtd_spec::offset::PQA, rig::common::PAGE_REQUEST_QUEUE);
    guest.write64(vtd_spec::offset::RTADDR, rig::common::ROOT_TABLE | 0x400);
    guest.command(1 << 30);
    guest.command(1 << 31);
}

#[test]
fn a_reset_of_a_device_binds_its_pasids_afresh() {
    let rig = Rig::new();
    let other = rig.plug(SourceId::new(0, 9, 0));
    rig.bind(pasid(5));
    let page = rig.guest.page();
    rig.guest.map(pasid(5), ADDRESS, page, entry::USER);
    let request = |group| PageRequest {
        requester: Guest::with_pasid(pasid(5)),
        address: ADDRESS,
        read: true,
        write: false,
        last: true,
        group,
    };
    rig.port.page_request(request(1));
    other.port.page_request(request(2));
    rig.eventually("both requests", || rig.guest.read64(vtd_spec::offset::PQT) == 64);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _stop = Raise(&stop);
        // Meanwhile the other device goes on without a single refusal.
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                other.port.write(Guest::with_pasid(pasid(5)), ADDRESS, &[2]).unwrap();
                std::thread::yield_now();
            }
        });
        for _ in 0..100 {
            rig.assigned.reset();
            rig.port.write(Guest::with_pasid(pasid(5)), ADDRESS + 1, &[3]).unwrap();
        }
    });
    assert_eq!(rig.sink.responses.lock().unwrap().len(), 1, "its request was answered");
    assert_eq!(other.sink.responses.lock().unwrap().len(), 0, "the other's waits for the guest");
    assert_eq!(rig.host.allocated_pasids(), 1);
}

#[test]
fn a_machine_that_goes_while_its_guest_rages_leaves_nothing_behind() {
    for round in 0..20 {
        let (rig, ledger) = Rig::with_ledger(&UnitConfig::default(), &SoftHostConfig::default());
        (1..32).for_each(|number| rig.guest.bind(pasid(number)));
        let Rig { guest, host, joint, port, .. } = rig;
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let _stop = Raise(&stop);
            scope.spawn(|| traffic(&port, &stop));
            for number in 1..32u32 {
                guest.queue(&d::pasid_cache_entry(DomainId(1), pasid(number)));
                guest.queue(&global());
                guest.ring();
                if number == round + 1 {
                    break;
                }
            }
            drop(joint);
            assert!(ledger.is_empty(), "round {round}");
        });
        assert_eq!(host.allocated_pasids(), 0);
        assert!(port.write(Guest::with_pasid(pasid(1)), ADDRESS, &[1]).is_err());
    }
}

#[test]
fn what_a_guest_reads_of_a_refusal_is_the_fault_of_its_entry() {
    // A host with fewer physical address bits than its guest believes to have.
    let mut soft = SoftHostConfig::default();
    soft.unit.haw = 46;
    let rig = Rig::with(&UnitConfig::default(), &soft);
    rig.guest.write_pasid_entry(pasid(5), Guest::first_stage(DomainId(1), 1 << 46));
    rig.guest.submit(&global());
    assert_eq!(rig.assigned.bound_count(), 0);
    let fault = rig.guest.take_fault(0).expect("a record, before any DMA");
    assert_eq!((fault.pv(), fault.sid(), fault.fr()), (pasid(5), SOURCE_ID, FaultReason::Sfs4.code()));
    assert!(rig.port.write(Guest::with_pasid(pasid(5)), ADDRESS, &[1]).is_err());
    assert_eq!(rig.host.allocated_pasids(), 0);
}
