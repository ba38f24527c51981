// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Each fault reason that a unit with first-stage translation and pass-through can raise: by an untranslated
//! request, a translation request and a page request, with FPD on the way and without; then how records are kept.

mod common;

use std::str::FromStr;

use common::{CONTEXT_TABLE, Guest, PASID_DIRECTORY, ROOT_TABLE, SOURCE_ID, entry, pasid};
use vtd_spec::registers::offset;
use vtd_spec::{DomainId, FaultRequestType, Pasid, PasidGranularTranslationType, ScalableContextEntry};
use vtd_unit::{Access, DmaError, PageRequest, Requester, ResponseCode, UnitConfig};

const BOUND: Pasid = Pasid::truncated(0x42);
const ADDRESS: u64 = 0x7f12_3456_7000;
/// Behind the fixture's memory and below its host address width.
const HOLE: u64 = 0x1_0000_0000;
const CONTEXT: u64 = CONTEXT_TABLE + SOURCE_ID.0 as u64 * 32;
const ROOT: u64 = ROOT_TABLE + (SOURCE_ID.0 as u64 >> 8) * 16;

/// What a translation request is told: column T of the reference's table E.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Translation {
    /// Unsupported Request, logged.
    Ur,
    /// Completer Abort, logged.
    Ca,
    /// Success without the right; not logged.
    Success,
    /// This request does not meet the condition.
    Served,
}

/// What a page request is told: column P.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Response {
    InvalidRequest,
    Queued,
}

/// The entries with an FPD bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Level {
    Context,
    Directory,
    Entry,
}

use Level::{Context, Directory, Entry};

struct Case {
    name: &'static str,
    code: u8,
    /// Breaks the tables of a guest in which ADDRESS is mapped for the given PASID.
    arrange: fn(&Guest, Pasid),
    options: &'static str,
    translation: Translation,
    page: Response,
    qualified: bool,
    /// The entries that are read before the fault is found.
    path: &'static [Level],
    address: u64,
    /// The PASID of the requests, where it is not the one with the mapping.
    other: Option<u32>,
    /// Meaningless for requests without PASID.
    pasid_only: bool,
    privileged: bool,
    writes_only: bool,
    /// An untranslated request meets the condition.
    untranslated: bool,
}

const ALL_LEVELS: &[Level] = &[Context, Directory, Entry];

impl Case {
    /// A condition of the walk: recoverable, no matter of page requests.
    const fn walk(name: &'static str, code: u8, arrange: fn(&Guest, Pasid)) -> Self {
        Self {
            name,
            code,
            arrange,
            options: "",
            translation: Translation::Success,
            page: Response::Queued,
            qualified: true,
            path: ALL_LEVELS,
            address: ADDRESS,
            other: None,
            pasid_only: false,
            privileged: false,
            writes_only: false,
            untranslated: true,
        }
    }

    /// A condition of the tables above: page requests meet it too.
    const fn table(
        name: &'static str,
        code: u8,
        translation: Translation,
        path: &'static [Level],
        arrange: fn(&Guest, Pasid),
    ) -> Self {
        Self { translation, page: Response::InvalidRequest, path, ..Self::walk(name, code, arrange) }
    }

    const fn unqualified(self) -> Self {
        Self { qualified: false, ..self }
    }

    const fn with(self, options: &'static str) -> Self {
        Self { options, ..self }
    }

    const fn at(self, address: u64) -> Self {
        Self { address, ..self }
    }

    const fn by_pasid(self, pasid: u32) -> Self {
        Self { other: Some(pasid), pasid_only: true, ..self }
    }

    const fn pasid_only(self) -> Self {
        Self { pasid_only: true, ..self }
    }

    const fn privileged(self) -> Self {
        Self { privileged: true, pasid_only: true, ..self }
    }

    const fn writes_only(self) -> Self {
        Self { writes_only: true, ..self }
    }

    const fn page(self, page: Response) -> Self {
        Self { page, ..self }
    }

    const fn not_untranslated(self) -> Self {
        Self { untranslated: false, ..self }
    }
}

fn set_root(guest: &Guest, value: u64) {
    guest.write64(offset::RTADDR, value);
    guest.command(1 << 30);
}

fn or(guest: &Guest, address: u64, bits: u64) {
    guest.store(address, guest.load(address) | bits);
}

fn clear(guest: &Guest, address: u64, bits: u64) {
    guest.store(address, guest.load(address) & !bits);
}

fn edit_context(guest: &Guest, edit: impl FnOnce(ScalableContextEntry) -> ScalableContextEntry) {
    guest.write_context(SOURCE_ID, edit(Guest::context()));
}

