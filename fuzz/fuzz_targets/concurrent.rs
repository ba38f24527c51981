// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! DMA, invalidations and changes at once, against what the tables allowed; see `vsva_fuzz::concurrent`.

#![no_main]

use libfuzzer_sys::fuzz_target;
use vsva_fuzz::concurrent::{Input, run};

fuzz_target!(|input: Input| run(&input));
