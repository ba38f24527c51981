// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A guest that hears no interrupts.

use vtd_unit::{Message, Notify};

/// Takes messages, and does nothing with them.
pub struct Deaf;

impl Notify for Deaf {
    fn message(&self, _: Message) {}
}
