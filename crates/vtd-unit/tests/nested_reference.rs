// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Random tables of both stages walked twice: by the unit, and by a walker that does nothing but follow the text
//! (sections 3.6 to 3.8 of the specification) over the same memory. Result, fault reason and every accessed, dirty and
//! extended-accessed bit of both stages must agree: with cold caches and with warm ones, with paging-structure caches
//! and without, for untranslated requests and with ATS, nested and second-stage alone; and after software has changed an
//! entry and invalidated what it has to.

mod common;

use std::collections::{BTreeMap, BTreeSet};

use common::descriptors::{
    device_tlb, global_device_tlb, iotlb, iotlb_domain, pasid_cache, pasid_iotlb, pasid_iotlb_pages,
};
use common::{Guest, MEMORY_BYTES, SOURCE_ID, pasid};
use proptest::prelude::*;
use vtd_spec::descriptors::{IotlbGranularity, PasidCacheGranularity};
use vtd_spec::{AddressRange, DomainId, FaultReason, Pasid, PasidEntry, PasidGranularTranslationType};
use vtd_unit::{Access, DmaError, Requester, UnitConfig};

const PASID: Pasid = Pasid::truncated(0x42);
const DOMAIN: DomainId = DomainId(7);

/// Bits of a first-stage entry.
mod first {
    pub const P: u64 = 1;
    pub const RW: u64 = 1 << 1;
    pub const US: u64 = 1 << 2;
    pub const A: u64 = 1 << 5;
    pub const D: u64 = 1 << 6;
    pub const EA: u64 = 1 << 10;
    /// What the unit ignores: PWT, PCD, G, 9, 11, 63:52.
    pub const IGNORED: u64 = 0xfff0_0000_0000_0b18;
}

/// Bits of a second-stage entry.
mod second {
    pub const R: u64 = 1;
    pub const W: u64 = 1 << 1;
    pub const A: u64 = 1 << 8;
    pub const D: u64 = 1 << 9;
    pub const SNP: u64 = 1 << 11;
    pub const IW: u64 = 1 << 62;
    /// What the unit ignores: X, EMT, IPAT, 10, 61:52, 63.
    pub const IGNORED: u64 = 0xbff0_0000_0000_047c;
}

/// Page size of an entry of either stage.
const PS: u64 = 1 << 7;
const POINTER: u64 = 0x000f_ffff_ffff_f000;

/// No memory is here; a page of any size may be.
const HOLE: u64 = 0x1_0000_0000;
const INTERRUPTS: u64 = 0xfee0_0000;

/// Guest physical pages have their low 30 bits here, where the fixture hands out nothing: a page of 1 GiB in the
/// second stage leads to them in host memory, too.
const AREA: u64 = 0x200_0000;

mod reference {
    use super::*;

    /// What the unit and the PASID entry say.
    #[derive(Clone, Copy, Debug)]
    pub struct Rules {
        pub nested: bool,
        pub first_levels: u32,
        pub second_levels: u32,
        pub first_table: u64,
        pub second_table: u64,
        pub haw: u32,
        /// Largest second-stage input.
        pub max_input: u64,
        /// The PASID entry itself is refused.
        pub bad_entry: bool,
        pub fs1gp: bool,
        pub wpe: bool,
        pub sre: bool,
        pub eafe: bool,
        pub ssade: bool,
        pub snooped: bool,
        pub nwfs: bool,
    }

    /// A request, towards the tables.
    #[derive(Clone, Copy, Debug)]
    pub struct Asked {
        pub address: u64,
        pub access: Access,
        pub privileged: bool,
        pub ats: bool,
    }

