// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a guest says on its console: the protocol between the guest program and the lab, and the kernel's own lines
//! that tell of trouble. docs/lab.md describes the protocol.

use serde::{Deserialize, Serialize};

/// One thing that was checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// What was checked.
    pub name: String,
    /// Whether it held.
    pub passed: bool,
    /// What was seen.
    #[serde(default)]
    pub detail: String,
}

impl Check {
    /// A check made by the lab itself.
    pub fn new(name: &str, passed: bool, detail: impl Into<String>) -> Self {
        Self { name: name.to_owned(), passed, detail: detail.into() }
    }
}

/// One thing that was measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Figure {
    /// What was measured.
    pub name: String,
    /// How much; nothing where the measurement gave no number.
    pub value: Option<f64>,
    /// Of what.
    #[serde(default)]
    pub unit: String,
}

/// A line of the protocol.
#[derive(Debug, Clone, PartialEq)]
pub enum Message {
    /// `VSVA-CHECK {...}`
    Check(Check),
    /// `VSVA-FIGURE {...}`
    Figure(Figure),
    /// `VSVA-FACT name value`: something that a check of the lab needs to know.
    Fact(String, String),
    /// `VSVA-EXPECT-FAULT begin` and `end`: in between, DMAR fault lines are what is tested.
    ExpectFault(bool),
    /// `VSVA-DONE {"checks":N}`, the end of a program that reported N checks.
    Done(usize),
    /// A protocol line that cannot be read.
    Garbled(String),
}

/// The message in a line of the console, wherever in it: the kernel puts its time stamp before.
pub fn message(line: &str) -> Option<Message> {
    #[derive(Deserialize)]
    struct Done {
        checks: usize,
    }
    let text = &line[line.find("VSVA-")?..];
    let (kind, rest) = text.split_once(' ').unwrap_or((text, ""));
    let rest = rest.trim();
    let read = match kind {
        "VSVA-CHECK" => serde_json::from_str(rest).ok().map(Message::Check),
        "VSVA-FIGURE" => serde_json::from_str(rest).ok().map(Message::Figure),
        "VSVA-DONE" => serde_json::from_str(rest).ok().map(|d: Done| Message::Done(d.checks)),
        "VSVA-FACT" => rest.split_once(' ').map(|(n, v)| Message::Fact(n.to_owned(), v.to_owned())),
        "VSVA-EXPECT-FAULT" => match rest.split(' ').next() {
            Some("begin") => Some(Message::ExpectFault(true)),
            Some("end") => Some(Message::ExpectFault(false)),
            _ => None,
        },
        _ => return None,
    };
    Some(read.unwrap_or_else(|| Message::Garbled(text.to_owned())))
}

/// Whether the guest's programs said it, signs of life (`VSVA-ALIVE`) included.
pub fn of_protocol(line: &str) -> bool {
    line.contains("VSVA-")
}

/// Everything a console told.
#[derive(Debug, Default, PartialEq)]
pub struct Transcript {
    /// The checks in the order in which they were made.
    pub checks: Vec<Check>,
    /// The figures likewise.
    pub figures: Vec<Figure>,
    /// The facts likewise.
    pub facts: Vec<(String, String)>,
    /// How many programs came to their end with every check accounted for.
    pub done: usize,
    /// Fault lines outside the sections that provoke them, and errors of the unit's queues anywhere.
    pub faults: Vec<String>,
    /// How many fault lines were expected.
    pub expected_faults: usize,
    /// Oopses and warnings of the kernel.
    pub oopses: Vec<String>,
    /// Ways in which the protocol was broken.
    pub broken: Vec<String>,
}

impl Transcript {
    /// Reads a whole console.
    pub fn read(text: &str) -> Self {
        let mut transcript = Self::default();
        let (mut expecting, mut since_done) = (false, 0);
        for line in text.lines() {
            match message(line) {
                Some(Message::Check(check)) => {
                    since_done += 1;
                    transcript.checks.push(check);
                }
                Some(Message::Figure(figure)) => transcript.figures.push(figure),
                Some(Message::Fact(name, value)) => transcript.facts.push((name, value)),
                Some(Message::ExpectFault(begin)) => {
                    // A lost line would let faults pass that nobody provoked.
                    if expecting == begin {
                        transcript.broken.push(format!("a section out of order: {}", line.trim()));
                    }
                    expecting = begin;
                }
                Some(Message::Done(reported)) => {
                    if std::mem::take(&mut expecting) {
                        transcript
                            .broken
                            .push("a section in which faults are expected has no end".to_owned());
                    }
                    if reported == since_done {
                        transcript.done += 1;
                    } else {
                        let text = format!("{reported} checks were reported and {since_done} arrived");
                        transcript.broken.push(text);
                    }
                    since_done = 0;
                }
                Some(Message::Garbled(text)) => transcript.broken.push(format!("unreadable: {text}")),
                None if is_fault(line) && expecting => transcript.expected_faults += 1,
                None if is_fault(line) || is_queue_error(line) => {
                    transcript.faults.push(line.trim().to_owned())
                }
                None if is_oops(line) => transcript.oopses.push(line.trim().to_owned()),
                None => {}
            }
        }
        transcript
    }

    /// The value of a fact.
    pub fn fact(&self, name: &str) -> Option<&str> {
        self.facts.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }
}

/// Fault lines of Linux (drivers/iommu/intel/dmar.c: dmar_fault, dmar_fault_do_one).
fn is_fault(line: &str) -> bool {
    of_the_unit(line, &["handling fault status reg", "[fault reason", "fault reason 0x"])
}

