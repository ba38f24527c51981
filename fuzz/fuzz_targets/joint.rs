// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A hostile guest, hostile devices and a host that refuses against the joint; see `vsva_fuzz::joint`.
//!
//! `RUSTC_BOOTSTRAP=1 cargo fuzz run joint --sanitizer none -- -runs=20000 -max_len=4096` needs no nightly toolchain.

#![no_main]

use libfuzzer_sys::fuzz_target;
use vsva_fuzz::joint::{Input, run};

fuzz_target!(|input: Input| run(&input));