    /// Where a walk ended.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub enum End {
        Output(u64),
        /// One of these: more than one where the text leaves the order of two checks open.
        Fault(Vec<FaultReason>),
        /// A translation request that succeeds without the right that the device wants.
        NoRight,
    }

    fn fault<T>(reason: FaultReason) -> Result<T, End> {
        Err(End::Fault(vec![reason]))
    }

    pub struct Walk<'a> {
        pub rules: &'a Rules,
        pub load: &'a dyn Fn(u64) -> Option<u64>,
        /// Bits that the walk owes the entries it used, and those of them that it need not set.
        pub owed: BTreeMap<u64, u64>,
        pub optional: BTreeMap<u64, u64>,
        /// log2 of the page sizes met last: first and second stage.
        pub sizes: [u32; 2],
    }

    struct Found {
        address: u64,
        read: bool,
        write: bool,
    }

    fn index(address: u64, level: u32) -> u64 {
        (address >> (12 + 9 * (level - 1)) & 0x1ff) * 8
    }

    fn is_interrupt(address: u64) -> bool {
        address >> 20 == 0xfee
    }

    impl Walk<'_> {
        fn owe(&mut self, at: u64, bits: u64) {
            *self.owed.entry(at).or_default() |= bits;
        }

        /// D.5: `write` is what the walk is for, `needed` whether the request writes indeed.
        fn second(&mut self, address: u64, write: bool, needed: bool) -> Result<Found, End> {
            if address > self.rules.max_input {
                return fault(FaultReason::Sgn5);
            }
            let mut table = self.rules.second_table;
            let (mut read, mut writable) = (true, true);
            let mut level = self.rules.second_levels;
            loop {
                let shift = 12 + 9 * (level - 1);
                let at = table + index(address, level);
                let Some(entry) = (self.load)(at) else {
                    let top = level == self.rules.second_levels;
                    return fault(if top { FaultReason::Sss4 } else { FaultReason::Sss1 });
                };
                if entry & (second::R | second::W) == 0 {
                    return fault(FaultReason::Sss2);
                }
                let leaf = level == 1 || (level <= 3 && entry & PS != 0);
                // Bit 11 is reserved in leaves too: the unit does not control snooping.
                let mut reserved = ((1 << 52) - (1u64 << self.rules.haw)) | second::SNP | second::IW;
                if level >= 4 {
                    reserved |= PS;
                }
                if leaf {
                    reserved |= (1 << shift) - (1 << 12);
                }
                read &= entry & second::R != 0;
                writable &= entry & second::W != 0;
                let nothing = !read && !writable;
                if entry & reserved != 0 {
                    let mut reasons = vec![FaultReason::Sss3];
                    reasons.extend(nothing.then_some(FaultReason::Sss2));
                    return Err(End::Fault(reasons));
                }
                if nothing {
                    return fault(FaultReason::Sss2);
                }
                if self.rules.ssade {
                    let dirty = if leaf && write && writable { second::D } else { 0 };
                    if entry & (second::A | dirty) != second::A | dirty && !self.rules.snooped {
                        return fault(FaultReason::Sss5);
                    }
                    self.owe(at, second::A | dirty);
                    if !needed {
                        *self.optional.entry(at).or_default() |= dirty;
                    }
                }
                table = entry & POINTER;
                if leaf {
                    self.sizes[1] = shift;
                    let inside = (1u64 << shift) - 1;
                    return Ok(Found { address: table & !inside | address & inside, read, write: writable });
                }
                level -= 1;
            }
        }

        /// The whole of a request: D.3 from the PASID entry on, then D.5 or D.6, then D.8.
        pub fn request(&mut self, asked: &Asked) -> End {
            self.translate(asked).unwrap_or_else(|end| end)
        }

        fn translate(&mut self, asked: &Asked) -> Result<End, End> {
            let rules = *self.rules;
            let Asked { address, access, privileged, ats } = *asked;
            if rules.bad_entry {
                return fault(FaultReason::Spt4_1);
            }
            if privileged && !rules.sre {
                return fault(FaultReason::Spt6);
            }
            let write = access != Access::Read;
            let read = access != Access::Write;
            // A translation request asks for all rights, unless it says that it will not write and the unit listens.
            let asks = if ats { write || !rules.nwfs } else { write };
            let found =
                if rules.nested { self.nested(asked, asks)? } else { self.second(address, asks, write)? };
            let may_write = asks && found.write;
            let lacking = if ats {
                (read && !found.read) || (write && !may_write)
            } else {
                let mut reasons = Vec::new();
                reasons.extend((write && !found.write).then_some(FaultReason::Sgn6));
                reasons.extend((read && !found.read).then_some(FaultReason::Sgn7));
                if !reasons.is_empty() {
                    return Err(End::Fault(reasons));
                }
                false
            };
            if is_interrupt(found.address) {
                return if lacking {
                    // Which of the two comes first is left open.
                    Err(End::Fault(vec![FaultReason::Sgn8_2, FaultReason::Sgn7]))
                } else {
                    fault(if ats { FaultReason::Sgn8_2 } else { FaultReason::Sgn8_1 })
                };
            }
            Ok(if lacking { End::NoRight } else { End::Output(found.address) })
        }

        /// D.6, its steps by number. What is found has the rights of both stages.
        fn nested(&mut self, asked: &Asked, asks: bool) -> Result<Found, End> {
            let rules = *self.rules;
            let Asked { address, access, privileged, ats } = *asked;
            let needed = access != Access::Read;
            // 1
            let top = 12 + 9 * rules.first_levels - 1;
            let high = address >> top;
            if high != 0 && high != u64::MAX >> top {
                return fault(FaultReason::Sgn1);
            }
            let (mut user, mut writable) = (true, true);
            let mut table = rules.first_table;
            let mut level = rules.first_levels;
            loop {
                // 3, 4
                let is_top = level == rules.first_levels;
                let shift = 12 + 9 * (level - 1);
                let place = self.second(table + index(address, level), rules.ssade, rules.ssade)?;
                if !place.read || (rules.ssade && !place.write) {
                    return fault(if is_top { FaultReason::Sfs6 } else { FaultReason::Sfs7 });
                }
                // 5
                let at = place.address;
                let Some(entry) = (self.load)(at) else {
                    return fault(if is_top { FaultReason::Sfs4 } else { FaultReason::Sfs1 });
                };
                if entry & first::P == 0 {
                    return fault(FaultReason::Sfs2);
                }
                let leaf = level == 1 || (level <= 3 && entry & PS != 0);
                let mut reserved = (1u64 << 52) - (1u64 << rules.haw);
                if level >= 4 || (level == 3 && !rules.fs1gp) {
                    reserved |= PS;
                }
                if leaf && level > 1 {
                    // Bit 12 is PAT.
                    reserved |= (1u64 << shift) - (1u64 << 13);
                }
                if entry & reserved != 0 {
                    return fault(FaultReason::Sfs3);
                }
                let inside = if leaf { (1u64 << shift) - 1 } else { 0xfff };
                let pointer = entry & POINTER & !inside;
                if pointer > rules.max_input {
                    return fault(FaultReason::Sfs5);
                }
                // 6
                let update = |bits: u64| {
                    if entry & bits == bits {
                        return Ok(());
                    }
                    let mut reasons = Vec::new();
                    reasons.extend((!rules.snooped).then_some(FaultReason::Sfs9));
                    reasons.extend((!place.write).then_some(FaultReason::Sfs8));
                    if reasons.is_empty() { Ok(()) } else { Err(End::Fault(reasons)) }
                };
                let accessed = first::A | if rules.eafe { first::EA } else { 0 };
                update(accessed)?;
                self.owe(at, accessed);
                user &= entry & first::US != 0;
                writable &= entry & first::RW != 0;
                if !leaf {
                    // 7
                    table = pointer;
                    level -= 1;
                    continue;
                }
                // 8
                if !privileged && !user {
                    return fault(FaultReason::Sgn2);
                }
                let permitted = writable || (privileged && !rules.wpe);
                if !ats && needed && !permitted {
                    return fault(FaultReason::Sgn6);
                }
                // 9
                let asks = asks && permitted;
                let guest_physical = pointer | address & inside;
                self.sizes[0] = shift;
                let page = self.second(guest_physical, asks, needed)?;
                let enough = (access == Access::Write || page.read) && (!needed || page.write);
                // 10
                if asks && page.write && (ats || enough) {
                    update(first::D)?;
                    self.owe(at, first::D);
                    if !needed {
                        *self.optional.entry(at).or_default() |= first::D;
                    }
                }
                return Ok(Found { write: page.write && permitted, ..page });
            }
        }
    }
}

