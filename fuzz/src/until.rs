// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How a target waits for what must come.

use std::time::{Duration, Instant};

/// Waits until something holds, and panics with `what` where it does not for twenty seconds.
#[track_caller]
pub fn until(what: &str, holds: impl Fn() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < Duration::from_secs(20), "{what}");
        std::thread::yield_now();
    }
}