fn directory(pasid: Pasid) -> u64 {
    PASID_DIRECTORY + u64::from(pasid.get() >> 6) * 8
}

/// The entry at a level (4 to 1) of the walk for ADDRESS.
fn walked(guest: &Guest, pasid: Pasid, level: usize) -> u64 {
    guest.walk_addresses(pasid, ADDRESS)[4 - level]
}

fn pass_through(guest: &Guest, pasid: Pasid) {
    let entry = Guest::first_stage(DomainId(1), 0).with_pgtt(PasidGranularTranslationType::PassThrough);
    guest.write_pasid_entry(pasid, entry);
}

/// Maps ADDRESS to another page of memory or none.
fn point_at(guest: &Guest, pasid: Pasid, page: u64) {
    guest.map(pasid, ADDRESS, page, entry::USER);
}

#[expect(clippy::too_many_lines, reason = "the table")]
fn cases() -> Vec<Case> {
    use Translation::{Ca, Served, Success, Ur};
    vec![
        Case::table("RTA.1: reserved TTM", 0x30, Ca, &[], |g, _| set_root(g, ROOT_TABLE | 0x800))
            .unqualified(),
        Case::table("RTA.1: abort-DMA without ADMS", 0x30, Ca, &[], |g, _| set_root(g, ROOT_TABLE | 0xc00))
            .unqualified(),
        Case::table("RTA.2: PASID in legacy mode", 0x31, Ur, &[], |g, _| set_root(g, ROOT_TABLE))
            .unqualified()
            .pasid_only()
            .page(Response::Queued),
        Case::table("SRT.1", 0x38, Ca, &[], |g, _| set_root(g, HOLE | 0x400)).unqualified(),
        Case::table("SRT.1: at the end of the address space", 0x38, Ca, &[], |g, _| {
            set_root(g, 0xffff_ffff_ffff_f400)
        })
        .unqualified(),
        Case::table("SRT.2", 0x39, Ur, &[], |g, _| clear(g, ROOT, 1)).unqualified(),
        Case::table("SRT.3: bit 1", 0x3a, Ca, &[], |g, _| or(g, ROOT, 2)).unqualified(),
        Case::table("SRT.3: beyond HAW", 0x3a, Ca, &[], |g, _| or(g, ROOT, 1 << 48)).unqualified(),
        Case::table("SCT.1", 0x40, Ca, &[], |g, _| g.store(ROOT, HOLE | 1)).unqualified(),
        Case::table("SCT.2", 0x41, Ur, &[Context], |g, _| clear(g, CONTEXT, 1)),
        Case::table("SCT.2: the rest is ignored", 0x41, Ur, &[Context], |g, _| {
            g.store(CONTEXT, 0xffff_ffff_ffff_fffc);
            g.store(CONTEXT + 24, u64::MAX);
        }),
        Case::table("SCT.3: bit 7", 0x42, Ca, &[Context], |g, _| or(g, CONTEXT, 1 << 7)),
        Case::table("SCT.3: HPTE", 0x42, Ca, &[Context], |g, _| or(g, CONTEXT, 1 << 5)),
        Case::table("SCT.3: EPTR", 0x42, Ca, &[Context], |g, _| or(g, CONTEXT, 1 << 6)),
        Case::table("SCT.3: RID_PASID without RPS", 0x42, Ca, &[Context], |g, _| or(g, CONTEXT + 8, 1)),
        Case::table("SCT.3: RID_PRIV", 0x42, Ca, &[Context], |g, _| or(g, CONTEXT + 8, 1 << 20)),
        Case::table("SCT.3: upper half", 0x42, Ca, &[Context], |g, _| or(g, CONTEXT + 16, 1 << 63)),
        Case::table("SCT.3: pointer beyond HAW", 0x42, Ca, &[Context], |g, _| or(g, CONTEXT, 1 << 63)),
        Case::table("SCT.4.1", 0x43, Ca, &[Context], |g, _| edit_context(g, |c| c.with_dte(false))),
        Case::table("SCT.4.2", 0x43, Ca, &[Context], |g, _| {
            edit_context(g, |c| c.with_pdts(0).with_rid_pasid(pasid(0x2000)));
        })
        .with("rps=on"),
        Case::table("SCT.5", 0x44, Ur, &[Context], |g, _| {
            edit_context(g, |c| c.with_dte(false).with_pre(false))
        })
        .not_untranslated()
        .page(Response::Queued),
        Case::table("SCT.6", 0x45, Ur, &[Context], |g, _| edit_context(g, |c| c.with_paside(false)))
            .pasid_only(),
        Case::table("SCT.7", 0x46, Ur, &[Context], |g, _| edit_context(g, |c| c.with_pdts(0)))
            .by_pasid(0x2000),
        Case::table("SCT.7: 20 bits", 0x46, Ur, &[Context], |g, _| edit_context(g, |c| c.with_pdts(6)))
            .by_pasid(0xf_ffff),
        Case::table("SCT.8", 0x47, Served, &[Context], |g, _| edit_context(g, |c| c.with_pre(false)))
            .not_untranslated(),
        Case::table("SCT.9: PASID 0", 0x48, Ur, &[Context], |_, _| {}).by_pasid(0),
        Case::table("SCT.9: RID_PASID", 0x48, Ur, &[Context], |g, _| {
            edit_context(g, |c| c.with_rid_pasid(pasid(0x123)));
        })
        .with("rps=on")
        .by_pasid(0x123),
        Case::table("SPD.1", 0x50, Ca, &[Context], |g, _| edit_context(g, |c| c.with_pasid_dir_ptr(HOLE)))
            .unqualified(),
        Case::table("SPD.2", 0x51, Success, &[Context, Directory], |g, p| clear(g, directory(p), 1)),
        Case::table("SPD.3: bit 2", 0x52, Ca, &[Context, Directory], |g, p| or(g, directory(p), 4)),
        Case::table("SPD.3: bit 11", 0x52, Ca, &[Context, Directory], |g, p| or(g, directory(p), 1 << 11)),
        Case::table("SPD.3: beyond HAW", 0x52, Ca, &[Context, Directory], |g, p| {
            or(g, directory(p), 1 << 52)
        }),
        Case::table("SPT.1", 0x58, Ca, &[Context, Directory], |g, p| g.store(directory(p), HOLE | 1))
            .unqualified(),
        Case::table("SPT.2", 0x59, Success, ALL_LEVELS, |g, p| clear(g, g.pasid_entry_address(p), 1)),
        // The first thing looked at is the present bit: QEMU called an empty entry an invalid one.
        Case::table("SPT.2: empty entry", 0x59, Success, ALL_LEVELS, |g, p| {
            (0..8).for_each(|qword| g.store(g.pasid_entry_address(p) + qword * 8, 0));
        }),
        Case::table("SPT.2: the rest is ignored", 0x59, Success, ALL_LEVELS, |g, p| {
            g.store(g.pasid_entry_address(p), !3);
            (1..8).for_each(|qword| g.store(g.pasid_entry_address(p) + qword * 8, !0));
        }),
        Case::table("SPT.3: bit 5", 0x5a, Ca, ALL_LEVELS, |g, p| or(g, g.pasid_entry_address(p), 1 << 5)),
        Case::table("SPT.3: SSADE", 0x5a, Ca, ALL_LEVELS, |g, p| or(g, g.pasid_entry_address(p), 1 << 9)),
        Case::table("SPT.3: SSPTPTR", 0x5a, Ca, ALL_LEVELS, |g, p| or(g, g.pasid_entry_address(p), 1 << 12)),
        Case::table("SPT.3: DID's neighbour", 0x5a, Ca, ALL_LEVELS, |g, p| {
            or(g, g.pasid_entry_address(p) + 8, 1 << 16)
        }),
        Case::table("SPT.3: PWSNP without SMPWC", 0x5a, Ca, ALL_LEVELS, |_, _| {}).with("smpwc=off"),
        Case::table("SPT.3: SRE without SRS", 0x5a, Ca, ALL_LEVELS, |g, p| {
            or(g, g.pasid_entry_address(p) + 16, 1)
        }),
        Case::table("SPT.3: EAFE without EAFS", 0x5a, Ca, ALL_LEVELS, |g, p| {
            or(g, g.pasid_entry_address(p) + 16, 1 << 7)
        }),
        Case::table("SPT.3: FSPTPTR beyond HAW", 0x5a, Ca, ALL_LEVELS, |g, p| {
            or(g, g.pasid_entry_address(p) + 16, 1 << 48)
        }),
        Case::table("SPT.3: fourth qword", 0x5a, Ca, ALL_LEVELS, |g, p| {
            or(g, g.pasid_entry_address(p) + 24, 1)
        }),
        Case::table("SPT.3: last qword", 0x5a, Ca, ALL_LEVELS, |g, p| {
            or(g, g.pasid_entry_address(p) + 56, 1 << 63)
        }),
        Case::table("SPT.4.2: PGTT 0", 0x5b, Ca, ALL_LEVELS, |g, p| {
            clear(g, g.pasid_entry_address(p), 7 << 6)
        }),
        Case::table("SPT.4.2: second-stage", 0x5b, Ca, ALL_LEVELS, |g, p| {
            g.write_pasid_entry(p, Guest::first_stage(DomainId(1), 0).with_pgtt_bits(2))
        }),
        Case::table("SPT.4.2: nested", 0x5b, Ca, ALL_LEVELS, |g, p| {
            g.write_pasid_entry(p, Guest::first_stage(DomainId(1), 0).with_pgtt_bits(3))
        }),
        Case::table("SPT.4.2: PGTT 7", 0x5b, Ca, ALL_LEVELS, |g, p| or(g, g.pasid_entry_address(p), 7 << 6)),
        Case::table("SPT.4.2: pass-through without PT", 0x5b, Ca, ALL_LEVELS, pass_through).with("pt=off"),
        Case::table("SPT.4.3: FSPM 2", 0x5b, Ca, ALL_LEVELS, |g, p| {
            or(g, g.pasid_entry_address(p) + 16, 2 << 2)
        }),
        Case::table("SPT.4.3: FSPM 3", 0x5b, Ca, ALL_LEVELS, |g, p| {
            or(g, g.pasid_entry_address(p) + 16, 3 << 2)
        }),
        Case::table("SPT.4.3: 5 levels without FS5LP", 0x5b, Ca, ALL_LEVELS, |g, p| {
            or(g, g.pasid_entry_address(p) + 16, 1 << 2)
        })
        .with("fs5lp=off"),
        Case::walk("SPT.6", 0x5d, |_, _| {}).with("srs=on").privileged(),
        Case::walk("SPT.6: pass-through too", 0x5d, pass_through).with("srs=on").privileged().at(0x8000),
        Case::walk("SFS.1: level 3", 0x70, |g, p| g.store(walked(g, p, 4), HOLE | entry::USER)),
        Case::walk("SFS.1: level 2", 0x70, |g, p| g.store(walked(g, p, 3), HOLE | entry::USER)),
        Case::walk("SFS.1: level 1", 0x70, |g, p| g.store(walked(g, p, 2), HOLE | entry::USER)),
        Case::walk("SFS.2: level 4", 0x71, |g, p| clear(g, walked(g, p, 4), 1)),
        Case::walk("SFS.2: level 3", 0x71, |g, p| clear(g, walked(g, p, 3), 1)),
        Case::walk("SFS.2: level 2", 0x71, |g, p| clear(g, walked(g, p, 2), 1)),
        Case::walk("SFS.2: level 1", 0x71, |g, p| clear(g, walked(g, p, 1), 1)),
        Case::walk("SFS.2: the rest is ignored", 0x71, |g, p| g.store(walked(g, p, 1), !1)),
        Case::walk("SFS.3: PS in a PML4E", 0x72, |g, p| or(g, walked(g, p, 4), entry::PS)),
        Case::walk("SFS.3: 1 GiB without FS1GP", 0x72, |g, p| {
            g.store(walked(g, p, 3), 0x4000_0000 | entry::USER | entry::PS)
        })
        .with("fs1gp=off"),
        Case::walk("SFS.3: low address bits of 1 GiB", 0x72, |g, p| {
            g.store(walked(g, p, 3), 1 << 29 | entry::USER | entry::PS)
        }),
        Case::walk("SFS.3: low address bits of 2 MiB", 0x72, |g, p| {
            g.store(walked(g, p, 2), 1 << 13 | entry::USER | entry::PS)
        }),
        Case::walk("SFS.3: beyond HAW, level 4", 0x72, |g, p| or(g, walked(g, p, 4), 1 << 48)),
        Case::walk("SFS.3: beyond HAW, level 1", 0x72, |g, p| or(g, walked(g, p, 1), 1 << 51)),
        Case::walk("SFS.4", 0x73, |g, p| {
            g.write_pasid_entry(p, Guest::first_stage(DomainId(1), HOLE));
        }),
        Case::walk("SFS.9: PWSNP=0", 0x90, |g, p| clear(g, g.pasid_entry_address(p) + 8, 1 << 23)),
        Case::walk("SFS.9: SMPWC=0", 0x90, |g, p| clear(g, g.pasid_entry_address(p) + 8, 1 << 23))
            .with("smpwc=off"),
        Case::walk("SGN.1", 0x80, |_, _| {}).at(0x8000_0000_0000),
        Case::walk("SGN.1: sign bits must all agree", 0x80, |_, _| {}).at(0xfffe_ffff_ffff_f000),
        Case::walk("SGN.1: 5 levels", 0x80, |g, p| or(g, g.pasid_entry_address(p) + 16, 1 << 2))
            .at(0x0100_0000_0000_0000),
        Case::walk("SGN.2: level 4", 0x81, |g, p| clear(g, walked(g, p, 4), entry::US)),
        Case::walk("SGN.2: level 3", 0x81, |g, p| clear(g, walked(g, p, 3), entry::US)),
        Case::walk("SGN.2: level 2", 0x81, |g, p| clear(g, walked(g, p, 2), entry::US)),
        Case::walk("SGN.2: level 1", 0x81, |g, p| clear(g, walked(g, p, 1), entry::US)),
        Case::walk("SGN.2 comes before SGN.6", 0x81, |g, p| clear(g, walked(g, p, 1), entry::US | entry::RW)),
        Case::walk("SGN.4.2", 0x83, pass_through).at(1 << 48),
        Case::walk("SGN.6: level 4", 0x85, |g, p| clear(g, walked(g, p, 4), entry::RW)).writes_only(),
        Case::walk("SGN.6: level 3", 0x85, |g, p| clear(g, walked(g, p, 3), entry::RW)).writes_only(),
        Case::walk("SGN.6: level 2", 0x85, |g, p| clear(g, walked(g, p, 2), entry::RW)).writes_only(),
        Case::walk("SGN.6: level 1", 0x85, |g, p| clear(g, walked(g, p, 1), entry::RW)).writes_only(),
        Case::walk("SGN.6: supervisor with WPE", 0x85, |g, p| {
            clear(g, walked(g, p, 1), entry::RW);
            or(g, g.pasid_entry_address(p) + 16, 1 | 1 << 4);
        })
        .with("srs=on")
        .privileged()
        .writes_only(),
        Case { translation: Ca, ..Case::walk("SGN.8", 0x87, |g, p| point_at(g, p, 0xfee0_0000)) },
        Case {
            translation: Ca,
            ..Case::walk("SGN.8: end of the range", 0x87, |g, p| point_at(g, p, 0xfeef_f000))
        },
        Case {
            translation: Ur,
            path: &[Context],
            ..Case::walk("SGN.10", 0x89, |_, _| {}).with("pss=9").by_pasid(0x400)
        },
    ]
}