use reference::{Asked, End, Rules, Walk};

/// Whether a translation request that meets the condition succeeds without rights, for a page request to cure, and
/// leaves no record. \[S table 30, as reference E.1, column T\]
fn is_curable(reason: FaultReason) -> bool {
    matches!(reason.code(), 0x5d | 0x70..=0x77 | 0x79 | 0x80 | 0x81 | 0x84..=0x86 | 0x90)
}

/// What is wrong with an entry's address.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Good,
    /// No memory.
    Hole,
    /// The interrupt range, for a leaf.
    Interrupts,
    /// An address bit above the host address width.
    BeyondHaw(u32),
    /// First stage: an address bit above what the second stage takes.
    BeyondSecond,
    /// An address bit below the size of a large page.
    Misaligned(u32),
    /// Second stage: a bit that is reserved because the unit lacks what it is for.
    Reserved(u64),
}

#[derive(Clone, Debug)]
struct Entry {
    flags: u64,
    kind: Kind,
}

fn bit(probability: f64, bit: u64) -> impl Strategy<Value = u64> {
    prop::bool::weighted(probability).prop_map(move |set| if set { bit } else { 0 })
}

fn first_entry() -> impl Strategy<Value = Entry> {
    use first::{A, D, EA, IGNORED, P, RW, US};
    let flags = (
        bit(0.98, P),
        bit(0.9, RW),
        bit(0.92, US),
        bit(0.5, A),
        bit(0.4, D),
        bit(0.25, PS),
        bit(0.5, EA),
        any::<u64>(),
    )
        .prop_map(|(p, rw, us, a, d, ps, ea, ignored)| p | rw | us | a | d | ps | ea | ignored & IGNORED);
    let kind = prop_oneof![
        60 => Just(Kind::Good),
        1 => Just(Kind::Hole),
        1 => Just(Kind::Interrupts),
        1 => (0u32..16).prop_map(Kind::BeyondHaw),
        2 => Just(Kind::BeyondSecond),
        1 => (12u32..30).prop_map(Kind::Misaligned),
    ];
    (flags, kind).prop_map(|(flags, kind)| Entry { flags, kind })
}

fn second_entry() -> impl Strategy<Value = Entry> {
    use second::{A, D, IGNORED, IW, R, SNP, W};
    let rights = prop_oneof![94 => Just(R | W), 2 => Just(R), 2 => Just(W), 1 => Just(0)];
    let flags = (rights, bit(0.5, A), bit(0.5, D), bit(0.2, PS), any::<u64>())
        .prop_map(|(rights, a, d, ps, ignored)| rights | a | d | ps | ignored & IGNORED);
    let kind = prop_oneof![
        160 => Just(Kind::Good),
        1 => Just(Kind::Hole),
        2 => Just(Kind::Interrupts),
        1 => (0u32..16).prop_map(Kind::BeyondHaw),
        1 => (12u32..30).prop_map(Kind::Misaligned),
        1 => prop_oneof![Just(SNP), Just(IW)].prop_map(Kind::Reserved),
    ];
    (flags, kind).prop_map(|(flags, kind)| Entry { flags, kind })
}

