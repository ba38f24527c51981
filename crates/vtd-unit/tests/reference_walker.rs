// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Random first-stage tables walked twice: by the unit, and by a walker that does nothing but follow the text (section
//! 3.6 of the specification) over a map of entries. Result, fault reason, accessed and dirty bits must agree, with cold
//! caches and with warm ones, for untranslated requests and with ATS.

mod common;

use std::collections::BTreeMap;

use common::descriptors::{iotlb, pasid_cache};
use common::{Guest, MEMORY_BYTES, SOURCE_ID, pasid};
use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};
use vtd_spec::descriptors::{IotlbGranularity, PasidCacheGranularity};
use vtd_spec::{AddressRange, DomainId, FaultReason, Pasid};
use vtd_unit::{Access, DmaError, Requester, UnitConfig};

const PASID: Pasid = Pasid::truncated(0x42);

const P: u64 = 1;
const RW: u64 = 1 << 1;
const US: u64 = 1 << 2;
const A: u64 = 1 << 5;
const D: u64 = 1 << 6;
const PS: u64 = 1 << 7;
const EA: u64 = 1 << 10;

/// A place that no table is in: leaves of every size lead into it, since the input addresses below do.
const TARGET: u64 = 0x220_0000;

mod reference {
    use super::*;

    /// What the unit and the PASID entry say.
    #[derive(Clone, Copy, Debug)]
    pub struct Rules {
        pub levels: u32,
        pub haw: u32,
        pub fs1gp: bool,
        pub wpe: bool,
        pub sre: bool,
        pub eafe: bool,
        pub snooped: bool,
        pub nwfs: bool,
    }

    pub struct Step {
        pub at: u64,
        pub entry: u64,
    }

    /// A walk: the entries it used, and where it led or why it ended.
    pub struct Walk {
        pub steps: Vec<Step>,
        pub end: Result<u64, FaultReason>,
    }

    impl Walk {
        pub fn user(&self) -> bool {
            self.steps.iter().all(|step| step.entry & US != 0)
        }

        pub fn writable(&self) -> bool {
            self.steps.iter().all(|step| step.entry & RW != 0)
        }
    }

    impl Rules {
        pub fn canonical(&self, address: u64) -> bool {
            let top = 12 + 9 * self.levels - 1;
            let high = address >> top;
            high == 0 || high == u64::MAX >> top
        }

        pub fn walk(&self, memory: &BTreeMap<u64, u64>, root: u64, address: u64) -> Walk {
            let mut steps = Vec::new();
            let mut table = root;
            let mut level = self.levels;
            let end = loop {
                let shift = 12 + 9 * (level - 1);
                let at = table + (address >> shift & 0x1ff) * 8;
                if at >= MEMORY_BYTES {
                    break Err(if level == self.levels { FaultReason::Sfs4 } else { FaultReason::Sfs1 });
                }
                let entry = memory.get(&at).copied().unwrap_or(0);
                if entry & P == 0 {
                    break Err(FaultReason::Sfs2);
                }
                let leaf = level == 1 || (level <= 3 && entry & PS != 0);
                let mut reserved = (1u64 << 52) - (1u64 << self.haw);
                if level >= 4 || (level == 3 && !self.fs1gp) {
                    reserved |= PS;
                }
                if leaf && level > 1 {
                    // Below the page's own address bits; bit 12 is PAT.
                    reserved |= (1u64 << shift) - (1u64 << 13);
                }
                if entry & reserved != 0 {
                    break Err(FaultReason::Sfs3);
                }
                steps.push(Step { at, entry });
                let pointer = entry & 0x000f_ffff_ffff_f000;
                if leaf {
                    let inside = (1u64 << shift) - 1;
                    break Ok(pointer & !inside | address & inside);
                }
                table = pointer;
                level -= 1;
            };
            Walk { steps, end }
        }

        pub fn permits(&self, walk: &Walk, write: bool, privileged: bool) -> Result<(), FaultReason> {
            if !privileged && !walk.user() {
                return Err(FaultReason::Sgn2);
            }
            if write && !walk.writable() && (!privileged || self.wpe) {
                return Err(FaultReason::Sgn6);
            }
            Ok(())
        }

        /// The bits that a walk owes an entry of it.
        pub fn owed(&self, walk: &Walk, index: usize, dirty: bool) -> u64 {
            let leaf = walk.end.is_ok() && index + 1 == walk.steps.len();
            A | if self.eafe { EA } else { 0 } | if leaf && dirty { D } else { 0 }
        }

