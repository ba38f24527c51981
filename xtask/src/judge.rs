// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the lab itself checks of a guest that has ended: things that the kernel's log and sysfs tell.

use crate::exits;
use crate::lab::Outcome;
use crate::report::Report;

/// ECAP.SMTS, scalable mode translation [S 11.4.3].
const SMTS: u32 = 43;

/// What a guest is held to beside its own checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Expect {
    /// Scalable mode, with user SVA in `idxd`.
    pub sva: bool,
    /// The type of the default domain (`/sys/kernel/iommu_groups/*/type`); any where there is none.
    pub domain: Option<&'static str>,
    /// PASIDs allocated by the virtual command.
    pub virtual_command: bool,
}

/// Adds the guest's checks and figures, and those of the lab, under the name `boot`.
pub fn judge(report: &mut Report, boot: &str, outcome: Outcome, expect: Expect) {
    let lab = lab_checks(&outcome, expect);
    let prefixed = |name: &str| format!("{boot}: {name}");
    report.figure(&prefixed("whole run"), outcome.took.as_secs_f64(), "s");
    if let Some(seconds) = outcome.level1_seconds {
        report.figure(&prefixed("level 1 to user space"), seconds, "s");
    }
    if let Some(seconds) = outcome.transcript.fact("guest-seconds").and_then(|s| s.parse().ok()) {
        report.figure(&prefixed("guest to user space"), seconds, "s");
    }
    exits::report(report, boot, &outcome.outer_facts);
    for (name, passed, detail) in lab {
        report.check(&prefixed(name), passed, detail);
    }
    for mut check in outcome.transcript.checks {
        check.name = prefixed(&check.name);
        report.checks.push(check);
    }
    for mut figure in outcome.transcript.figures {
        figure.name = prefixed(&figure.name);
        report.figures.push(figure);
    }
}

fn lab_checks(outcome: &Outcome, expect: Expect) -> Vec<(&'static str, bool, String)> {
    let transcript = &outcome.transcript;
    let line = |text: &str| outcome.console.lines().find(|l| l.contains(text)).map(|l| l.trim().to_owned());
    let first = |lines: &[String]| lines.first().cloned();
    let mut checks = vec![];

    let again = match outcome.repeated {
        0 => String::new(),
        times => format!(", after {times} in which the emulation failed or may have"),
    };
    let console = format!("console in {}{again}", outcome.console_file.display());
    checks.push(("ran to its end", outcome.failure.is_none(), outcome.failure.clone().unwrap_or(console)));

    let started = line("DMAR: Intel(R) Virtualization Technology for Directed I/O");
    checks.push((
        "the kernel uses our unit",
        started.is_some(),
        release_and(transcript.fact("release"), started),
    ));

    let fault_detail = match transcript.faults.len() {
        0 => format!("{} provoked ones", transcript.expected_faults),
        n => format!("{n}, first: {}", first(&transcript.faults).unwrap_or_default()),
    };
    checks.push(("no DMAR fault that nobody provoked", transcript.faults.is_empty(), fault_detail));
    let oops = first(&transcript.oopses);
    checks.push(("no oops and no warning", oops.is_none(), oops.unwrap_or("none in the log".into())));

    if expect.sva {
        let ecap = transcript.fact("ecap").and_then(hexadecimal);
        let scalable = ecap.is_some_and(|e| e >> SMTS & 1 == 1);
        let enabled = line("Enable scalable mode if hardware supports");
        let detail = match ecap {
            Some(e) => format!("ECAP {e:#x}, SMTS {}", e >> SMTS & 1),
            None => "no ECAP in sysfs".to_owned(),
        };
        checks.push(("scalable mode", scalable && enabled.is_some(), detail));

        let refused = line("Unable to turn on user SVA");
        let bound = transcript.fact("pasid-enabled");
        let detail = refused.clone().unwrap_or(format!("pasid_enabled {}", bound.unwrap_or("not in sysfs")));
        checks.push(("SVA bound by idxd", refused.is_none() && bound == Some("1"), detail));
    }
    if expect.virtual_command {
        let registered = line("Register custom PASID allocator");
        let detail = registered.clone().unwrap_or("the log has no line of its registration".into());
        checks.push(("PASIDs by the virtual command", registered.is_some(), detail));
    }
    if let Some(domain) = expect.domain {
        let groups: Vec<_> =
            transcript.facts.iter().filter(|(n, _)| n == "group").map(|(_, v)| v.as_str()).collect();
        let right = groups.iter().filter(|g| g.split(' ').next() == Some(domain)).count();
        let detail = format!("{right} of {} groups are {domain}", groups.len());
        checks.push(("default domain", right > 0 && right == groups.len(), detail));
    }
    checks
}