#[derive(Clone, Debug)]
struct Request {
    /// Which of the scene's addresses.
    which: usize,
    access: Access,
    privileged: bool,
    offset: u64,
    /// Breaks the canonical form, or leaves the second stage's width.
    flip: Option<u32>,
}

fn request() -> impl Strategy<Value = Request> {
    let access = prop_oneof![Just(Access::Read), Just(Access::Write), Just(Access::Atomic)];
    let flip = prop_oneof![20 => Just(None), 1 => (38u32..64).prop_map(Some)];
    (0..ADDRESSES, access, prop::bool::weighted(0.3), 0u64..512, flip).prop_map(
        |(which, access, privileged, word, flip)| Request {
            which,
            access,
            privileged,
            offset: word * 8,
            flip,
        },
    )
}

/// Software changes an entry.
#[derive(Clone, Debug)]
struct Change {
    which: prop::sample::Index,
    clear: u64,
    set: u64,
    invalidation: Invalidation,
}

/// By what software makes the change known.
#[derive(Clone, Copy, Debug)]
enum Invalidation {
    Global,
    Domain,
    /// Of first-stage tables: the PASID.
    Pasid,
    /// The addresses that are in use, one by one with 2^order pages around each.
    Pages(u8),
}

fn change() -> impl Strategy<Value = Change> {
    let rights = (bit(0.4, first::P), bit(0.4, first::RW), bit(0.4, first::US));
    let marks = (bit(0.4, first::A), bit(0.4, first::D), bit(0.4, second::A), bit(0.4, second::D));
    let clear = (rights, marks).prop_map(|((p, rw, us), (a, d, sa, sd))| p | rw | us | a | d | sa | sd);
    let set = (bit(0.5, first::P), bit(0.5, first::RW), bit(0.5, first::US));
    let invalidation = prop_oneof![
        Just(Invalidation::Global),
        Just(Invalidation::Domain),
        Just(Invalidation::Pasid),
        prop_oneof![Just(0u8), Just(3), Just(9), Just(18)].prop_map(Invalidation::Pages),
    ];
    (any::<prop::sample::Index>(), clear, set, invalidation).prop_map(
        |(which, clear, (p, rw, us), invalidation)| Change { which, clear, set: p | rw | us, invalidation },
    )
}

/// Addresses that a scene has tables for.
const ADDRESSES: usize = 3;

#[derive(Clone, Debug)]
struct Switches {
    nested: bool,
    five: bool,
    fs5lp: bool,
    fs1gp: bool,
    wpe: bool,
    sre: bool,
    eafe: bool,
    ssade: bool,
    pwsnp: bool,
    /// Accessed and dirty bits are set beforehand, so that walks that cannot set them succeed too.
    preset: bool,
    nwfs: bool,
    ats: bool,
    with_pasid: bool,
    small_iotlb: bool,
    /// The table on top is where no memory is.
    no_table: bool,
    /// The first stage's table is beyond the second stage's width.
    table_beyond: bool,
}

fn switches() -> impl Strategy<Value = Switches> {
    let on = |probability: f64| prop::bool::weighted(probability);
    let stages = (on(0.8), on(0.4), on(0.95), on(0.6), on(0.5), on(0.8));
    let bits = (on(0.5), on(0.6), on(0.75), on(0.3), on(0.5));
    let rest = (on(0.5), on(0.8), on(0.5), on(0.02), on(0.03));
    (stages, bits, rest).prop_map(|(stages, bits, rest)| {
        let (nested, five, fs5lp, fs1gp, wpe, sre) = stages;
        let (eafe, ssade, pwsnp, preset, nwfs) = bits;
        let (ats, with_pasid, small_iotlb, no_table, table_beyond) = rest;
        Switches {
            nested,
            five,
            fs5lp,
            fs1gp,
            wpe,
            sre,
            eafe,
            ssade,
            pwsnp,
            preset,
            nwfs,
            ats,
            with_pasid,
            small_iotlb,
            no_table,
            table_beyond,
        }
    })
}

#[derive(Clone, Debug)]
struct Scene {
    switches: Switches,
    haw: u8,
    second_levels: u32,
    /// High bits of addresses: of the device's, and of guest physical ones.
    input: u64,
    guest: u64,
    /// The highest bit that addresses of one kind differ in, and how far apart their pages are.
    diverge: [u32; 8],
    stride: u64,
    first: Vec<Entry>,
    second: Vec<Entry>,
    requests: Vec<Request>,
    /// After each request: mostly none, so that what one request caches is there for the next.
    changes: Vec<Option<Change>>,
}