/// A guest in which the case holds, and the requester that meets it.
fn arrange(case: &Case, with_pasid: bool) -> (Guest, Requester) {
    let guest = Guest::with_config(&UnitConfig::from_str(case.options).unwrap());
    let mapped = if with_pasid { BOUND } else { Pasid::ZERO };
    guest.bind(mapped);
    guest.map(mapped, ADDRESS, guest.page(), entry::USER);
    (case.arrange)(&guest, mapped);
    let number = case.other.map_or(mapped, pasid);
    (guest, Requester { pasid: with_pasid.then_some(number), privileged: case.privileged })
}

fn set_fpd(guest: &Guest, requester: Requester, level: Level) {
    let pasid = requester.pasid.unwrap_or_default();
    match level {
        Context => or(guest, CONTEXT, 2),
        Directory => or(guest, directory(pasid), 2),
        Entry => {
            // Not through the fixture, which would repair a broken directory.
            let table = guest.load(directory(pasid)) & !0xfff;
            or(guest, table + u64::from(pasid.get() & 0x3f) * 64, 2);
        }
    }
}

fn accesses(case: &Case) -> &'static [Access] {
    if case.writes_only {
        &[Access::Write, Access::Atomic]
    } else {
        &[Access::Read, Access::Write, Access::Atomic]
    }
}

