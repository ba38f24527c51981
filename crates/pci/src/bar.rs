// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Base address registers for memory. \[PCIe 7.5.1.2.1\]

/// How many base address registers a type 0 header has; a 64-bit BAR takes two.
pub const BAR_COUNT: usize = 6;

const TYPE_64: u32 = 0b10 << 1;
const PREFETCHABLE: u32 = 1 << 3;

/// What a memory BAR asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bar {
    /// Size in bytes: a power of two, at least 128.
    pub size: u64,
    /// The BAR takes two registers and can be anywhere in the 64-bit space.
    pub is_64bit: bool,
    /// Reads have no side effects.
    pub prefetchable: bool,
}

impl Bar {
    /// A 64-bit prefetchable BAR of `size` bytes.
    pub const fn memory64_prefetchable(size: u64) -> Self {
        Self { size, is_64bit: true, prefetchable: true }
    }

    /// A 64-bit BAR of `size` bytes, not prefetchable.
    pub const fn memory64(size: u64) -> Self {
        Self { size, is_64bit: true, prefetchable: false }
    }

    /// A 32-bit BAR of `size` bytes, not prefetchable.
    pub const fn memory32(size: u64) -> Self {
        Self { size, is_64bit: false, prefetchable: false }
    }

    /// Whether a BAR of this size can exist.
    pub(crate) const fn is_valid(&self) -> bool {
        let max = if self.is_64bit { 1 << 63 } else { 1 << 31 };
        self.size.is_power_of_two() && self.size >= 128 && self.size <= max
    }

    /// The read-only low bits of the (first) register.
    pub(crate) const fn attributes(&self) -> u32 {
        (if self.is_64bit { TYPE_64 } else { 0 }) | (if self.prefetchable { PREFETCHABLE } else { 0 })
    }

    /// The address bits that can be written.
    pub(crate) const fn address_mask(&self) -> u64 {
        !(self.size - 1)
    }
}

/// The physical addresses that a BAR decodes now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BarRange {
    /// Index of the BAR's (first) register, 0 to 5.
    pub bar: usize,
    /// The first address; a multiple of `size`.
    pub base: u64,
    /// Size in bytes, a power of two.
    pub size: u64,
}

impl BarRange {
    /// The last address. Cannot overflow since the base is a multiple of the size.
    pub const fn last(&self) -> u64 {
        self.base | (self.size - 1)
    }
}

/// What a function decodes now, by register; `None` where there is no BAR or memory decoding is off.
pub type BarRanges = [Option<BarRange>; BAR_COUNT];
