// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `--figures`: what a host did for the guest's processes, to look at.
//!
//! Counts, and one process in full: the first whose page request the guest has answered. At that moment the pointer
//! that was asked for leads somewhere, so it can be followed from the process to the byte in the host's memory.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Serialize, Serializer};
use vsva::{Attachment, DeviceId, Event, Followed, SoftHost, Tracer};
use vtd_spec::tables::PasidGranularTranslationType;
use vtd_spec::{Pasid, PasidEntry, ResponseCode, SourceId};

/// Groups of page requests that are remembered until the guest answers.
const MAX_REQUESTS: usize = 512;

/// An address or an entry: written in hexadecimal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hex(pub u64);

impl Serialize for Hex {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{:#x}", self.0))
    }
}

/// What `--figures` prints.
#[derive(Clone, Debug, Serialize)]
pub struct Nested {
    /// One process; `None` if the guest has answered no page request.
    pub process: Option<Process>,
    /// How often what happened.
    pub counts: Counts,
}

/// How often what happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Walks of a guest's first stage nested on the host's second.
    pub nested_walks: u64,
    /// Walks of the host's second stage alone.
    pub second_stage_walks: u64,
    /// Guest PASIDs, and requests without PASID, that were bound.
    pub binds: u64,
    /// Those bound to another table.
    pub rebinds: u64,
    /// Those unbound.
    pub unbinds: u64,
    /// Those that the host refused.
    pub refused: u64,
    /// Invalidations that went down.
    pub invalidations: u64,
    /// Page requests that went up.
    pub page_requests: u64,
    /// Page group responses that came down.
    pub responses: u64,
    /// Faults that went up.
    pub faults: u64,
}

/// A process that shares its address space with an assigned device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Process {
    /// The device's source-id in the guest.
    pub function: String,
    /// The guest's PASID.
    pub guest_pasid: u32,
    /// The PASID on the host.
    pub host_pasid: u32,
    /// The process's page table, a guest physical address: its CR3 without low bits.
    pub guest_cr3: Hex,
    /// The host's PASID entry.
    pub host_entry: HostEntry,
    /// A pointer of the process, followed.
    pub pointer: Pointer,
}

/// A PASID entry of the host. \[S 9.6\]
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HostEntry {
    /// PGTT.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// FSPTPTR: with nested translation a guest physical address.
    pub first_stage_root: Hex,
    /// SSPTPTR: a host physical address.
    pub second_stage_root: Hex,
    /// DID.
    pub domain_id: u16,
    /// The whole entry.
    pub quadwords: [Hex; 8],
}

/// A pointer, and where it leads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Pointer {
    /// What the process has.
    pub guest_virtual: Hex,
    /// The entries of the process's page table on the way.
    pub walk: Vec<Step>,
    /// What the guest takes for physical.
    pub guest_physical: Hex,
    /// Where the byte is.
    pub host_physical: Hex,
}

/// One entry of the process's page table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Step {
    /// Level of the table, 4 or 5 down to 1.
    pub level: u8,
    /// Where the guest has it.
    pub guest_physical: Hex,
    /// Where it is.
    pub host_physical: Hex,
    /// What it holds.
    pub entry: Hex,
}

impl From<&PasidEntry> for HostEntry {
    fn from(entry: &PasidEntry) -> Self {
        let kind = match entry.pgtt() {
            Some(PasidGranularTranslationType::FirstStage) => "first stage",
            Some(PasidGranularTranslationType::SecondStage) => "second stage",
            Some(PasidGranularTranslationType::Nested) => "nested",
            Some(PasidGranularTranslationType::PassThrough) => "pass-through",
            None => "reserved",
        };
        Self {
            kind,
            first_stage_root: Hex(entry.fsptptr()),
            second_stage_root: Hex(entry.ssptptr()),
            domain_id: entry.did().0,
            quadwords: entry.to_qwords().map(Hex),
        }
    }
}

impl From<&Followed> for Pointer {
    fn from(followed: &Followed) -> Self {
        let walk = followed.entries.iter().map(|entry| Step {
            level: entry.level,
            guest_physical: Hex(entry.guest_physical),
            host_physical: Hex(entry.host_physical),
            entry: Hex(entry.value),
        });
        Self {
            guest_virtual: Hex(followed.guest_virtual),
            walk: walk.collect(),
            guest_physical: Hex(followed.guest_physical),
            host_physical: Hex(followed.host_physical),
        }
    }
}

#[derive(Default)]
struct Counters {
    binds: AtomicU64,
    rebinds: AtomicU64,
    unbinds: AtomicU64,
    refused: AtomicU64,
    invalidations: AtomicU64,
    page_requests: AtomicU64,
    responses: AtomicU64,
    faults: AtomicU64,
}

