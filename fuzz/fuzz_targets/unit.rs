// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A hostile guest and hostile devices against the remapping unit; see `vsva_fuzz::unit`.
//!
//! `RUSTC_BOOTSTRAP=1 cargo fuzz run unit --sanitizer none -- -runs=20000 -max_len=4096` needs no nightly toolchain.

#![no_main]

use libfuzzer_sys::fuzz_target;
use vsva_fuzz::unit::{Input, run};

fuzz_target!(|input: Input| run(&input));
