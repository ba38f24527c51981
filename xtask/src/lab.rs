// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The lab: boots guests in `vsva`, on the machine's KVM or in level 1, and brings back what they said.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::binaries::Binaries;
use crate::cache;
use crate::console::{self, Transcript};
use crate::images;
use crate::kernel::Kernel;
use crate::level1::ALIVE;
use crate::say::{self, Step};
use crate::supplies::Supplies;
use crate::watch::{End, Watch};

/// How often a run is repeated after the emulation has failed.
const LEVEL1_RETRIES: usize = 2;
/// What `vsva` says where a processor of the guest has given up.
const TRIPLE_FAULT: &str = "the guest crashed: triple fault";
/// What each guest's command line begins with. Its kernel prints nothing until it crashes, which spares exits, and its
/// watchdogs, which measure with the wall's clock, are off (docs/lab.md).
const APPEND: &str = "console=ttyS0 loglevel=1 panic=-1 printk.devkmsg=on nowatchdog rcupdate.rcu_cpu_stall_suppress=1 \
                      sysctl.kernel.hung_task_timeout_secs=0 workqueue.watchdog_thresh=0 intel_iommu=on";
/// How many lines of the guest's console tell what went wrong.
const LAST_LINES: usize = 25;
/// How many lines of what is around it do.
const LAST_LINES_AROUND: usize = 8;

/// A place where guests can be booted.
pub struct Lab {
    /// What was downloaded for it.
    pub supplies: Supplies,
    /// What was built for it.
    pub binaries: Binaries,
    /// Whether level 1 counts the guests' exits.
    pub exits: bool,
}

/// One boot of a guest.
pub struct Boot<'a> {
    /// The directory of its consoles.
    pub name: &'a str,
    /// What it boots.
    pub kernel: &'a Kernel,
    /// Words for its command line, after those that every boot has.
    pub append: &'a str,
    /// Drivers to load, where the kernel has them as modules.
    pub modules: &'a [&'a str],
    /// Further packages in its initramfs.
    pub tree: Option<&'a Path>,
    /// What it runs.
    pub script: &'a str,
    /// How many programs in the script end with `VSVA-DONE`.
    pub programs: usize,
    /// Arguments of `vsva run`, after those that every boot has.
    pub arguments: &'a [&'a str],
    /// Where a trace of `vsva` is to be put, beside the file for trace viewers.
    pub trace: Option<&'a Path>,
    /// Virtual processors.
    pub cpus: u32,
    /// Its memory in MiB.
    pub memory_mib: u64,
    /// Whether it gets a disk.
    pub disk: bool,
}

/// What became of a boot.
pub struct Outcome {
    /// What the guest said.
    pub transcript: Transcript,
    /// Everything on its console.
    pub console: String,
    /// Where that is kept.
    pub console_file: PathBuf,
    /// What `vsva` said for itself, on level 1's console or on its own.
    pub vsva: String,
    /// Why it did not come to its end.
    pub failure: Option<String>,
    /// From the start of level 0, or of `vsva`, to the end.
    pub took: Duration,
    /// Level 1's uptime when it was ready, in seconds.
    pub level1_seconds: Option<f64>,
    /// The facts that level 1 told.
    pub outer_facts: Vec<(String, String)>,
    /// Whether the emulation around the guest is to blame, or may be.
    pub emulation_failed: bool,
    /// How many runs before this one were given up for that.
    pub repeated: usize,
}

impl Boot<'_> {
    /// What `vsva` is started with: `names` are its files, where it runs.
    pub fn arguments_of_vsva(&self, names: &images::Names) -> Vec<String> {
        let append = format!("{APPEND} {}", self.append);
        let mut arguments: Vec<_> =
            ["run", "--kernel", &names.kernel, "--initrd", &names.initrd, "--append", append.trim()]
                .map(str::to_owned)
                .into();
        arguments.extend(["--cpus".to_owned(), self.cpus.to_string()]);
        arguments.extend(["--memory".to_owned(), format!("{}M", self.memory_mib)]);
        if self.disk {
            arguments.extend(["--disk".to_owned(), names.disk.clone()]);
        }
        if self.trace.is_some() {
            arguments.extend(["--trace".to_owned(), names.trace.clone()]);
        }
        arguments.extend(self.arguments.iter().map(|a| (*a).to_owned()));
        arguments
    }
}

