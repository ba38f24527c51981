// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! PMEN: the protected memory regions.

use bitfield_struct::bitfield;

/// PMEN; read-only if CAP.PLMR=0 and CAP.PHMR=0. \[S 11.4.8.1\]
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct ProtectedMemoryEnable {
    /// Protected region status: the regions are enabled; read-only.
    pub prs: bool,
    #[bits(30)]
    __: u32,
    /// Enable protected memory.
    pub epm: bool,
}
