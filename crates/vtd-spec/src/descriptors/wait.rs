// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Type 5: invalidation wait. \[S 6.5.2.9\]

use super::check_reserved;
use crate::bits::{get, mask};
use crate::{Capabilities, QueueError};

/// Invalidation wait descriptor. With neither SW nor IF it is a pure barrier (FN).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Wait {
    /// Interrupt flag (IF): complete with the invalidation completion event.
    pub interrupt: bool,
    /// Status write (SW): complete with a DWORD write of `status_data` to `status_address`.
    pub sw: bool,
    /// Fence: descriptors behind this one wait for it.
    pub fn_: bool,
    /// Page request drain: completes behind the page requests received before; reserved if ECAP.PDS=0.
    pub pd: bool,
    /// Status data.
    pub status_data: u32,
    /// Status address, a multiple of 4 below 2^HAW.
    pub status_address: u64,
}

impl Wait {
    pub(super) fn decode(words: [u64; 2], caps: &Capabilities) -> Result<Self, QueueError> {
        let pd = if caps.ecap.pds() { 1 << 7 } else { 0 };
        check_reserved(words, [0xffff_ffff_0000_007f | pd, 0xffff_ffff_ffff_fffc])?;
        Ok(Self {
            interrupt: get(words[0], 4, 1) != 0,
            sw: get(words[0], 5, 1) != 0,
            fn_: get(words[0], 6, 1) != 0,
            pd: get(words[0], 7, 1) != 0,
            status_data: get(words[0], 32, 32) as u32,
            status_address: words[1] & caps.max_host_address(),
        })
    }

    pub(super) const fn encode(&self) -> [u64; 2] {
        let w0 = 5
            | (self.interrupt as u64) << 4
            | (self.sw as u64) << 5
            | (self.fn_ as u64) << 6
            | (self.pd as u64) << 7
            | (self.status_data as u64) << 32;
        [w0, self.status_address & mask(63, 2)]
    }
}
