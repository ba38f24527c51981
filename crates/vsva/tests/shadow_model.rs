// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The shadow against a model: whatever a guest writes into its tables and announces, the host has attached what the
//! announcements so far have shown, and nothing else.

mod rig;

use std::collections::{BTreeMap, btree_map};
use std::sync::Arc;

use proptest::prelude::*;
use rig::common::descriptors as d;
use rig::common::{Guest, Memory, SOURCE_ID, pasid};
use rig::ledger::Ledger;
use vsva::{Assigned, Attachment, DeviceId, HostIommu, Joint};
use vtd_spec::descriptors::{ContextGranularity, FunctionMask, PasidCacheGranularity};
use vtd_spec::{
    DomainId, Pasid, PasidDirectoryEntry, PasidEntry, PasidGranularTranslationType, ScalableContextEntry,
    SourceId,
};
use vtd_unit::{FirstStageTable, UnitConfig};

const FUNCTIONS: [SourceId; 2] = [SOURCE_ID, SourceId::new(0, 9, 1)];
/// PASIDs that lie in tables of their own, at both ends of them, and one that only the larger directory has.
const PASIDS: [u32; 9] = [0, 1, 2, 3, 63, 64, 0x2040, 0xf_ffc0, 0xf_ffff];
/// What requests without PASID may use: the unit has RPS.
const RID_PASIDS: [u32; 3] = [0, 2, 64];

/// An entry as a guest would write it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Entry {
    Absent,
    Nested {
        table: u8,
        levels: u8,
        domain: u16,
        sre: bool,
        wpe: bool,
        eafe: bool,
    },
    PassThrough {
        domain: u16,
    },
    /// A reserved bit, a type that does not exist, or one that the unit does not offer.
    Invalid {
        how: u8,
        domain: u16,
    },
}

/// A context entry that software may write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Context {
    present: bool,
    paside: bool,
    /// The directory has all PASIDs, or the first 8192.
    large: bool,
    rid_pasid: u32,
}

#[derive(Clone, Debug)]
enum Operation {
    Write {
        pasid: u32,
        entry: Entry,
    },
    /// Takes a whole leaf table out of the directory, or puts it back.
    Table {
        pasid: u32,
        present: bool,
    },
    Context {
        function: usize,
        context: Context,
    },
    AnnounceAll,
    AnnounceDomain(u16),
    AnnouncePasid {
        pasid: u32,
        domain: u16,
    },
    AnnounceContext {
        function: Option<usize>,
    },
    Translation(bool),
    ResetDevice(usize),
    /// The machine is reset, and boots again with the tables it finds.
    ResetUnit {
        boot: bool,
    },
}

/// What requests without PASID are attached to, and PASID and domain of the entry behind it.
type WithoutPasid = (Attachment, Option<(u32, u16)>);

/// The tables as the guest has last written them, and what the host must have.
struct Model {
    entries: BTreeMap<u32, Entry>,
    absent_tables: Vec<u32>,
    contexts: [Context; 2],
    enabled: bool,
    /// By function and PASID: domain and attachment.
    bound: [BTreeMap<u32, (u16, Attachment)>; 2],
    /// By function.
    without_pasid: [Option<WithoutPasid>; 2],
}

fn table_address(table: u8) -> u64 {
    0x100_0000 + u64::from(table) * 0x1000
}

impl Entry {
    fn encode(self) -> PasidEntry {
        match self {
            Self::Absent => PasidEntry::new(),
            Self::Nested { table, levels, domain, sre, wpe, eafe } => {
                Guest::first_stage(DomainId(domain), table_address(table))
                    .with_fspm(levels - 4)
                    .with_sre(sre)
                    .with_wpe(wpe)
                    .with_eafe(eafe)
            }
            Self::PassThrough { domain } => {
                Guest::first_stage(DomainId(domain), 0).with_pgtt(PasidGranularTranslationType::PassThrough)
            }
            Self::Invalid { how, domain } => {
                let valid = Guest::first_stage(DomainId(domain), 0x100_0000);
                match how % 4 {
                    // Reserved bits; a paging mode and a type that do not exist; second stages, which it lacks.
                    0 => PasidEntry::from_qwords([valid.to_qwords()[0] | 1 << 10, 0x1, 0, 0, 0, 0, 0, 1]),
                    1 => valid.with_fspm(2),
                    2 => valid.with_pgtt_bits(7),
                    _ => valid.with_pgtt(PasidGranularTranslationType::Nested),
                }
            }
        }
    }

