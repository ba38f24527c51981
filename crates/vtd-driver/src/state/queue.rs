// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The invalidation queue.

/// IQA.QS: 2^QS pages.
pub(crate) const SIZE_SHIFT: u8 = 1;
/// Pages of the queue.
pub(crate) const PAGES: usize = 1 << SIZE_SHIFT;
/// The queue. Nothing is in it while no submission runs, unless one failed.
#[derive(Default)]
pub(crate) struct Queue {
    pub(crate) base: u64,
    /// A page with 8 bytes of status for each entry.
    pub(crate) status: u64,
    /// The entry to be written next.
    pub(crate) next: u32,
    /// Entries that the unit may not have fetched yet.
    pub(crate) outstanding: u32,
}