/// What is needed until there is a process to show.
#[derive(Default)]
struct Search {
    devices: HashMap<SourceId, DeviceId>,
    bound: HashMap<(SourceId, Pasid), (Pasid, u64)>,
    /// Addresses of groups that wait for the guest.
    requests: HashMap<(SourceId, Pasid, u16), u64>,
    found: Option<Process>,
}

/// Counts what crosses the joint, looks for a process to show, and passes all on to a tracer.
pub(crate) struct Figures {
    host: Arc<SoftHost>,
    next: Option<Arc<dyn Tracer>>,
    counters: Counters,
    searching: AtomicBool,
    search: Mutex<Search>,
}

impl Figures {
    pub(crate) fn new(host: Arc<SoftHost>, next: Option<Arc<dyn Tracer>>) -> Self {
        Self {
            host,
            next,
            counters: Counters::default(),
            searching: AtomicBool::new(true),
            search: Mutex::default(),
        }
    }

    fn search(&self) -> MutexGuard<'_, Search> {
        self.search.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says which of the host's devices a function of the guest is.
    pub(crate) fn name(&self, function: SourceId, device: DeviceId) {
        self.search().devices.insert(function, device);
    }

    pub(crate) fn nested(&self) -> Nested {
        let walks = self.host.statistics();
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let c = &self.counters;
        let counts = Counts {
            nested_walks: walks.nested_walks,
            second_stage_walks: walks.second_stage_walks,
            binds: read(&c.binds),
            rebinds: read(&c.rebinds),
            unbinds: read(&c.unbinds),
            refused: read(&c.refused),
            invalidations: read(&c.invalidations),
            page_requests: read(&c.page_requests),
            responses: read(&c.responses),
            faults: read(&c.faults),
        };
        Nested { process: self.search().found.clone(), counts }
    }

