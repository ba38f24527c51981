// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Watches a machine to its end: what its consoles say is progress, and a machine that has had its time without any hangs.

use std::fmt::{self, Display};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use crate::console::{self, Message};
use crate::own_time::OwnTime;
use crate::process::{self, Guarded, TICK};
use crate::tail::Tail;

/// How much time of its own a machine may have without a word of the guest. The guest program gives a sign of life every
/// few seconds, and says itself where a check comes to a standstill.
const PATIENCE: Duration = Duration::from_secs(60);
/// On a slow machine, the same in times what level 1 needed to come up.
const PATIENCE_IN_BRING_UPS: u32 = 12;
/// How long a machine that has panicked gets to end by itself.
const GRACE: Duration = Duration::from_secs(5);

/// A bad end of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// The guest's kernel panicked.
    GuestPanic,
    /// Level 1's kernel panicked.
    Level1Panic,
    /// QEMU or `vsva` failed, and why.
    Failed(String),
    /// The guest said nothing for so much of the machine's own time.
    GuestSilent(Duration),
    /// Level 1 gave no sign of life for so much of it.
    Level1Silent(Duration),
}

impl Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::GuestPanic => write!(f, "the guest's kernel panicked"),
            Self::Level1Panic => write!(f, "level 1's kernel panicked"),
            Self::Failed(why) => write!(f, "the machine failed ({why})"),
            Self::GuestSilent(time) => {
                let seconds = time.as_secs();
                write!(f, "no progress for {seconds} s of the machine's own time: the guest or vsva hangs")
            }
            Self::Level1Silent(time) => {
                let seconds = time.as_secs();
                write!(f, "level 1 gave no sign of life for {seconds} s of its own time: it hangs")
            }
        }
    }
}

/// What of the consoles is progress, and how long there may be none.
#[derive(Debug)]
struct Progress {
    in_level1: bool,
    patience: Duration,
    /// The own time at which each was heard last.
    guest: Duration,
    level1: Duration,
    /// Whether the guest's programs run: from then on, what its kernel says is none.
    in_user_space: bool,
}

impl Progress {
    fn new(in_level1: bool) -> Self {
        let zero = Duration::ZERO;
        Self { in_level1, patience: PATIENCE, guest: zero, level1: zero, in_user_space: false }
    }

    /// A line of the guest's console.
    fn guest_said(&mut self, line: &str, now: Duration) {
        if !self.in_user_space || console::of_protocol(line) {
            self.guest = now;
        }
        self.in_user_space |= is_fact(line, "guest-seconds");
    }

    /// A line of level 1's console: a line of `vsva` or of the kernel is a sign of life like those given on purpose.
    fn level1_said(&mut self, line: &str, now: Duration) {
        self.level1 = now;
        if is_fact(line, "level1-seconds") {
            self.guest = now;
            self.patience = PATIENCE.max(now * PATIENCE_IN_BRING_UPS);
        }
    }

    /// The bad end that a machine which still runs has come to. Level 1 gets less than the guest, so that a silent guest
    /// is known to be alone with it or not.
    fn end(&self, now: Duration) -> Option<End> {
        let (guest, level1) = (now.saturating_sub(self.guest), now.saturating_sub(self.level1));
        if self.in_level1 && level1 > self.patience * 3 / 4 {
            return Some(End::Level1Silent(level1));
        }
        (guest > self.patience).then_some(End::GuestSilent(guest))
    }
}

fn is_fact(line: &str, fact: &str) -> bool {
    matches!(console::message(line), Some(Message::Fact(name, _)) if name == fact)
}

/// A machine under way: it is killed when this value is dropped.
pub struct Watch {
    child: Guarded,
    own_time: OwnTime,
    console: Tail,
    outer: Tail,
    errors: PathBuf,
    progress: Progress,
}

impl Watch {
    /// Starts QEMU with level 1; the consoles are `level1.log` and `guest.log` in `directory`, and `errors` there is what
    /// the program says for itself.
    ///
    /// # Errors
    ///
    /// The program cannot be run.
    pub fn in_level1(command: Command, directory: &Path, errors: &str) -> Result<Self> {
        Self::start(command, directory, errors, Progress::new(true))
    }

    /// Starts `vsva` on this machine, likewise.
    ///
    /// # Errors
    ///
    /// The program cannot be run.
    pub fn here(command: Command, directory: &Path, errors: &str) -> Result<Self> {
        Self::start(command, directory, errors, Progress::new(false))
    }

    fn start(mut command: Command, directory: &Path, errors: &str, progress: Progress) -> Result<Self> {
        let child = Guarded::spawn(&mut command, "is it there and executable?")?;
        Ok(Self {
            own_time: OwnTime::of(child.id()),
            child,
            console: Tail::new(directory.join("guest.log")),
            outer: Tail::new(directory.join("level1.log")),
            errors: directory.join(errors),
            progress,
        })
    }

