// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A hostile guest against the disk; see `vsva_fuzz::virtio`.

#![no_main]

use libfuzzer_sys::fuzz_target;
use vsva_fuzz::virtio::{Input, run};

fuzz_target!(|input: Input| run(&input));
