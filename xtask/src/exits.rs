// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A guest's exits by kind, counted by KVM's tracepoints in level 1: there each costs an emulated world switch, so they are
//! what a run is made of.

use std::collections::BTreeMap;

use crate::report::Report;

/// The fact by which level 1 tells a count: `event:key:count`.
pub const FACT: &str = "exits";
/// Which share of all exits a kind must have to be shown: one in so many.
const SHOWN: u64 = 200;

/// Adds the counts among `facts` to the figures of `boot`: the exits together, each kind of exit, and below ports, registers
/// and addresses, the largest first.
pub fn report(report: &mut Report, boot: &str, facts: &[(String, String)]) {
    let counts = counts(facts);
    let total: u64 = counts.iter().filter(|((event, _), _)| event == "kvm_exit").map(|(_, n)| n).sum();
    if total == 0 {
        return;
    }
    report.figure(&format!("{boot}: exits"), total as f64, "");
    for event in ["kvm_exit", "kvm_pio", "kvm_msr", "kvm_mmio"] {
        let mut of_event: Vec<_> = counts.iter().filter(|((e, _), _)| e == event).collect();
        of_event.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
        for ((_, key), count) in of_event.into_iter().filter(|(_, count)| **count >= total / SHOWN) {
            report.figure(&format!("{boot}: exits, {}", name(event, *key)), *count as f64, "");
        }
    }
}

fn counts(facts: &[(String, String)]) -> BTreeMap<(String, u64), u64> {
    let read = |value: &str| {
        let mut parts = value.split(':');
        Some(((parts.next()?.to_owned(), parts.next()?.parse().ok()?), parts.next()?.parse().ok()?))
    };
    facts.iter().filter(|(name, _)| name == FACT).filter_map(|(_, value)| read(value)).collect()
}

/// \[AMD64 APM 2, appendix C: SVM intercept exit codes\]
fn name(event: &str, key: u64) -> String {
    match (event, key) {
        ("kvm_exit", 0x60) => "physical interrupt".to_owned(),
        ("kvm_exit", 0x64) => "interrupt window".to_owned(),
        ("kvm_exit", 0x72) => "CPUID".to_owned(),
        ("kvm_exit", 0x78) => "HLT".to_owned(),
        ("kvm_exit", 0x7b) => "I/O port".to_owned(),
        ("kvm_exit", 0x7c) => "MSR".to_owned(),
        ("kvm_exit", 0x400) => "nested page fault".to_owned(),
        ("kvm_exit", code) => format!("code {code:#x}"),
        ("kvm_pio", port) => format!("port {port:#x}"),
        ("kvm_msr", register) => format!("MSR {register:#x}"),
        (_, address) => format!("address {address:#x}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_named_and_those_of_no_weight_left_out() {
        let fact = |value: &str| (FACT.to_owned(), value.to_owned());
        let facts = [
            fact("kvm_exit:120:100"),
            fact("kvm_exit:123:900"),
            fact("kvm_exit:16:1"),
            fact("kvm_pio:1016:900"),
            fact("garbled"),
        ];
        let mut figures = Report::default();
        report(&mut figures, "demo", &facts);
        let lines: Vec<_> = figures.figures.iter().map(|f| (f.name.as_str(), f.value)).collect();
        assert_eq!(
            lines,
            [
                ("demo: exits", Some(1001.0)),
                ("demo: exits, I/O port", Some(900.0)),
                ("demo: exits, HLT", Some(100.0)),
                ("demo: exits, port 0x3f8", Some(900.0)),
            ]
        );
    }

    #[test]
    fn without_counts_there_are_no_figures() {
        let mut figures = Report::default();
        report(&mut figures, "demo", &[]);
        assert!(figures.figures.is_empty());
    }
}