impl Lab {
    /// Boots a guest and waits for its end. Where the emulation is to blame, or may be ([`emulation_suspected`]), the run
    /// is repeated, and said to be.
    pub fn boot(&self, boot: &Boot) -> Result<Outcome> {
        for repeated in 0..LEVEL1_RETRIES {
            let outcome = self.attempt(boot)?;
            if !outcome.emulation_failed {
                return Ok(Outcome { repeated, ..outcome });
            }
            let kept = cache::keep_run_directory(boot.name, "emulation-failed")?;
            let why = outcome.failure.unwrap_or_default();
            say::line(&format!("{why} ({}): once more", kept.display()));
        }
        Ok(Outcome { repeated: LEVEL1_RETRIES, ..self.attempt(boot)? })
    }

    /// Boots a guest once.
    pub fn attempt(&self, boot: &Boot) -> Result<Outcome> {
        let step = Step::begin(&format!("booting {} ({})", boot.kernel.release, boot.name));
        let directory = cache::run_directory(boot.name)?;
        let console_file = directory.join("guest.log");
        eprintln!("    the guest's console: {}", console_file.display());
        let images = tempfile::tempdir_in(&directory)?;
        let began = Instant::now();
        let mut watch = self.start(boot, images.path(), &directory)?;
        let ended = watch.wait()?;
        let took = began.elapsed();
        drop(watch);

        let console = read_lossy(&console_file);
        let outer_console = read_lossy(&directory.join("level1.log"));
        let transcript = Transcript::read(&console);
        let outer = Transcript::read(&outer_console);
        let vsva = [outer_console, read_lossy(&directory.join("vsva.log"))].concat();
        let level1_seconds = outer.fact("level1-seconds").and_then(|s| s.parse().ok());
        let emulation_failed =
            self.supplies.outer.is_some() && emulation_suspected(ended.as_ref(), &transcript, &outer, &vsva);
        let failure = ended
            .map(|end| end.to_string())
            .or_else(|| failure(&transcript, &outer, self.supplies.outer.is_some(), boot.programs));
        if let Some(path) = boot.trace {
            match images::bring_trace(&self.supplies.busybox, images.path(), path) {
                // The run's own failure is what is to be seen.
                Err(e) if failure.is_some() => say::line(&format!("{e:#}")),
                brought => brought?,
            }
        }
        if let Some(why) = &failure {
            say::line(&format!("{}: {why}; the last lines of {}:", boot.name, console_file.display()));
            for line in console::last_lines(&console, LAST_LINES) {
                eprintln!("    | {line}");
            }
            // What vsva and level 1 said for themselves.
            let around: String =
                vsva.lines().filter(|l| !l.contains(ALIVE)).map(|l| l.to_owned() + "\n").collect();
            for line in console::last_lines(&around, LAST_LINES_AROUND) {
                eprintln!("    around it: {line}");
            }
        }
        step.done("the guest has ended");
        Ok(Outcome {
            transcript,
            console,
            console_file,
            vsva,
            failure,
            took,
            level1_seconds,
            outer_facts: outer.facts,
            emulation_failed,
            repeated: 0,
        })
    }

    fn start(&self, boot: &Boot, images: &Path, directory: &Path) -> Result<Watch> {
        match &self.supplies.outer {
            Some(outer) => {
                let (initrd, size) = images::level1(self, outer, boot, images)?;
                let trace = boot.trace.map(|_| images);
                let command = outer.command(&initrd, size, boot.memory_mib, trace, directory)?;
                Watch::in_level1(command, directory, "qemu.log")
            }
            None => {
                let names = images::here(self, boot, images)?;
                let mut command = Command::new(&self.binaries.vsva);
                command
                    .args(boot.arguments_of_vsva(&names))
                    .stdin(Stdio::null())
                    .stdout(File::create(directory.join("guest.log"))?)
                    .stderr(File::create(directory.join("vsva.log"))?);
                Watch::here(command, directory, "vsva.log")
            }
        }
    }
}

