// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What `vsva run --figures` says of a device that a software host assigned to the guest: one process in full, and
//! counts.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

/// The line of `vsva` begins with this.
const MARK: &str = "VSVA-NESTED ";

/// What the line holds. Addresses are hexadecimal strings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nested {
    /// The first process whose page request the guest answered.
    pub process: Option<Process>,
    /// How often what happened.
    pub counts: Counts,
}

/// How often what happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    nested_walks: u64,
    second_stage_walks: u64,
    binds: u64,
    rebinds: u64,
    unbinds: u64,
    refused: u64,
    invalidations: u64,
    page_requests: u64,
    responses: u64,
    faults: u64,
}

/// A process whose address space the device shares.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    function: String,
    guest_pasid: u32,
    host_pasid: u32,
    guest_cr3: String,
    host_entry: Entry,
    pointer: Pointer,
}

/// The host's PASID entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    #[serde(rename = "type")]
    kind: String,
    first_stage_root: String,
    second_stage_root: String,
    domain_id: u16,
    quadwords: [String; 8],
}

/// A pointer, followed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Pointer {
    guest_virtual: String,
    walk: Vec<Step>,
    guest_physical: String,
    host_physical: String,
}

/// One entry of the process's page table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Step {
    level: u8,
    guest_physical: String,
    host_physical: String,
    entry: String,
}

/// Finds the line in what `vsva` said; `None` where there is none or it cannot be read.
pub fn find(text: &str) -> Option<Nested> {
    let at = text.find(MARK)? + MARK.len();
    // Behind the value another line of the same console may begin.
    serde_json::Deserializer::from_str(text[at..].lines().next()?).into_iter().next()?.ok()
}

/// What must hold of a guest whose device is assigned: name, whether it did, detail. Without `complete` the guest need
/// not have done what shows a process.
pub fn checks(nested: Option<&Nested>, complete: bool) -> Vec<(&'static str, bool, String)> {
    let Some(nested) = nested else {
        return vec![("the host's figures", false, format!("vsva printed no line {}", MARK.trim()))];
    };
    let Counts { nested_walks, binds, refused, page_requests, responses, invalidations, .. } = nested.counts;
    let mut checks = vec![(
        "DMA walks both stages",
        nested_walks > 0 && binds > 0 && refused == 0,
        format!("{nested_walks} nested walks, {binds} PASIDs bound, {refused} refused"),
    )];
    if complete {
        checks.push((
            "page requests and invalidations cross the joint",
            page_requests > 0 && responses > 0 && invalidations > 0,
            format!("{page_requests} page requests, {responses} responses, {invalidations} invalidations"),
        ));
    }
    let Some(process) = &nested.process else {
        if complete {
            checks.push(("a process on the host", false, "the guest answered no page request".to_owned()));
        }
        return checks;
    };
    let entry = &process.host_entry;
    checks.push((
        "the host's PASID entry is nested on the guest's table",
        entry.kind == "nested"
            && entry.first_stage_root == process.guest_cr3
            && entry.second_stage_root != "0x0",
        format!(
            "{}, first stage {}, guest CR3 {}, second stage {}",
            entry.kind, entry.first_stage_root, process.guest_cr3, entry.second_stage_root
        ),
    ));
    let pointer = &process.pointer;
    let moved = |guest: &str, host: &str| guest != host;
    checks.push((
        "a pointer leads from the process to host memory",
        pointer.walk.len() >= 2
            && pointer.walk.iter().all(|step| moved(&step.guest_physical, &step.host_physical))
            && moved(&pointer.guest_physical, &pointer.host_physical),
        format!("{} -> {} -> {}", pointer.guest_virtual, pointer.guest_physical, pointer.host_physical),
    ));
    checks
}

