// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Interrupts out of the unit.

pub use vtd_spec::Message;

/// Takes the interrupts that leave the unit: its own events and the (remapped) messages of its endpoints.
///
/// Called with no lock of the unit held, from any thread.
pub trait Notify: Send + Sync {
    /// Delivers one message to the processors.
    fn message(&self, message: Message);
}
