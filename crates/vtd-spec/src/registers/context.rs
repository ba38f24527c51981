// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! CCMD: register-based invalidation of the context cache.

use bitfield_struct::bitfield;

/// CCMD: legacy mode and VER major below 6 only. \[S 11.4.6.1\]
///
/// Granularities (CAIG, CIRG): 0 error or ignored, 1 global, 2 domain, 3 device.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct ContextCommand {
    /// Domain-id.
    pub did: u16,
    /// Source-id; write-only.
    pub sid: u16,
    /// Function mask: how many low function bits of SID are ignored (1: bit 2, 2: bits 2:1, 3: bits 2:0); write-only.
    #[bits(2)]
    pub fm: u8,
    #[bits(25)]
    __: u32,
    /// Context actual invalidation granularity; read-only.
    #[bits(2)]
    pub caig: u8,
    /// Context invalidation request granularity.
    #[bits(2)]
    pub cirg: u8,
    /// Invalidate context cache: written 1 to start, cleared by hardware when done.
    pub icc: bool,
}
