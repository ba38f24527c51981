// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Interrupts out of the unit.

/// A message-signalled interrupt: one DWORD write of `data` to `address`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// Where the write goes: bits 63:2 count; `0xFEEx_xxxx` in the low half addresses the local APICs.
    pub address: u64,
    /// The data DWORD: vector, delivery mode, trigger mode.
    pub data: u32,
}

/// Takes the interrupts that leave the unit: its own events and the (remapped) messages of its endpoints.
///
/// Called with no lock of the unit held, from any thread.
pub trait Notify: Send + Sync {
    /// Delivers one message to the processors.
    fn message(&self, message: Message);
}
