// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Type 1: context-cache invalidate. \[S 6.5.2.1\]

use super::check_reserved;
use crate::bits::get;
use crate::{DomainId, QueueError, SourceId};

/// What a context-cache invalidation covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ContextGranularity {
    /// Everything.
    Global = 1,
    /// The entries of DID; in scalable mode processed as global, since the cache is not tagged by domain-id there.
    Domain = 2,
    /// The entries of SID under FM (in legacy mode also of DID).
    Device = 3,
}

/// FM: function bits of SID that are not compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum FunctionMask {
    /// All bits are compared.
    #[default]
    None = 0,
    /// All but bit 2.
    Bit2 = 1,
    /// All but bits 2:1.
    Bits2To1 = 2,
    /// All but bits 2:0.
    Bits2To0 = 3,
}

impl FunctionMask {
    /// From the 2-bit field; higher bits are ignored.
    pub const fn from_bits(fm: u8) -> Self {
        match fm & 3 {
            0 => Self::None,
            1 => Self::Bit2,
            2 => Self::Bits2To1,
            _ => Self::Bits2To0,
        }
    }

    /// The bits of SID that are not compared.
    pub const fn masked(self) -> u16 {
        match self {
            Self::None => 0,
            Self::Bit2 => 4,
            Self::Bits2To1 => 6,
            Self::Bits2To0 => 7,
        }
    }
}

/// Context-cache invalidate descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ContextCache {
    /// Granularity (G).
    pub granularity: ContextGranularity,
    /// Domain-id; ignored in scalable mode.
    pub did: DomainId,
    /// Source-id; for [`ContextGranularity::Device`].
    pub sid: SourceId,
    /// Function mask.
    pub fm: FunctionMask,
}

impl ContextCache {
    /// Whether the descriptor's SID under FM names this function (granularity and DID aside).
    pub const fn names(&self, sid: SourceId) -> bool {
        (self.sid.0 ^ sid.0) & !self.fm.masked() == 0
    }

    pub(super) fn decode(words: [u64; 2]) -> Result<Self, QueueError> {
        check_reserved(words, [0x0003_ffff_ffff_003f, 0])?;
        let granularity = match get(words[0], 4, 2) {
            1 => ContextGranularity::Global,
            2 => ContextGranularity::Domain,
            3 => ContextGranularity::Device,
            _ => return Err(QueueError::ReservedField),
        };
        Ok(Self {
            granularity,
            did: DomainId(get(words[0], 16, 16) as u16),
            sid: SourceId(get(words[0], 32, 16) as u16),
            fm: FunctionMask::from_bits(get(words[0], 48, 2) as u8),
        })
    }

    pub(super) const fn encode(&self) -> [u64; 2] {
        let w0 = 1
            | (self.granularity as u64) << 4
            | (self.did.0 as u64) << 16
            | (self.sid.0 as u64) << 32
            | (self.fm as u64) << 48;
        [w0, 0]
    }
}
