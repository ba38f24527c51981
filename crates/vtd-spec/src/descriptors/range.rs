// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Address ranges of invalidations: 2^n pages of 4 KiB, naturally aligned.

use core::fmt;

use crate::bits::mask;

/// 2^order pages of 4 KiB, naturally aligned.
///
/// IOTLB descriptors code the order as an address mask (AM), device-TLB descriptors in the low address bits with S=1.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct AddressRange {
    base: u64,
    order: u8,
}

impl AddressRange {
    /// The largest order: 2^52 pages are the whole 64-bit space.
    pub const MAX_ORDER: u8 = 52;

    /// The whole address space: with S=1 the "global" device-TLB invalidation. \[S 6.5.3.3\]
    pub const ALL: Self = Self { base: 0, order: Self::MAX_ORDER };

    /// The 2^order pages that `address` lies in; an order above 52 counts as 52.
    pub const fn new(address: u64, order: u8) -> Self {
        let order = if order > Self::MAX_ORDER { Self::MAX_ORDER } else { order };
        Self { base: address & !offset_mask(order), order }
    }

    /// The smallest range that covers `first..=last` (bytes).
    pub const fn covering(first: u64, last: u64) -> Self {
        let differing = 64 - ((first ^ last) >> 12).leading_zeros();
        Self::new(first, differing as u8)
    }

    /// Address of the first byte.
    pub const fn base(self) -> u64 {
        self.base
    }

    /// log2 of the number of pages.
    pub const fn order(self) -> u8 {
        self.order
    }

    /// Address of the last byte.
    pub const fn last(self) -> u64 {
        self.base | offset_mask(self.order)
    }

    /// Length in bytes; 2^64 for the whole space.
    pub const fn length(self) -> u128 {
        4096 << self.order
    }

    /// Whether the address lies inside.
    pub const fn contains(self, address: u64) -> bool {
        address & !offset_mask(self.order) == self.base
    }

    /// Whether the two ranges share a page.
    pub const fn overlaps(self, other: Self) -> bool {
        let order = if self.order > other.order { self.order } else { other.order };
        (self.base ^ other.base) & !offset_mask(order) == 0
    }

    /// From the second word of a device-TLB descriptor: address bits 63:12 and the size flag.
    ///
    /// S=0 is one page. With S=1 the lowest zero bit of the address, from bit 12 upwards, gives the size: bit 12 clear
    /// is 8 KiB, 01 in bits 13:12 16 KiB and so on. All ones count as the whole space. \[S 6.5.2.5; PCIe 10.2.3\]
    pub const fn from_size_coding(address: u64, s: bool) -> Self {
        if !s {
            return Self::new(address, 0);
        }
        Self::new(address, (address >> 12).trailing_ones() as u8 + 1)
    }

    /// To the address bits 63:12 and the size flag of a device-TLB descriptor.
    ///
    /// Bits below the one that gives the size are all ones and that bit itself is zero (Linux iommu.h:qi_desc_dev_iotlb
    /// and its PASID sibling): a range whose lower address bits are left as they were would name another size.
    pub const fn to_size_coding(self) -> (u64, bool) {
        if self.order == 0 {
            return (self.base, false);
        }
        // Bits 12 to 12 + order - 2 one, bit 12 + order - 1 zero.
        (self.base | mask(self.order as u32 + 10, 12), true)
    }
}

impl fmt::Debug for AddressRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AddressRange({:#x}..={:#x})", self.base, self.last())
    }
}

/// Ones in the address bits inside a range of this order (0 to 52).
const fn offset_mask(order: u8) -> u64 {
    mask(order as u32 + 11, 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn size_coding_of_small_ranges() {
        for (address, s, base, order) in [
            (0x1234_5000, false, 0x1234_5000, 0),
            (0x1234_4000, true, 0x1234_4000, 1),
            (0x1234_5000, true, 0x1234_4000, 2),
            (0x1234_3000, true, 0x1234_0000, 3),
            (0x400f_f000, true, 0x4000_0000, 9),
            (0x7fff_ffff_ffff_f000, true, 0, 52),
            (0xffff_ffff_ffff_f000, true, 0, 52),
        ] {
            let range = AddressRange::from_size_coding(address, s);
            assert_eq!((range.base(), range.order()), (base, order), "{address:#x}");
        }
    }

    #[test]
    fn whole_space_encodes_as_the_global_invalidation() {
        assert_eq!(AddressRange::ALL.to_size_coding(), (0x7fff_ffff_ffff_f000, true));
        assert_eq!((AddressRange::ALL.last(), AddressRange::ALL.length()), (u64::MAX, 1 << 64));
        assert!(AddressRange::ALL.contains(0) && AddressRange::ALL.contains(u64::MAX));
    }

    #[test]
    fn lower_address_bits_do_not_change_the_size() {
        // 16 KiB at an address whose page number ends in ones: clearing one bit alone would not do.
        assert_eq!(AddressRange::new(0x1234_f000, 2).to_size_coding(), (0x1234_d000, true));
    }

    #[test]
    fn overlap_is_by_the_larger_range() {
        let large = AddressRange::new(0x20_0000, 9);
        assert!(large.overlaps(AddressRange::new(0x3f_f000, 0)));
        assert!(AddressRange::new(0x3f_f000, 0).overlaps(large));
        assert!(!large.overlaps(AddressRange::new(0x40_0000, 0)));
        assert!(large.overlaps(AddressRange::ALL));
    }

    proptest! {
        #[test]
        fn size_coding_round_trips(address: u64, order in 0..=AddressRange::MAX_ORDER) {
            let range = AddressRange::new(address, order);
            let (coded, s) = range.to_size_coding();
            prop_assert_eq!(AddressRange::from_size_coding(coded, s), range);
            prop_assert_eq!(coded & 0xfff, 0);
        }

        #[test]
        fn any_coding_decodes_to_a_range_that_contains_its_address(address: u64, s: bool) {
            let range = AddressRange::from_size_coding(address, s);
            prop_assert!(range.contains(address));
            prop_assert_eq!(range.base() & (range.length() - 1) as u64, 0);
        }

        #[test]
        fn covering_range_holds_both_ends_and_is_minimal(a: u64, b: u64) {
            let (first, last) = (a.min(b), a.max(b));
            let range = AddressRange::covering(first, last);
            prop_assert!(range.contains(first) && range.contains(last));
            if range.order() > 0 {
                prop_assert!(!AddressRange::new(first, range.order() - 1).contains(last));
            }
        }
    }
}
