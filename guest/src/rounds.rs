// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How often a check repeats what it does: as often as a machine is quick. No clock decides whether it passes.

use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

/// What repetitions beyond the least may take together.
const BUDGET: Duration = Duration::from_millis(300);

/// The numbers of the rounds, from 0 on. At least the least that show what the check is about, then more while they are
/// cheap, up to the most.
#[derive(Debug)]
pub struct Rounds {
    start: Instant,
    limits: RangeInclusive<u64>,
    begun: u64,
}

impl Rounds {
    /// As many as `limits` allow, from now on.
    pub fn within(limits: RangeInclusive<u64>) -> Self {
        Self { start: Instant::now(), limits, begun: 0 }
    }

    /// How many were begun.
    pub fn count(&self) -> u64 {
        self.begun
    }

    fn next_after(&mut self, spent: Duration) -> Option<u64> {
        let more = self.begun < *self.limits.start() || self.begun < *self.limits.end() && spent < BUDGET;
        more.then(|| {
            self.begun += 1;
            self.begun - 1
        })
    }
}

impl Iterator for &mut Rounds {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        self.next_after(self.start.elapsed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rounds(each: Duration) -> u64 {
        let mut rounds = Rounds::within(4..=24);
        while rounds.next_after(each * rounds.count() as u32).is_some() {}
        rounds.count()
    }

    #[test]
    fn a_quick_machine_makes_the_most_and_a_slow_one_the_least() {
        assert_eq!(rounds(Duration::from_millis(1)), 24);
        assert_eq!(rounds(BUDGET / 10), 10);
        assert_eq!(rounds(Duration::from_secs(60)), 4);
    }
}
