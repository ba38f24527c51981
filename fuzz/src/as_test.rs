// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A target's body over inputs that an ordinary test can afford. The fuzzer itself goes further.

use std::fmt::Debug;

use arbitrary::{Arbitrary, Unstructured};
use proptest::collection::vec;
use proptest::prelude::{ProptestConfig, any};
use proptest::test_runner::TestRunner;

/// Runs as many inputs as there are `cases`, each made of fewer than `bytes` bytes.
pub fn run_inputs<I: for<'a> Arbitrary<'a> + Debug>(cases: u32, bytes: usize, run: impl Fn(&I)) {
    let config = ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() };
    let result = TestRunner::new(config).run(&vec(any::<u8>(), 0..bytes), |bytes| {
        if let Ok(input) = I::arbitrary(&mut Unstructured::new(&bytes)) {
            run(&input);
        }
        Ok(())
    });
    if let Err(failure) = result {
        panic!("{failure}");
    }
}
