// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Types 3 and 8: device-TLB and PASID-based device-TLB invalidate. \[S 6.5.2.5, 6.5.2.6\]

use super::{AddressRange, check_reserved};
use crate::bits::{get, mask};
use crate::{Capabilities, Pasid, QueueError, SourceId};

/// The PFSID field, in both descriptors split into bits 15:12 (low four) and 63:52 of the first word.
const PFSID: u64 = 0xfff0_0000_0000_f000;

const fn pfsid(word: u64) -> SourceId {
    SourceId((get(word, 12, 4) | get(word, 52, 12) << 4) as u16)
}

const fn pfsid_bits(sid: SourceId) -> u64 {
    (sid.0 as u64 & 0xf) << 12 | (sid.0 as u64 >> 4) << 52
}

/// The bits of the first word that may be set: PFSID only with ECAP.DIT.
const fn allowed_with_pfsid(allowed: u64, caps: &Capabilities) -> u64 {
    if caps.ecap.dit() { allowed | PFSID } else { allowed & !PFSID }
}

/// Device-TLB invalidate descriptor (type 3), for entries made by requests without PASID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DeviceTlb {
    /// Source-id of the endpoint.
    pub sid: SourceId,
    /// Source-id of its physical function, for throttling; zero unless ECAP.DIT.
    pub pfsid: SourceId,
    /// Maximum invalidations pending, a hint for throttling, 5 bits; 0 means 32.
    pub mip: u8,
    /// The addresses: ADDR and S.
    pub range: AddressRange,
}

impl DeviceTlb {
    pub(super) fn decode(words: [u64; 2], caps: &Capabilities) -> Result<Self, QueueError> {
        let allowed = allowed_with_pfsid(0xfff0_ffff_001f_f00f, caps);
        check_reserved(words, [allowed, 0xffff_ffff_ffff_f001])?;
        Ok(Self {
            sid: SourceId(get(words[0], 32, 16) as u16),
            pfsid: pfsid(words[0]),
            mip: get(words[0], 16, 5) as u8,
            range: AddressRange::from_size_coding(words[1] & mask(63, 12), words[1] & 1 != 0),
        })
    }

    pub(super) const fn encode(&self) -> [u64; 2] {
        let (address, s) = self.range.to_size_coding();
        let w0 = 3 | (self.mip as u64 & 0x1f) << 16 | (self.sid.0 as u64) << 32 | pfsid_bits(self.pfsid);
        [w0, address | s as u64]
    }
}

/// PASID-based device-TLB invalidate descriptor (type 8), for entries made by requests with PASID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PasidDeviceTlb {
    /// Source-id of the endpoint.
    pub sid: SourceId,
    /// Source-id of its physical function, for throttling; zero unless ECAP.DIT.
    pub pfsid: SourceId,
    /// Maximum invalidations pending, a hint for throttling, 5 bits; 0 means 32.
    pub mip: u8,
    /// PASID; ignored with GI.
    pub pasid: Pasid,
    /// Global invalidate: the request covers every PASID.
    pub gi: bool,
    /// The addresses: ADDR and S.
    pub range: AddressRange,
}

impl PasidDeviceTlb {
    pub(super) fn decode(words: [u64; 2], caps: &Capabilities) -> Result<Self, QueueError> {
        let allowed = allowed_with_pfsid(0xffff_ffff_ffff_f1ff, caps);
        check_reserved(words, [allowed, 0xffff_ffff_ffff_f801])?;
        Ok(Self {
            sid: SourceId(get(words[0], 16, 16) as u16),
            pfsid: pfsid(words[0]),
            mip: get(words[0], 4, 5) as u8,
            pasid: Pasid::truncated(get(words[0], 32, 20) as u32),
            gi: words[1] & 1 != 0,
            range: AddressRange::from_size_coding(words[1] & mask(63, 12), words[1] & 1 << 11 != 0),
        })
    }

    pub(super) const fn encode(&self) -> [u64; 2] {
        let (address, s) = self.range.to_size_coding();
        let w0 = 8
            | (self.mip as u64 & 0x1f) << 4
            | (self.sid.0 as u64) << 16
            | (self.pasid.get() as u64) << 32
            | pfsid_bits(self.pfsid);
        [w0, address | (s as u64) << 11 | self.gi as u64]
    }
}
