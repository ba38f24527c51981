// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::collections::HashMap;
use std::fs;

use patience::eventually;
use serde_json::Value;
use vsva::{Attachment, DeviceId, HostError, Invalidation, InvalidationKind};
use vtd_spec::{AddressRange, FaultReason, Pasid, ResponseCode};
use vtd_unit::{FirstStageTable, PageGroupResponse, PageRequest, Requester};

use super::*;

const FUNCTION: SourceId = SourceId(0x08);
const OTHER: SourceId = SourceId(0x10);

fn pasid(number: u32) -> Option<Pasid> {
    Pasid::new(number)
}

fn bind(guest: u32, host: u32, replaced: bool) -> Event {
    let table = FirstStageTable { address: 0x1234_5000, levels: 5, sre: false, eafe: false, wpe: true };
    Event::Bind { guest: pasid(guest), host: pasid(host), to: Attachment::Nested(table), replaced }
}

fn unbind(guest: u32, host: u32) -> Event {
    Event::Unbind { guest: pasid(guest), host: pasid(host) }
}

fn request(guest: u32, group: u16, last: bool) -> Event {
    let requester = Requester { pasid: pasid(guest), privileged: false };
    Event::PageRequest(PageRequest { requester, address: 0x7fff_1234, read: true, write: true, last, group })
}

fn response(guest: u32, group: u16) -> Event {
    Event::Response(PageGroupResponse { pasid: pasid(guest), group, code: ResponseCode::Success })
}

fn invalidate(host: u32, range: AddressRange) -> Event {
    let kind = InvalidationKind::Iotlb { leaf_only: true };
    Event::Invalidate(Invalidation { device: DeviceId(1), pasid: pasid(host), range, kind })
}

fn one_of_each() -> Vec<Event> {
    vec![
        Event::Bind { guest: None, host: None, to: Attachment::SecondStage, replaced: false },
        bind(5, 105, false),
        request(5, 3, false),
        request(5, 3, true),
        invalidate(105, AddressRange::new(0x7000_0000, 2)),
        invalidate(105, AddressRange::ALL),
        Event::Invalidate(Invalidation {
            device: DeviceId(1),
            pasid: None,
            range: AddressRange::ALL,
            kind: InvalidationKind::DeviceTlb,
        }),
        response(5, 3),
        Event::Fault { guest: pasid(5), reason: FaultReason::Sfs1, address: 0xdead_b000 },
        bind(5, 105, true),
        Event::Refused { guest: pasid(6), error: HostError::Levels(5) },
        unbind(5, 105),
        Event::Unbind { guest: None, host: None },
    ]
}

/// What both files hold after `events`, of which the channel takes `capacity`.
fn recorded(events: &[(SourceId, Event)], capacity: usize) -> (Vec<Value>, Vec<Value>, Summary) {
    let (recorder, receiver) = Recorder::new(capacity);
    for (function, event) in events {
        recorder.event(*function, event);
    }
    let (mut lines, mut viewer) = (Vec::new(), Vec::new());
    let writer = Writer::new(&mut lines, &mut viewer, &recorder);
    let (summary, result) = thread::scope(|scope| {
        let writer = scope.spawn(move || writer.run(&receiver));
        recorder.end();
        writer.join().unwrap()
    });
    result.unwrap();
    let lines = str::from_utf8(&lines).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    (lines, serde_json::from_slice(&viewer).unwrap(), summary)
}

fn of(function: SourceId, events: Vec<Event>) -> Vec<(SourceId, Event)> {
    events.into_iter().map(|event| (function, event)).collect()
}

fn kinds(lines: &[Value]) -> Vec<&str> {
    lines.iter().map(|line| line["event"].as_str().unwrap()).collect()
}

/// Every span has one beginning and one end, in this order, in one process and under one name; everything between
/// lies inside.
fn assert_spans_pair_up(entries: &[Value]) -> usize {
    let mut open: HashMap<String, Value> = HashMap::new();
    let mut ended = 0;
    for entry in entries {
        let key = format!("{} {}", entry["cat"], entry["id"]);
        let same = |begin: &Value| {
            assert_eq!(begin["pid"], entry["pid"]);
            assert_eq!(begin["tid"], entry["tid"]);
            assert_eq!(begin["name"], entry["name"]);
            assert!(begin["ts"].as_f64() <= entry["ts"].as_f64());
        };
        match entry["ph"].as_str().unwrap() {
            "b" => assert!(open.insert(key, entry.clone()).is_none(), "{entry}"),
            "n" => same(&open[&key]),
            "e" => {
                same(&open.remove(&key).unwrap_or_else(|| panic!("{entry} ends what is not open")));
                ended += 1;
            }
            "i" | "M" => assert!(entry.get("id").is_none()),
            other => panic!("phase {other}"),
        }
    }
    assert!(open.is_empty(), "left open: {open:?}");
    ended
}

