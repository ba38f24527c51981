// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A hostile guest against the accelerator; see `vsva_fuzz::dsa`.

#![no_main]

use libfuzzer_sys::fuzz_target;
use vsva_fuzz::dsa::{Input, run};

fuzz_target!(|input: Input| run(&input));