/// Whether the emulation is to blame for how a run in level 1 ended, or may be. Level 1's own kernel that panics, hangs or
/// is reset before vsva has ended runs under nothing else. A guest's processors that stand still or triple-fault were seen
/// at any point of a run, before any device was in use too, with level 1 alive; vsva has no part in what a processor does
/// between two exits. A guest that panics is its own, and so is whatever comes after a check that failed.
fn emulation_suspected(ended: Option<&End>, guest: &Transcript, outer: &Transcript, vsva: &str) -> bool {
    match ended {
        Some(End::Level1Panic | End::Level1Silent(_)) => true,
        None if outer.fact("exit").is_none() => true,
        _ if guest.checks.iter().any(|check| !check.passed) => false,
        Some(End::GuestSilent(_)) => true,
        Some(_) => false,
        None => vsva.contains(TRIPLE_FAULT),
    }
}

/// Why a run whose machine has ended by itself is a failure all the same.
fn failure(guest: &Transcript, outer: &Transcript, has_outer: bool, programs: usize) -> Option<String> {
    match outer.fact("exit") {
        None if has_outer => return Some("level 1 ended before vsva did".to_owned()),
        Some(status) if status != "0" => return Some(format!("vsva ended with status {status}")),
        _ => {}
    }
    if let Some(broken) = guest.broken.first() {
        return Some(format!("the console's protocol is broken: {broken}"));
    }
    if guest.done != programs {
        return Some(format!("{} of {programs} programs said that they were done", guest.done));
    }
    guest.fact("end").is_none().then(|| "the guest did not reach its end".to_owned())
}

fn read_lossy(path: &Path) -> String {
    fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_emulation_may_have_done_is_repeated() {
        let good = Transcript::read("VSVA-CHECK {\"name\":\"a\",\"passed\":true,\"detail\":\"\"}\n");
        let bad = Transcript::read("VSVA-CHECK {\"name\":\"a\",\"passed\":false,\"detail\":\"\"}\n");
        let crashed = format!("vsva: {TRIPLE_FAULT} on processor 0\n");
        let outer = Transcript::read("VSVA-FACT exit 1\n");
        let silent = Some(&End::GuestSilent(Duration::ZERO));
        for end in [End::Level1Panic, End::Level1Silent(Duration::ZERO)] {
            assert!(emulation_suspected(Some(&end), &bad, &outer, ""));
        }
        assert!(emulation_suspected(silent, &good, &outer, ""));
        assert!(!emulation_suspected(silent, &bad, &outer, ""), "a check has failed before");
        assert!(emulation_suspected(None, &good, &outer, &crashed));
        assert!(!emulation_suspected(None, &bad, &outer, &crashed));
        assert!(!emulation_suspected(None, &good, &outer, "vsva: KVM cannot run processor 0\n"));
        assert!(emulation_suspected(None, &bad, &Transcript::default(), ""), "level 1 was reset");
        for end in [End::GuestPanic, End::Failed(String::new())] {
            assert!(!emulation_suspected(Some(&end), &good, &outer, ""));
        }
    }

    #[test]
    fn a_run_without_its_end_is_a_failure() {
        let whole =
            "VSVA-CHECK {\"name\":\"a\",\"passed\":true}\nVSVA-DONE {\"checks\":1}\nVSVA-FACT end 0\n";
        let guest = Transcript::read(whole);
        let exit = |status: &str| Transcript::read(&format!("VSVA-FACT exit {status}\n"));
        assert_eq!(failure(&guest, &exit("0"), true, 1), None);
        assert_eq!(failure(&guest, &Transcript::default(), false, 1), None);
        for (guest, outer, programs, why) in [
            (&guest, exit("1"), 1, "status 1"),
            (&guest, Transcript::default(), 1, "level 1 ended"),
            (&guest, exit("0"), 2, "1 of 2 programs"),
            (&Transcript::read("VSVA-DONE {\"checks\":0}\n"), exit("0"), 1, "did not reach its end"),
            (&Transcript::read("VSVA-DONE {\"checks\":3}\n"), exit("0"), 1, "protocol is broken"),
        ] {
            let found = failure(guest, &outer, true, programs).unwrap();
            assert!(found.contains(why), "{found}");
        }
    }
}
