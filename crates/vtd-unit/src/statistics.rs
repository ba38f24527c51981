// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Counts of what a unit has done: of rare things only, so that counting costs the hot path nothing.

use std::ops::AddAssign;
use std::sync::atomic::{AtomicU64, Ordering};

/// What a unit, or one of its functions, has done since power-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Walks of a first stage alone.
    pub first_stage_walks: u64,
    /// Walks of a second stage alone.
    pub second_stage_walks: u64,
    /// Walks of a first stage nested on a second.
    pub nested_walks: u64,
    /// Page requests that were queued for software.
    pub page_requests: u64,
}

impl AddAssign for Statistics {
    fn add_assign(&mut self, other: Self) {
        self.first_stage_walks += other.first_stage_walks;
        self.second_stage_walks += other.second_stage_walks;
        self.nested_walks += other.nested_walks;
        self.page_requests += other.page_requests;
    }
}

/// The counters of a function.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub first_stage_walks: Counter,
    pub second_stage_walks: Counter,
    pub nested_walks: Counter,
    pub page_requests: Counter,
}

impl Counters {
    pub(crate) fn read(&self) -> Statistics {
        Statistics {
            first_stage_walks: self.first_stage_walks.read(),
            second_stage_walks: self.second_stage_walks.read(),
            nested_walks: self.nested_walks.read(),
            page_requests: self.page_requests.read(),
        }
    }
}

/// One count, which nothing is ordered by.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn read(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
