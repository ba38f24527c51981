// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A sequence count: several words that change as one, read without a lock.

use crate::sync::atomic::{AtomicU64, Ordering, fence};

/// Even while what it guards is stable, odd while a thread writes it; grows with each write.
#[derive(Debug, Default)]
pub(crate) struct Sequence(AtomicU64);

impl Sequence {
    /// The count, before the words are read. \[Pairs with the end of [`Self::write`]\]
    #[inline]
    pub(crate) fn begin(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }

    /// Whether the words that were read since `begun` are of one write.
    #[inline]
    pub(crate) fn is_stable(&self, begun: u64) -> bool {
        fence(Ordering::Acquire);
        begun & 1 == 0 && self.0.load(Ordering::Relaxed) == begun
    }

    /// Calls `f`, which stores the words, if nobody has written them since `begun`; says whether it did. `begun` comes from
    /// [`Self::begin`] on this thread, which has acquired the write before.
    #[inline]
    pub(crate) fn write(&self, begun: u64, f: impl FnOnce()) -> bool {
        let claimed = begun & 1 == 0
            && self.0.compare_exchange(begun, begun + 1, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        if claimed {
            fence(Ordering::Release);
            f();
            self.0.store(begun + 2, Ordering::Release);
        }
        claimed
    }
}