fn release_and(release: Option<&str>, line: Option<String>) -> String {
    match line {
        Some(_) => format!("{}: Intel(R) Virtualization Technology for Directed I/O", release.unwrap_or("?")),
        None => "the log has no line of the DMAR driver".to_owned(),
    }
}

/// sysfs prints registers without a prefix.
fn hexadecimal(text: &str) -> Option<u64> {
    u64::from_str_radix(text.trim().trim_start_matches("0x"), 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::console::Transcript;
    use std::time::Duration;

    const GOOD: &str = "\
[ 0.1] DMAR: Enable scalable mode if hardware supports
[ 1.0] DMAR: Intel(R) Virtualization Technology for Directed I/O
[ 2.0] VSVA-FACT release 7.3.4+deb13-amd64
[ 2.0] VSVA-FACT ecap 80000f00f4a
[ 2.0] VSVA-FACT group DMA-FQ 0000:00:02.0
[ 9.0] VSVA-FACT pasid-enabled 1
";

    fn outcome(console: &str) -> Outcome {
        Outcome {
            transcript: Transcript::read(console),
            console: console.into(),
            console_file: "guest.log".into(),
            vsva: String::new(),
            failure: None,
            took: Duration::from_secs(1),
            level1_seconds: None,
            outer_facts: vec![],
            emulation_failed: false,
            repeated: 0,
        }
    }

    fn failed(console: &str, expect: Expect) -> Vec<&'static str> {
        lab_checks(&outcome(console), expect)
            .into_iter()
            .filter(|(_, passed, _)| !passed)
            .map(|(n, ..)| n)
            .collect()
    }

    const SVA: Expect = Expect { sva: true, domain: Some("DMA-FQ"), virtual_command: false };

    #[test]
    fn a_good_guest_passes() {
        assert_eq!(failed(GOOD, SVA), Vec::<&str>::new());
    }

    #[test]
    fn each_defect_fails_its_own_check() {
        let without = |text: &str| {
            let kept: Vec<_> = GOOD.lines().filter(|l| !l.contains(text)).collect();
            kept.join("\n")
        };
        assert_eq!(failed(&without("Directed I/O"), SVA), ["the kernel uses our unit"]);
        assert_eq!(failed(&without("Enable scalable"), SVA), ["scalable mode"]);
        assert_eq!(failed(&without("ecap"), SVA), ["scalable mode"]);
        assert_eq!(failed(&without("pasid-enabled"), SVA), ["SVA bound by idxd"]);
        let add = |line: &str| format!("{GOOD}{line}\n");
        let expected = Expect { virtual_command: true, ..SVA };
        assert_eq!(failed(GOOD, expected), ["PASIDs by the virtual command"]);
        assert!(failed(&add("DMAR: Register custom PASID allocator"), expected).is_empty());
        assert_eq!(failed(&without("group"), SVA), ["default domain"]);
        assert_eq!(failed(&add("VSVA-FACT group identity 0000:00:03.0"), SVA), ["default domain"]);
        assert_eq!(
            failed(&add("idxd 0000:00:03.0: Unable to turn on user SVA feature."), SVA),
            ["SVA bound by idxd"]
        );
        assert_eq!(
            failed(&add("DMAR: DRHD: handling fault status reg 2"), SVA),
            ["no DMAR fault that nobody provoked"]
        );
        assert_eq!(failed(&add("[ 3.0] BUG: unable to handle page fault"), SVA), ["no oops and no warning"]);
    }
}