fn scene() -> impl Strategy<Value = Scene> {
    let shape = (
        36u8..=52,
        3u32..=5,
        any::<u64>(),
        any::<u64>(),
        prop::array::uniform8(30u32..57),
        prop_oneof![Just(1u64), Just(7), Just(600)],
    );
    let entries = (
        prop::collection::vec(first_entry(), 5 * ADDRESSES),
        prop::collection::vec(second_entry(), 48),
        prop::collection::vec((request(), prop::option::weighted(0.3, change())), 1..10),
    );
    (switches(), shape, entries).prop_map(|(switches, shape, (first, second, steps))| {
        let (haw, second_levels, input, guest, diverge, stride) = shape;
        let (requests, changes) = steps.into_iter().unzip();
        Scene {
            switches,
            haw,
            second_levels,
            input,
            guest,
            diverge,
            stride,
            first,
            second,
            requests,
            changes,
        }
    })
}

/// A unit with the scene's tables in its memory.
struct Stage {
    guest: Guest,
    /// Where the entries of both stages are, and which of them are the first's.
    entries: BTreeSet<u64>,
    first_entries: BTreeSet<u64>,
    rules: Rules,
    addresses: [u64; ADDRESSES],
}

/// What is left to build tables from.
struct Builder<'a> {
    scene: &'a Scene,
    guest: &'a Guest,
    entries: BTreeSet<u64>,
    first_entries: BTreeSet<u64>,
    rules: Rules,
    first: std::slice::Iter<'a, Entry>,
    second: std::slice::Iter<'a, Entry>,
    guest_pages: u64,
}

impl Builder<'_> {
    /// A fresh guest physical page, or the one for `address`, whose low bits it shares.
    fn guest_page(&mut self, address: Option<u64>) -> u64 {
        let number = self.guest_pages;
        self.guest_pages += 1;
        // Input addresses take the slots before this one.
        let slot = 16 + number;
        let low = AREA + slot * self.scene.stride * 4096;
        let low = address.map_or(low, |address| address & 0x3fff_ffff & !0xfff);
        let width = self.rules.haw.min(64 - self.rules.max_input.leading_zeros());
        let high = self.scene.guest ^ 1 << self.scene.diverge[number as usize % 8];
        // Never the lowest 1 GiB: where a stage is skipped, nothing is found.
        (high | 1 << 30) & ((1 << width) - 1) & !0x3fff_ffff | low
    }

    /// Makes second-stage entries for a guest physical address, of a page or of a table; where it leads, whatever its
    /// rights.
    fn second(&mut self, address: u64, of_page: bool) -> Option<u64> {
        if address > self.rules.max_input {
            return None;
        }
        let mut table = self.rules.second_table;
        for level in (1..=self.rules.second_levels).rev() {
            let shift = 12 + 9 * (level - 1);
            let at = table + (address >> shift & 0x1ff) * 8;
            if at >= MEMORY_BYTES {
                return None;
            }
            if self.entries.insert(at) {
                let value = self.new_second_entry(address, level, of_page);
                self.guest.store(at, value);
            }
            let value = self.guest.load(at);
            table = value & POINTER;
            if level == 1 || (level <= 3 && value & PS != 0) {
                let inside = (1u64 << shift) - 1;
                let found = table & !inside | address & inside;
                return (found < MEMORY_BYTES).then_some(found);
            }
        }
        None
    }

    fn new_second_entry(&mut self, address: u64, level: u32, of_page: bool) -> u64 {
        let plain = Entry { flags: second::R | second::W, kind: Kind::Good };
        let Entry { mut flags, kind } = self.second.next().cloned().unwrap_or(plain);
        // In the upper levels PS is a reserved bit: seldom enough to get past them.
        if level >= 4 && flags >> 52 & 7 != 0 {
            flags &= !PS;
        }
        if self.scene.switches.preset {
            flags |= second::A | second::D;
        }
        let leaf = level == 1 || (level <= 3 && flags & PS != 0);
        // A right is missing more often where that ends no walk.
        flags &= match flags >> 55 & 7 {
            0 if leaf && of_page => !second::R,
            1 if leaf && of_page => !second::W,
            _ => !0,
        };
        let shift = 12 + 9 * (level - 1);
        let pointer = match level {
            // Pages of 4 KiB lie anywhere, larger ones where the address says.
            1 => self.guest.page(),
            _ if leaf => address & 0x3fff_ffff & !((1 << shift) - 1),
            _ => self.guest.page(),
        };
        flags | self.spoil(pointer, kind, leaf, shift)
    }

    fn spoil(&self, pointer: u64, kind: Kind, leaf: bool, shift: u32) -> u64 {
        match kind {
            Kind::Hole => HOLE + 0x4000_0000,
            Kind::Interrupts if leaf => INTERRUPTS & !((1 << shift) - 1),
            Kind::BeyondHaw(bit) => {
                pointer | 1u64.checked_shl(self.rules.haw + bit).unwrap_or(0) & ((1 << 52) - 1)
            }
            Kind::BeyondSecond if self.rules.max_input < 1 << 51 => pointer | (self.rules.max_input + 1),
            Kind::Misaligned(bit) if leaf && bit < shift => pointer | 1 << bit,
            Kind::Reserved(bit) => pointer | bit,
            _ => pointer,
        }
    }

    /// Makes the entries of both stages that a nested walk for `address` reads.
    fn nested(&mut self, address: u64) {
        let mut table = self.rules.first_table;
        for level in (1..=self.rules.first_levels).rev() {
            let shift = 12 + 9 * (level - 1);
            let Some(at) = self.second(table + (address >> shift & 0x1ff) * 8, false) else { return };
            if self.entries.insert(at) {
                self.first_entries.insert(at);
                let value = self.new_first_entry(address, level);
                self.guest.store(at, value);
            }
            let value = self.guest.load(at);
            table = value & POINTER;
            if level == 1 || (level <= 3 && value & PS != 0) {
                let inside = (1u64 << shift) - 1;
                self.second(table & !inside | address & inside, true);
                return;
            }
        }
    }

    fn new_first_entry(&mut self, address: u64, level: u32) -> u64 {
        let plain = Entry { flags: first::P | first::RW | first::US, kind: Kind::Good };
        let Entry { mut flags, kind } = self.first.next().cloned().unwrap_or(plain);
        if level >= 4 && flags >> 52 & 7 != 0 {
            flags &= !PS;
        }
        if self.scene.switches.preset {
            flags |= first::A | first::D | first::EA;
        }
        let leaf = level == 1 || (level <= 3 && flags & PS != 0);
        let shift = 12 + 9 * (level - 1);
        let pointer =
            if leaf { self.guest_page(Some(address)) & !((1 << shift) - 1) } else { self.guest_page(None) };
        flags | self.spoil(pointer, kind, leaf, shift)
    }
}

