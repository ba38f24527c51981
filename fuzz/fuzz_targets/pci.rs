// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A hostile guest against configuration spaces and the root complex; see `vsva_fuzz::pci`.

#![no_main]

use libfuzzer_sys::fuzz_target;
use vsva_fuzz::pci::{Input, run};

fuzz_target!(|input: Input| run(&input));
