// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A translation cache: the IOTLB of one function, or the device-TLB of its endpoint.
//!
//! Entries are keyed by an address-space tag, a page number and a page size. A tag stands for one (PASID,
//! domain-id) binding of one function; taking a new tag forgets everything cached under the old one at once,
//! whatever its number, so PASID- and domain-selective invalidations cost by what they hit. A page-selective
//! invalidation computes where its entries would be.
//!
//! For each page size the table is a fixed set-associative array of sequence-locked entries: pages of one size never push
//! out those of another. Look-up and fill take `&self`: the caller
//! holds its lock shared for both, and exclusively while it invalidates, which is what keeps a fill from
//! resurrecting a translation that an invalidation has removed.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use vtd_spec::AddressRange;

use super::sequence::Sequence;

/// Size of a cached page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum PageSize {
    /// 4 KiB.
    Size4K = 0,
    /// 2 MiB.
    Size2M = 1,
    /// 1 GiB.
    Size1G = 2,
}

impl PageSize {
    pub(crate) const ALL: [Self; 3] = [Self::Size4K, Self::Size2M, Self::Size1G];

    /// The size of the pages that leaf entries of a level map; levels above 3 have none.
    pub(crate) const fn of_level(level: u8) -> Self {
        match level {
            1 => Self::Size4K,
            2 => Self::Size2M,
            _ => Self::Size1G,
        }
    }

    /// The level of the table that as a whole maps as much as one page of this size; 0 where none does.
    pub(crate) const fn table_level(self) -> u8 {
        self as u8
    }

    /// Number of address bits inside the page.
    pub(crate) const fn shift(self) -> u32 {
        12 + 9 * self as u32
    }

    /// Bytes of the page, less one.
    pub(crate) const fn offset_mask(self) -> u64 {
        (1 << self.shift()) - 1
    }

    const fn bit(self) -> u8 {
        1 << self as u8
    }
}

/// Names what a cached translation belongs to. Never reused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tag(u64);

/// The page sizes that were ever cached under a tag: a look-up probes only these.
#[derive(Debug, Default)]
pub(crate) struct Sizes(AtomicU8);

impl Sizes {
    fn add(&self, size: PageSize) {
        if self.0.load(Ordering::Relaxed) & size.bit() == 0 {
            self.0.fetch_or(size.bit(), Ordering::Relaxed);
        }
    }
}

/// An address space as the cache sees it: where its entries are, and of which sizes. The default one is in no cache.
#[derive(Debug, Default)]
pub(crate) struct Space {
    tag: AtomicU64,
    sizes: Sizes,
}

impl Space {
    #[inline]
    fn tag(&self) -> Tag {
        Tag(self.tag.load(Ordering::Relaxed))
    }
}

/// A cached translation. Two words, so that it is passed in registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Translation {
    /// Output page in bits 63:12, rights in bits 11:0.
    value: u64,
    size: PageSize,
}

impl Translation {
    /// A page whose first byte goes to `page`; bits 11:0 of `rights` say what may be done with it, to their owner.
    #[inline]
    pub(crate) const fn new(page: u64, size: PageSize, rights: u64) -> Self {
        Self { value: page & !0xfff | rights & 0xfff, size }
    }

    /// Output address of the page's first byte.
    #[inline]
    pub(crate) const fn page(self) -> u64 {
        self.value & !0xfff
    }

    /// Size of the page.
    #[inline]
    pub(crate) const fn size(self) -> PageSize {
        self.size
    }

    /// What may be done with it.
    #[inline]
    pub(crate) const fn rights(self) -> u64 {
        self.value & 0xfff
    }

    /// The same page with other rights.
    #[inline]
    pub(crate) const fn with_rights(self, rights: u64) -> Self {
        Self::new(self.value, self.size, rights)
    }

    /// Where an address inside the page goes.
    #[inline]
    pub(crate) const fn output(self, address: u64) -> u64 {
        self.page() | address & self.size.offset_mask()
    }
}

#[derive(Debug, Default)]
struct Entry {
    sequence: Sequence,
    tag: AtomicU64,
    /// Page number in bits 63:2 (a 64-bit address has a 52-bit one), size in bits 1:0.
    key: AtomicU64,
    /// As [`Translation::value`].
    value: AtomicU64,
}

impl Entry {
    #[inline]
    fn holds(&self, tag: Tag, key: u64) -> bool {
        self.tag.load(Ordering::Relaxed) == tag.0 && self.key.load(Ordering::Relaxed) == key
    }
}

const WAYS: usize = 2;

/// One cache line.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Set([Entry; WAYS]);

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Tlb {
    /// By page size.
    sets: [Box<[Set]>; 3],
    next_tag: AtomicU64,
}

