// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Progress, and patience without it. No clock decides whether something hangs: a machine may be slow, busy, or stopped
//! for a while. What is done is counted in memory that all processes of the program share, and who waits counts the sleeps
//! it has completed since that number last moved: a machine that gets no time completes none.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Result, bail};

use crate::memory::{Mapping, PAGE};

/// What a check may sleep in vain while it waits for the device or for another process.
const OF_A_CHECK: Duration = Duration::from_secs(if cfg!(test) { 2 } else { 20 });
/// What whoever watches over it may: more, because the check itself knows better what it is waiting for.
const OF_ITS_WATCHER: Duration = Duration::from_secs(if cfg!(test) { 4 } else { 40 });

/// Where steps are counted. To be made before the first fork, so that children count there too.
pub fn share() {
    steps_done();
}

fn steps_done() -> &'static AtomicU64 {
    static SHARED: OnceLock<&'static AtomicU64> = OnceLock::new();
    // Without the memory each process counts for itself.
    static OWN: AtomicU64 = AtomicU64::new(0);
    SHARED.get_or_init(|| match Mapping::shared(PAGE) {
        Ok(page) => {
            let page = std::mem::ManuallyDrop::new(page);
            // SAFETY: a page that stays mapped, is aligned, and is used through this type only.
            unsafe { AtomicU64::from_ptr(page.pointer().cast()) }
        }
        Err(_) => &OWN,
    })
}

/// Something was done: a descriptor completed, a process got to a meeting point, a part of a buffer was gone through.
pub fn made() {
    steps_done().fetch_add(1, Ordering::Relaxed);
}

/// How much was done so far.
pub fn steps() -> u64 {
    steps_done().load(Ordering::Relaxed)
}

/// The patience of one who waits: what may be slept while nothing at all is done.
#[derive(Debug)]
pub struct Patience {
    limit: Duration,
    spent: Duration,
    seen: u64,
}

impl Patience {
    /// That of a check.
    pub fn of_a_check() -> Self {
        Self::new(OF_A_CHECK)
    }

    /// That of one who watches over a check.
    pub fn of_its_watcher() -> Self {
        Self::new(OF_ITS_WATCHER)
    }

    /// None: what is waited for is there already, or is not coming.
    pub fn none() -> Self {
        Self::new(Duration::ZERO)
    }

    fn new(limit: Duration) -> Self {
        Self { limit, spent: Duration::ZERO, seen: steps() }
    }

    /// Sleeps for `pause`.
    ///
    /// # Errors
    ///
    /// Nothing has been done for too many sleeps; `what` is what was waited for.
    pub fn sleep(&mut self, pause: Duration, what: &str) -> Result<()> {
        std::thread::sleep(pause);
        self.slept(pause, steps(), what)
    }

    /// A sleep of `pause` was completed, by whatever means.
    ///
    /// # Errors
    ///
    /// As [`Self::sleep`].
    pub fn slept(&mut self, pause: Duration, steps: u64, what: &str) -> Result<()> {
        if steps == self.seen {
            // What was asked for, not what it took.
            self.spent += pause;
        } else {
            (self.seen, self.spent) = (steps, Duration::ZERO);
        }
        if self.spent >= self.limit {
            let seconds = self.limit.as_secs();
            bail!("no progress in sleeps of {seconds} s together, after {steps} steps: waited for {what}");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAUSE: Duration = Duration::from_millis(10);

    /// How many sleeps are completed before patience is lost, where `steps` gives what is done by then.
    fn sleeps(limit: Duration, steps: impl Fn(u64) -> u64) -> u64 {
        let mut patience = Patience { limit, spent: Duration::ZERO, seen: steps(0) };
        (1..10_000).find(|n| patience.slept(PAUSE, steps(*n), "x").is_err()).unwrap_or(10_000)
    }

    #[test]
    fn patience_is_counted_in_sleeps_since_the_last_step() {
        assert_eq!(sleeps(100 * PAUSE, |_| 7), 100);
        assert_eq!(sleeps(100 * PAUSE, |n| n.min(50)), 150);
        assert_eq!(sleeps(100 * PAUSE, |n| n / 99), 10_000, "slow is not hung");
    }

    #[test]
    fn what_was_waited_for_is_told_with_the_steps_before() {
        let error = Patience { limit: PAUSE, spent: Duration::ZERO, seen: 3 }.slept(PAUSE, 3, "a record");
        assert_eq!(
            error.unwrap_err().to_string(),
            "no progress in sleeps of 0 s together, after 3 steps: waited for a record"
        );
    }

    #[test]
    fn steps_of_a_child_are_seen_by_its_parent() {
        share();
        let before = steps();
        let mut child = crate::process::spawn(true, |_| {
            made();
            Ok(String::new())
        })
        .unwrap();
        child.join().unwrap();
        assert!(steps() > before);
    }
}