/// Lines of Linux about the unit's queues (dmar.c: qi_check_fault; prq.c: prq_event_thread). No check provokes any.
fn is_queue_error(line: &str) -> bool {
    const MARKS: [&str; 6] = [
        "Invalidation Queue Error",
        "Invalidation Completion Error",
        "Invalidation Time-out",
        "hardware is malfunctioning",
        "PRQ overflow",
        "Page request without PASID",
    ];
    of_the_unit(line, &MARKS)
}

fn of_the_unit(line: &str, marks: &[&str]) -> bool {
    (line.contains("DMAR") || line.contains("IOMMU")) && marks.iter().any(|mark| line.contains(mark))
}

/// Soft lockups are left out: under emulation on a busy machine they say nothing about the guest.
fn is_oops(line: &str) -> bool {
    const MARKS: [&str; 4] =
        ["BUG:", "Oops:", "------------[ cut here ]------------", "general protection fault"];
    MARKS.iter().any(|mark| line.contains(mark)) && !line.contains("soft lockup")
}

/// Whether the kernel has given up.
pub fn is_panic(line: &str) -> bool {
    line.contains("Kernel panic - not syncing")
}

/// The last `count` lines that hold anything, without control characters.
pub fn last_lines(text: &str, count: usize) -> Vec<String> {
    let clean = |line: &str| line.chars().filter(|c| !c.is_control()).collect::<String>();
    let lines: Vec<_> = text.lines().map(clean).filter(|l| !l.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(count)..].to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_found_behind_the_kernels_time_stamp() {
        assert_eq!(
            message("[    3.14] VSVA-CHECK {\"name\":\"copy\",\"passed\":true,\"detail\":\"64 bytes\"}\r"),
            Some(Message::Check(Check::new("copy", true, "64 bytes")))
        );
        assert_eq!(
            message("VSVA-FIGURE {\"name\":\"t\",\"value\":1.5,\"unit\":\"us\"}"),
            Some(Message::Figure(Figure { name: "t".into(), value: Some(1.5), unit: "us".into() }))
        );
        assert_eq!(message("VSVA-FACT ecap 0x1f"), Some(Message::Fact("ecap".into(), "0x1f".into())));
        assert_eq!(message("DMAR: no message"), None);
    }

    #[test]
    fn a_whole_console_is_read() {
        let transcript = Transcript::read(
            "[ 1.0] DMAR: Intel(R) Virtualization Technology for Directed I/O\n\
             VSVA-CHECK {\"name\":\"a\",\"passed\":true,\"detail\":\"\"}\n\
             VSVA-EXPECT-FAULT begin kernel-address\n\
             [ 2.0] DMAR: DRHD: handling fault status reg 2\n\
             VSVA-EXPECT-FAULT end kernel-address\n\
             VSVA-CHECK {\"name\":\"b\",\"passed\":false,\"detail\":\"x\"}\n\
             VSVA-DONE {\"checks\":2}\n",
        );
        assert_eq!(transcript.checks.len(), 2);
        assert_eq!((transcript.done, transcript.expected_faults), (1, 1));
        assert_eq!(transcript.faults, Vec::<String>::new());
        assert_eq!(transcript.broken, Vec::<String>::new());
    }

    #[test]
    fn a_fault_that_nobody_provoked_is_kept() {
        let line =
            "[ 2.0] DMAR: [DMA Read NO_PASID] Request device [00:03.0] fault addr 0x0 [fault reason 0x71] x";
        assert_eq!(Transcript::read(line).faults, [line]);
    }

    #[test]
    fn a_section_without_its_end_breaks_the_protocol() {
        let begin = "VSVA-EXPECT-FAULT begin a\n";
        let done = "VSVA-DONE {\"checks\":0}\n";
        let broken = |text: &str| Transcript::read(text).broken.len();
        assert_eq!(broken(&format!("{begin}{done}")), 1);
        assert_eq!(broken(&format!("{begin}{begin}VSVA-EXPECT-FAULT end a\n{done}")), 1);
        assert_eq!(broken(&format!("VSVA-EXPECT-FAULT end a\n{done}")), 1);
    }

    #[test]
    fn no_section_excuses_a_queue_error() {
        let transcript = Transcript::read(
            "VSVA-EXPECT-FAULT begin a\nDMAR: VT-d detected Invalidation Time-out Error\nVSVA-EXPECT-FAULT end a\n",
        );
        assert_eq!((transcript.faults.len(), transcript.expected_faults), (1, 0));
    }

    #[test]
    fn lost_and_garbled_lines_break_the_protocol() {
        let transcript =
            Transcript::read("VSVA-CHECK {\"name\":\"a\",\"pas[ 1.0] x\nVSVA-DONE {\"checks\":1}\n");
        assert_eq!(transcript.broken.len(), 2);
        assert_eq!(transcript.done, 0);
    }

    #[test]
    fn the_last_lines_are_the_last_with_text() {
        assert_eq!(last_lines("a\n\nb\r\n\x1b[0mc\n\n", 2), ["b", "[0mc"]);
        assert_eq!(last_lines("a", 5), ["a"]);
    }

    #[test]
    fn oopses_are_noticed_and_lockups_of_a_busy_machine_are_not() {
        let text = "[ 1.0] BUG: kernel NULL pointer dereference\n[ 2.0] watchdog: BUG: soft lockup - CPU#0\n";
        assert_eq!(Transcript::read(text).oopses.len(), 1);
        assert!(is_panic("[ 3.0] Kernel panic - not syncing: x"));
    }
}
