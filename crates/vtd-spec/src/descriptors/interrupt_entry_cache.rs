// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Type 4: interrupt entry cache invalidate. \[S 6.5.2.8\]

use core::ops::RangeInclusive;

use super::check_reserved;
use crate::bits::get;
use crate::{Capabilities, QueueError};

/// What an interrupt entry cache invalidation covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum InterruptGranularity {
    /// Everything.
    Global = 0,
    /// The entries that IIDX and IM name.
    Index = 1,
}

/// Interrupt entry cache invalidate descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct InterruptEntryCache {
    /// Granularity (G).
    pub granularity: InterruptGranularity,
    /// Index mask: 2^IM entries; see [`indices`](Self::indices).
    pub im: u8,
    /// Interrupt index.
    pub iidx: u16,
}

impl InterruptEntryCache {
    /// The indices of an index-selective invalidation: 2^IM entries, naturally aligned.
    pub const fn indices(&self) -> RangeInclusive<u16> {
        let mask = if self.im >= 16 { u16::MAX } else { (1 << self.im) - 1 };
        RangeInclusive::new(self.iidx & !mask, self.iidx | mask)
    }

    pub(super) fn decode(words: [u64; 2], caps: &Capabilities) -> Result<Self, QueueError> {
        check_reserved(words, [0x0000_ffff_f800_001f, 0])?;
        let im = get(words[0], 27, 5) as u8;
        let granularity = match get(words[0], 4, 1) {
            0 => InterruptGranularity::Global,
            _ if im <= caps.ecap.mhmv() => InterruptGranularity::Index,
            _ => return Err(QueueError::ReservedField),
        };
        Ok(Self { granularity, im, iidx: get(words[0], 32, 16) as u16 })
    }

    pub(super) const fn encode(&self) -> [u64; 2] {
        let w0 =
            4 | (self.granularity as u64) << 4 | (self.im as u64 & 0x1f) << 27 | (self.iidx as u64) << 32;
        [w0, 0]
    }
}