/// Ranges of more than `1 << PROBE_ORDER` pages take a new tag instead of being probed page by page.
const PROBE_ORDER: u8 = 9;

impl Tlb {
    /// A cache for about `entries` translations of 4 KiB, 2 MiB and 1 GiB (rounded up to powers of two, at least one set
    /// each).
    pub(crate) fn new(entries: [usize; 3]) -> Self {
        let sets = |entries: usize| {
            let sets = entries.div_ceil(WAYS).max(1).next_power_of_two();
            (0..sets).map(|_| Set::default()).collect()
        };
        Self { sets: entries.map(sets), next_tag: AtomicU64::new(1) }
    }

    /// A new, empty address space.
    pub(crate) fn space(&self) -> Space {
        Space { tag: self.next_tag.fetch_add(1, Ordering::Relaxed).into(), sizes: Sizes::default() }
    }

    /// Forgets all of a space, under a shared lock: nobody waits for the accesses that have found something before. Under an
    /// exclusive one there are none.
    pub(crate) fn renew(&self, space: &Space) {
        space.tag.store(self.next_tag.fetch_add(1, Ordering::Relaxed), Ordering::Relaxed);
    }

    #[inline]
    fn set(&self, tag: Tag, size: PageSize, number: u64) -> &Set {
        let sets = &self.sets[size as usize];
        // Neighbouring pages go to neighbouring sets, so that a working set without strides never conflicts.
        let spread = tag.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        let index = number.wrapping_add(number >> 20).wrapping_add(spread) as usize & (sets.len() - 1);
        &sets[index]
    }

    /// The translation of the page around `address`, if it is cached.
    #[inline]
    pub(crate) fn lookup(&self, space: &Space, address: u64) -> Option<Translation> {
        let sizes = space.sizes.0.load(Ordering::Relaxed);
        let tag = space.tag();
        for size in PageSize::ALL {
            if sizes & size.bit() == 0 {
                continue;
            }
            let number = address >> size.shift();
            let key = number << 2 | size as u64;
            for entry in &self.set(tag, size, number).0 {
                let begun = entry.sequence.begin();
                if !entry.holds(tag, key) {
                    continue;
                }
                let value = entry.value.load(Ordering::Relaxed);
                if entry.sequence.is_stable(begun) {
                    return Some(Translation { value, size });
                }
            }
        }
        None
    }

    /// Caches a translation. Another thread's fill of the same place wins or loses as a whole.
    pub(crate) fn fill(&self, space: &Space, address: u64, translation: Translation) {
        let Translation { value, size } = translation;
        let number = address >> size.shift();
        let key = number << 2 | size as u64;
        let tag = space.tag();
        let set = &self.set(tag, size, number).0;
        let same = |entry: &&Entry| entry.holds(tag, key);
        let age = |entry: &Entry| entry.sequence.begin();
        let entry =
            set.iter().find(same).unwrap_or(if age(&set[0]) <= age(&set[1]) { &set[0] } else { &set[1] });
        let filled = entry.sequence.write(age(entry), || {
            entry.tag.store(tag.0, Ordering::Relaxed);
            entry.key.store(key, Ordering::Relaxed);
            entry.value.store(value, Ordering::Relaxed);
        });
        if filled {
            space.sizes.add(size);
        }
    }

    /// Forgets the translations of all pages that touch `range`. The caller holds its lock exclusively. May forget
    /// more.
    pub(crate) fn invalidate_pages(&mut self, space: &mut Space, range: AddressRange) {
        if range.order() > PROBE_ORDER {
            self.renew(space);
            return;
        }
        let tag = space.tag();
        let (first, last) = (range.base(), range.last());
        for size in PageSize::ALL {
            if *space.sizes.0.get_mut() & size.bit() == 0 {
                continue;
            }
            for number in first >> size.shift()..=last >> size.shift() {
                let key = number << 2 | size as u64;
                for entry in &self.set(tag, size, number).0 {
                    if entry.holds(tag, key) {
                        entry.tag.store(0, Ordering::Relaxed);
                    }
                }
            }
        }
    }