impl Stage {
    fn new(scene: &Scene, structure_entries: usize) -> Self {
        let switches = &scene.switches;
        let config = UnitConfig {
            haw: scene.haw,
            fs1gp: switches.fs1gp,
            fs5lp: switches.fs5lp,
            nwfs: switches.nwfs,
            srs: true,
            eafs: true,
            ssts: true,
            ssads: true,
            nest: true,
            structure_entries,
            iotlb_entries: if switches.small_iotlb { 2 } else { 64 },
            ..UnitConfig::default()
        };
        let guest = Guest::with_config(&config);
        guest.endpoint.set_ats_enabled(switches.ats);
        let first_levels = if switches.five { 5 } else { 4 };
        let width = 12 + 9 * scene.second_levels;
        let mgaw = if switches.fs5lp { 57 } else { 48 };
        let unsupported = width > mgaw || (switches.nested && switches.five && !switches.fs5lp);
        let mut rules = Rules {
            nested: switches.nested,
            first_levels,
            second_levels: scene.second_levels,
            first_table: 0,
            second_table: if switches.no_table { HOLE } else { guest.page() },
            haw: scene.haw.into(),
            max_input: (1 << width.min(mgaw)) - 1,
            bad_entry: unsupported,
            fs1gp: switches.fs1gp,
            wpe: switches.wpe,
            sre: switches.sre,
            eafe: switches.eafe,
            ssade: switches.ssade,
            snooped: switches.pwsnp,
            nwfs: switches.nwfs,
        };
        let mut builder = Builder {
            scene,
            guest: &guest,
            entries: BTreeSet::new(),
            first_entries: BTreeSet::new(),
            rules,
            first: scene.first.iter(),
            second: scene.second.iter(),
            guest_pages: 0,
        };
        rules.first_table = builder.guest_page(None);
        if switches.table_beyond && width < scene.haw.into() {
            rules.first_table |= 1 << width;
            rules.bad_entry |= switches.nested;
        }
        builder.rules = rules;
        let addresses = std::array::from_fn(|which| {
            let low = AREA + which as u64 * scene.stride * 4096;
            let high = scene.input ^ 1 << scene.diverge[which];
            let address = if switches.nested {
                // In canonical form.
                let unused = 64 - (12 + 9 * first_levels);
                ((high << unused) as i64 >> unused) as u64
            } else {
                high & rules.max_input
            };
            address & !0x3fff_ffff | low
        });
        if !rules.bad_entry {
            for address in addresses {
                if rules.nested {
                    builder.nested(address);
                } else {
                    builder.second(address, true);
                }
            }
        }
        let Builder { entries, first_entries, .. } = builder;
        let pgtt = if rules.nested {
            PasidGranularTranslationType::Nested
        } else {
            PasidGranularTranslationType::SecondStage
        };
        let entry = PasidEntry::new()
            .with_p(true)
            .with_pgtt(pgtt)
            .with_did(DOMAIN)
            .with_aw(scene.second_levels as u8 - 2)
            .with_ssptptr(rules.second_table)
            .with_ssade(rules.ssade)
            .with_fsptptr(rules.first_table)
            .with_fspm(u8::from(switches.five))
            .with_wpe(rules.wpe)
            .with_sre(rules.sre)
            .with_eafe(rules.eafe)
            .with_pwsnp(rules.snooped);
        guest.write_pasid_entry(if switches.with_pasid { PASID } else { Pasid::ZERO }, entry);
        Self { guest, entries, first_entries, rules, addresses }
    }