        pub fn owes(&self, walk: &Walk, dirty: bool) -> bool {
            (0..walk.steps.len()).any(|index| {
                let owed = self.owed(walk, index, dirty);
                walk.steps[index].entry & owed != owed
            })
        }
    }
}

use reference::{Rules, Walk};

#[derive(Clone, Debug)]
struct Entry {
    flags: u64,
    kind: Kind,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    /// The next table, or the page it should be.
    Good,
    /// No memory.
    Hole,
    /// The interrupt range, for a leaf.
    Interrupt,
    /// An address bit above the host address width.
    BeyondHaw(u32),
    /// An address bit below the size of a large page.
    Misaligned(u32),
}

fn flags() -> impl Strategy<Value = u64> {
    let bit = |probability: f64, bit: u64| {
        prop::bool::weighted(probability).prop_map(move |set| if set { bit } else { 0 })
    };
    let ignored = any::<u64>().prop_map(|bits| bits & (0xfff0_0000_0000_0b18));
    (
        bit(0.97, P),
        bit(0.85, RW),
        bit(0.88, US),
        bit(0.6, A),
        bit(0.5, D),
        bit(0.15, PS),
        bit(0.6, EA),
        ignored,
    )
        .prop_map(|(p, rw, us, a, d, ps, ea, ignored)| p | rw | us | a | d | ps | ea | ignored)
}

fn entry() -> impl Strategy<Value = Entry> {
    let kind = prop_oneof![
        40 => Just(Kind::Good),
        1 => Just(Kind::Hole),
        1 => Just(Kind::Interrupt),
        1 => (0u32..16).prop_map(Kind::BeyondHaw),
        1 => (12u32..30).prop_map(Kind::Misaligned),
    ];
    (flags(), kind).prop_map(|(flags, kind)| Entry { flags, kind })
}

#[derive(Clone, Debug)]
struct Request {
    access: Access,
    privileged: bool,
    offset: u64,
    /// Breaks the canonical form.
    flip: Option<u32>,
}

fn request() -> impl Strategy<Value = Request> {
    let access = prop_oneof![Just(Access::Read), Just(Access::Write), Just(Access::Atomic)];
    let flip = prop_oneof![12 => Just(None), 1 => (47u32..64).prop_map(Some)];
    (access, prop::bool::weighted(0.3), 0u64..512, flip)
        .prop_map(|(access, privileged, word, flip)| Request { access, privileged, offset: word * 8, flip })
}

#[derive(Clone, Debug)]
struct Scene {
    five: bool,
    haw: u8,
    fs1gp: bool,
    wpe: bool,
    sre: bool,
    eafe: bool,
    pwsnp: bool,
    nwfs: bool,
    ats: bool,
    with_pasid: bool,
    indices: u64,
    entries: Vec<Entry>,
    requests: Vec<Request>,
}

fn scene() -> impl Strategy<Value = Scene> {
    let switches = (any::<bool>(), any::<bool>(), any::<bool>(), prop::bool::weighted(0.8), any::<bool>());
    let more =
        (prop::bool::weighted(0.85), any::<bool>(), any::<bool>(), prop::bool::weighted(0.8), 36u8..=52);
    let entries = prop::collection::vec(entry(), 5);
    (switches, more, any::<u64>(), entries, prop::collection::vec(request(), 1..8)).prop_map(
        |((five, fs1gp, wpe, sre, eafe), (pwsnp, nwfs, ats, with_pasid, haw), indices, entries, requests)| {
            Scene {
                five,
                haw,
                fs1gp,
                wpe,
                sre,
                eafe,
                pwsnp,
                nwfs,
                ats,
                with_pasid,
                indices,
                entries,
                requests,
            }
        },
    )
}

/// A unit with the scene's tables in its memory, and the map that the reference walks.
struct Stage {
    guest: Guest,
    memory: BTreeMap<u64, u64>,
    root: u64,
    rules: Rules,
    base: u64,
}

