// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The fuzz target `dsa`, see `fuzz/fuzz_targets/dsa.rs`, as an ordinary test.

#[path = "../../../fuzz/src/as_test.rs"]
mod as_test;
#[path = "../../../fuzz/src/deaf.rs"]
mod deaf;
#[path = "../../../fuzz/src/steps.rs"]
mod steps;
#[path = "../../../fuzz/src/dsa.rs"]
#[allow(missing_docs, reason = "documented where it is a library")]
mod target;
#[path = "../../../fuzz/src/until.rs"]
mod until;

use target::{Input, run};

#[test]
fn hostile_bytes_do_no_harm() {
    as_test::run_inputs::<Input>(500, 4096, run);
}
