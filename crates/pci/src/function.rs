// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a device model shows to the root complex.

use crate::bar::BarRanges;

/// One PCI function.
///
/// All calls come on the guest's processor threads, several at a time, and must return soon: long work belongs on
/// threads of the device model. No lock of the root complex is held in the access calls.
pub trait PciFunction: Send + Sync {
    /// Reads configuration space: 1 to 4 bytes inside one DWORD at `offset`, which is below 4096.
    fn config_read(&self, offset: u16, data: &mut [u8]);

    /// Writes configuration space: 1 to 4 bytes inside one DWORD at `offset`, which is below 4096.
    fn config_write(&self, offset: u16, data: &[u8]);

    /// Reads `data.len()` bytes at `offset` of a BAR. The access lies inside the BAR; its length and alignment
    /// are the guest's choice.
    fn bar_read(&self, bar: usize, offset: u64, data: &mut [u8]);

    /// Writes `data` at `offset` of a BAR. The access lies inside the BAR; its length and alignment are the
    /// guest's choice.
    fn bar_write(&self, bar: usize, offset: u64, data: &[u8]);

    /// What the function decodes now. The root complex asks after each configuration write and each reset; must
    /// not call back into the root complex.
    fn bars(&self) -> BarRanges;

    /// Back to the state after power-on. Work in flight ends before this returns.
    fn reset(&self);
}
