// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Progress lines: what is under way, and how long what was done took.

use std::time::{Duration, Instant};

/// A line of progress on standard error, so that standard output holds the results alone.
pub fn line(text: &str) {
    eprintln!("==> {text}");
}

/// A step that was announced; [`Step::done`] says how it ended and how long it took.
pub struct Step {
    began: Instant,
}

impl Step {
    /// Announces a step.
    pub fn begin(text: &str) -> Self {
        line(text);
        Self { began: Instant::now() }
    }

    /// Ends the step with a line, and gives the time it took.
    pub fn done(self, text: &str) -> Duration {
        let took = self.began.elapsed();
        eprintln!("    {text} ({:.1} s)", took.as_secs_f64());
        took
    }
}

/// A number of bytes for people.
pub fn size(bytes: u64) -> String {
    const MIB: f64 = 1024.0 * 1024.0;
    let mib = bytes as f64 / MIB;
    if mib >= 10.0 { format!("{mib:.0} MiB") } else { format!("{mib:.1} MiB") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_in_mebibytes() {
        assert_eq!(size(107 << 20), "107 MiB");
        assert_eq!(size(955_316), "0.9 MiB");
    }
}
