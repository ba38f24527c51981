// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What people are told of a download under way: how much has come, how fast, and what is left.

use std::time::{Duration, Instant};

use crate::say;

/// How often.
const EVERY: Duration = Duration::from_secs(5);
/// After so long without a byte, they are told that nothing comes.
const SILENCE: Duration = Duration::from_secs(15);

/// One download under way.
pub struct Progress {
    total: Option<u64>,
    /// What was there before.
    before: u64,
    began: Instant,
    told: Instant,
    /// When something came last, and how much there was then.
    came: (Instant, u64),
    complained: bool,
}

impl Progress {
    /// Begins with `before` bytes there already; `total` are to come, where that is known.
    pub fn begin(before: u64, total: Option<u64>) -> Self {
        let now = Instant::now();
        Self { total, before, began: now, told: now, came: (now, before), complained: false }
    }

    /// What to say now that there are `bytes`, if anything.
    pub fn line(&mut self, bytes: u64, mirror: &str) -> Option<String> {
        self.line_at(Instant::now(), bytes, mirror)
    }

    fn line_at(&mut self, now: Instant, bytes: u64, mirror: &str) -> Option<String> {
        if bytes != self.came.1 {
            (self.came, self.complained) = ((now, bytes), false);
        }
        let silent = now.duration_since(self.came.0);
        if silent >= SILENCE {
            // Once: what more there is to say, apt says when it gives up.
            let first = !std::mem::replace(&mut self.complained, true);
            let seconds = silent.as_secs();
            return first.then(|| {
                format!("nothing from {mirror} for {seconds} s; Ctrl-C, and --mirror URL names another one")
            });
        }
        if now.duration_since(self.told) < EVERY {
            return None;
        }
        self.told = now;
        Some(told(bytes.saturating_sub(self.before), self.total, now.duration_since(self.began)))
    }
}

fn told(bytes: u64, total: Option<u64>, took: Duration) -> String {
    let rate = bytes as f64 / took.as_secs_f64().max(0.001);
    let so_far = match total {
        Some(total) => format!("{} of {}", say::size(bytes), say::size(total)),
        None => say::size(bytes),
    };
    let left = match total.and_then(|total| total.checked_sub(bytes)) {
        Some(left) if rate > 0.0 => format!(", {:.0} s left", left as f64 / rate),
        _ => String::new(),
    };
    format!("{so_far}, {}/s{left}", say::size(rate as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn rate_and_what_is_left_are_told() {
        let took = Duration::from_secs(10);
        assert_eq!(told(40 * MIB, Some(100 * MIB), took), "40 MiB of 100 MiB, 4.0 MiB/s, 15 s left");
        assert_eq!(told(40 * MIB, None, took), "40 MiB, 4.0 MiB/s");
        assert_eq!(told(0, Some(100 * MIB), took), "0.0 MiB of 100 MiB, 0.0 MiB/s");
    }

    #[test]
    fn a_mirror_that_sends_nothing_is_told_once_with_what_to_do() {
        let mut progress = Progress::begin(0, None);
        let at = |seconds| progress.began + Duration::from_secs(seconds);
        let times: Vec<_> = [16, 30, 31, 32, 60].map(at).into();
        let mut line = |n: usize, bytes| progress.line_at(times[n], bytes, "http://m.example");
        assert!(line(0, 0).unwrap().contains("--mirror URL"));
        assert_eq!(line(1, 0), None);
        assert!(line(2, 5).unwrap().starts_with("0.0 MiB, "), "it has come to life");
        assert_eq!(line(3, 6), None, "not more often than every few seconds");
        assert!(line(4, 6).unwrap().contains("--mirror URL"));
    }
}