    fn domain(self) -> u16 {
        match self {
            Self::Absent => 0,
            Self::Nested { domain, .. } | Self::PassThrough { domain } | Self::Invalid { domain, .. } => {
                domain
            }
        }
    }

    fn attachment(self) -> Option<Attachment> {
        match self {
            Self::Absent | Self::Invalid { .. } => None,
            Self::PassThrough { .. } => Some(Attachment::SecondStage),
            Self::Nested { table, levels, sre, wpe, eafe, .. } => {
                let address = table_address(table);
                Some(Attachment::Nested(FirstStageTable { address, levels, sre, eafe, wpe }))
            }
        }
    }
}

impl Model {
    fn new() -> Self {
        let context = Context { present: true, paside: true, large: true, rid_pasid: 0 };
        Self {
            entries: BTreeMap::new(),
            absent_tables: Vec::new(),
            contexts: [context; 2],
            enabled: true,
            bound: Default::default(),
            without_pasid: [None; 2],
        }
    }

    fn in_directory(context: &Context, pasid: u32) -> bool {
        pasid < if context.large { 1 << 20 } else { 1 << 13 }
    }

    fn entry(&self, pasid: u32) -> Entry {
        let absent = self.absent_tables.contains(&(pasid >> 6));
        if absent { Entry::Absent } else { self.entries.get(&pasid).copied().unwrap_or(Entry::Absent) }
    }

    /// What the tables say of a PASID of a function: domain and attachment.
    fn says(&self, function: usize, pasid: u32) -> Option<(u16, Attachment)> {
        let context = &self.contexts[function];
        let reachable = self.enabled
            && context.present
            && context.paside
            && Self::in_directory(context, pasid)
            && context.rid_pasid != pasid;
        let entry = self.entry(pasid);
        entry.attachment().filter(|_| reachable).map(|to| (entry.domain(), to))
    }

    /// Every PASID whose entry, old or new, is in scope becomes what the tables say. One that was not there is of domain 0.
    fn announced(&mut self, function: usize, in_scope: impl Fn(u32, u16) -> bool) {
        for number in PASIDS {
            let now = self.says(function, number);
            let before = self.bound[function].get(&number).copied();
            let domains = [Some(before.map_or(0, |(domain, _)| domain)), now.map(|(domain, _)| domain)];
            if domains.into_iter().flatten().any(|domain| in_scope(number, domain)) {
                match now {
                    Some(now) => self.bound[function].insert(number, now),
                    None => self.bound[function].remove(&number),
                };
            }
        }
        let context = &self.contexts[function];
        let now = match (self.enabled, context.present) {
            (false, _) => Some((Attachment::SecondStage, None)),
            (true, false) => None,
            (true, true) => {
                let entry = self.entry(context.rid_pasid);
                entry.attachment().map(|to| (to, Some((context.rid_pasid, entry.domain()))))
            }
        };
        let [was, is] = [self.without_pasid[function], now].map(|state| state.and_then(|(_, entry)| entry));
        if let Some((number, _)) = is.or(was) {
            let domains = [Some(was.map_or(0, |(_, domain)| domain)), is.map(|(_, domain)| domain)];
            if !domains.into_iter().flatten().any(|domain| in_scope(number, domain)) {
                return;
            }
        }
        self.without_pasid[function] = now;
    }

    fn all_announced(&mut self) {
        (0..FUNCTIONS.len()).for_each(|function| self.announced(function, |_, _| true));
    }
}

struct System {
    guest: Guest,
    ledger: Arc<Ledger>,
    assigned: Vec<Arc<Assigned<Memory>>>,
    joint: Joint<Memory>,
    /// The directory entries of tables that are out of it.
    tables: BTreeMap<u32, u64>,
    model: Model,
}