    fn load(&self, at: u64) -> Option<u64> {
        (at < MEMORY_BYTES).then(|| self.guest.load(at))
    }

    fn asked(&self, scene: &Scene, request: &Request) -> Asked {
        let address = self.addresses[request.which] + request.offset;
        Asked {
            address: address ^ request.flip.map_or(0, |bit| 1 << bit),
            access: request.access,
            // Without RPRIVS, requests without PASID are a user's.
            privileged: request.privileged && scene.switches.with_pasid,
            ats: scene.switches.ats,
        }
    }

    /// Sends a request and checks everything about it.
    fn check(&self, scene: &Scene, request: &Request, counter: u64) -> Result<(), TestCaseError> {
        let asked = self.asked(scene, request);
        let load = |at| self.load(at);
        let mut walk = Walk {
            rules: &self.rules,
            load: &load,
            owed: BTreeMap::new(),
            optional: BTreeMap::new(),
            sizes: [0; 2],
        };
        let end = walk.request(&asked);
        let before: BTreeMap<u64, u64> = self.entries.iter().map(|at| (*at, self.guest.load(*at))).collect();

        let Asked { address, access, ats, .. } = asked;
        let number = scene.switches.with_pasid.then_some(PASID);
        let requester = Requester { pasid: number, privileged: request.privileged };
        let write = access != Access::Read;
        let here = match end {
            End::Output(output) if output + 8 <= MEMORY_BYTES => Some(output),
            _ => None,
        };
        let (old, new) = (0x0123_4567_0000_0000 + counter, 0x89ab_cdef_0000_0000 + counter);
        if let Some(output) = here {
            prop_assert!(!self.entries.contains(&output), "the scene maps one of its own tables");
            self.guest.store(output, old);
        }
        let mut data = [0; 8];
        let endpoint = &self.guest.endpoint;
        let result = match access {
            Access::Read | Access::ZeroLengthRead => endpoint.read(requester, address, &mut data),
            Access::Write => endpoint.write(requester, address, &new.to_le_bytes()),
            Access::Atomic => endpoint.compare_and_swap(requester, address, old, new).map(drop),
        };
        let recorded = self.guest.take_fault_reason();

        match (&end, result, recorded) {
            (End::Output(_), Ok(()), None) => {
                let Some(output) = here else {
                    return Err(TestCaseError::fail(format!("succeeded, expected {end:x?}")));
                };
                prop_assert_eq!(self.guest.load(output), if write { new } else { old });
                if !write {
                    prop_assert_eq!(u64::from_le_bytes(data), old);
                }
            }
            // Translated, but there is no memory.
            (End::Output(_), Err(DmaError::Refused { address: at }), None) => {
                prop_assert!(here.is_none() && at == address, "refused, expected {:x?}", end);
            }
            (End::NoRight, Err(DmaError::PageFault { address: at, write: w }), None) => {
                prop_assert_eq!((at, w), (address, write));
            }
            (End::Fault(reasons), Err(DmaError::PageFault { .. }), None) => {
                let curable = ats && reasons.iter().any(|reason| is_curable(*reason));
                prop_assert!(curable, "page fault, expected {:?}", reasons);
            }
            (End::Fault(reasons), Err(error), Some(code)) => {
                let found = reasons.iter().find(|reason| reason.code() == code);
                prop_assert!(found.is_some(), "{:#x}, expected {:?}", code, reasons);
                prop_assert!(!ats || !is_curable(*found.unwrap()), "{:#x} was recorded", code);
                let refusal = if ats {
                    DmaError::TranslationRefused { address, completer_abort: true }
                } else {
                    DmaError::Refused { address }
                };
                prop_assert_eq!(error, refusal);
            }
            (end, result, recorded) => {
                let text = format!("{result:x?} with {recorded:x?}, expected {end:x?}");
                return Err(TestCaseError::fail(text));
            }
        }

        // Accessed and dirty bits: what is owed where the walk was good for something, at the most that elsewhere.
        let succeeded = matches!(end, End::Output(_));
        for (at, before) in before {
            let after = self.guest.load(at);
            let owed = walk.owed.get(&at).copied().unwrap_or(0);
            let needed = owed & !walk.optional.get(&at).copied().unwrap_or(0);
            prop_assert_eq!(after & before, before, "a bit was cleared at {:#x}", at);
            prop_assert_eq!((after ^ before) & !owed, 0, "a bit was set at {:#x}: {:x?}", at, end);
            if succeeded {
                prop_assert_eq!(after & needed, needed, "a bit is missing at {:#x}", at);
            }
            if !self.rules.snooped {
                prop_assert_eq!(after, before, "updated without snooping");
            }
        }
        Ok(())
    }

