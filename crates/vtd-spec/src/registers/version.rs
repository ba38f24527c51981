// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! VER: the architecture version.

use bitfield_struct::bitfield;

/// VER, read-only. \[S 11.4.1\]
///
/// Behaviour is keyed to the major number: from 6 on, register-based invalidation (CCMD, IOTLB) does not exist.
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct Version {
    /// Minor number.
    #[bits(4)]
    pub min: u8,
    /// Major number.
    #[bits(4)]
    pub max: u8,
    #[bits(24)]
    __: u32,
}
