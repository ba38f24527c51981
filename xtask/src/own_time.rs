// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A process's own time: what it computed, and what it slept with nothing to do. Time for which it was stopped, or waited
//! for a processor that others had, is not its own, so a busy or slow machine is never taken for a process that hangs.

use std::fs;
use std::time::{Duration, Instant};

/// One look at a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Sample {
    /// What its threads have computed so far, together.
    computed: Duration,
    /// Whether all of them sleep.
    asleep: bool,
}

/// The own time of one process, since this value was made.
#[derive(Debug)]
pub struct OwnTime {
    process: u32,
    last: Option<(Instant, Sample)>,
    sum: Duration,
}

impl OwnTime {
    /// That of the process with this id, from now on.
    pub fn of(process: u32) -> Self {
        Self { process, last: sample(process).map(|s| (Instant::now(), s)), sum: Duration::ZERO }
    }

    /// Looks again. To be called every `tick` or so: a process that is found asleep is taken to have slept for no longer
    /// than that, because whoever looks may have been stopped too.
    pub fn look(&mut self, tick: Duration) -> Duration {
        let Some(now) = sample(self.process) else { return self.sum };
        if let Some((at, before)) = self.last {
            self.sum += between(before, now, at.elapsed(), tick);
        }
        self.last = Some((Instant::now(), now));
        self.sum
    }
}

/// The own time between two looks: several threads that compute at once do not make it pass quicker.
fn between(before: Sample, now: Sample, elapsed: Duration, tick: Duration) -> Duration {
    let computed = now.computed.saturating_sub(before.computed);
    let own = if now.asleep { computed.max(tick) } else { computed };
    own.min(elapsed)
}

/// Nothing once the process is gone. \[proc_pid_stat(5)\]
fn sample(process: u32) -> Option<Sample> {
    let whole = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // SAFETY: asks for a constant of the system.
    let ticks_a_second =
        u64::try_from(unsafe { libc::sysconf(libc::_SC_CLK_TCK) }).ok().filter(|t| *t > 0)?;
    let ticks = computed_ticks(&whole)?;
    let threads = fs::read_dir(format!("/proc/{process}/task")).ok()?;
    let asleep = threads.flatten().all(|thread| {
        // One that has just ended computes nothing either.
        fs::read_to_string(thread.path().join("stat")).map_or(true, |stat| state(&stat) == Some("S"))
    });
    Some(Sample { computed: Duration::from_millis(ticks * 1000 / ticks_a_second), asleep })
}

/// The fields behind the name, which may hold blanks and parentheses itself.
fn fields(stat: &str) -> impl Iterator<Item = &str> {
    stat.rsplit(')').next().unwrap_or_default().split_whitespace()
}

/// The third field.
fn state(stat: &str) -> Option<&str> {
    fields(stat).next()
}

/// The fields 14 and 15, utime and stime.
fn computed_ticks(stat: &str) -> Option<u64> {
    let mut times = fields(stat).skip(11).map(|field| field.parse::<u64>().ok());
    times.next()??.checked_add(times.next()??)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::process::{Guarded, TICK};

    const STAT: &str = "7 (a) S (b) R 1 7 7 0 -1 0 9 9 9 9 250 50 9 9 20 0 1 0 9 9 9";

    #[test]
    fn a_name_with_parentheses_does_not_shift_the_fields() {
        assert_eq!(state(STAT), Some("R"));
        assert_eq!(computed_ticks(STAT), Some(300));
        assert_eq!(computed_ticks("7 (a) R 1"), None);
    }

    #[test]
    fn what_was_computed_or_slept_counts_and_waiting_for_a_processor_does_not() {
        let at = |ms, asleep| Sample { computed: Duration::from_millis(ms), asleep };
        let second = Duration::from_secs(1);
        let own = |a, b| between(a, b, second, TICK).as_millis();
        assert_eq!(own(at(0, false), at(30, false)), 30, "starved");
        assert_eq!(own(at(0, false), at(0, false)), 0, "stopped");
        assert_eq!(own(at(0, true), at(0, true)), TICK.as_millis(), "idle, and the watcher was stopped");
        assert_eq!(own(at(0, false), at(4000, false)), 1000, "four threads");
    }

    #[test]
    fn a_stopped_process_has_no_time_of_its_own() {
        let child = Guarded::spawn(Command::new("sleep").arg("600"), "").unwrap();
        // SAFETY: a signal to a child that has not been waited for.
        unsafe { libc::kill(child.id() as i32, libc::SIGSTOP) };
        while sample(child.id()).is_none_or(|s| s.asleep) {
            std::thread::sleep(TICK);
        }
        let mut own = OwnTime::of(child.id());
        std::thread::sleep(TICK);
        assert_eq!(own.look(TICK), Duration::ZERO);
    }

    #[test]
    fn a_process_that_sleeps_gets_older() {
        let child = Guarded::spawn(Command::new("sleep").arg("600"), "").unwrap();
        let mut own = OwnTime::of(child.id());
        while own.look(TICK) < 2 * TICK {
            std::thread::sleep(TICK);
        }
    }
}
