// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Types 2 and 6: IOTLB and PASID-based IOTLB invalidate. \[S 6.5.2.3, 6.5.2.4\]

use super::{AddressRange, check_reserved};
use crate::bits::{get, mask};
use crate::{Capabilities, DomainId, Pasid, QueueError};

/// What an IOTLB invalidation covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum IotlbGranularity {
    /// Everything.
    Global = 1,
    /// Everything of DID.
    Domain = 2,
    /// The address range within DID (of first-stage and nested entries the whole DID).
    Page = 3,
}

/// IOTLB invalidate descriptor (type 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Iotlb {
    /// Granularity (G).
    pub granularity: IotlbGranularity,
    /// Drain writes.
    pub dw: bool,
    /// Drain reads.
    pub dr: bool,
    /// Domain-id; ignored for global.
    pub did: DomainId,
    /// Address mask: 2^AM pages, for page-selective; see [`range`](Self::range).
    pub am: u8,
    /// Invalidation hint: only leaf entries changed, paging-structure caches may be kept; for page-selective.
    pub ih: bool,
    /// Address of the page(s), bits 63:12, for page-selective.
    pub addr: u64,
}

impl Iotlb {
    /// The address range of a page-selective invalidation.
    pub const fn range(&self) -> AddressRange {
        AddressRange::new(self.addr, self.am)
    }

    pub(super) fn decode(words: [u64; 2], caps: &Capabilities) -> Result<Self, QueueError> {
        check_reserved(words, [0xffff_00ff, 0xffff_ffff_ffff_f07f])?;
        let am = get(words[1], 0, 6) as u8;
        let granularity = match get(words[0], 4, 2) {
            1 => IotlbGranularity::Global,
            2 => IotlbGranularity::Domain,
            3 if caps.cap.psi() && am <= caps.cap.mamv() => IotlbGranularity::Page,
            _ => return Err(QueueError::ReservedField),
        };
        Ok(Self {
            granularity,
            dw: get(words[0], 6, 1) != 0,
            dr: get(words[0], 7, 1) != 0,
            did: DomainId(get(words[0], 16, 16) as u16 & caps.did_mask()),
            am,
            ih: get(words[1], 6, 1) != 0,
            addr: words[1] & mask(caps.cap.mgaw() as u32, 12),
        })
    }

    pub(super) const fn encode(&self) -> [u64; 2] {
        let w0 = 2
            | (self.granularity as u64) << 4
            | (self.dw as u64) << 6
            | (self.dr as u64) << 7
            | (self.did.0 as u64) << 16;
        [w0, self.am as u64 & 0x3f | (self.ih as u64) << 6 | self.addr & mask(63, 12)]
    }
}

/// What a PASID-based IOTLB invalidation covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum PasidIotlbGranularity {
    /// Everything of DID and PASID.
    Pasid = 2,
    /// The first-stage input address range within DID and PASID.
    Page = 3,
}

/// PASID-based IOTLB invalidate descriptor (type 6). It always drains reads and writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PasidIotlb {
    /// Granularity (G).
    pub granularity: PasidIotlbGranularity,
    /// Domain-id.
    pub did: DomainId,
    /// PASID.
    pub pasid: Pasid,
    /// Address mask: 2^AM pages, for page-selective; see [`range`](Self::range). CAP.MAMV does not limit it.
    pub am: u8,
    /// Invalidation hint: only leaf entries changed, paging-structure caches may be kept; for page-selective.
    pub ih: bool,
    /// Address of the page(s), bits 63:12, for page-selective.
    pub addr: u64,
}

impl PasidIotlb {
    /// The address range of a page-selective invalidation.
    pub const fn range(&self) -> AddressRange {
        AddressRange::new(self.addr, self.am)
    }

    pub(super) fn decode(words: [u64; 2], caps: &Capabilities) -> Result<Self, QueueError> {
        check_reserved(words, [0x000f_ffff_ffff_003f, 0xffff_ffff_ffff_f07f])?;
        let granularity = match get(words[0], 4, 2) {
            2 => PasidIotlbGranularity::Pasid,
            3 => PasidIotlbGranularity::Page,
            _ => return Err(QueueError::ReservedField),
        };
        Ok(Self {
            granularity,
            did: DomainId(get(words[0], 16, 16) as u16 & caps.did_mask()),
            pasid: Pasid::truncated(get(words[0], 32, 20) as u32),
            am: get(words[1], 0, 6) as u8,
            ih: get(words[1], 6, 1) != 0,
            addr: words[1] & mask(63, 12),
        })
    }

    pub(super) const fn encode(&self) -> [u64; 2] {
        let w0 =
            6 | (self.granularity as u64) << 4 | (self.did.0 as u64) << 16 | (self.pasid.get() as u64) << 32;
        [w0, self.am as u64 & 0x3f | (self.ih as u64) << 6 | self.addr & mask(63, 12)]
    }
}
