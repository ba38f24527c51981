// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Type 9: page group response. \[S 7.6.1\]

use super::check_reserved;
use crate::bits::get;
use crate::{Pasid, QueueError, SourceId};

/// RC: what became of a page request group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ResponseCode {
    /// The pages are there: the device asks for their translations again.
    Success = 0,
    /// Some page cannot be had.
    InvalidRequest = 1,
    /// Page requests of the function no longer work; the device disables its page request interface.
    ResponseFailure = 0xf,
}

impl ResponseCode {
    /// From the 4-bit field; `None` for a reserved code.
    pub const fn from_bits(rc: u8) -> Option<Self> {
        match rc {
            0 => Some(Self::Success),
            1 => Some(Self::InvalidRequest),
            0xf => Some(Self::ResponseFailure),
            _ => None,
        }
    }

    /// The field's encoding.
    pub const fn into_bits(self) -> u8 {
        self as u8
    }
}

/// Page group response descriptor: answers a request with LPIG=1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PageGroupResponse {
    /// PASID of the request; `None` with PP=0.
    pub pasid: Option<Pasid>,
    /// Requester-id.
    pub rid: SourceId,
    /// Response code.
    pub rc: ResponseCode,
    /// Page request group index, 9 bits.
    pub prgi: u16,
}

impl PageGroupResponse {
    pub(super) fn decode(words: [u64; 2]) -> Result<Self, QueueError> {
        check_reserved(words, [0x000f_ffff_ffff_f01f, 0xffc])?;
        let Some(rc) = ResponseCode::from_bits(get(words[0], 12, 4) as u8) else {
            return Err(QueueError::ReservedField);
        };
        let pasid = Pasid::truncated(get(words[0], 32, 20) as u32);
        Ok(Self {
            pasid: if words[0] & 1 << 4 != 0 { Some(pasid) } else { None },
            rid: SourceId(get(words[0], 16, 16) as u16),
            rc,
            prgi: get(words[1], 3, 9) as u16,
        })
    }

    pub(super) const fn encode(&self) -> [u64; 2] {
        let pasid = match self.pasid {
            Some(pasid) => 1 << 4 | (pasid.get() as u64) << 32,
            None => 0,
        };
        let w0 = 9 | pasid | (self.rc as u64) << 12 | (self.rid.0 as u64) << 16;
        [w0, (self.prgi as u64 & 0x1ff) << 3]
    }
}