#[test]
fn each_event_is_a_line_with_function_time_and_kind() {
    let (lines, _, summary) = recorded(&of(FUNCTION, one_of_each()), 100);
    assert_eq!(
        kinds(&lines),
        [
            "start",
            "bind",
            "bind",
            "page_request",
            "page_request",
            "invalidate",
            "invalidate",
            "invalidate",
            "response",
            "fault",
            "rebind",
            "refused",
            "unbind",
            "unbind",
            "end"
        ]
    );
    assert_eq!(summary, Summary { events: 13, dropped: 0 });
    let times: Vec<_> = lines.iter().map(|line| line["us"].as_f64().unwrap()).collect();
    assert!(times.is_sorted());
    assert!(lines[1..14].iter().all(|line| line["function"] == "00:01.0"));
    assert_eq!(lines[0]["format"], 1);
    assert_eq!(lines[14]["events"], 13);
}

#[test]
fn lines_say_what_was_bound_asked_and_answered() {
    let (lines, _, _) = recorded(&of(FUNCTION, one_of_each()), 100);
    assert_eq!((&lines[1]["pasid"], &lines[1]["to"]), (&Value::Null, &"second_stage".into()));
    let bind = &lines[2];
    assert_eq!((bind["pasid"].as_u64(), bind["host_pasid"].as_u64()), (Some(5), Some(105)));
    assert_eq!((&bind["to"], &bind["table"]), (&"nested".into(), &"0x12345000".into()));
    assert_eq!((bind["levels"].as_u64(), &bind["wpe"]), (Some(5), &true.into()));
    let request = &lines[4];
    assert_eq!((request["group"].as_u64(), &request["address"]), (Some(3), &"0x7fff1000".into()));
    assert_eq!((&request["last"], &request["write"]), (&true.into(), &true.into()));
    let pages = &lines[5];
    assert_eq!((pages["pasid"].as_u64(), pages["host_pasid"].as_u64()), (Some(5), Some(105)));
    assert_eq!((&pages["address"], pages["bytes"].as_u64()), (&"0x70000000".into(), Some(0x4000)));
    assert_eq!((&lines[6]["address"], &lines[7]["caches"]), (&"all".into(), &"device_tlb".into()));
    assert_eq!(lines[8]["code"], "success");
    assert_eq!((&lines[9]["reason"], &lines[9]["address"]), (&"SFS.1".into(), &"0xdeadb000".into()));
    assert_eq!(lines[11]["pasid"], 6);
    assert!(lines[11]["error"].as_str().unwrap().contains("5-level"));
}

#[test]
fn viewers_get_spans_instants_and_names() {
    let (_, entries, _) = recorded(&of(FUNCTION, one_of_each()), 100);
    assert_eq!(assert_spans_pair_up(&entries), 4);
    let names: Vec<_> = entries
        .iter()
        .filter(|entry| entry["ph"] == "M" && entry["name"] != "thread_sort_index")
        .map(|entry| entry["args"]["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["function 00:01.0", "without PASID", "PASID 5", "PASID 6"]);
    let instants: Vec<_> =
        entries.iter().filter(|e| e["ph"] == "i").map(|e| e["name"].as_str().unwrap()).collect();
    assert_eq!(instants, ["invalidate", "invalidate", "invalidate", "fault", "refused"]);
    let request = entries.iter().find(|entry| entry["cat"] == "page request").unwrap();
    assert_eq!(request["name"], "PASID 5: page request");
    assert_eq!(request["args"]["group"], 3);
    // An invalidation names the host's PASID only, and is shown where the guest's is.
    let thread = |entry: &&Value| entry["tid"].as_u64().unwrap();
    let invalidation = entries.iter().find(|entry| entry["name"] == "invalidate").unwrap();
    assert_eq!(thread(&invalidation), thread(&request));
}

#[test]
fn functions_pasids_and_groups_have_spans_of_their_own() {
    let mut events = Vec::new();
    for function in [FUNCTION, OTHER] {
        let host = u32::from(function.0);
        events.extend(of(function, vec![bind(1, host, false), bind(2, host + 1, false)]));
        events.extend(of(
            function,
            (0..8).map(|group| request(1 + u32::from(group & 1), group / 2, true)).collect(),
        ));
    }
    for function in [OTHER, FUNCTION] {
        // Out of order.
        let answers = (0..8).rev().map(|group| response(1 + u32::from(group & 1), group / 2));
        events.extend(of(function, answers.collect()));
    }
    let (_, entries, _) = recorded(&events, 100);
    assert_eq!(assert_spans_pair_up(&entries), 4 + 16);
    let (mut pids, mut tids): (Vec<_>, Vec<_>) =
        entries.iter().filter_map(|e| Some((e["pid"].as_u64()?, e["tid"].as_u64()?))).unzip();
    for (numbers, count) in [(&mut pids, 2), (&mut tids, 4)] {
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), count);
    }
}

