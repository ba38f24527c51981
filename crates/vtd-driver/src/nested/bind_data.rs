// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What is to be bound, as the user lays it out.

use vtd_spec::Pasid;

use super::{FORMAT_INTEL_VTD, VERSION};
use crate::address_space::{SpaceKind, bindable};
use crate::error::Error;
use crate::state::NestedTable;

/// The guest PASID of the structure is valid (`IOMMU_SVA_GPASID_VAL`).
pub const FLAG_GUEST_PASID: u64 = 1 << 0;

/// Flags of [`BindData::vtd_flags`].
pub mod vtd_flag {
    /// Supervisor requests.
    pub const SRE: u64 = 1 << 0;
    /// Extended-accessed flags.
    pub const EAFE: u64 = 1 << 1;
    /// Page-level cache disable.
    pub const PCD: u64 = 1 << 2;
    /// Page-level write-through.
    pub const PWT: u64 = 1 << 3;
    /// Extended memory type enable.
    pub const EMTE: u64 = 1 << 4;
    /// Cache disable.
    pub const CD: u64 = 1 << 5;
    /// One beyond the last.
    pub const LAST: u64 = 1 << 6;
    /// Those that are about memory types (V9 patch 02: `IOMMU_SVA_VTD_GPASID_EMT_MASK`).
    pub const MEMORY_TYPES: u64 = CD | EMTE | PCD | PWT;
}

/// What is to be bound (`iommu_gpasid_bind_data`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BindData {
    /// Version of the structure: 1.
    pub version: u32,
    /// Format of the PASID table: 1, Intel VT-d.
    pub format: u32,
    /// Width of the guest's virtual addresses in bits: 48 or 57.
    pub addr_width: u32,
    /// [`FLAG_GUEST_PASID`].
    pub flags: u64,
    /// Guest physical address of the guest's top table.
    pub gpgd: u64,
    /// Host PASID: the one the device uses.
    pub hpasid: u64,
    /// Guest PASID, for reports to the guest. Whether the guest may use it is not checked: its range is unknown here.
    pub gpasid: u64,
    /// Flags of [`vtd_flag`].
    pub vtd_flags: u64,
    /// Supervisor writes honour R/W (WPE). The uAPI of the series came before it and has no flag for it.
    pub wpe: bool,
}

impl BindData {
    /// Size of the structure in bytes.
    pub const SIZE: usize = 72;

    /// A binding of `gpgd` to `hpasid` without options; the guest's PASID is the same.
    pub const fn new(gpgd: u64, hpasid: Pasid) -> Self {
        Self {
            version: VERSION,
            format: FORMAT_INTEL_VTD,
            addr_width: 48,
            flags: 0,
            gpgd,
            hpasid: hpasid.get() as u64,
            gpasid: 0,
            vtd_flags: 0,
            wpe: false,
        }
    }

    /// Reads the structure as of Linux 5.10: argsz 0, version 4, format 8, addr_width 12, flags 16, gpgd 24, hpasid 32,
    /// gpasid 40, padding 48, then of VT-d flags 56, pat 64, emt 68.
    ///
    /// # Errors
    ///
    /// [`Error::Size`] where fewer bytes are there than `argsz` says or the structure has; [`Error::Padding`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Error> {
        let needed = Self::SIZE as u32;
        let Some(fields) = bytes.first_chunk::<{ Self::SIZE }>() else {
            return Err(Error::Size { size: bytes.len() as u32, needed });
        };
        let (words, _) = fields.as_chunks::<4>();
        let u32_at = |offset: usize| u32::from_le_bytes(words[offset / 4]);
        let u64_at = |offset: usize| u64::from(u32_at(offset)) | u64::from(u32_at(offset + 4)) << 32;
        let argsz = u32_at(0);
        if argsz < needed {
            return Err(Error::Size { size: argsz, needed });
        }
        if u64_at(48) != 0 {
            return Err(Error::Padding);
        }
        Ok(Self {
            version: u32_at(4),
            format: u32_at(8),
            addr_width: u32_at(12),
            flags: u64_at(16),
            gpgd: u64_at(24),
            hpasid: u64_at(32),
            gpasid: u64_at(40),
            vtd_flags: u64_at(56),
            wpe: false,
        })
    }

    pub(super) fn table(&self) -> NestedTable {
        NestedTable {
            root: self.gpgd,
            address_width: self.addr_width,
            sre: self.vtd_flags & vtd_flag::SRE != 0,
            eafe: self.vtd_flags & vtd_flag::EAFE != 0,
            wpe: self.wpe,
            memory_types: self.vtd_flags & vtd_flag::MEMORY_TYPES != 0,
        }
    }

    /// The checks that need nothing but the structure (iommu.c:iommu_uapi_sva_bind_gpasid). Returns the host PASID, and
    /// what it stands for.
    pub(super) fn check(&self) -> Result<(Pasid, SpaceKind), Error> {
        let Self { version, format, flags, .. } = *self;
        if version != VERSION {
            return Err(Error::Version { version });
        }
        if format != FORMAT_INTEL_VTD {
            return Err(Error::Format { format });
        }
        if flags & !FLAG_GUEST_PASID != 0 {
            return Err(Error::Flags { flags });
        }
        if self.vtd_flags & !(vtd_flag::LAST - 1) != 0 {
            return Err(Error::Flags { flags: self.vtd_flags });
        }
        let guest_pasid = self.guest_pasid()?;
        Ok((bindable(self.hpasid)?, SpaceKind::Guest { guest_pasid }))
    }

    fn guest_pasid(&self) -> Result<Option<Pasid>, Error> {
        if self.flags & FLAG_GUEST_PASID == 0 {
            return Ok(None);
        }
        let pasid = u32::try_from(self.gpasid).ok().and_then(Pasid::new);
        pasid.map(Some).ok_or(Error::InvalidPasid { pasid: self.gpasid })
    }
}