fn access(guest: &Guest, requester: Requester, address: u64, access: Access) -> Result<(), DmaError> {
    match access {
        Access::Read | Access::ZeroLengthRead => guest.endpoint.read(requester, address, &mut [0; 8]),
        Access::Write => guest.endpoint.write(requester, address, &[0; 8]),
        Access::Atomic => guest.endpoint.compare_and_swap(requester, address, 0, 0).map(|_| ()),
    }
}

/// Checks that exactly one fault is recorded and announced, with all its fields.
fn check_record(
    case: &Case,
    guest: &Guest,
    requester: Requester,
    code: u8,
    kind: FaultRequestType,
    address_type: u8,
) {
    assert_eq!(guest.read32(offset::FSTS), 2, "{}: PPF, and FRI 0", case.name);
    assert_eq!(guest.messages.take().len(), 1, "{}", case.name);
    let [record] = guest.take_faults()[..] else { panic!("{}: one record", case.name) };
    assert_eq!(record.fr(), code, "{}: {:#x}", case.name, record.fr());
    assert_eq!(record.sid(), SOURCE_ID);
    assert_eq!(record.request_type(), kind, "{}", case.name);
    assert_eq!(record.at(), address_type, "{}", case.name);
    // What the request itself carried: never RID_PASID.
    assert_eq!(record.pp(), requester.pasid.is_some(), "{}", case.name);
    assert_eq!(record.pv(), requester.pasid.unwrap_or_default(), "{}", case.name);
    assert_eq!(record.privileged(), requester.privileged);
    assert!(!record.exe());
    assert_eq!(guest.read32(offset::FSTS) & 2, 0);
}

