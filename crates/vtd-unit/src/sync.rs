// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What files whose orderings are checked by models build on: tests/models.rs compiles the same files with loom's in its
//! place. Their unit tests are elsewhere for that, in `sync_tests.rs`.

pub(crate) use std::sync::{Condvar, Mutex, PoisonError, atomic};
