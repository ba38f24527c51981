// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How a machine comes to its end, and who asked for it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};

/// How a machine ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The guest powered itself off.
    PowerOff,
    /// The guest reset itself: a reboot, or a panic with `panic=-1`.
    Reset,
    /// The user ended it with the escape sequence.
    Quit,
    /// A signal ended it.
    Signal(i32),
    /// It could not go on; one line for the user.
    Failed(String),
}

/// The request to stop, and how it came about. The first request counts.
#[derive(Default)]
pub struct Stop {
    requested: AtomicBool,
    outcome: Mutex<Option<Outcome>>,
    changed: Condvar,
}

impl Stop {
    /// Asks the machine to stop because of `outcome`.
    pub fn request(&self, outcome: Outcome) {
        let mut current = self.outcome.lock().unwrap_or_else(PoisonError::into_inner);
        if current.is_none() {
            *current = Some(outcome);
            self.requested.store(true, Ordering::Release);
            self.changed.notify_all();
        }
    }

    /// Whether somebody asked.
    pub fn requested(&self) -> bool {
        self.requested.load(Ordering::Acquire)
    }

    /// Why, if somebody asked.
    pub fn outcome(&self) -> Option<Outcome> {
        self.outcome.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until somebody asks.
    pub fn wait(&self) -> Outcome {
        let mut current = self.outcome.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match &*current {
                Some(outcome) => return outcome.clone(),
                None => current = self.changed.wait(current).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }
}

static END_REQUESTED: AtomicBool = AtomicBool::new(false);

/// Whether a signal has asked for the end: then nobody who has stopped reading is waited for any more.
pub fn end_requested() -> bool {
    END_REQUESTED.load(Ordering::Relaxed)
}

/// A signal asks for the end.
pub fn request_end() {
    END_REQUESTED.store(true, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_reason_to_stop_counts() {
        let stop = Stop::default();
        assert!(!stop.requested());
        stop.request(Outcome::PowerOff);
        stop.request(Outcome::Failed("later".into()));
        assert!(stop.requested());
        assert_eq!(stop.wait(), Outcome::PowerOff);
    }
}