fn check_quiet(case: &Case, guest: &Guest) {
    assert_eq!(guest.read32(offset::FSTS), 0, "{}", case.name);
    assert_eq!(guest.take_fault(0), None, "{}", case.name);
    assert!(guest.messages.take().is_empty(), "{}", case.name);
}

/// Every FPD that the case meets, alone; and the reason why a set FPD must not silence it: none.
fn suppressions(case: &Case) -> Vec<(Vec<Level>, bool)> {
    if case.qualified {
        case.path.iter().map(|level| (vec![*level], true)).chain([(vec![], false)]).collect()
    } else {
        vec![(vec![], false), (case.path.to_vec(), false)]
    }
}

fn each(run: impl Fn(&Case, bool, &[Level], bool)) {
    for case in cases() {
        for with_pasid in [true, false] {
            if with_pasid || !case.pasid_only {
                for (levels, silent) in suppressions(&case) {
                    run(&case, with_pasid, &levels, silent);
                }
            }
        }
    }
}

fn arrange_with_fpd(case: &Case, with_pasid: bool, levels: &[Level]) -> (Guest, Requester) {
    let (guest, requester) = arrange(case, with_pasid);
    levels.iter().for_each(|level| set_fpd(&guest, requester, *level));
    (guest, requester)
}

#[test]
fn untranslated_requests_are_refused_and_recorded() {
    each(|case, with_pasid, levels, silent| {
        for kind in accesses(case) {
            let (guest, requester) = arrange_with_fpd(case, with_pasid, levels);
            let result = access(&guest, requester, case.address, *kind);
            if !case.untranslated {
                assert_eq!(result, Ok(()), "{}", case.name);
                check_quiet(case, &guest);
                continue;
            }
            assert_eq!(result, Err(DmaError::Refused { address: case.address }), "{} {kind:?}", case.name);
            if silent {
                check_quiet(case, &guest);
            } else {
                let kind = match kind {
                    Access::Read | Access::ZeroLengthRead => FaultRequestType::Read,
                    Access::Write => FaultRequestType::Write,
                    Access::Atomic => FaultRequestType::AtomicOp,
                };
                check_record(case, &guest, requester, case.code, kind, 0);
            }
            // Once more, with whatever is cached now.
            assert_eq!(
                access(&guest, requester, case.address, Access::Write),
                result,
                "{}: again",
                case.name
            );
        }
    });
}

