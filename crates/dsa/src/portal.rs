// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Portals: the pages of BAR 2 through which descriptors arrive. \[D 5.3, 9.3\]
//!
//! Hardware takes a descriptor as one 64-byte write (MOVDIR64B). KVM cannot emulate that instruction, so this device
//! also assembles the 64 bytes of a slot from smaller aligned stores, and takes the descriptor when the last is there.
//! A store into bytes that the slot already has begins a new descriptor, so that what a killed process has left behind
//! does not become part of another's. A store says nothing of who made it: threads that submit at once use a slot each,
//! of the 64 in a page.

use std::sync::{Mutex, PoisonError};

use crate::descriptor::{DESCRIPTOR_SIZE, Descriptor};
use crate::registers::QUEUES;

/// Size of BAR 2: four pages for each work queue.
pub(crate) const BAR2_SIZE: u64 = QUEUES as u64 * QUEUE_STRIDE;
const QUEUE_STRIDE: u64 = 0x4000;
const PAGE: u64 = 0x1000;
/// The unlimited and the limited MSI-X portal; the other two are for interrupt message storage, which there is not.
const PAGES: usize = 2;
const SLOTS: usize = PAGE as usize / DESCRIPTOR_SIZE;

#[derive(Clone, Copy)]
struct Slot {
    bytes: [u8; DESCRIPTOR_SIZE],
    /// Bit n: byte n is there.
    present: u64,
}

/// The slots of one work queue's pages.
type Slots = Box<[[Slot; SLOTS]; PAGES]>;

/// All portals.
pub(crate) struct Portals([Mutex<Slots>; QUEUES]);

impl Portals {
    pub fn new() -> Self {
        let slot = Slot { bytes: [0; DESCRIPTOR_SIZE], present: 0 };
        Self(std::array::from_fn(|_| Mutex::new(Box::new([[slot; SLOTS]; PAGES]))))
    }

    /// A store at `offset` of BAR 2. Returns the work queue and its descriptor when that is complete. Stores that are
    /// not aligned to their size, or whose size is not a power of two up to 64, are dropped.
    pub fn store(&self, offset: u64, data: &[u8]) -> Option<(usize, Descriptor)> {
        let length = data.len();
        if !length.is_power_of_two() || length > DESCRIPTOR_SIZE || !offset.is_multiple_of(length as u64) {
            return None;
        }
        let queue = usize::try_from(offset / QUEUE_STRIDE).ok()?;
        let page = (offset % QUEUE_STRIDE / PAGE) as usize;
        let slot = (offset % PAGE) as usize / DESCRIPTOR_SIZE;
        let start = offset as usize % DESCRIPTOR_SIZE;

        let mut slots = self.0.get(queue)?.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = slots.get_mut(page)?.get_mut(slot)?;
        let bits = (u64::MAX >> (DESCRIPTOR_SIZE - length)) << start;
        if slot.present & bits != 0 {
            slot.present = 0;
        }
        slot.bytes.get_mut(start..start + length)?.copy_from_slice(data);
        slot.present |= bits;
        if slot.present != u64::MAX {
            return None;
        }
        slot.present = 0;
        Some((queue, Descriptor(slot.bytes)))
    }

    /// Forgets the unfinished descriptors of a work queue.
    pub fn clear(&self, queue: usize) {
        if let Some(slots) = self.0.get(queue) {
            let mut slots = slots.lock().unwrap_or_else(PoisonError::into_inner);
            for slot in slots.iter_mut().flatten() {
                slot.present = 0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes() -> [u8; 64] {
        std::array::from_fn(|n| n as u8 + 1)
    }

    #[test]
    fn a_descriptor_is_assembled_from_stores_of_each_size_in_any_order() {
        let portals = Portals::new();
        let bytes = bytes();
        for size in [1, 2, 4, 8, 16, 32, 64] {
            let mut parts: Vec<usize> = (0..64).step_by(size).collect();
            parts.reverse();
            let base = 2 * 0x4000 + 0x1000 + 3 * 64;
            let mut complete = parts
                .iter()
                .map(|at| portals.store(base + *at as u64, &bytes[*at..*at + size]))
                .collect::<Vec<_>>();
            let last = complete.pop().unwrap();
            assert!(complete.iter().all(Option::is_none));
            let (queue, descriptor) = last.unwrap();
            assert_eq!((queue, descriptor.0), (2, bytes), "{size}");
        }
    }

    #[test]
    fn slots_pages_and_queues_do_not_mix() {
        let portals = Portals::new();
        let bytes = bytes();
        for at in (0..64).step_by(8) {
            for base in [0, 0x40, 0xfc0, 0x1000, 0x4000, 0x1d000] {
                let done = portals.store(base + at, &bytes[at as usize..at as usize + 8]);
                assert_eq!(done.is_some(), at == 56);
                if let Some((queue, descriptor)) = done {
                    assert_eq!((queue as u64, descriptor.0), (base / 0x4000, bytes));
                }
            }
        }
    }

    #[test]
    fn what_another_left_unfinished_is_dropped() {
        let portals = Portals::new();
        for at in (0..32).step_by(8) {
            assert!(portals.store(at, &[0xee; 8]).is_none());
        }
        let bytes = bytes();
        let mut done = Vec::new();
        for at in (0..64).step_by(8) {
            done.extend(portals.store(at, &bytes[at as usize..at as usize + 8]));
        }
        assert_eq!(done.len(), 1);
        assert_eq!(done[0].1.0, bytes);

        assert!(portals.store(0, &[0xee; 32]).is_none());
        portals.clear(0);
        assert!(portals.store(32, &[0xee; 32]).is_none());
    }

    #[test]
    fn odd_stores_and_unimplemented_pages_are_dropped() {
        let portals = Portals::new();
        assert!(portals.store(4, &[0; 8]).is_none());
        assert!(portals.store(32, &[0; 64]).is_none());
        assert!(portals.store(0, &[0; 24]).is_none());
        assert!(portals.store(0, &[]).is_none());
        assert!(portals.store(0, &[0; 128]).is_none());
        assert!(portals.store(0x2000, &[0; 64]).is_none());
        assert!(portals.store(0x3fc0, &[0; 64]).is_none());
        assert!(portals.store(0x20000, &[0; 64]).is_none());
        assert!(portals.store(u64::MAX - 63, &[0; 64]).is_none());
        assert!(portals.store(0x1fc0, &[0; 64]).is_some());
    }
}
