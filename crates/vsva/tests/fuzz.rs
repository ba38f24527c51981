// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The body of the fuzz target `joint`, over inputs that a test can afford. The fuzzer itself goes further: see
//! `fuzz/fuzz_targets/joint.rs`.

#[path = "../../../fuzz/src/joint.rs"]
#[allow(missing_docs, reason = "documented where it is a library")]
mod joint;
#[path = "rig/ledger.rs"]
mod ledger;

#[path = "../../../fuzz/src/steps.rs"]
mod steps;

use arbitrary::{Arbitrary, Unstructured};
use joint::{Input, run};
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn hostile_bytes_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..2048)) {
        if let Ok(input) = Input::arbitrary(&mut Unstructured::new(&bytes)) {
            run(&input);
        }
    }
}