#[test]
fn translation_requests_are_answered_by_the_table_and_only_hopeless_ones_recorded() {
    each(|case, with_pasid, levels, silent| {
        for kind in accesses(case) {
            let (guest, requester) = arrange_with_fpd(case, with_pasid, levels);
            guest.endpoint.set_ats_enabled(true);
            let (address, write) = (case.address, *kind != Access::Read);
            let result = access(&guest, requester, address, *kind);
            let (expected, recorded) = match case.translation {
                Translation::Ur => {
                    (Err(DmaError::TranslationRefused { address, completer_abort: false }), true)
                }
                Translation::Ca => {
                    (Err(DmaError::TranslationRefused { address, completer_abort: true }), true)
                }
                Translation::Success => (Err(DmaError::PageFault { address, write }), false),
                Translation::Served => (Ok(()), false),
            };
            assert_eq!(result, expected, "{} {kind:?}", case.name);
            if recorded && !silent {
                check_record(case, &guest, requester, case.code, FaultRequestType::Read, 1);
            } else {
                check_quiet(case, &guest);
            }
            assert_eq!(access(&guest, requester, address, *kind), expected, "{}: again", case.name);
        }
    });
}

#[test]
fn page_requests_are_answered_or_queued() {
    each(|case, with_pasid, levels, silent| {
        for last in [true, false] {
            let (guest, requester) = arrange_with_fpd(case, with_pasid, levels);
            let address = case.address;
            let request = PageRequest { requester, address, read: true, write: true, last, group: 9 };
            // SGN.10 and RTA.2 are no matter of page requests, RTA.3 stands for the latter.
            let code = match case.code {
                0x89 => continue,
                0x31 => 0x32,
                code => code,
            };
            guest.endpoint.page_request(request);
            let responses = guest.sink.responses.lock().unwrap().clone();
            let blocked = case.page == Response::InvalidRequest || code == 0x32;
            // With DTE=0 and PRE=0 it is PRE that blocks.
            let (blocked, code) = if case.code == 0x44 { (true, 0x47) } else { (blocked, code) };
            if !blocked {
                assert_eq!(guest.read64(offset::PQT), 32, "{}", case.name);
                assert!(responses.is_empty());
                assert_eq!(guest.read32(offset::FSTS), 0, "{}", case.name);
                continue;
            }
            assert_eq!(guest.read64(offset::PQT), 0, "{}", case.name);
            if last {
                assert_eq!(responses.len(), 1, "{}", case.name);
                assert_eq!(responses[0].code, ResponseCode::InvalidRequest);
                assert_eq!((responses[0].group, responses[0].pasid), (9, requester.pasid));
            } else {
                assert!(responses.is_empty(), "{}: only the last request of a group is answered", case.name);
            }
            if silent {
                check_quiet(case, &guest);
            } else {
                check_record(case, &guest, requester, code, FaultRequestType::PageRequest, 0);
            }
        }
    });
}