impl Stage {
    fn new(scene: &Scene) -> Self {
        let config = UnitConfig {
            haw: scene.haw,
            fs1gp: scene.fs1gp,
            nwfs: scene.nwfs,
            srs: true,
            eafs: true,
            ..UnitConfig::default()
        };
        let guest = Guest::with_config(&config);
        guest.endpoint.set_ats_enabled(scene.ats);
        let levels = if scene.five { 5 } else { 4 };
        // Anything above the lowest 1 GiB, in canonical form; there, the place that all page sizes lead to.
        let unused = 64 - (12 + 9 * levels);
        let base = ((scene.indices << unused) as i64 >> unused) as u64 & !0x3fff_ffff | TARGET;
        let tables: Vec<u64> = (0..levels).map(|_| guest.page()).collect();
        let mut memory = BTreeMap::new();
        for (index, spec) in scene.entries.iter().take(levels as usize).enumerate() {
            let level = levels - index as u32;
            let shift = 12 + 9 * (level - 1);
            let leaf = level == 1 || (level <= 3 && spec.flags & PS != 0);
            let good = if leaf { TARGET & !((1 << shift) - 1) } else { tables[index + 1] };
            let pointer = match spec.kind {
                Kind::Good => good,
                Kind::Hole if leaf => 0x1_0000_0000,
                Kind::Hole => 0x1_0000_0000 + 0x1000 * u64::from(level),
                Kind::Interrupt if leaf => 0xfee0_0000 & !((1 << shift) - 1),
                Kind::Interrupt => good,
                Kind::BeyondHaw(bit) => {
                    good | 1u64.checked_shl(u32::from(scene.haw) + bit).unwrap_or(0) & ((1 << 52) - 1)
                }
                Kind::Misaligned(bit) if leaf && bit < shift => good | 1 << bit,
                Kind::Misaligned(_) => good,
            };
            // PS in the two upper levels is a reserved bit: seldom enough to get past them.
            let rare = level >= 4 && index % 2 == 0 && scene.indices & 7 != 0;
            let flags = if rare { spec.flags & !PS } else { spec.flags };
            let at = tables[index] + (base >> shift & 0x1ff) * 8;
            memory.insert(at, pointer | flags);
            guest.store(at, pointer | flags);
        }
        let entry = Guest::first_stage(DomainId(1), tables[0])
            .with_fspm(u8::from(scene.five))
            .with_wpe(scene.wpe)
            .with_sre(scene.sre)
            .with_eafe(scene.eafe)
            .with_pwsnp(scene.pwsnp);
        guest.write_pasid_entry(if scene.with_pasid { PASID } else { Pasid::ZERO }, entry);
        let rules = Rules {
            levels,
            haw: u32::from(scene.haw),
            fs1gp: scene.fs1gp,
            wpe: scene.wpe,
            sre: scene.sre,
            eafe: scene.eafe,
            snooped: scene.pwsnp,
            nwfs: scene.nwfs,
        };
        Self { guest, memory, root: tables[0], rules, base }
    }
}

/// What a request may come to. More than one only where the text leaves the order of checks open.
#[derive(Clone, Debug, Default)]
struct Expected {
    success: Option<u64>,
    /// Reasons of a recorded fault.
    recorded: Vec<FaultReason>,
    /// A translation request that succeeds without the right.
    page_fault: bool,
    /// Whether bits that are owed must be set, and whether the leaf's dirty bit may be.
    must_update: bool,
    may_dirty: bool,
}

impl Stage {
    fn expected(
        &self,
        walk: &Walk,
        request: &Request,
        address: u64,
        ats: bool,
        privileged: bool,
    ) -> Expected {
        let Rules { sre, snooped, nwfs, .. } = self.rules;
        let mut expected = Expected::default();
        let write = request.access != Access::Read;
        let fail = |reason: FaultReason, expected: &mut Expected| {
            if ats { expected.page_fault = true } else { expected.recorded.push(reason) }
        };
        if privileged && !sre {
            fail(FaultReason::Spt6, &mut expected);
            return expected;
        }
        if !self.rules.canonical(address) {
            fail(FaultReason::Sgn1, &mut expected);
            return expected;
        }
        // A translation request asks for all rights, unless it says that it will not write and the unit listens.
        let asks = if ats { write || !nwfs } else { write };
        let may_write = self.rules.permits(walk, true, privileged).is_ok();
        let dirty = asks && may_write;
        expected.may_dirty = dirty && walk.end.is_ok();
        let output = match walk.end {
            Ok(output) => output,
            Err(reason) => {
                fail(reason, &mut expected);
                // An entry above may already owe a bit that cannot be set.
                if !snooped && self.rules.owes(walk, false) {
                    fail(FaultReason::Sfs9, &mut expected);
                }
                return expected;
            }
        };
        let lacking = self.rules.permits(walk, write, privileged);
        let interrupt = output >> 20 == 0xfee;
        if !snooped && self.rules.owes(walk, dirty) {
            fail(FaultReason::Sfs9, &mut expected);
            if let Err(reason) = lacking {
                fail(reason, &mut expected);
            }
            return expected;
        }
        if let Err(reason) = lacking {
            fail(reason, &mut expected);
            if ats && interrupt {
                expected.recorded.push(FaultReason::Sgn8_2);
            }
            return expected;
        }
        if interrupt {
            expected.recorded.push(if ats { FaultReason::Sgn8_2 } else { FaultReason::Sgn8_1 });
            return expected;
        }
        expected.must_update = true;
        expected.success = Some(output);
        expected
    }