    /// Waits for the end, showing the guest's checks as they come; gives the reason of a bad end.
    ///
    /// # Errors
    ///
    /// The user has asked to stop.
    pub fn wait(&mut self) -> Result<Option<End>> {
        let mut panicked: Option<(End, Duration)> = None;
        loop {
            process::check_interrupt()?;
            let status = self.child.status()?;
            let now = self.own_time.look(TICK);
            for line in self.outer.lines() {
                self.progress.level1_said(&line, now);
                show(&line);
                if console::is_panic(&line) {
                    panicked.get_or_insert((End::Level1Panic, now));
                }
            }
            for line in self.console.lines() {
                self.progress.guest_said(&line, now);
                show(&line);
                if console::is_panic(&line) {
                    panicked.get_or_insert((End::GuestPanic, now));
                }
            }
            match (status, &panicked) {
                (Some(_), Some((end, _))) => return Ok(Some(end.clone())),
                (None, Some((end, at))) if now - *at > GRACE => return Ok(Some(end.clone())),
                (Some(status), None) if status.success() => return Ok(None),
                (Some(status), None) => {
                    let text = fs::read(&self.errors).unwrap_or_default();
                    let why = process::first_error(&String::from_utf8_lossy(&text)).to_owned();
                    return Ok(Some(End::Failed(format!("{status}: {why}"))));
                }
                (None, _) => match self.progress.end(now) {
                    Some(end) => return Ok(Some(end)),
                    None => std::thread::sleep(TICK),
                },
            }
        }
    }
}

/// Progress for people: that a level has come up, and each check as it is made.
fn show(line: &str) {
    match console::message(line) {
        Some(Message::Check(check)) => {
            let result = if check.passed { "ok    " } else { "FAILED" };
            eprintln!("    {result}  {}", check.name);
        }
        Some(Message::Fact(name, seconds)) if name.ends_with("-seconds") => {
            eprintln!(
                "    {}'s user space after {seconds} s of its own time",
                name.trim_end_matches("-seconds")
            );
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn sleeper(progress: Progress) -> Watch {
        let directory = tempfile::tempdir().unwrap();
        let mut command = Command::new("sleep");
        command.arg("600");
        Watch::start(command, directory.path(), "errors", progress).unwrap()
    }

    #[test]
    fn a_machine_that_hangs_is_told() {
        let mut progress = Progress::new(false);
        progress.patience = SECOND / 2;
        assert!(matches!(sleeper(progress).wait().unwrap(), Some(End::GuestSilent(_))));
    }

    #[test]
    fn what_the_kernel_says_is_progress_until_programs_run() {
        let mut progress = Progress::new(false);
        progress.guest_said("[ 1.0] DMAR: Intel(R) Virtualization Technology for Directed I/O", SECOND);
        assert_eq!(progress.guest, SECOND);
        progress.guest_said("[ 2.0] VSVA-FACT guest-seconds 2.0", 2 * SECOND);
        progress.guest_said("[ 3.0] DMAR: DRHD: handling fault status reg 2", 3 * SECOND);
        assert_eq!(progress.guest, 2 * SECOND, "a kernel that complains for ever makes no progress");
        progress.guest_said("[ 4.0] VSVA-ALIVE large-transfers 17", 4 * SECOND);
        assert_eq!(progress.guest, 4 * SECOND);
    }

    #[test]
    fn a_silent_guest_is_not_blamed_on_a_level_1_that_lives() {
        let mut progress = Progress::new(true);
        progress.level1_said("VSVA-FACT level1-seconds 4.0", 4 * SECOND);
        for now in (10..60).step_by(10) {
            progress.level1_said("VSVA-ALIVE", now * SECOND);
            assert_eq!(progress.end(now * SECOND), None);
        }
        progress.level1_said("VSVA-ALIVE", 60 * SECOND);
        assert!(matches!(progress.end(65 * SECOND), Some(End::GuestSilent(_))));
        progress.guest_said("VSVA-CHECK {}", 65 * SECOND);
        assert!(matches!(progress.end(110 * SECOND), Some(End::Level1Silent(_))));
    }

    #[test]
    fn a_slow_machine_gets_more_patience() {
        let mut progress = Progress::new(true);
        progress.level1_said("VSVA-FACT level1-seconds 20.0", 20 * SECOND);
        progress.level1_said("VSVA-ALIVE", 200 * SECOND);
        assert_eq!(progress.end(250 * SECOND), None);
        progress.level1_said("VSVA-ALIVE", 261 * SECOND);
        assert!(matches!(progress.end(261 * SECOND), Some(End::GuestSilent(_))));
    }

    #[test]
    fn panics_of_guest_and_level_1_are_told_apart_and_from_another_end() {
        let line = "[ 1.0] Kernel panic - not syncing: x\n";
        for (log, end) in [
            ("guest.log", Some(End::GuestPanic)),
            ("level1.log", Some(End::Level1Panic)),
            ("other.log", None),
        ] {
            let directory = tempfile::tempdir().unwrap();
            fs::write(directory.path().join(log), line).unwrap();
            let mut watch = Watch::here(Command::new("true"), directory.path(), "errors").unwrap();
            assert_eq!(watch.wait().unwrap(), end, "{log}");
        }
    }

    #[test]
    fn a_failing_machine_tells_why() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("errors"), "vsva: error: no such file\n").unwrap();
        let mut watch = Watch::here(Command::new("false"), directory.path(), "errors").unwrap();
        let end = watch.wait().unwrap().unwrap();
        assert!(end.to_string().contains("no such file"), "{end}");
    }
}
