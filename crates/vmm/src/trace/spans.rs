// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Events as a trace viewer shows them: the Chrome trace event format, array form. A function is a process and a PASID
//! a thread of it; bindings and page request groups are asynchronous spans, all else are instants.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use serde::Serialize;
use vsva::Event;
use vtd_spec::{Pasid, SourceId};

use super::line::What;

/// Identifiers of threads begin here: above every source-id, because viewers take a thread with its process's number
/// for the main one.
const FIRST_THREAD: u64 = 1 << 20;

/// One object of the array.
#[derive(Debug, Serialize)]
struct Entry<'a> {
    name: &'a str,
    cat: &'static str,
    ph: &'static str,
    ts: f64,
    pid: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    tid: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    /// Scope of an instant: its thread, or all.
    #[serde(skip_serializing_if = "Option::is_none")]
    s: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    args: Option<&'a What>,
}

/// What viewers learn of a process or a thread.
#[derive(Debug, Serialize)]
struct Metadata<'a> {
    name: &'static str,
    ph: &'static str,
    pid: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    tid: Option<u64>,
    args: MetadataValue<'a>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case")]
enum MetadataValue<'a> {
    Name(&'a str),
    SortIndex(i64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Span(u64);

/// A function's PASID, or its requests without one.
type Place = (SourceId, Option<Pasid>);

/// Turns events into entries, and knows which spans are open.
#[derive(Debug, Default)]
pub(super) struct Spans {
    /// Entries written, for the commas between them.
    written: u64,
    processes: HashMap<SourceId, ()>,
    threads: HashMap<Place, u64>,
    last_thread: u64,
    /// When to look next which of them can be forgotten; [`MAX_THREADS`] at least.
    threads_limit: usize,
    last_span: u64,
    bindings: HashMap<Place, (Span, Option<Pasid>)>,
    /// The guest's PASIDs of the host's.
    guests: HashMap<Place, Option<Pasid>>,
    requests: HashMap<(Place, u16), Span>,
}

/// Rows that are remembered, besides those in which something is open: PASIDs are the guest's to choose. One that was forgotten
/// gets a new row of the same name.
const MAX_THREADS: usize = 4096;

const BINDING: &str = "binding";
const REQUEST: &str = "page request";

impl Spans {
    /// The guest's PASID that one of the host stands for.
    pub fn guest(&self, function: SourceId, host: Option<Pasid>) -> Option<Pasid> {
        self.guests.get(&(function, host)).copied().flatten()
    }

    /// Appends what `event` gives to see. `what` is the same event as it is written.
    pub fn event(&mut self, at: Duration, function: SourceId, event: &Event, what: &What, out: &mut Vec<u8>) {
        match event {
            Event::Bind { guest, host, .. } => {
                let place = (function, *guest);
                self.end_binding(at, place, None, out);
                let span = self.open(at, place, BINDING, what, out);
                self.bindings.insert(place, (span, *host));
                self.guests.insert((function, *host), *guest);
            }
            Event::Unbind { guest, .. } => {
                let place = (function, *guest);
                // The host has answered what waited for the guest.
                self.end_requests(at, |other| other == place, out);
                self.end_binding(at, place, Some(what), out);
            }
            Event::PageRequest(request) => {
                let place = (function, request.requester.pasid);
                let key = (place, request.group);
                match self.requests.get(&key) {
                    Some(&span) => self.span("n", at, place, REQUEST, span, Some(what), out),
                    // Nobody answers a stop marker.
                    None if !request.read && !request.write => {
                        self.instant(at, place, "stop marker", what, out)
                    }
                    None => {
                        let span = self.open(at, place, REQUEST, what, out);
                        self.requests.insert(key, span);
                    }
                }
            }
            Event::Response(response) => {
                let place = (function, response.pasid);
                match self.requests.remove(&(place, response.group)) {
                    Some(span) => self.span("e", at, place, REQUEST, span, Some(what), out),
                    None => self.instant(at, place, "response", what, out),
                }
            }
            Event::Invalidate(invalidation) => {
                let guest = self.guest(function, invalidation.pasid);
                self.instant(at, (function, guest), "invalidate", what, out);
            }
            Event::Refused { guest, .. } => self.instant(at, (function, *guest), "refused", what, out),
            Event::Fault { guest, .. } => self.instant(at, (function, *guest), "fault", what, out),
        }
    }

    /// Appends that events are missing, for all to see.
    pub fn dropped(&mut self, at: Duration, what: &What, out: &mut Vec<u8>) {
        let entry = Entry {
            name: "events dropped",
            cat: "trace",
            ph: "i",
            ts: super::microseconds(at),
            pid: 0,
            tid: Some(0),
            id: None,
            s: Some("g"),
            args: Some(what),
        };
        self.write(&entry, out);
    }

    /// Ends what is open, and the array.
    pub fn finish(&mut self, at: Duration, out: &mut Vec<u8>) {
        self.end_requests(at, |_| true, out);
        let mut places: Vec<Place> = self.bindings.keys().copied().collect();
        places.sort_unstable();
        for place in places {
            self.end_binding(at, place, None, out);
        }
        out.extend_from_slice(if self.written == 0 { b"[]\n" } else { b"\n]\n" });
    }

    fn open(
        &mut self,
        at: Duration,
        place: Place,
        name: &'static str,
        what: &What,
        out: &mut Vec<u8>,
    ) -> Span {
        self.last_span += 1;
        let span = Span(self.last_span);
        self.span("b", at, place, name, span, Some(what), out);
        span
    }

    fn end_binding(&mut self, at: Duration, place: Place, what: Option<&What>, out: &mut Vec<u8>) {
        if let Some((span, host)) = self.bindings.remove(&place) {
            self.guests.remove(&(place.0, host));
            self.span("e", at, place, BINDING, span, what, out);
        }
    }

    fn end_requests(&mut self, at: Duration, ends: impl Fn(Place) -> bool, out: &mut Vec<u8>) {
        let mut keys: Vec<_> = self.requests.keys().copied().filter(|(place, _)| ends(*place)).collect();
        keys.sort_unstable();
        for key in keys {
            if let Some(span) = self.requests.remove(&key) {
                self.span("e", at, key.0, REQUEST, span, None, out);
            }
        }
    }

    #[allow(clippy::too_many_arguments)]
    fn span(
        &mut self,
        ph: &'static str,
        at: Duration,
        place: Place,
        kind: &'static str,
        span: Span,
        what: Option<&What>,
        out: &mut Vec<u8>,
    ) {
        let (tid, label) = self.thread(place, out);
        // Viewers draw spans of one name in one row.
        let name = format!("{label}: {kind}");
        let entry = Entry {
            name: &name,
            cat: kind,
            ph,
            ts: super::microseconds(at),
            pid: process(place.0),
            tid: Some(tid),
            id: Some(format!("{:#x}", span.0)),
            s: None,
            args: what,
        };
        self.write(&entry, out);
    }

    fn instant(&mut self, at: Duration, place: Place, name: &'static str, what: &What, out: &mut Vec<u8>) {
        let (tid, _) = self.thread(place, out);
        let entry = Entry {
            name,
            cat: "event",
            ph: "i",
            ts: super::microseconds(at),
            pid: process(place.0),
            tid: Some(tid),
            id: None,
            s: Some("t"),
            args: Some(what),
        };
        self.write(&entry, out);
    }

    /// The thread's number and name; names it and its process for the viewer the first time.
    fn thread(&mut self, place: Place, out: &mut Vec<u8>) -> (u64, String) {
        let (function, pasid) = place;
        let (label, order) = match pasid {
            Some(pasid) => (format!("PASID {}", pasid.get()), i64::from(pasid.get())),
            None => ("without PASID".to_owned(), -1),
        };
        if let Some(tid) = self.threads.get(&place) {
            return (*tid, label);
        }
        if self.threads.len() >= self.threads_limit.max(MAX_THREADS) {
            let Self { threads, bindings, requests, threads_limit, .. } = self;
            let asking: HashSet<Place> = requests.keys().map(|(place, _)| *place).collect();
            threads.retain(|place, _| bindings.contains_key(place) || asking.contains(place));
            *threads_limit = 2 * threads.len();
        }
        let pid = process(function);
        if self.processes.insert(function, ()).is_none() {
            let label = format!("function {function}");
            self.metadata("process_name", pid, None, MetadataValue::Name(&label), out);
        }
        let tid = FIRST_THREAD + self.last_thread;
        self.last_thread += 1;
        self.metadata("thread_name", pid, Some(tid), MetadataValue::Name(&label), out);
        self.metadata("thread_sort_index", pid, Some(tid), MetadataValue::SortIndex(order), out);
        self.threads.insert(place, tid);
        (tid, label)
    }

    fn metadata(
        &mut self,
        name: &'static str,
        pid: u64,
        tid: Option<u64>,
        args: MetadataValue<'_>,
        out: &mut Vec<u8>,
    ) {
        self.write(&Metadata { name, ph: "M", pid, tid, args }, out);
    }

    fn write(&mut self, entry: &impl Serialize, out: &mut Vec<u8>) {
        out.extend_from_slice(if self.written == 0 { b"[\n" } else { b",\n" });
        self.written += 1;
        super::append(entry, out);
    }
}

/// A function's number as a process: 0 is no process to some viewers.
fn process(function: SourceId) -> u64 {
    u64::from(function.0) + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_does_not_grow_with_the_pasids_that_were_seen() {
        let mut spans = Spans::default();
        let mut out = Vec::new();
        for number in 0..5 * MAX_THREADS as u32 {
            out.clear();
            spans.thread((SourceId(8), Pasid::new(number)), &mut out);
            assert!(!out.is_empty(), "a row of its own");
            assert!(spans.threads.len() <= MAX_THREADS);
        }
        let (tid, name) = spans.thread((SourceId(8), Pasid::new(0)), &mut out);
        assert_eq!(name, "PASID 0");
        assert!(tid > 5 * MAX_THREADS as u64, "a new row, and no other's");
    }

    #[test]
    fn rows_with_something_open_stay() {
        let mut spans = Spans::default();
        let bound = |number: u32| (SourceId(8), Pasid::new(number));
        for number in 0..2 * MAX_THREADS as u32 {
            spans.bindings.insert(bound(number), (Span(1), None));
            spans.thread(bound(number), &mut Vec::new());
        }
        assert_eq!(spans.threads.len(), 2 * MAX_THREADS);
        spans.bindings.clear();
        for number in 0..3 * MAX_THREADS as u32 {
            spans.thread((SourceId(9), Pasid::new(number)), &mut Vec::new());
        }
        assert!(spans.threads.len() <= 2 * MAX_THREADS);
    }
}
