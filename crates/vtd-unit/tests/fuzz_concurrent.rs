// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The body of the fuzz target `concurrent`, over inputs that a test can afford. The fuzzer itself goes further: see
//! `fuzz/fuzz_targets/concurrent.rs`.

#[path = "../../../fuzz/src/concurrent.rs"]
#[allow(missing_docs, reason = "documented where it is a library")]
mod concurrent;

#[path = "../../../fuzz/src/steps.rs"]
mod steps;

use arbitrary::{Arbitrary, Unstructured};
use concurrent::{Input, run};
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_read_is_what_the_tables_held(bytes in prop::collection::vec(any::<u8>(), 0..1024)) {
        if let Ok(input) = Input::arbitrary(&mut Unstructured::new(&bytes)) {
            run(&input);
        }
    }
}
