// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The fuzz target `concurrent`, see `fuzz/fuzz_targets/concurrent.rs`, as an ordinary test.

#[path = "../../../fuzz/src/as_test.rs"]
mod as_test;
#[path = "../../../fuzz/src/deaf.rs"]
mod deaf;
#[path = "../../../fuzz/src/steps.rs"]
mod steps;
#[path = "../../../fuzz/src/concurrent.rs"]
#[allow(missing_docs, reason = "documented where it is a library")]
mod target;

use target::{Input, run};

#[test]
fn what_is_read_is_what_the_tables_held() {
    as_test::run_inputs::<Input>(100, 1024, run);
}