    /// As [`Self::invalidate_pages`] for one page, under a shared lock: for a function's own stale translation, which
    /// nobody waits for.
    pub(crate) fn forget_page(&self, space: &Space, address: u64) {
        let tag = space.tag();
        for size in PageSize::ALL {
            let number = address >> size.shift();
            let key = number << 2 | size as u64;
            for entry in &self.set(tag, size, number).0 {
                let begun = entry.sequence.begin();
                if entry.holds(tag, key) {
                    entry.sequence.write(begun, || entry.tag.store(0, Ordering::Relaxed));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(page: u64, size: PageSize) -> Translation {
        Translation::new(page, size, 5)
    }

    #[test]
    fn a_hit_returns_what_was_filled() {
        let tlb = Tlb::new([64; 3]);
        let space = tlb.space();
        tlb.fill(&space, 0x7f00_1234, page(0xabc000, PageSize::Size4K));
        assert_eq!(tlb.lookup(&space, 0x7f00_1fff), Some(page(0xabc000, PageSize::Size4K)));
        assert_eq!(tlb.lookup(&space, 0x7f00_2000), None);
        assert_eq!(tlb.lookup(&space, 0x7f00_1000 | 1 << 63), None);
        tlb.fill(&space, u64::MAX, page(0x4000_0000, PageSize::Size1G));
        assert_eq!(tlb.lookup(&space, u64::MAX - 5), Some(page(0x4000_0000, PageSize::Size1G)));
    }

    #[test]
    fn spaces_do_not_see_each_other() {
        let tlb = Tlb::new([4; 3]);
        let (a, b) = (tlb.space(), tlb.space());
        tlb.fill(&a, 0x1000, page(0x5000, PageSize::Size4K));
        assert_eq!(tlb.lookup(&b, 0x1000), None);
    }

    #[test]
    fn pages_of_one_size_do_not_push_out_those_of_another() {
        let tlb = Tlb::new([2; 3]);
        let space = tlb.space();
        let large = page(0x4000_0000, PageSize::Size1G);
        tlb.fill(&space, 0, large);
        for number in 1..100u64 {
            tlb.fill(&space, number << 30, page(number << 12, PageSize::Size4K));
            tlb.fill(&space, number << 30 | 0x20_0000, page(number << 21, PageSize::Size2M));
        }
        assert_eq!(tlb.lookup(&space, 0x1234), Some(large));
    }

    #[test]
    fn page_invalidation_removes_every_size_that_covers_the_range() {
        let mut tlb = Tlb::new([64; 3]);
        let mut space = tlb.space();
        tlb.fill(&space, 0x20_0000, page(0x40_0000, PageSize::Size2M));
        tlb.fill(&space, 0x1000, page(0x5000, PageSize::Size4K));
        tlb.fill(&space, 0x9000, page(0x6000, PageSize::Size4K));
        tlb.invalidate_pages(&mut space, AddressRange::new(0x3f_f000, 0));
        assert_eq!(tlb.lookup(&space, 0x20_0000), None);
        tlb.invalidate_pages(&mut space, AddressRange::new(0, 2));
        assert_eq!(tlb.lookup(&space, 0x1000), None);
        assert!(tlb.lookup(&space, 0x9000).is_some());
    }

    #[test]
    fn a_huge_order_forgets_the_space() {
        for order in [10, 52, 63, 64, u8::MAX] {
            let mut tlb = Tlb::new([64; 3]);
            let mut space = tlb.space();
            tlb.fill(&space, 0x1000, page(0x5000, PageSize::Size4K));
            tlb.invalidate_pages(&mut space, AddressRange::new(0, order));
            assert_eq!(tlb.lookup(&space, 0x1000), None);
        }
    }

    #[test]
    fn invalidation_at_the_end_of_the_address_space_does_not_wrap() {
        let mut tlb = Tlb::new([64; 3]);
        let mut space = tlb.space();
        tlb.fill(&space, u64::MAX, page(0x5000, PageSize::Size4K));
        tlb.fill(&space, 0, page(0x6000, PageSize::Size4K));
        tlb.invalidate_pages(&mut space, AddressRange::new(u64::MAX, 0));
        assert_eq!(tlb.lookup(&space, u64::MAX), None);
        assert!(tlb.lookup(&space, 0).is_some());
    }

    #[test]
    fn forgetting_one_page_leaves_the_others() {
        let tlb = Tlb::new([64; 3]);
        let space = tlb.space();
        tlb.fill(&space, 0x1000, page(0x5000, PageSize::Size4K));
        tlb.fill(&space, 0x2000, page(0x6000, PageSize::Size4K));
        tlb.forget_page(&space, 0x1008);
        assert_eq!(tlb.lookup(&space, 0x1000), None);
        assert!(tlb.lookup(&space, 0x2000).is_some());
    }

    #[test]
    fn concurrent_fills_never_mix_two_entries() {
        let tlb = Tlb::new([2; 3]);
        let space = tlb.space();
        let (tlb, space) = (&tlb, &space);
        std::thread::scope(|scope| {
            for thread in 0..2u64 {
                scope.spawn(move || {
                    for round in 0..20_000u64 {
                        let address = ((round * 7 + thread) % 64) << 12;
                        tlb.fill(space, address, page(address | 1 << 40, PageSize::Size4K));
                        if let Some(hit) = tlb.lookup(space, address) {
                            assert_eq!(hit.page(), address | 1 << 40);
                        }
                    }
                });
            }
        });
    }
}
