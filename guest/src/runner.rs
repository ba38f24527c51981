// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Runs the checks one after the other, each in a process of its own that is watched: whatever hangs or dies becomes one
//! failed check, and the next one starts with a fresh address space and a freshly opened queue.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::kmsg::Kmsg;
use crate::options::Options;
use crate::portal::Queue;
use crate::process::{Findings, STEP, spawn};
use crate::progress::{self, Patience};
use crate::report::{self, Report};
use crate::sysfs::Device;

/// A sign of life every so many sleeps of [`STEP`]: about every five seconds.
const SLEEPS_A_SIGN: u32 = 5_000 / STEP.as_millis() as u32;

/// What the checks work with.
pub struct Lab {
    /// The device; none in tests, which use a software queue.
    pub device: Option<Device>,
    /// Seed of the contents.
    pub seed: u64,
    /// The disk; none in tests.
    pub disk: Option<std::path::PathBuf>,
    /// Largest size of the large transfers, in bytes.
    pub large: usize,
    /// The first queue to use: moves on when a process is stuck with one.
    pub first_queue: usize,
}

impl Lab {
    /// Opens the `n`th queue for this process.
    pub fn queue(&self, n: usize) -> Result<Queue> {
        match &self.device {
            Some(device) => device.open((self.first_queue + n) % device.queue_count().max(1)),
            #[cfg(test)]
            None => Queue::open(std::path::Path::new(crate::soft::PATH), crate::soft::LIMITS),
            #[cfg(not(test))]
            None => anyhow::bail!("there is no device"),
        }
    }

    /// The device, for what only a real one has.
    pub fn device(&self) -> Result<&Device> {
        self.device.as_ref().ok_or_else(|| anyhow::anyhow!("there is no device"))
    }
}

/// One named check.
pub struct Check {
    /// Its name in the report.
    pub name: &'static str,
    /// Whether it provokes DMA that the IOMMU may report as a fault.
    pub faults: bool,
    /// The check: what it saw, or why it failed.
    pub run: fn(&Lab, &mut Findings) -> Result<String>,
}

/// Runs checks and reports them.
pub struct Runner {
    /// Where the results go.
    pub report: Report,
    /// The kernel's log.
    pub kmsg: Kmsg,
    started: Instant,
    options: Options,
}

impl Runner {
    /// Starts the clock.
    pub fn new(options: &Options) -> Runner {
        let mut kmsg = Kmsg::open();
        kmsg.start();
        Runner { report: Report::default(), kmsg, started: Instant::now(), options: options.clone() }
    }

    /// Runs one check. Returns whether it passed.
    pub fn run(&mut self, lab: &mut Lab, check: &Check) -> bool {
        if !self.options.wants(check.name) {
            return true;
        }
        self.kmsg.drain(false);
        if check.faults {
            self.report.expect_fault_begin(check.name);
        }
        let start = Instant::now();
        let outcome = run_isolated(lab, check);
        if check.faults {
            // The fault interrupt's thread may still be writing its lines.
            std::thread::sleep(Duration::from_millis(30));
            self.report.expect_fault_end(check.name);
        }
        self.kmsg.drain(check.faults);
        let seconds = start.elapsed().as_secs_f64();
        match outcome {
            Ok((findings, detail)) => {
                for (name, value, unit) in findings.figures() {
                    self.report.figure(name, *value, unit);
                }
                self.report.check(check.name, true, &format!("{detail} ({seconds:.1} s)"));
                true
            }
            Err(error) => {
                let text = format!("{error:#}");
                if text.contains("stuck in the kernel") {
                    lab.first_queue += 1;
                }
                self.report.check(check.name, false, &format!("{text} ({seconds:.1} s)"));
                false
            }
        }
    }

    /// The last checks: what the kernel logged meanwhile.
    pub fn check_log(&mut self) {
        self.kmsg.drain(false);
        self.log_check("kernel-log-dmar-faults", |kmsg| {
            let seen = &kmsg.unexpected_faults;
            ensure!(
                seen.is_empty(),
                "{} DMAR fault lines where none is expected: {}",
                seen.len(),
                first(seen)
            );
            Ok(format!(
                "none outside the checks that provoke them, {} inside; {} before the program started",
                kmsg.expected_faults, kmsg.earlier_faults
            ))
        });
        self.log_check("kernel-log-defects", |kmsg| {
            ensure!(kmsg.defects.is_empty(), "{} lines: {}", kmsg.defects.len(), first(&kmsg.defects));
            Ok(format!("no queue error, warning or hang; {}", kmsg.milestones.join(" | ")))
        });
    }

    fn log_check(&mut self, name: &str, verdict: impl FnOnce(&Kmsg) -> Result<String>) {
        let outcome = if self.kmsg.readable() {
            verdict(&self.kmsg)
        } else {
            Err(anyhow::anyhow!("/dev/kmsg cannot be read"))
        };
        match outcome {
            Ok(detail) => self.report.check(name, true, &detail),
            Err(error) => self.report.check(name, false, &format!("{error:#}")),
        }
    }

    /// Seconds since the start.
    pub fn elapsed(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }
}

/// Runs a check in a child.
pub fn run_isolated(lab: &Lab, check: &Check) -> Result<(Findings, String)> {
    watched(check.name, |findings| (check.run)(lab, findings))
}

/// Runs `work` in a child, with a sign of life every few seconds: whoever listens on the console knows no other.
pub fn watched(name: &str, work: impl FnOnce(&mut Findings) -> Result<String>) -> Result<(Findings, String)> {
    let mut sleeps = 0u32;
    spawn(true, work)?.join_with(Patience::of_its_watcher(), || {
        sleeps += 1;
        if sleeps.is_multiple_of(SLEEPS_A_SIGN) {
            report::alive(name, progress::steps());
        }
    })
}

fn first(lines: &[String]) -> String {
    lines.iter().take(4).cloned().collect::<Vec<_>>().join(" | ")
}
