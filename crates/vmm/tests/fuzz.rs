// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The body of the fuzz target `virtio`, over inputs that a test can afford. The fuzzer itself goes further: see
//! `fuzz/fuzz_targets/virtio.rs`.

#[path = "../../../fuzz/src/virtio.rs"]
#[allow(missing_docs, reason = "documented where it is a library")]
mod target;

#[path = "../../../fuzz/src/steps.rs"]
mod steps;

use arbitrary::{Arbitrary, Unstructured};
use proptest::prelude::*;
use target::{Input, run};

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn hostile_bytes_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..4096)) {
        if let Ok(input) = Input::arbitrary(&mut Unstructured::new(&bytes)) {
            run(&input);
        }
    }
}