    /// Sends a request and checks everything about it.
    fn check(&mut self, scene: &Scene, request: &Request, counter: u64) -> Result<(), TestCaseError> {
        let address = (self.base + request.offset) ^ request.flip.map_or(0, |bit| 1 << bit);
        let number = if scene.with_pasid { Some(PASID) } else { None };
        let requester = Requester { pasid: number, privileged: request.privileged };
        // Without RPRIVS, requests without PASID are a user's.
        let privileged = request.privileged && scene.with_pasid;
        let walk = self.rules.walk(&self.memory, self.root, address);
        let expected = self.expected(&walk, request, address, scene.ats, privileged);
        let write = request.access != Access::Read;

        let here = expected.success.filter(|output| output + 8 <= MEMORY_BYTES);
        let (old, new) = (0x0123_4567_0000_0000 + counter, 0x89ab_cdef_0000_0000 + counter);
        if let Some(output) = here {
            self.guest.store(output, old);
        }
        let mut data = [0; 8];
        let result = match request.access {
            Access::Read | Access::ZeroLengthRead => self.guest.endpoint.read(requester, address, &mut data),
            Access::Write => self.guest.endpoint.write(requester, address, &new.to_le_bytes()),
            Access::Atomic => self.guest.endpoint.compare_and_swap(requester, address, old, new).map(|_| ()),
        };
        let fault = self.guest.take_fault_reason();
        let codes: Vec<u8> = expected.recorded.iter().map(|reason| reason.code()).collect();
        match (result, fault) {
            (Ok(()), None) => {
                let Some(output) = here else {
                    return Err(TestCaseError::fail(format!("succeeded, expected {expected:?}")));
                };
                let found = self.guest.load(output);
                prop_assert_eq!(found, if write { new } else { old });
                if !write {
                    prop_assert_eq!(u64::from_le_bytes(data), old);
                }
            }
            // Translated, but there is no memory.
            (Err(DmaError::Refused { address: at }), None) => {
                prop_assert_eq!(at, address);
                prop_assert!(
                    expected.success.is_some() && here.is_none(),
                    "refused, expected {:?}",
                    expected
                );
            }
            (Err(DmaError::PageFault { address: at, write: w }), None) => {
                prop_assert_eq!((at, w), (address, write));
                prop_assert!(expected.page_fault, "page fault, expected {:?}", expected);
            }
            (Err(error), Some(code)) => {
                prop_assert!(codes.contains(&code), "{:#x}, expected {:?}", code, expected);
                let refusal = if scene.ats {
                    DmaError::TranslationRefused { address, completer_abort: true }
                } else {
                    DmaError::Refused { address }
                };
                prop_assert_eq!(error, refusal);
            }
            other => return Err(TestCaseError::fail(format!("{other:?}, expected {expected:?}"))),
        }

        // Accessed and dirty bits: what is owed where the walk was good for something, at the most that elsewhere.
        for (at, before) in self.memory.clone() {
            let after = self.guest.load(at);
            let index = walk.steps.iter().position(|step| step.at == at);
            let owed = index.map_or(0, |index| self.rules.owed(&walk, index, expected.may_dirty));
            prop_assert_eq!(after & before, before, "a bit was cleared at {:#x}", at);
            prop_assert_eq!((after ^ before) & !owed, 0, "a bit was set at {:#x}, {:?}", at, expected);
            if expected.must_update {
                let needed = index.map_or(0, |index| self.rules.owed(&walk, index, write));
                prop_assert_eq!(after & needed, needed, "a bit is missing at {:#x}", at);
            }
            if !self.rules.snooped {
                prop_assert_eq!(after, before, "updated without snooping");
            }
            self.memory.insert(at, after);
        }
        Ok(())
    }
}

