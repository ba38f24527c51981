// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The kernel's log, watched while the checks run: DMAR faults are allowed only in checks that provoke one, and
//! warnings of the kernel nowhere.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;

/// Reads /dev/kmsg from the start of the log.
pub struct Kmsg {
    file: Option<File>,
    /// DMAR fault lines seen where none is expected.
    pub unexpected_faults: Vec<String>,
    /// DMAR fault lines seen where they are expected.
    pub expected_faults: usize,
    /// Lines that tell of a defect: queue errors, warnings, hung tasks.
    pub defects: Vec<String>,
    /// DMAR fault lines that were there before this program started.
    pub earlier_faults: usize,
    /// Lines of the boot that tell what the kernel made of the IOMMU and the DSA.
    pub milestones: Vec<String>,
}

impl Kmsg {
    /// Opens the log; without one (not root) everything stays empty and [`Self::readable`] is false.
    pub fn open() -> Kmsg {
        Kmsg {
            file: OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open("/dev/kmsg").ok(),
            unexpected_faults: Vec::new(),
            expected_faults: 0,
            earlier_faults: 0,
            defects: Vec::new(),
            milestones: Vec::new(),
        }
    }

    /// Whether the log can be read.
    pub fn readable(&self) -> bool {
        self.file.is_some()
    }

    /// Reads what was logged before this program started: it is not this program's, but worth a word.
    pub fn start(&mut self) {
        self.drain(false);
        self.earlier_faults = std::mem::take(&mut self.unexpected_faults).len();
        self.defects.clear();
    }

    /// Reads what is new. `faults_expected` says whether DMAR faults belong to what was just done.
    pub fn drain(&mut self, faults_expected: bool) {
        let Some(file) = &mut self.file else { return };
        let mut record = vec![0; 8192];
        let mut lines = Vec::new();
        // Bounded, so that a kernel that logs without end does not hold the checks up.
        for _ in 0..100_000 {
            match file.read(&mut record) {
                Ok(0) => break,
                Ok(n) => lines.extend(message(&String::from_utf8_lossy(&record[..n])).map(str::to_string)),
                // EPIPE: records were overwritten before they were read; go on with the oldest one left.
                Err(e) if e.raw_os_error() == Some(libc::EPIPE) || e.kind() == ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        for line in lines {
            match classify(&line) {
                Kind::Fault if faults_expected => self.expected_faults += 1,
                Kind::Fault => self.unexpected_faults.push(line),
                Kind::Defect => self.defects.push(line),
                Kind::Milestone => self.milestones.push(line),
                Kind::Other => {}
            }
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Kind {
    Fault,
    Defect,
    Milestone,
    Other,
}

/// What a line tells [Linux drivers/iommu/intel/dmar.c:dmar_fault_do_one, dmar_fault, qi_check_fault;
/// drivers/iommu/intel/prq.c; kernel/hung_task.c].
fn classify(line: &str) -> Kind {
    let has = |parts: &[&str]| parts.iter().any(|part| line.contains(part));
    if has(&["DMAR"]) && has(&["fault addr", "handling fault status", "[fault reason"]) {
        Kind::Fault
    } else if has(&[
        "Invalidation Queue Error",
        "Invalidation Time-out Error",
        "Invalidation Completion Error",
        "PRQ overflow",
        "Page request without PASID",
        "DMAR hardware is malfunctioning",
        "idxd: probe of",
        "software error",
        "hardware error",
        "Oops",
        "BUG: ",
        "WARNING: ",
        "blocked for more than",
        "soft lockup",
        "rcu_sched self-detected stall",
        "Device command timeout",
    ]) && !has(&["Mitigation"])
    {
        Kind::Defect
    } else if has(&[
        "DMAR: Intel(R) Virtualization",
        "DMAR: IOMMU enabled",
        "idxd",
        "DMA domain TLB",
        "SVM disabled",
    ]) {
        Kind::Milestone
    } else {
        Kind::Other
    }
}

/// The text of a record of the kernel's: what follows the prefix `priority,sequence,time,flags;`, without continuation
/// lines. None for records that programs wrote (their facility, above the priority's three bits, is not 0): the lab
/// sends this program's own output there.
fn message(record: &str) -> Option<&str> {
    let (prefix, text) = record.split_once(';')?;
    let priority: u32 = prefix.split(',').next()?.parse().ok()?;
    (priority < 8).then(|| text.lines().next().unwrap_or(""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_lose_prefix_and_continuation() {
        assert_eq!(
            message("6,339,5140900,-;DMAR: Host address width 46\n SUBSYSTEM=pci\n"),
            Some("DMAR: Host address width 46")
        );
    }

    #[test]
    fn what_programs_write_is_not_the_kernels() {
        assert_eq!(message("12,340,5140901,-;VSVA-CHECK {} DMAR: [fault reason 0x71]\n"), None);
    }

    #[test]
    fn fault_lines_are_told_from_harmless_ones() {
        let fault = "DMAR: [DMA Write PASID 0x2] Request device [00:03.0] fault addr 0x7f0000000000 \
                     [fault reason 0x71] SM: Present bit in first-level paging entry is clear";
        assert_eq!(classify(fault), Kind::Fault);
        assert_eq!(classify("DMAR: DRHD: handling fault status reg 2"), Kind::Fault);
        assert_eq!(classify("iommu: Default domain type: Translated"), Kind::Other);
        assert_eq!(classify("DMAR: Intel(R) Virtualization Technology for Directed I/O"), Kind::Milestone);
        assert_eq!(classify("INFO: task guest:70 blocked for more than 120 seconds."), Kind::Defect);
        assert_eq!(classify("DMAR: DRHD: handling fault status reg 40"), Kind::Fault);
    }
}
