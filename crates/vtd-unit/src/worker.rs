// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Who carries something out, and so whether it may wait.

use crate::function::{Cache, Function};

/// Who does the work.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Worker {
    /// A processor that wrote a register: it waits for nothing, and does only what is bounded.
    Processor,
    /// The unit's executor.
    Executor,
}

impl Worker {
    /// Changes a function's caches with no access in flight. False where there is one, and this worker must not wait for it.
    pub(crate) fn with(self, function: &Function, change: impl FnOnce(&mut Cache)) -> bool {
        let cache = match self {
            Self::Processor => function.try_write(),
            Self::Executor => Some(function.write_recalling()),
        };
        cache.map(|mut cache| change(&mut cache)).is_some()
    }
}
