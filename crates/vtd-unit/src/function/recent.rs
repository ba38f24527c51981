// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The translations that a function used last, in front of its IOTLB and device-TLB: found by PASID and page alone, with
//! no look at the address space they belong to.
//!
//! Each belongs to an epoch, and whoever takes the function's lock exclusively begins a new one. So nothing in here
//! outlives an invalidation, or any other change, whatever it was of; what is still good comes back from the caches behind.
//! Only pages that are memory as a whole are kept.

use std::sync::atomic::{AtomicU64, Ordering};

use super::key::Key;
use crate::cache::Sequence;
use crate::request::Access;

/// Pages that are kept; a power of two. With their neighbours in the first-level cache of a processor.
const ENTRIES: usize = 512;

/// Bits of an owner that are the key; the epoch is above them.
const KEY_BITS: u32 = 22;
const EPOCHS: u64 = 1 << (64 - KEY_BITS);

/// Half a cache line.
#[derive(Debug, Default)]
#[repr(align(32))]
struct Entry {
    sequence: Sequence,
    /// Epoch and key; 0 where there is nothing.
    owner: AtomicU64,
    /// Number of the page.
    page: AtomicU64,
    /// Output page in bits 63:12, a bit for each kind of access that is granted below.
    value: AtomicU64,
}

impl Entry {
    /// Writes the entry, unless another thread does.
    fn write(&self, owner: u64, page: u64, value: u64) {
        self.sequence.write(self.sequence.begin(), || {
            self.owner.store(owner, Ordering::Relaxed);
            self.page.store(page, Ordering::Relaxed);
            self.value.store(value, Ordering::Relaxed);
        });
    }
}

/// On cache lines that no other function's data shares, nor are fetched along with.
#[derive(Debug)]
#[repr(align(128))]
struct Entries([Entry; ENTRIES]);

/// See the module's documentation.
#[derive(Debug)]
pub(super) struct Recent {
    entries: Box<Entries>,
    epoch: u64,
}

impl Recent {
    pub(super) fn new() -> Self {
        Self { entries: Box::new(Entries(std::array::from_fn(|_| Entry::default()))), epoch: 1 }
    }

    fn owner(&self, key: Key) -> u64 {
        self.epoch << KEY_BITS | u64::from(key.0)
    }

    #[inline]
    fn entry(&self, key: Key, page: u64) -> &Entry {
        // Neighbouring pages lie side by side, those at a distance that is a power of two take the places between, and
        // those of another PASID lie elsewhere.
        let spread = u64::from(key.0).wrapping_mul(0x9e37_79b9) >> 16;
        &self.entries.0[(page ^ page >> 9 ^ page >> 18 ^ spread) as usize % ENTRIES]
    }

    /// Where an access to `address` goes, if that is known and granted.
    #[inline]
    pub(super) fn lookup(&self, key: Key, address: u64, access: Access) -> Option<u64> {
        let page = address >> 12;
        let entry = self.entry(key, page);
        let begun = entry.sequence.begin();
        let found = entry.owner.load(Ordering::Relaxed) == self.owner(key)
            && entry.page.load(Ordering::Relaxed) == page;
        let value = entry.value.load(Ordering::Relaxed);
        if !found || value & granted(access) == 0 {
            return None;
        }
        entry.sequence.is_stable(begun).then_some(value & !0xfff | address & 0xfff)
    }

    /// Keeps that accesses to the page of `address` go to the page of `output`, where `grants` says so.
    #[inline]
    pub(super) fn fill(&self, key: Key, address: u64, output: u64, grants: impl Fn(Access) -> bool) {
        let bits = [Access::Read, Access::Write, Access::Atomic]
            .into_iter()
            .filter(|access| grants(*access))
            .fold(0, |bits, access| bits | granted(access));
        let page = address >> 12;
        self.entry(key, page).write(self.owner(key), page, output & !0xfff | bits);
    }

    /// Forgets the page of `address`, if it is kept.
    pub(super) fn forget(&self, key: Key, address: u64) {
        let page = address >> 12;
        let entry = self.entry(key, page);
        if entry.page.load(Ordering::Relaxed) == page {
            entry.write(0, 0, 0);
        }
    }

