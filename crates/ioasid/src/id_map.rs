// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A map from ids to values that also finds the lowest free id in constant time.
//!
//! Leaves of 64 slots; above them one bit per leaf that says it is full, and one bit per word of those. With ids of 20
//! bits the last level has 4 words, so nothing is searched for longer than that.

use alloc::boxed::Box;
use alloc::vec::Vec;

use crate::Ioasid;

/// Slots per leaf and bits per word.
const WIDTH: u32 = 64;

struct Leaf<T> {
    used: u64,
    slots: [Option<T>; WIDTH as usize],
}

impl<T> Leaf<T> {
    fn new() -> Self {
        Self { used: 0, slots: [const { None }; WIDTH as usize] }
    }
}

/// The map. Memory grows with the largest id in use and the leaves that hold one.
pub(crate) struct IdMap<T> {
    leaves: Vec<Option<Box<Leaf<T>>>>,
    /// A bit per leaf: all its slots are used.
    full_leaves: Vec<u64>,
    /// A bit per word of `full_leaves`: all ones.
    full_words: Vec<u64>,
    len: u32,
}

/// The lowest clear bit of `word` at `from` or above.
fn lowest_clear(word: u64, from: u32) -> Option<u32> {
    let free = !word & u64::MAX.checked_shl(from).unwrap_or(0);
    (free != 0).then(|| free.trailing_zeros())
}

fn position(index: u32) -> (usize, u32) {
    ((index / WIDTH) as usize, index % WIDTH)
}

impl<T> IdMap<T> {
    pub(crate) fn new() -> Self {
        Self { leaves: Vec::new(), full_leaves: Vec::new(), full_words: Vec::new(), len: 0 }
    }

    pub(crate) fn len(&self) -> u32 {
        self.len
    }

    pub(crate) fn get(&self, id: Ioasid) -> Option<&T> {
        let (leaf, slot) = position(id);
        self.leaves.get(leaf)?.as_ref()?.slots[slot as usize].as_ref()
    }

    pub(crate) fn get_mut(&mut self, id: Ioasid) -> Option<&mut T> {
        let (leaf, slot) = position(id);
        self.leaves.get_mut(leaf)?.as_mut()?.slots[slot as usize].as_mut()
    }

    /// The lowest free id in `first..=last`.
    pub(crate) fn lowest_free(&self, first: Ioasid, last: Ioasid) -> Option<Ioasid> {
        let (leaf, slot) = position(first);
        let used = self.leaves.get(leaf).and_then(Option::as_ref).map_or(0, |leaf| leaf.used);
        let id = match lowest_clear(used, slot) {
            Some(slot) => leaf as u32 * WIDTH + slot,
            None => {
                let leaf = self.lowest_leaf_with_space(leaf as u32 + 1);
                let used =
                    self.leaves.get(leaf as usize).and_then(Option::as_ref).map_or(0, |leaf| leaf.used);
                leaf.checked_mul(WIDTH)? + used.trailing_ones()
            }
        };
        (id <= last).then_some(id)
    }

    /// The first leaf at `from` or above that is not full; what lies beyond the vectors is empty.
    fn lowest_leaf_with_space(&self, from: u32) -> u32 {
        let (word, bit) = position(from);
        let Some(&full) = self.full_leaves.get(word) else { return from };
        if let Some(bit) = lowest_clear(full, bit) {
            return word as u32 * WIDTH + bit;
        }
        let (summary, bit) = position(word as u32 + 1);
        let mut from = bit;
        for (index, &full) in self.full_words.iter().enumerate().skip(summary) {
            if let Some(bit) = lowest_clear(full, from) {
                let word = index * WIDTH as usize + bit as usize;
                let full = self.full_leaves.get(word).copied().unwrap_or(0);
                return word as u32 * WIDTH + full.trailing_ones();
            }
            from = 0;
        }
        self.full_leaves.len() as u32 * WIDTH
    }

    /// Puts a value in a free slot; gives it back where the slot is taken.
    pub(crate) fn insert(&mut self, id: Ioasid, value: T) -> Result<(), T> {
        let (leaf, slot) = position(id);
        if self.leaves.len() <= leaf {
            self.leaves.resize_with(leaf + 1, || None);
            self.full_leaves.resize(self.leaves.len().div_ceil(WIDTH as usize), 0);
            self.full_words.resize(self.full_leaves.len().div_ceil(WIDTH as usize), 0);
        }
        let entry = self.leaves[leaf].get_or_insert_with(|| Box::new(Leaf::new()));
        if entry.used & 1 << slot != 0 {
            return Err(value);
        }
        entry.used |= 1 << slot;
        entry.slots[slot as usize] = Some(value);
        self.len += 1;
        if entry.used == u64::MAX {
            let (word, bit) = position(leaf as u32);
            self.full_leaves[word] |= 1 << bit;
            if self.full_leaves[word] == u64::MAX {
                let (summary, bit) = position(word as u32);
                self.full_words[summary] |= 1 << bit;
            }
        }
        Ok(())
    }

    pub(crate) fn remove(&mut self, id: Ioasid) -> Option<T> {
        let (leaf, slot) = position(id);
        let entry = self.leaves.get_mut(leaf)?.as_mut()?;
        let value = entry.slots[slot as usize].take()?;
        entry.used &= !(1 << slot);
        if entry.used == 0 {
            self.leaves[leaf] = None;
        }
        let (word, bit) = position(leaf as u32);
        self.full_leaves[word] &= !(1 << bit);
        let (summary, bit) = position(word as u32);
        self.full_words[summary] &= !(1 << bit);
        self.len -= 1;
        Some(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MAX_ID;

    #[test]
    fn every_id_is_found_once_in_ascending_order() {
        let mut map = IdMap::new();
        for expected in 0..=MAX_ID {
            assert_eq!(map.lowest_free(0, MAX_ID), Some(expected));
            assert_eq!(map.insert(expected, ()), Ok(()));
        }
        assert_eq!((map.lowest_free(0, MAX_ID), map.len()), (None, MAX_ID + 1));
        for id in [MAX_ID, 0x8_0000, 64, 63, 0] {
            assert_eq!(map.remove(id), Some(()));
            assert_eq!(map.lowest_free(0, MAX_ID), Some(id));
            assert_eq!(map.lowest_free(id, id), Some(id));
        }
    }

    #[test]
    fn a_range_behind_full_leaves_ends_where_it_ends() {
        let mut map = IdMap::new();
        (0..64 * 64 * 2).for_each(|id| map.insert(id, id).unwrap());
        assert_eq!(map.lowest_free(5, 64 * 64 * 2 - 1), None);
        assert_eq!(map.lowest_free(5, MAX_ID), Some(64 * 64 * 2));
        assert_eq!(map.remove(64 * 64), Some(64 * 64));
        assert_eq!(map.lowest_free(5, MAX_ID), Some(64 * 64));
        assert_eq!(map.lowest_free(64 * 64 + 1, MAX_ID), Some(64 * 64 * 2));
    }

    #[test]
    fn a_taken_slot_gives_the_value_back() {
        let mut map = IdMap::new();
        assert_eq!(map.insert(0x1234, 1), Ok(()));
        assert_eq!(map.insert(0x1234, 2), Err(2));
        assert_eq!((map.get(0x1234), map.get(0x1235), map.get(MAX_ID)), (Some(&1), None, None));
        assert_eq!((map.remove(0x1235), map.remove(MAX_ID)), (None, None));
        *map.get_mut(0x1234).unwrap() = 3;
        assert_eq!(map.remove(0x1234), Some(3));
        assert_eq!(map.len(), 0);
    }
}
