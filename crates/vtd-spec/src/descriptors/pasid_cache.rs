// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Type 7: PASID-cache invalidate. \[S 6.5.2.2\]

use super::check_reserved;
use crate::bits::get;
use crate::{Capabilities, DomainId, Pasid, QueueError};

/// What a PASID-cache invalidation covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum PasidCacheGranularity {
    /// Everything of DID.
    Domain = 0,
    /// DID and PASID.
    Pasid = 1,
    /// Everything.
    Global = 3,
}

/// PASID-cache invalidate descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PasidCache {
    /// Granularity (G).
    pub granularity: PasidCacheGranularity,
    /// Domain-id; ignored for global.
    pub did: DomainId,
    /// PASID; for [`PasidCacheGranularity::Pasid`].
    pub pasid: Pasid,
}

impl PasidCache {
    pub(super) fn decode(words: [u64; 2], caps: &Capabilities) -> Result<Self, QueueError> {
        check_reserved(words, [0x000f_ffff_ffff_003f, 0])?;
        let granularity = match get(words[0], 4, 2) {
            0 => PasidCacheGranularity::Domain,
            1 => PasidCacheGranularity::Pasid,
            3 => PasidCacheGranularity::Global,
            _ => return Err(QueueError::ReservedField),
        };
        Ok(Self {
            granularity,
            did: DomainId(get(words[0], 16, 16) as u16 & caps.did_mask()),
            pasid: Pasid::truncated(get(words[0], 32, 20) as u32),
        })
    }

    pub(super) const fn encode(&self) -> [u64; 2] {
        let w0 =
            7 | (self.granularity as u64) << 4 | (self.did.0 as u64) << 16 | (self.pasid.get() as u64) << 32;
        [w0, 0]
    }
}
