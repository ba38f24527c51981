// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How tests wait for what other threads bring about: without a clock, and never for ever.
//!
//! A limit in seconds fails on a machine that is slow, busy, or stopped for a while. [`Patience`] counts the sleeps of the
//! one who waits instead: who gets no time completes none, and whoever it waits for gets time meanwhile.
//!
//! A wait that runs out panics. Where that happens inside [`std::thread::scope`], the scope still waits for its threads,
//! and those that run until a flag is raised would run for ever: [`Raise`] raises it on every way out.

#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

/// What waits for something short gives up its turn so often before it sleeps.
const YIELDS: u32 = 2000;
/// One sleep.
const SLEEP: Duration = Duration::from_millis(1);
/// How many are too many.
const SLEEPS: u32 = 60_000;

/// The patience of one wait.
///
/// ```
/// let mut patience = patience::Patience::default();
/// let mut left = 10;
/// while left > 0 {
///     left -= 1;
///     patience.pause("the end");
/// }
/// ```
#[derive(Debug, Default)]
pub struct Patience {
    yields: u32,
    sleeps: u32,
}

impl Patience {
    /// Lets others run; to be called once for each look in vain.
    ///
    /// # Panics
    ///
    /// After a minute's worth of sleeps, with `what` was waited for.
    #[track_caller]
    pub fn pause(&mut self, what: &str) {
        if self.yields < YIELDS {
            self.yields += 1;
            return thread::yield_now();
        }
        assert!(self.sleeps < SLEEPS, "after {SLEEPS} sleeps still without {what}");
        self.sleeps += 1;
        thread::sleep(SLEEP);
    }
}

/// Waits until `condition` holds.
///
/// # Panics
///
/// As [`Patience::pause`].
///
/// ```
/// use std::sync::atomic::{AtomicBool, Ordering};
///
/// let done = AtomicBool::new(false);
/// std::thread::scope(|scope| {
///     scope.spawn(|| done.store(true, Ordering::Release));
///     patience::eventually("the thread", || done.load(Ordering::Acquire));
/// });
/// ```
#[track_caller]
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let mut patience = Patience::default();
    while !condition() {
        patience.pause(what);
    }
}

/// Raises a flag when it is dropped, also where a test fails: what other threads of a scope look at to end.
///
/// ```
/// use std::sync::atomic::{AtomicBool, Ordering};
///
/// let stop = AtomicBool::new(false);
/// std::thread::scope(|scope| {
///     let _stop = patience::Raise(&stop);
///     scope.spawn(|| while !stop.load(Ordering::Relaxed) {});
///     // Whatever fails here, the thread ends.
/// });
/// ```
#[derive(Debug)]
pub struct Raise<'a>(pub &'a AtomicBool);

impl Drop for Raise<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;

    #[test]
    fn a_wait_in_vain_ends_and_says_for_what() {
        let mut patience = Patience { yields: YIELDS, sleeps: SLEEPS - 2 };
        patience.pause("it");
        patience.pause("it");
        let panic = catch_unwind(AssertUnwindSafe(|| patience.pause("the answer"))).unwrap_err();
        assert!(panic.downcast_ref::<String>().unwrap().contains("without the answer"));
    }

    #[test]
    fn a_scope_whose_test_fails_ends() {
        let stop = AtomicBool::new(false);
        let failed = catch_unwind(AssertUnwindSafe(|| {
            thread::scope(|scope| {
                let _stop = Raise(&stop);
                scope.spawn(|| {
                    while !stop.load(Ordering::Acquire) {
                        thread::yield_now();
                    }
                });
                panic!("as a wait in vain");
            });
        }));
        assert!(failed.is_err());
    }
}
