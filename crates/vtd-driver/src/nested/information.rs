// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a user is told before it binds anything (V9 patch 10 and the VFIO set).

use vtd_spec::{Capability, ExtendedCapability};

use super::FORMAT_INTEL_VTD;
use crate::error::Error;
use crate::iommu::Iommu;
use crate::memory::Memory;
use crate::registers::Registers;
use crate::state::DomainHandle;

/// What a user is told of nesting (`iommu_nesting_info`; V9 patch 10's PASID format).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NestingInfo {
    /// Format of the PASID table: [`FORMAT_INTEL_VTD`].
    pub format: u32,
    /// Bits of [`NestingInfo::BIND_PGTBL`], [`NestingInfo::CACHE_INVLD`].
    pub features: u32,
    /// Width of guest physical addresses that the domain maps, in bits.
    pub addr_width: u16,
    /// Width of PASIDs in bits.
    pub pasid_bits: u16,
    /// CAP, masked to what a guest's first stage depends on.
    pub cap: Capability,
    /// ECAP, masked likewise.
    pub ecap: ExtendedCapability,
}

impl NestingInfo {
    /// Guests' tables can be bound.
    pub const BIND_PGTBL: u32 = 1;
    /// Caches can be invalidated.
    pub const CACHE_INVLD: u32 = 2;
    /// The bits of CAP that are shown: FS1GP and FS5LP.
    pub const CAP_MASK: u64 = Capability::new().with_fs1gp(true).with_fs5lp(true).into_bits();
    /// The bits of ECAP that are shown: PRS, ERS, SRS, EAFS and PASID (PSS is told as `pasid_bits`).
    pub const ECAP_MASK: u64 = ExtendedCapability::new()
        .with_prs(true)
        .with_ers(true)
        .with_srs(true)
        .with_eafs(true)
        .with_pasid(true)
        .into_bits();
}

impl<R: Registers, M: Memory> Iommu<R, M> {
    /// The nesting information of a domain.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchDomain`]; [`Error::NotNestParent`].
    pub fn nesting_info(&self, domain: DomainHandle) -> Result<NestingInfo, Error> {
        let parent = self.domain(domain)?;
        if !parent.is_nest_parent() {
            return Err(Error::NotNestParent);
        }
        let (cap, ecap) = (self.capabilities.cap.into_bits(), self.capabilities.ecap.into_bits());
        Ok(NestingInfo {
            format: FORMAT_INTEL_VTD,
            features: NestingInfo::BIND_PGTBL | NestingInfo::CACHE_INVLD,
            addr_width: (64 - parent.last_address().leading_zeros()) as u16,
            pasid_bits: self.capabilities.pasid_bits() as u16,
            cap: Capability::from_bits(cap & NestingInfo::CAP_MASK),
            ecap: ExtendedCapability::from_bits(ecap & NestingInfo::ECAP_MASK),
        })
    }
}
