// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Type 0xA: host permission table (HPT) cache invalidate. \[S 6.5.2.7\]

use super::{AddressRange, check_reserved};
use crate::bits::{get, mask};
use crate::{Capabilities, DomainId, QueueError};

/// What an HPT cache invalidation covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum HptGranularity {
    /// Everything.
    Global = 1,
    /// The levels that IH names, of HPTDID.
    Domain = 2,
    /// The levels that IH names, of HPTDID and in the range of host addresses.
    Page = 3,
}

/// IH: the levels of the table whose cached entries go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum HptLevels {
    /// HPTL1E.
    L1 = 0,
    /// HPTL1E and HPTL2E.
    L1To2 = 1,
    /// HPTL1E to HPTL3E.
    L1To3 = 2,
    /// HPTL1E to HPTL4E.
    All = 3,
}

/// HPT cache invalidate descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HptCache {
    /// Granularity (G).
    pub granularity: HptGranularity,
    /// HPT domain-id; ignored for global.
    pub hptdid: DomainId,
    /// Address mask: 2^AM pages, for page-selective; see [`range`](Self::range).
    pub am: u8,
    /// Invalidation hint; ignored for global.
    pub ih: HptLevels,
    /// Host physical address of the page(s), bits 63:12, for page-selective.
    pub addr: u64,
}

impl HptCache {
    /// The address range of a page-selective invalidation.
    pub const fn range(&self) -> AddressRange {
        AddressRange::new(self.addr, self.am)
    }

    pub(super) fn decode(words: [u64; 2], caps: &Capabilities) -> Result<Self, QueueError> {
        check_reserved(words, [0xffff_003f, 0xffff_ffff_ffff_f1bf])?;
        let granularity = match get(words[0], 4, 2) {
            1 => HptGranularity::Global,
            2 => HptGranularity::Domain,
            3 => HptGranularity::Page,
            _ => return Err(QueueError::ReservedField),
        };
        Ok(Self {
            granularity,
            hptdid: DomainId(get(words[0], 16, 16) as u16 & caps.did_mask()),
            am: get(words[1], 0, 6) as u8,
            ih: match get(words[1], 7, 2) {
                0 => HptLevels::L1,
                1 => HptLevels::L1To2,
                2 => HptLevels::L1To3,
                _ => HptLevels::All,
            },
            addr: words[1] & mask(63, 12) & caps.max_host_address(),
        })
    }

    pub(super) const fn encode(&self) -> [u64; 2] {
        let w0 = 0xa | (self.granularity as u64) << 4 | (self.hptdid.0 as u64) << 16;
        [w0, self.am as u64 & 0x3f | (self.ih as u64) << 7 | self.addr & mask(63, 12)]
    }
}