impl System {
    fn new(identical: bool) -> Self {
        let config = UnitConfig { rps: true, srs: true, eafs: true, ..UnitConfig::default() };
        let guest = Guest::with_config(&config);
        FUNCTIONS.iter().for_each(|function| guest.add_function(*function));
        let ledger = Ledger::new(identical, 1000);
        // What it has there is assigned.
        guest.unit.remove_endpoint(SOURCE_ID);
        let joint = Joint::new(&guest.unit, Arc::clone(&ledger) as Arc<dyn HostIommu>, None).unwrap();
        let assigned = (1..).zip(FUNCTIONS).map(|(id, at)| joint.assign(at, DeviceId(id)).unwrap()).collect();
        Self { guest, ledger, assigned, joint, tables: BTreeMap::new(), model: Model::new() }
    }

    fn directory(number: u32) -> u64 {
        rig::common::PASID_DIRECTORY + u64::from(number >> 6) * 8
    }

    fn run(&mut self, operation: &Operation) {
        let Self { guest, model, .. } = self;
        match *operation {
            Operation::Write { pasid: number, entry } => {
                // Into the table even while it is out of the directory.
                let address = match self.tables.get(&(number >> 6)) {
                    Some(bits) => {
                        let table = PasidDirectoryEntry::from_bits(*bits).smptblptr();
                        table + u64::from(number & 0x3f) * 64
                    }
                    None => guest.pasid_entry_address(pasid(number)),
                };
                for (index, qword) in entry.encode().to_qwords().into_iter().enumerate().rev() {
                    guest.store(address + 8 * index as u64, qword);
                }
                model.entries.insert(number, entry);
            }
            Operation::Table { pasid: number, present } => {
                let (key, at) = (number >> 6, Self::directory(number));
                if present {
                    if let Some(bits) = self.tables.remove(&key) {
                        guest.store(at, bits);
                        model.absent_tables.retain(|absent| *absent != key);
                    }
                } else if let btree_map::Entry::Vacant(vacant) = self.tables.entry(key) {
                    guest.pasid_entry_address(pasid(number));
                    vacant.insert(guest.load(at));
                    guest.store(at, 0);
                    model.absent_tables.push(key);
                }
            }
            Operation::Context { function, context } => {
                model.contexts[function] = context;
                let entry = Guest::context()
                    .with_present(context.present)
                    .with_paside(context.paside)
                    .with_pdts(if context.large { 7 } else { 0 })
                    .with_rid_pasid(pasid(context.rid_pasid));
                let entry = if context.present { entry } else { ScalableContextEntry::new() };
                guest.write_context(FUNCTIONS[function], entry);
            }
            Operation::AnnounceAll => {
                guest.submit(&d::pasid_cache(PasidCacheGranularity::Global, DomainId(0), Pasid::ZERO));
                model.all_announced();
            }
            Operation::AnnounceDomain(domain) => {
                guest.submit(&d::pasid_cache(PasidCacheGranularity::Domain, DomainId(domain), Pasid::ZERO));
                (0..2).for_each(|function| model.announced(function, |_, of| of == domain));
            }
            Operation::AnnouncePasid { pasid: number, domain } => {
                guest.submit(&d::pasid_cache_entry(DomainId(domain), pasid(number)));
                (0..2).for_each(|function| model.announced(function, |at, of| at == number && of == domain));
            }
            Operation::AnnounceContext { function: Some(function) } => {
                guest.submit(&d::context_device(FUNCTIONS[function]));
                model.announced(function, |_, _| true);
            }
            Operation::AnnounceContext { function: None } => {
                let global = d::context(ContextGranularity::Global, SourceId(0), FunctionMask::None);
                guest.submit(&global);
                model.all_announced();
            }
            Operation::Translation(on) => {
                if on == model.enabled {
                    return;
                }
                if on {
                    guest.command(1 << 31)
                } else {
                    guest.command_off(1 << 31)
                }
                model.enabled = on;
                model.all_announced();
            }
            Operation::ResetDevice(function) => {
                self.assigned[function].reset();
                model.announced(function, |_, _| true);
            }
            Operation::ResetUnit { boot } => {
                guest.unit.reset();
                model.enabled = false;
                model.all_announced();
                for device in [1, 2].map(DeviceId) {
                    assert_eq!(self.ledger.reached(device).len(), 0, "nothing outlives a reset");
                }
                guest.restart_queue();
                guest.write64(vtd_spec::offset::RTADDR, rig::common::ROOT_TABLE | 0x400);
                guest.command(1 << 30);
                if boot {
                    guest.command(1 << 31);
                    model.enabled = true;
                }
                model.all_announced();
            }
        }
    }

