// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! IVA and IOTLB: register-based invalidation of the IOTLB, at ECAP.IRO x 16.

use bitfield_struct::bitfield;

use crate::bits::{from_page, to_page};

/// IVA, write-only: the pages of a page-selective invalidation. \[S 11.4.6.4\]
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct InvalidateAddress {
    /// Address mask: 2^AM pages, naturally aligned.
    #[bits(6)]
    pub am: u8,
    /// Invalidation hint: only leaf entries changed.
    pub ih: bool,
    #[bits(5)]
    __: u8,
    /// Address of the first page.
    #[bits(52, from = from_page, into = to_page)]
    pub addr: u64,
}

/// IOTLB: legacy mode and VER major below 6 only. \[S 11.4.6.3\]
///
/// Granularities (IAIG, IIRG): 0 error, 1 global, 2 domain, 3 page.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct IotlbInvalidate {
    #[bits(32)]
    __: u32,
    /// Domain-id.
    pub did: u16,
    /// Drain writes.
    pub dw: bool,
    /// Drain reads.
    pub dr: bool,
    #[bits(7)]
    __: u8,
    /// IOTLB actual invalidation granularity; read-only.
    #[bits(2)]
    pub iaig: u8,
    #[bits(1)]
    __: u8,
    /// IOTLB invalidation request granularity.
    #[bits(2)]
    pub iirg: u8,
    #[bits(1)]
    __: u8,
    /// Invalidate IOTLB: written 1 to start, cleared by hardware when done.
    pub ivt: bool,
}