    /// Forgets everything that no other thread is writing, under a shared lock.
    pub(super) fn forget_all(&self) {
        for entry in &self.entries.0 {
            if entry.owner.load(Ordering::Relaxed) != 0 {
                entry.write(0, 0, 0);
            }
        }
    }

    /// Forgets everything.
    pub(super) fn begin_epoch(&mut self) {
        self.epoch += 1;
        if self.epoch == EPOCHS {
            *self = Self::new();
        }
    }
}

/// The bit of a kind of access.
const fn granted(access: Access) -> u64 {
    match access {
        // Whatever a page grants, there is one; but that is not worth a bit.
        Access::ZeroLengthRead => 0,
        Access::Read => 1,
        Access::Write => 2,
        Access::Atomic => 4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: Key = Key(0x42);

    #[test]
    fn a_hit_needs_the_key_the_page_and_the_grant() {
        let recent = Recent::new();
        recent.fill(KEY, 0x7f00_1234, 0xabc567, |access| access == Access::Read);
        assert_eq!(recent.lookup(KEY, 0x7f00_1fff, Access::Read), Some(0xabcfff));
        assert_eq!(recent.lookup(KEY, 0x7f00_1fff, Access::Write), None);
        assert_eq!(recent.lookup(KEY, 0x7f00_1fff, Access::Atomic), None);
        assert_eq!(recent.lookup(KEY, 0x7f00_2000, Access::Read), None);
        assert_eq!(recent.lookup(KEY, 0x7f00_1000 | 1 << 63, Access::Read), None);
        for other in [Key(0x43), Key(0x42 | Key::PRIVILEGED), Key::WITHOUT_PASID] {
            assert_eq!(recent.lookup(other, 0x7f00_1000, Access::Read), None);
        }
    }

    #[test]
    fn a_working_set_at_any_power_of_two_keeps_a_place_for_each_page() {
        for stride in (0..10).map(|order| 1u64 << order) {
            let recent = Recent::new();
            let pages = (0..ENTRIES as u64).map(|number| (0x7f12_3456 & !0x3ffff) + number * stride);
            pages.clone().for_each(|page| recent.fill(KEY, page << 12, page << 12, |_| true));
            let kept = pages.filter(|page| recent.lookup(KEY, page << 12, Access::Read).is_some()).count();
            assert_eq!(kept, ENTRIES, "stride {stride}");
        }
    }

    #[test]
    fn nothing_is_found_in_what_was_never_filled() {
        assert_eq!(Recent::new().lookup(Key(0), 0, Access::Read), None);
    }

    #[test]
    fn a_new_epoch_forgets_everything_and_so_does_the_last_one() {
        let mut recent = Recent::new();
        for epoch in [1, 2, EPOCHS - 2, EPOCHS - 1] {
            recent.epoch = epoch;
            recent.fill(KEY, 0x1000, 0x5000, |_| true);
            assert!(recent.lookup(KEY, 0x1000, Access::Atomic).is_some());
            recent.begin_epoch();
            assert_eq!(recent.lookup(KEY, 0x1000, Access::Read), None, "after epoch {epoch}");
            assert_ne!(recent.epoch, epoch);
        }
    }

    #[test]
    fn forgetting_one_page_leaves_the_others() {
        let recent = Recent::new();
        recent.fill(KEY, 0x1000, 0x5000, |_| true);
        recent.fill(KEY, 0x2000, 0x6000, |_| true);
        recent.forget(KEY, 0x1008);
        assert_eq!(recent.lookup(KEY, 0x1000, Access::Read), None);
        assert_eq!(recent.lookup(KEY, 0x2000, Access::Read), Some(0x6000));
    }

    #[test]
    fn concurrent_fills_never_mix_two_entries() {
        let recent = &Recent::new();
        std::thread::scope(|scope| {
            for thread in 0..2u64 {
                scope.spawn(move || {
                    for round in 0..20_000u64 {
                        // All of them meet in one entry.
                        let address = (round * 7 + thread) % 64 * ENTRIES as u64 * 4096;
                        recent.fill(KEY, address, address | 1 << 40, |_| true);
                        if let Some(hit) = recent.lookup(KEY, address, Access::Write) {
                            assert_eq!(hit, address | 1 << 40);
                        }
                    }
                });
            }
        });
    }
}