    fn check(&self) {
        for (function, (assigned, device)) in self.assigned.iter().zip([1, 2].map(DeviceId)).enumerate() {
            let model = &self.model.bound[function];
            let expected: BTreeMap<Pasid, Attachment> =
                model.iter().map(|(number, (_, to))| (pasid(*number), *to)).collect();
            assert_eq!(self.ledger.reached(device), expected, "what function {function} reaches");
            let shadow: BTreeMap<Pasid, Attachment> =
                assigned.bound().into_iter().map(|(guest, _, to)| (guest, to)).collect();
            assert_eq!(shadow, expected, "the shadow of function {function}");
            let hosts: BTreeMap<Pasid, Attachment> =
                assigned.bound().into_iter().map(|(_, host, to)| (host, to)).collect();
            assert_eq!(self.ledger.attached(device), hosts, "nothing else is attached");
            let without_pasid = self.model.without_pasid[function].map(|(to, _)| to);
            assert_eq!(self.ledger.without_pasid(device), without_pasid);
        }
        let held: std::collections::BTreeSet<u32> =
            self.model.bound.iter().flat_map(|bound| bound.keys().copied()).collect();
        assert_eq!(self.ledger.allocated(), held.len(), "one PASID of the host for each that is bound");
    }
}

fn entry() -> impl Strategy<Value = Entry> {
    let domain = 1..3u16;
    prop_oneof![
        2 => Just(Entry::Absent),
        6 => (0..4u8, 4..6u8, domain.clone(), any::<[bool; 3]>()).prop_map(
            |(table, levels, domain, [sre, wpe, eafe])| Entry::Nested { table, levels, domain, sre, wpe, eafe }
        ),
        2 => domain.clone().prop_map(|domain| Entry::PassThrough { domain }),
        1 => (any::<u8>(), domain).prop_map(|(how, domain)| Entry::Invalid { how, domain }),
    ]
}

fn number() -> impl Strategy<Value = u32> {
    prop::sample::select(PASIDS.to_vec())
}

fn operation() -> impl Strategy<Value = Operation> {
    let context = (any::<bool>(), any::<bool>(), any::<bool>(), prop::sample::select(RID_PASIDS.to_vec()))
        .prop_map(|(absent, no_pasids, small, rid_pasid)| Context {
            present: !absent,
            paside: !no_pasids,
            large: !small,
            rid_pasid,
        });
    prop_oneof![
        10 => (number(), entry()).prop_map(|(pasid, entry)| Operation::Write { pasid, entry }),
        1 => (number(), any::<bool>()).prop_map(|(pasid, present)| Operation::Table { pasid, present }),
        2 => (0..2usize, context).prop_map(|(function, context)| Operation::Context { function, context }),
        3 => Just(Operation::AnnounceAll),
        2 => (0..4u16).prop_map(Operation::AnnounceDomain),
        6 => (number(), 0..3u16)
            .prop_map(|(pasid, domain)| Operation::AnnouncePasid { pasid, domain }),
        2 => prop::option::of(0..2usize).prop_map(|function| Operation::AnnounceContext { function }),
        1 => any::<bool>().prop_map(Operation::Translation),
        1 => (0..2usize).prop_map(Operation::ResetDevice),
        1 => any::<bool>().prop_map(|boot| Operation::ResetUnit { boot }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_host_has_what_the_guest_has_announced(
        identical in any::<bool>(),
        operations in prop::collection::vec(operation(), 1..60),
    ) {
        let mut system = System::new(identical);
        system.model.all_announced();
        system.check();
        for operation in &operations {
            system.run(operation);
            system.check();
        }
        let System { joint, ledger, .. } = system;
        drop(joint);
        prop_assert!(ledger.is_empty(), "everything is given back");
    }
}