#[test]
fn the_table_covers_every_reason_that_such_a_unit_can_raise() {
    let mut covered: Vec<u8> = cases().iter().map(|case| case.code).chain([0x32, 0x91]).collect();
    covered.sort_unstable();
    covered.dedup();
    // Scalable mode with first stage and pass-through: no second stage, no abort-DMA mode, no execute requests, no
    // translated requests with PASID, no host permission tables.
    let expected = [
        0x30, 0x31, 0x32, 0x38, 0x39, 0x3a, 0x40, 0x41, 0x42, 0x43, 0x44, 0x45, 0x46, 0x47, 0x48, 0x50, 0x51,
        0x52, 0x58, 0x59, 0x5a, 0x5b, 0x5d, 0x70, 0x71, 0x72, 0x73, 0x80, 0x81, 0x83, 0x85, 0x87, 0x89, 0x90,
        0x91,
    ];
    assert_eq!(covered, expected);
}

#[test]
fn scalable_mode_on_a_unit_without_it_is_rta_1() {
    let options = "smts=off,fsts=off,fs1gp=off,fs5lp=off,pasid=off,prs=off,sms=off,smpwc=off";
    let guest = Guest::powered_up(&UnitConfig::from_str(options).unwrap());
    guest.add_function(SOURCE_ID);
    set_root(&guest, ROOT_TABLE | 0x400);
    guest.command(1 << 31);
    assert_eq!(
        guest.endpoint.read(Requester::default(), 0x1000, &mut [0]),
        Err(DmaError::Refused { address: 0x1000 })
    );
    assert_eq!(guest.take_fault_reason(), Some(0x30));
}

#[test]
fn only_the_half_of_the_root_entry_that_answers_is_checked() {
    let guest = Guest::new();
    guest.bind(Pasid::ZERO);
    guest.map(Pasid::ZERO, ADDRESS, guest.page(), entry::USER);
    guest.store(ROOT + 8, !1);
    guest.endpoint.read(Requester::default(), ADDRESS, &mut [0]).unwrap();
    guest.store(ROOT + 8, !0);
    guest.command(1 << 30);
    guest.endpoint.read(Requester::default(), ADDRESS, &mut [0]).unwrap();
}

#[test]
fn passed_through_interrupt_addresses_are_translated_but_not_reached() {
    for (ats, at) in [(false, 0), (true, 2)] {
        let guest = Guest::new();
        pass_through(&guest, BOUND);
        guest.endpoint.set_ats_enabled(ats);
        // A translation request is granted (SGN.8.2 spares pass-through), the translated request is not (SGN.8.3).
        let result = guest.endpoint.write(Guest::with_pasid(BOUND), 0xfee0_1000, &[0; 4]);
        assert_eq!(result, Err(DmaError::Refused { address: 0xfee0_1000 }));
        let [record] = guest.take_faults()[..] else { panic!("one record") };
        assert_eq!((record.fr(), record.at(), record.request_type()), (0x87, at, FaultRequestType::Write));
    }
}

