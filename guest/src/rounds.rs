// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How often a check repeats what it does: as often as a machine is quick. No clock decides whether it passes.

use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

/// What repetitions beyond the least may take together.
const BUDGET: Duration = Duration::from_millis(300);

/// The rounds of a check: at least those that show what the check is about, then more while they are
/// cheap, up to the most.
#[derive(Debug)]
pub struct Rounds {
    start: Instant,
    limits: RangeInclusive<u64>,
    begun: u64,
    wanting: bool,
}

impl Rounds {
    /// As many as `limits` allow, from now on.
    pub fn within(limits: RangeInclusive<u64>) -> Self {
        Self { start: Instant::now(), limits, begun: 0, wanting: false }
    }

    /// Begins a round, if there is to be another: its number, from 0 on.
    pub fn begin(&mut self) -> Option<u64> {
        self.begin_after(self.start.elapsed())
    }

    /// How many were begun.
    pub fn count(&self) -> u64 {
        self.begun
    }

    /// Whether what the check is about has not come about yet, by chance: then the rounds go on, up to the most, whatever
    /// they take.
    pub fn want_more(&mut self, wanting: bool) {
        self.wanting = wanting;
    }

    fn begin_after(&mut self, spent: Duration) -> Option<u64> {
        let more = self.begun < *self.limits.start()
            || self.begun < *self.limits.end() && (self.wanting || spent < BUDGET);
        more.then(|| {
            self.begun += 1;
            self.begun - 1
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rounds(each: Duration) -> u64 {
        let mut rounds = Rounds::within(4..=24);
        while rounds.begin_after(each * rounds.count() as u32).is_some() {}
        rounds.count()
    }

    #[test]
    fn a_quick_machine_makes_the_most_and_a_slow_one_the_least() {
        assert_eq!(rounds(Duration::from_millis(1)), 24);
        assert_eq!(rounds(BUDGET / 10), 10);
        assert_eq!(rounds(Duration::from_secs(60)), 4);
    }

    #[test]
    fn rounds_go_on_while_something_is_wanting() {
        let mut rounds = Rounds::within(1..=24);
        while rounds.begin_after(BUDGET).is_some() {
            let wanting = rounds.count() < 7;
            rounds.want_more(wanting);
        }
        assert_eq!(rounds.count(), 7);
        rounds.want_more(true);
        while rounds.begin_after(BUDGET).is_some() {}
        assert_eq!(rounds.count(), 24);
    }
}
