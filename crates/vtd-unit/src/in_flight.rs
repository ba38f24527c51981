// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What is on its way with no lock held: counted, so that somebody can wait for what began before a certain moment.

use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::{Condvar, Mutex, PoisonError};

/// Two generations: what begins now, and what began before the last turn.
#[derive(Debug, Default)]
pub(crate) struct InFlight {
    generation: AtomicUsize,
    counts: [AtomicUsize; 2],
    lock: Mutex<()>,
    ended: Condvar,
}

/// One that is on its way.
pub(crate) struct Entered<'a> {
    of: &'a InFlight,
    generation: usize,
}

/// The generation that a turn has ended.
pub(crate) struct Before(usize);

impl InFlight {
    /// Something begins. The caller holds a lock shared that whoever turns holds exclusively.
    pub(crate) fn enter(&self) -> Entered<'_> {
        let generation = self.generation.load(Ordering::Relaxed);
        self.counts[generation].fetch_add(1, Ordering::Relaxed);
        Entered { of: self, generation }
    }

    /// Whether nothing is on its way. The caller holds that lock exclusively.
    pub(crate) fn is_empty(&self) -> bool {
        self.counts.iter().all(|count| count.load(Ordering::Acquire) == 0)
    }

    /// What begins from now on is told apart from what began before, for which the caller then waits with that lock
    /// released. The caller holds that lock exclusively.
    pub(crate) fn turn(&self) -> Before {
        Before(self.generation.fetch_xor(1, Ordering::Relaxed))
    }

    /// Waits until all that began before the turn has ended.
    pub(crate) fn wait(&self, before: &Before) {
        let mut guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        while self.counts[before.0].load(Ordering::Acquire) != 0 {
            guard = self.ended.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        if self.of.counts[self.generation].fetch_sub(1, Ordering::Release) == 1 {
            // Not between the look at the count and the wait.
            drop(self.of.lock.lock().unwrap_or_else(PoisonError::into_inner));
            self.of.ended.notify_all();
        }
    }
}