    fn count(&self, event: &Event) {
        let c = &self.counters;
        let counter = match event {
            Event::Bind { replaced: false, .. } => &c.binds,
            Event::Bind { replaced: true, .. } => &c.rebinds,
            Event::Refused { .. } => &c.refused,
            Event::Unbind { .. } => &c.unbinds,
            Event::Invalidate(_) => &c.invalidations,
            Event::PageRequest(_) => &c.page_requests,
            Event::Response(_) => &c.responses,
            Event::Fault { .. } => &c.faults,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    fn look(&self, function: SourceId, event: &Event) {
        let mut search = self.search();
        match *event {
            Event::Bind { guest: Some(guest), host: Some(host), to: Attachment::Nested(table), .. } => {
                search.bound.insert((function, guest), (host, table.address));
            }
            Event::Unbind { guest: Some(guest), .. } => {
                search.bound.remove(&(function, guest));
                search.requests.retain(|(of, pasid, _), _| (*of, *pasid) != (function, guest));
            }
            Event::PageRequest(request) => {
                if let Some(pasid) = request.requester.pasid
                    && search.requests.len() < MAX_REQUESTS
                {
                    search.requests.insert((function, pasid, request.group), request.address & !0xfff);
                }
            }
            Event::Response(response) => {
                let Some(guest) = response.pasid else { return };
                let Some(address) = search.requests.remove(&(function, guest, response.group)) else {
                    return;
                };
                let bound = search.bound.get(&(function, guest)).copied();
                let device = search.devices.get(&function).copied();
                if let (Some((host, cr3)), Some(device), ResponseCode::Success) =
                    (bound, device, response.code)
                    && let Some(followed) = self.host.follow(device, host, address)
                {
                    search.found = Some(Process {
                        function: function.to_string(),
                        guest_pasid: guest.get(),
                        host_pasid: host.get(),
                        guest_cr3: Hex(cr3),
                        host_entry: (&followed.entry).into(),
                        pointer: (&followed).into(),
                    });
                    self.searching.store(false, Ordering::Relaxed);
                    search.bound.clear();
                    search.requests.clear();
                }
            }
            _ => {}
        }
    }
}

impl Tracer for Figures {
    fn event(&self, function: SourceId, event: &Event) {
        if let Some(next) = &self.next {
            next.event(function, event);
        }
        self.count(event);
        if self.searching.load(Ordering::Relaxed) {
            self.look(function, event);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use serde_json::Value;
    use vm_memory::{Bytes, GuestAddress};
    use vsva::{HostIommu, SoftHostConfig};
    use vtd_unit::{
        EndpointSink, FirstStageTable, Message, Notify, PageGroupResponse, PageRequest, Requester,
    };

    use super::*;
    use crate::memory::{self, Memory};

    const FUNCTION: SourceId = SourceId(8);
    const GUEST: u32 = 5;
    /// The page table at 0x10000 and on, one page a level; the page that it maps, and where.
    const CR3: u64 = 0x1_0000;
    const PAGE: u64 = 0x92_3000;
    const POINTER: u64 = 0x7f12_3456_7000;

    struct Nothing;

    impl EndpointSink for Nothing {
        fn page_group_response(&self, _: PageGroupResponse) {}
    }

    impl Notify for Nothing {
        fn message(&self, _: Message) {}
    }

    #[derive(Default)]
    struct Next(AtomicUsize);

    impl Tracer for Next {
        fn event(&self, _: SourceId, _: &Event) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn map(memory: &Memory) {
        for level in 1..=4u64 {
            let table = CR3 + (4 - level) * 0x1000;
            let index = POINTER >> (12 + 9 * (level - 1)) & 0x1ff;
            let next = if level == 1 { PAGE } else { table + 0x1000 };
            memory.write_obj(next | 0x7, GuestAddress(table + index * 8)).unwrap();
        }
    }

    fn request(group: u16, address: u64) -> Event {
        let requester = Requester { pasid: Pasid::new(GUEST), privileged: false };
        Event::PageRequest(PageRequest { requester, address, read: true, write: true, last: true, group })
    }

    fn response(group: u16, code: ResponseCode) -> Event {
        Event::Response(PageGroupResponse { pasid: Pasid::new(GUEST), group, code })
    }

    #[test]
    fn the_first_answered_page_request_shows_a_pointer_from_process_to_host_memory() {
        let memory = memory::allocate(memory::MemoryOptions::ordinary(16 << 20)).unwrap();
        let host = SoftHost::new(&SoftHostConfig::default(), &memory).unwrap();
        let (device, _endpoint) = host.function(Arc::new(Nothing), Arc::new(Nothing)).unwrap();
        let next = Arc::new(Next::default());
        let figures = Figures::new(Arc::clone(&host), Some(Arc::clone(&next) as Arc<dyn Tracer>));
        figures.name(FUNCTION, device);
        let pasid = host.allocate_pasid().unwrap();
        let table = FirstStageTable { address: CR3, levels: 4, sre: false, eafe: false, wpe: false };
        let to = Attachment::Nested(table);
        host.attach(device, Some(pasid), to).unwrap();

        let guest = Pasid::new(GUEST);
        let events = [
            Event::Bind { guest, host: Some(pasid), to, replaced: false },
            request(1, POINTER | 0x123),
            // Not mapped yet, and refused: nothing to follow.
            response(1, ResponseCode::Success),
            request(2, POINTER),
            response(2, ResponseCode::InvalidRequest),
        ];
        for event in &events {
            figures.event(FUNCTION, event);
        }
        assert_eq!(figures.nested().process, None);
        map(&memory);
        figures.event(FUNCTION, &request(3, POINTER | 0xabc));
        figures.event(FUNCTION, &response(3, ResponseCode::Success));
        let found = figures.nested().process.unwrap();
        assert_eq!((found.guest_pasid, found.host_pasid, found.guest_cr3), (GUEST, pasid.get(), Hex(CR3)));
        assert_eq!((found.host_entry.kind, found.host_entry.first_stage_root), ("nested", Hex(CR3)));
        assert_ne!(found.host_entry.second_stage_root, Hex(0));
        assert_eq!(found.pointer.walk.iter().map(|step| step.level).collect::<Vec<_>>(), [4, 3, 2, 1]);
        assert_eq!((found.pointer.guest_virtual, found.pointer.guest_physical), (Hex(POINTER), Hex(PAGE)));
        // The byte is the same one, at an address of the host's own.
        assert_ne!(found.pointer.host_physical, found.pointer.guest_physical);
        memory.write_obj(0x55u8, GuestAddress(PAGE)).unwrap();
        let byte: u8 = host.memory().read_obj(GuestAddress(found.pointer.host_physical.0)).unwrap();
        assert_eq!(byte, 0x55);

        // The first one stays.
        figures.event(FUNCTION, &Event::Unbind { guest, host: Some(pasid) });
        let nested = figures.nested();
        assert_eq!(nested.process.as_ref(), Some(&found));
        let counts = nested.counts;
        assert_eq!((counts.binds, counts.unbinds, counts.page_requests, counts.responses), (1, 1, 3, 3));
        assert_eq!(next.0.load(Ordering::Relaxed), 8);

        let json: Value = serde_json::to_value(&nested).unwrap();
        assert_eq!(json["process"]["host_entry"]["type"], "nested");
        assert_eq!(json["process"]["guest_cr3"], "0x10000");
        assert_eq!(json["process"]["pointer"]["walk"].as_array().unwrap().len(), 4);
        assert_eq!(json["counts"]["page_requests"], 3);
    }
}