#[test]
fn what_is_not_answered_ends_with_the_binding_or_the_trace() {
    let events = vec![
        bind(1, 11, false),
        bind(2, 12, false),
        request(1, 0, true),
        request(2, 0, true),
        unbind(1, 11),
        // Neither opens anything: the answer comes too late, nobody answers the marker.
        response(1, 0),
        Event::PageRequest(PageRequest {
            requester: Requester { pasid: pasid(2), privileged: false },
            address: 0,
            read: false,
            write: false,
            last: true,
            group: 9,
        }),
    ];
    let (_, entries, _) = recorded(&of(FUNCTION, events), 100);
    assert_eq!(assert_spans_pair_up(&entries), 4);
    let instants: Vec<_> =
        entries.iter().filter(|e| e["ph"] == "i").map(|e| e["name"].as_str().unwrap()).collect();
    assert_eq!(instants, ["response", "stop marker"]);
}

#[test]
fn events_that_come_too_fast_are_counted_where_they_are_missing() {
    let events = of(FUNCTION, (0..10).map(|n| bind(n, 100 + n, false)).collect());
    let (lines, entries, summary) = recorded(&events, 4);
    assert_eq!(summary, Summary { events: 4, dropped: 6 });
    let dropped: Vec<_> = lines.iter().filter(|line| line["event"] == "dropped").collect();
    assert_eq!(dropped.len(), 1);
    assert_eq!(dropped[0]["events"], 6);
    assert_eq!(lines.last().unwrap()["dropped"], 6);
    assert!(entries.iter().any(|entry| entry["name"] == "events dropped" && entry["args"]["events"] == 6));
    assert_spans_pair_up(&entries);
}

#[test]
fn a_run_that_is_killed_leaves_whole_objects() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("trace.jsonl");
    let trace = Trace::create(&path).unwrap();
    let tracer = trace.tracer();
    let trace = trace.start().unwrap();
    for event in one_of_each() {
        tracer.event(FUNCTION, &event);
    }
    // Written without anybody having asked.
    eventually("all lines", || fs::read_to_string(&path).unwrap().lines().count() == 14);
    let mut entries: Vec<Value> = Vec::new();
    eventually("all spans", || {
        let text = fs::read_to_string(viewer_path(&path)).unwrap() + "]";
        entries = serde_json::from_str(&text).unwrap_or_default();
        entries.iter().filter(|entry| entry["ph"] == "e").count() == 4
    });
    assert_eq!(assert_spans_pair_up(&entries), 4);

    assert_eq!(trace.finish().unwrap(), Summary { events: 13, dropped: 0 });
    let viewer = fs::read_to_string(viewer_path(&path)).unwrap();
    assert_eq!(serde_json::from_str::<Vec<Value>>(&viewer).unwrap(), entries);
    // Devices may outlive the trace.
    tracer.event(FUNCTION, &bind(1, 1, false));
}

#[test]
fn a_machine_that_is_not_built_leaves_no_trace_and_one_that_is_has_its_first_events() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("trace.jsonl");
    fs::write(viewer_path(&path), "of an earlier run").unwrap();
    let trace = Trace::create(&path).unwrap();
    trace.tracer().event(FUNCTION, &bind(1, 11, false));
    drop(trace);
    assert!(!path.exists());
    assert_eq!(fs::read_to_string(viewer_path(&path)).unwrap(), "of an earlier run");

    let trace = Trace::create(&path).unwrap();
    trace.tracer().event(FUNCTION, &bind(1, 11, false));
    assert_eq!(trace.start().unwrap().finish().unwrap(), Summary { events: 1, dropped: 0 });
    let viewer = fs::read(viewer_path(&path)).unwrap();
    let entries: Vec<Value> = serde_json::from_slice(&viewer).unwrap();
    assert_eq!(assert_spans_pair_up(&entries), 1);
}

#[test]
fn a_trace_of_nothing_is_valid() {
    let (lines, entries, summary) = recorded(&[], 1);
    assert_eq!((kinds(&lines), entries.len()), (vec!["start", "end"], 0));
    assert_eq!(summary, Summary { events: 0, dropped: 0 });
}

#[test]
fn a_file_that_cannot_be_written_is_one_line() {
    let directory = tempfile::tempdir().unwrap();
    let error = Trace::create(&directory.path().join("none/trace")).err().unwrap().to_string();
    assert!(error.contains("none/trace") && !error.contains('\n'), "{error}");

    struct Full;
    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::StorageFull.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let (recorder, receiver) = Recorder::new(4);
    recorder.event(FUNCTION, &bind(1, 1, false));
    recorder.end();
    let (_, result) = Writer::new(Full, Vec::new(), &recorder).run(&receiver);
    assert_eq!(result.unwrap_err().kind(), io::ErrorKind::StorageFull);
}