fn forget(guest: &Guest) {
    let all = AddressRange::ALL;
    guest.submit_all(&[
        pasid_cache(PasidCacheGranularity::Global, DomainId(0), pasid(0)),
        iotlb(IotlbGranularity::Global, DomainId(0), AddressRange::new(0, 0)),
        common::descriptors::device_tlb(SOURCE_ID, all),
        common::descriptors::global_device_tlb(SOURCE_ID, all),
    ]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_unit_walks_as_the_text_says(scene in scene()) {
        let (mut warm, mut cold) = (Stage::new(&scene), Stage::new(&scene));
        for (index, request) in scene.requests.iter().enumerate() {
            warm.check(&scene, request, 2 * index as u64)?;
            // Again: what is cached now changes nothing.
            warm.check(&scene, request, 2 * index as u64 + 1)?;
            forget(&cold.guest);
            cold.check(&scene, request, index as u64)?;
        }
    }
}

/// The generator reaches what it is meant to reach: a test that only ever met faults would prove little.
#[test]
fn the_scenes_reach_every_outcome_of_a_walk() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let mut successes = [0; 3];
    let mut reasons = std::collections::BTreeSet::new();
    for _ in 0..1500 {
        let scene = scene().new_tree(&mut runner).unwrap().current();
        let stage = Stage::new(&scene);
        for request in &scene.requests {
            let address = (stage.base + request.offset) ^ request.flip.map_or(0, |bit| 1 << bit);
            let walk = stage.rules.walk(&stage.memory, stage.root, address);
            let privileged = request.privileged && scene.with_pasid;
            let expected = stage.expected(&walk, request, address, scene.ats, privileged);
            if expected.success.is_some_and(|output| output < MEMORY_BYTES) {
                successes[stage.rules.levels as usize - walk.steps.len()] += 1;
            }
            reasons.extend(expected.recorded.iter().map(|reason| reason.code()));
        }
    }
    assert!(successes.iter().all(|count| *count > 20), "4 KiB, 2 MiB and 1 GiB: {successes:?}");
    let all = [0x5d, 0x70, 0x71, 0x72, 0x80, 0x81, 0x85, 0x87, 0x90];
    assert_eq!(reasons.into_iter().collect::<Vec<_>>(), all);
}

/// QEMU once left D clear where A was set already, and once set it in a page that may not be written.
#[test]
fn dirty_is_set_on_every_permitted_write_and_on_no_other() {
    let guest = Guest::new();
    guest.bind(PASID);
    let address = 0x7f12_3456_7000;
    let page = guest.page();
    for (flags, ats, ok) in [
        (P | RW | US | A, false, true),
        (P | RW | US | A, true, true),
        (P | US, true, false),
        (P | US, false, false),
    ] {
        guest.endpoint.set_ats_enabled(ats);
        let leaf = guest.map(PASID, address, page, flags);
        forget(&guest);
        let result = guest.endpoint.write(Guest::with_pasid(PASID), address, &[1]);
        assert_eq!(result.is_ok(), ok);
        assert_eq!(guest.load(leaf) & D != 0, ok);
        guest.take_fault_reason();
    }
}

/// A walk that another processor's change of an entry meets half-way: the change survives, and so do the bits.
#[test]
fn updates_do_not_undo_what_a_processor_writes_at_the_same_time() {
    let guest = Guest::new();
    guest.bind(PASID);
    let address = 0x7f12_3456_7000;
    let (one, two) = (guest.page(), guest.page());
    let leaf = guest.map(PASID, address, one, P | RW | US);
    std::thread::scope(|scope| {
        let device = scope.spawn(|| {
            for _ in 0..3000 {
                guest.endpoint.write(Guest::with_pasid(PASID), address, &[1]).unwrap();
                std::thread::yield_now();
            }
        });
        let mut page = one;
        while !device.is_finished() {
            page = if page == one { two } else { one };
            // Without A and D, and no invalidation: the entry is the processor's to change.
            guest.store(leaf, page | P | RW | US);
            for _ in 0..10 {
                let found: u64 = guest.memory.read_obj(GuestAddress(leaf)).unwrap();
                assert_eq!(found & !(A | D), page | P | RW | US, "the processor's entry was overwritten");
            }
            guest.submit(&common::descriptors::pasid_iotlb(DomainId(1), PASID));
        }
    });
}