/// The interrupt range is decoded before translation where there is no PASID. [S 3.14; reference D.0]
#[test]
fn requests_without_pasid_in_the_interrupt_range_are_interrupts_or_blocked() {
    for ats in [false, true] {
        let guest = Guest::new();
        guest.bind(Pasid::ZERO);
        for page in [0xfee0_0000, 0xfeef_f000] {
            guest.map(Pasid::ZERO, page, guest.page(), entry::USER);
        }
        guest.endpoint.set_ats_enabled(ats);
        let none = Requester::default();
        guest.endpoint.write(none, 0xfee0_1004, &0x41u32.to_le_bytes()).unwrap();
        assert_eq!(guest.messages.take().len(), 1);
        assert_eq!(guest.take_faults(), []);
        for address in [0xfee0_0000, 0xfeef_fff8] {
            let refused = Err(DmaError::Refused { address });
            let blocked = |result, kind| {
                assert_eq!(result, refused);
                let [record] = guest.take_faults()[..] else { panic!("one record") };
                assert_eq!((record.fr(), record.at(), record.pp()), (0x29, 0, false));
                assert_eq!(record.request_type(), kind);
            };
            blocked(guest.endpoint.write(none, address, &[0; 8]), FaultRequestType::Write);
            blocked(guest.endpoint.write(none, address, &[0; 2]), FaultRequestType::Write);
            blocked(
                guest.endpoint.compare_and_swap(none, address, 0, 0).map(|_| ()),
                FaultRequestType::AtomicOp,
            );
            let read = guest.endpoint.read(none, address, &mut [0; 4]);
            if ats {
                // A translation request that will not write is granted nothing (S.2), and nothing is logged.
                assert_eq!(read, Err(DmaError::PageFault { address, write: false }));
                assert_eq!(guest.take_faults(), []);
            } else {
                blocked(read, FaultRequestType::Read);
            }
        }
        blocked_unaligned(&guest);
        assert_eq!(guest.endpoint.read(none, 0xfee0_0000, &mut []), Ok(()), "a zero-length read passes");
        guest.messages.take();
    }
}

fn blocked_unaligned(guest: &Guest) {
    guest.messages.take();
    let result = guest.endpoint.write(Requester::default(), 0xfee0_0002, &[0; 4]);
    assert_eq!(result, Err(DmaError::Refused { address: 0xfee0_0002 }), "four bytes, but no doubleword");
    let messages = guest.messages.take();
    assert_eq!(messages.len(), 1, "the fault event and nothing else");
    assert_eq!(messages[0].data, 0x41);
    assert_eq!(guest.take_faults()[0].fr(), 0x29);
}

#[test]
fn the_fault_names_the_page_where_an_access_stopped() {
    let guest = Guest::new();
    guest.bind(BOUND);
    let page = guest.page();
    guest.map(BOUND, ADDRESS, page, entry::USER);
    let result = guest.endpoint.write(Guest::with_pasid(BOUND), ADDRESS + 0xff0, &[7; 32]);
    assert_eq!(result, Err(DmaError::Refused { address: ADDRESS + 0x1000 }));
    assert_eq!(guest.take_faults()[0].fi(), ADDRESS + 0x1000);
    assert_eq!(guest.load(page + 0xff8), 0x0707_0707_0707_0707, "what lies before it is written");
    let result = guest.endpoint.read(Guest::with_pasid(BOUND), ADDRESS - 0x800, &mut [0; 16]);
    assert_eq!(result, Err(DmaError::Refused { address: ADDRESS - 0x800 }));
    assert_eq!(guest.take_faults()[0].fi(), ADDRESS - 0x1000);
}

#[test]
fn fault_info_has_no_bits_above_the_widest_address() {
    for (options, expected) in [("fs5lp=off", 0x8000_0000_0000), ("", 0x01ff_8000_0000_0000)] {
        let guest = Guest::with_config(&UnitConfig::from_str(options).unwrap());
        guest.bind(BOUND);
        guest.endpoint.read(Guest::with_pasid(BOUND), 0xffff_8000_0000_0000, &mut [0]).unwrap_err();
        let [record] = guest.take_faults()[..] else { panic!("one record") };
        assert_eq!((record.fr(), record.fi()), (0x71, expected), "{options}");
    }
}

#[test]
fn nothing_is_recorded_while_translation_is_off() {
    let guest = Guest::new();
    guest.command_off(1 << 31);
    guest.endpoint.read(Guest::with_pasid(BOUND), 0x1000, &mut [0]).unwrap();
    guest.endpoint.set_ats_enabled(true);
    assert_eq!(
        guest.endpoint.read(Guest::with_pasid(BOUND), 0x1000, &mut [0]),
        Err(DmaError::TranslationRefused { address: 0x1000, completer_abort: false })
    );
    assert_eq!(guest.take_faults(), []);
    assert_eq!(guest.read32(offset::FSTS), 0);
}

#[test]
fn recoverable_faults_under_a_pin_are_not_recorded() {
    use vm_memory::{Bytes, GuestAddress};
    for ats in [false, true] {
        let guest = Guest::new();
        guest.bind(Pasid::ZERO);
        guest.endpoint.set_ats_enabled(ats);
        let memory = guest.endpoint.pin(Requester::default(), ADDRESS).unwrap();
        assert!(memory.read_obj::<u8>(GuestAddress(ADDRESS)).is_err());
        drop(memory);
        let faults: Vec<_> = guest.take_faults().iter().map(|record| record.fr()).collect();
        assert_eq!(faults, if ats { vec![] } else { vec![0x71] }, "ats: {ats}");
    }
}