    /// Changes an entry, then invalidates as software must. \[S table 28, as reference C.5\]
    fn change(&self, scene: &Scene, change: &Change) {
        if self.entries.is_empty() {
            return;
        }
        let at = *self.entries.iter().nth(change.which.index(self.entries.len())).unwrap();
        let first = self.first_entries.contains(&at);
        let bits = if first {
            first::P | first::RW | first::US | first::A | first::D
        } else {
            second::R | second::W | second::A | second::D
        };
        self.guest.store(at, self.guest.load(at) & !(change.clear & bits) | change.set & bits);
        let pasid = if scene.switches.with_pasid { PASID } else { Pasid::ZERO };
        let ranges = |order| {
            let addresses = scene.requests.iter().map(|request| self.asked(scene, request).address);
            addresses.map(move |address| AddressRange::new(address, order)).collect::<Vec<_>>()
        };
        let nothing = AddressRange::new(0, 0);
        let mut descriptors = match change.invalidation {
            Invalidation::Pasid if first => vec![pasid_iotlb(DOMAIN, pasid)],
            Invalidation::Pages(order) if first => {
                ranges(order).into_iter().map(|range| pasid_iotlb_pages(DOMAIN, pasid, range)).collect()
            }
            // Second-stage addresses are the requests' only where that stage is alone.
            Invalidation::Pages(order) if !self.rules.nested => ranges(order)
                .into_iter()
                .filter(|range| range.last() <= self.rules.max_input)
                .map(|range| iotlb(IotlbGranularity::Page, DOMAIN, range))
                .collect(),
            Invalidation::Global => vec![iotlb(IotlbGranularity::Global, DomainId(0), nothing)],
            _ => vec![iotlb_domain(DOMAIN)],
        };
        let all = AddressRange::ALL;
        descriptors.extend([device_tlb(SOURCE_ID, all), global_device_tlb(SOURCE_ID, all)]);
        self.guest.submit_all(&descriptors);
    }

    fn forget(&self) {
        let all = AddressRange::ALL;
        self.guest.submit_all(&[
            pasid_cache(PasidCacheGranularity::Global, DomainId(0), pasid(0)),
            iotlb(IotlbGranularity::Global, DomainId(0), AddressRange::new(0, 0)),
            device_tlb(SOURCE_ID, all),
            global_device_tlb(SOURCE_ID, all),
        ]);
    }
}

/// Sizes of the paging-structure caches: none, so few that they are always in each other's way, and enough.
const STRUCTURES: [usize; 3] = [0, 2, 256];

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_unit_walks_both_stages_as_the_text_says(scene in scene()) {
        for structure_entries in STRUCTURES {
            let (warm, cold) = (Stage::new(&scene, structure_entries), Stage::new(&scene, structure_entries));
            for (index, request) in scene.requests.iter().enumerate() {
                warm.check(&scene, request, 3 * index as u64)?;
                // Again: what is cached now changes nothing.
                warm.check(&scene, request, 3 * index as u64 + 1)?;
                cold.forget();
                cold.check(&scene, request, index as u64)?;
                if let Some(change) = &scene.changes[index] {
                    warm.change(&scene, change);
                    warm.check(&scene, request, 3 * index as u64 + 2)?;
                }
            }
        }
    }
}

/// The generator reaches what it is meant to reach: a test that only ever met faults would prove little.
#[test]
fn the_scenes_reach_every_outcome_of_a_nested_walk() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    // By first-stage size (0: second stage alone) and second-stage size.
    let mut successes: BTreeMap<[u32; 2], u32> = BTreeMap::new();
    let mut levels = BTreeSet::new();
    let mut reasons = BTreeSet::new();
    for _ in 0..3000 {
        let scene = scene().new_tree(&mut runner).unwrap().current();
        let stage = Stage::new(&scene, 0);
        for request in &scene.requests {
            let load = |at| stage.load(at);
            let (owed, optional) = (BTreeMap::new(), BTreeMap::new());
            let mut walk = Walk { rules: &stage.rules, load: &load, owed, optional, sizes: [0; 2] };
            match walk.request(&stage.asked(&scene, request)) {
                End::Output(output) if output < MEMORY_BYTES => {
                    *successes.entry(walk.sizes).or_default() += 1;
                    levels.insert((stage.rules.nested, stage.rules.first_levels, stage.rules.second_levels));
                }
                End::Fault(met) => reasons.extend(met.iter().map(|reason| reason.code())),
                End::Output(_) | End::NoRight => {}
            }
        }
    }
    for first in [0, 12, 21, 30] {
        for second in [12, 21, 30] {
            let count = successes.get(&[first, second]).copied().unwrap_or(0);
            assert!(count > 10, "{first}, {second} of {successes:?}");
        }
    }
    assert_eq!(levels.len(), 2 * 2 * 3, "{levels:?}");
    let all = [
        0x5b, 0x5d, 0x70, 0x71, 0x72, 0x73, 0x74, 0x75, 0x76, 0x77, 0x78, 0x79, 0x7a, 0x7b, 0x7c, 0x80, 0x81,
        0x84, 0x85, 0x86, 0x87, 0x90,
    ];
    assert_eq!(reasons.into_iter().collect::<Vec<_>>(), all);
}
