// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The table's header: the ACPI system description table header, host address width and flags. \[S 8.1\]

use bitfield_struct::bitfield;

use super::{DmarError, field};

/// Flags of the table. \[S 8.1\]
#[bitfield(u8)]
#[derive(PartialEq, Eq)]
pub struct DmarFlags {
    /// INTR_REMAP: the platform supports interrupt remapping.
    pub intr_remap: bool,
    /// X2APIC_OPT_OUT: firmware asks software not to enable x2APIC mode.
    pub x2apic_opt_out: bool,
    /// DMA_CTRL_PLATFORM_OPT_IN_FLAG: firmware has kept DMA under control; Linux then forces translation on for untrusted
    /// ports (dmar.c:dmar_platform_optin).
    pub dma_ctrl_platform_opt_in: bool,
    #[bits(5)]
    __: u8,
}

/// Header of the table, revision 1. Signature, length and checksum are not in it: they belong to the whole table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DmarHeader {
    /// OEM id.
    pub oem_id: [u8; 6],
    /// OEM table id.
    pub oem_table_id: [u8; 8],
    /// OEM revision.
    pub oem_revision: u32,
    /// Creator id (ASL compiler vendor), four characters.
    pub creator_id: [u8; 4],
    /// Creator revision.
    pub creator_revision: u32,
    /// Host address width in bits, 1 to 256 in the table's coding; Linux wants 12 or more.
    pub host_address_width: u16,
    /// Flags.
    pub flags: DmarFlags,
}

impl DmarHeader {
    /// Size in bytes.
    pub const SIZE: usize = 48;
    /// The table's signature.
    pub const SIGNATURE: [u8; 4] = *b"DMAR";
    /// The table's revision.
    pub const REVISION: u8 = 1;

    /// The header bytes, with length and checksum zero. The width is stored minus 1 in 8 bits.
    pub(super) fn encode(&self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        let mut at = 0;
        let mut put = |field: &[u8]| {
            bytes[at..at + field.len()].copy_from_slice(field);
            at += field.len();
        };
        put(&Self::SIGNATURE);
        put(&[0; 4]);
        put(&[Self::REVISION, 0]);
        put(&self.oem_id);
        put(&self.oem_table_id);
        put(&self.oem_revision.to_le_bytes());
        put(&self.creator_id);
        put(&self.creator_revision.to_le_bytes());
        put(&[self.host_address_width.wrapping_sub(1) as u8, self.flags.into_bits()]);
        bytes
    }

    /// Reads the header of a table.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, DmarError> {
        let bytes = bytes.first_chunk::<{ Self::SIZE }>().ok_or(DmarError::Truncated)?;
        let u32_at = |offset| field(bytes, offset).map(u32::from_le_bytes).ok_or(DmarError::Truncated);
        Ok(Self {
            oem_id: field(bytes, 10).ok_or(DmarError::Truncated)?,
            oem_table_id: field(bytes, 16).ok_or(DmarError::Truncated)?,
            oem_revision: u32_at(24)?,
            creator_id: field(bytes, 28).ok_or(DmarError::Truncated)?,
            creator_revision: u32_at(32)?,
            host_address_width: bytes[36] as u16 + 1,
            flags: DmarFlags::from_bits(bytes[37]),
        })
    }
}