/// The same for people.
pub fn table(nested: &Nested) -> String {
    let mut rows: Vec<(String, String)> = vec![];
    let mut row = |name: &str, value: String| rows.push((name.to_owned(), value));
    match &nested.process {
        None => row("process", "none: the guest answered no page request".to_owned()),
        Some(process) => {
            let (entry, pointer) = (&process.host_entry, &process.pointer);
            row("device", process.function.clone());
            row("guest PASID", process.guest_pasid.to_string());
            row("host PASID", process.host_pasid.to_string());
            row("guest CR3", process.guest_cr3.clone());
            row("host PASID entry", format!("{}, domain {}", entry.kind, entry.domain_id));
            row("  first stage root", format!("{}  guest physical", entry.first_stage_root));
            row("  second stage root", format!("{}  host physical", entry.second_stage_root));
            row("pointer", format!("GVA {}", pointer.guest_virtual));
            let both = |guest: &str, host: &str| format!("GPA {guest:<14} HPA {host:<16}");
            for step in &pointer.walk {
                let places = both(&step.guest_physical, &step.host_physical);
                row(&format!("  level {} entry", step.level), format!("{places} holds {}", step.entry));
            }
            row("  the byte", both(&pointer.guest_physical, &pointer.host_physical).trim_end().to_owned());
        }
    }
    let counts = &nested.counts;
    for (name, count) in [
        ("nested walks", counts.nested_walks),
        ("second stage walks", counts.second_stage_walks),
        ("binds", counts.binds),
        ("rebinds", counts.rebinds),
        ("unbinds", counts.unbinds),
        ("invalidations", counts.invalidations),
        ("page requests", counts.page_requests),
        ("responses", counts.responses),
        ("faults", counts.faults),
    ] {
        row(name, count.to_string());
    }
    let width = rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    let mut text = format!("{:width$}  value\n{}  -----\n", "nested", "-".repeat(width));
    for (name, value) in rows {
        let _ = writeln!(text, "{name:width$}  {value}");
    }
    text
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// What `vsva` says, on level 1's console.
    pub const LINE: &str = r#"[ 9.1] x
VSVA-NESTED {"process":{"function":"00:01.0","guest_pasid":3,"host_pasid":7,"guest_cr3":"0x1c2000","host_entry":{"type":"nested","first_stage_root":"0x1c2000","second_stage_root":"0x101000","domain_id":4,"quadwords":["0x1","0x2","0x3","0x4","0x5","0x6","0x7","0x8"]},"pointer":{"guest_virtual":"0x7f0000001000","walk":[{"level":2,"guest_physical":"0x1c2008","host_physical":"0x20001c2008","entry":"0x5067"},{"level":1,"guest_physical":"0x5008","host_physical":"0x2000005008","entry":"0x9067"}],"guest_physical":"0x9000","host_physical":"0x2000009000"}},"counts":{"nested_walks":12,"second_stage_walks":2,"binds":3,"rebinds":1,"unbinds":3,"refused":0,"invalidations":40,"page_requests":5,"responses":5,"faults":1}}
[ 9.2] y
"#;

    fn failed(nested: Option<&Nested>, complete: bool) -> Vec<&'static str> {
        checks(nested, complete).into_iter().filter(|(_, passed, _)| !passed).map(|(name, ..)| name).collect()
    }

    #[test]
    fn the_line_is_found_and_passes() {
        let nested = find(LINE).unwrap();
        assert_eq!(failed(Some(&nested), true), Vec::<&str>::new());
        assert_eq!(find("no such line"), None);
        assert_eq!(find(&LINE.replace("\n[ 9.2]", "VSVA-ALIVE\n\n[ 9.2]")), Some(nested));
        assert_eq!(find("VSVA-NESTED {\"process\""), None);
    }

    #[test]
    fn each_defect_fails_its_own_check() {
        assert_eq!(failed(None, false), ["the host's figures"]);
        let with = |from: &str, to: &str| find(&LINE.replace(from, to)).unwrap();
        let entry = ["the host's PASID entry is nested on the guest's table"];
        assert_eq!(failed(Some(&with("\"type\":\"nested\"", "\"type\":\"first stage\"")), true), entry);
        assert_eq!(
            failed(Some(&with("\"guest_cr3\":\"0x1c2000\"", "\"guest_cr3\":\"0x1c3000\"")), true),
            entry
        );
        let pointer = ["a pointer leads from the process to host memory"];
        assert_eq!(failed(Some(&with("0x2000005008", "0x5008")), true), pointer);
        assert_eq!(failed(Some(&with("0x2000009000", "0x9000")), true), pointer);
        let requests = ["page requests and invalidations cross the joint"];
        assert_eq!(failed(Some(&with("\"page_requests\":5", "\"page_requests\":0")), true), requests);
        let walks = ["DMA walks both stages"];
        assert_eq!(failed(Some(&with("\"nested_walks\":12", "\"nested_walks\":0")), true), walks);
        assert_eq!(failed(Some(&with("\"refused\":0", "\"refused\":1")), true), walks);
    }

    #[test]
    fn a_process_is_only_wanted_of_a_whole_run() {
        let nested = Nested { process: None, ..find(LINE).unwrap() };
        assert_eq!(failed(Some(&nested), false), Vec::<&str>::new());
        assert_eq!(failed(Some(&nested), true), ["a process on the host"]);
        assert!(table(&nested).contains("none: the guest answered no page request"));
    }

    #[test]
    fn the_table_follows_the_pointer() {
        let table = table(&find(LINE).unwrap());
        for line in [
            "guest PASID          3",
            "host PASID           7",
            "guest CR3            0x1c2000",
            "host PASID entry     nested, domain 4",
            "  level 1 entry      GPA 0x5008         HPA 0x2000005008     holds 0x9067",
            "  the byte           GPA 0x9000         HPA 0x2000009000",
            "nested walks         12",
        ] {
            assert!(table.lines().any(|l| l == line), "{line:?} in\n{table}");
        }
    }
}
