// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The physical unit's own interrupts: they wake the host's thread.

use std::sync::{Condvar, Mutex, PoisonError};

use vtd_unit::{Message, Notify};

/// See the module's documentation.
#[derive(Default)]
pub(super) struct Interrupts {
    pending: Mutex<Pending>,
    changed: Condvar,
}

#[derive(Default)]
pub(super) struct Pending {
    pub(super) any: bool,
    pub(super) stop: bool,
}

impl Interrupts {
    pub(super) fn raise(&self, f: impl FnOnce(&mut Pending)) {
        f(&mut self.pending.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_all();
    }

    /// Waits for an interrupt; false when the host goes.
    pub(super) fn wait(&self) -> bool {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        while !pending.any && !pending.stop {
            pending = self.changed.wait(pending).unwrap_or_else(PoisonError::into_inner);
        }
        pending.any = false;
        !pending.stop
    }
}

impl Notify for Interrupts {
    fn message(&self, _: Message) {
        self.raise(|pending| pending.any = true);
    }
}
