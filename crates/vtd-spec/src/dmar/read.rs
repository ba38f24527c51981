// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Reading a table.

use super::header::DmarHeader;
use super::structures::{Andd, Atsr, Drhd, Rhsa, Rmrr, Satc, Sidp, StructureType};
use super::{DeviceScopes, DmarError, field};

/// A DMAR table in memory.
#[derive(Clone, Copy, Debug)]
pub struct Dmar<'a> {
    header: DmarHeader,
    structures: &'a [u8],
}

impl<'a> Dmar<'a> {
    /// Reads a table that begins at the first byte; bytes behind it are ignored.
    ///
    /// # Errors
    ///
    /// [`DmarError::Truncated`], [`DmarError::Signature`], [`DmarError::Length`] for a length field below the size of the
    /// header, [`DmarError::Checksum`]. The structures are checked when they are iterated.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, DmarError> {
        if field(bytes, 0).ok_or(DmarError::Truncated)? != DmarHeader::SIGNATURE {
            return Err(DmarError::Signature);
        }
        let length = field(bytes, 4).map(u32::from_le_bytes).ok_or(DmarError::Truncated)?;
        let length = usize::try_from(length).map_err(|_| DmarError::Truncated)?;
        if length < DmarHeader::SIZE {
            return Err(DmarError::Length);
        }
        let table = bytes.get(..length).ok_or(DmarError::Truncated)?;
        if table.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)) != 0 {
            return Err(DmarError::Checksum);
        }
        let header = DmarHeader::decode(table)?;
        Ok(Self { header, structures: table.get(DmarHeader::SIZE..).unwrap_or(&[]) })
    }

    /// The header.
    pub const fn header(&self) -> &DmarHeader {
        &self.header
    }

    /// The remapping structures in their order.
    pub const fn structures(&self) -> Structures<'a> {
        Structures { bytes: self.structures }
    }
}

/// A remapping structure and its device scopes.
#[derive(Clone, Debug)]
pub enum RemappingStructure<'a> {
    /// Type 0.
    Drhd(Drhd, DeviceScopes<'a>),
    /// Type 1.
    Rmrr(Rmrr, DeviceScopes<'a>),
    /// Type 2.
    Atsr(Atsr, DeviceScopes<'a>),
    /// Type 3.
    Rhsa(Rhsa),
    /// Type 4.
    Andd(Andd<'a>),
    /// Type 5.
    Satc(Satc, DeviceScopes<'a>),
    /// Type 6.
    Sidp(Sidp, DeviceScopes<'a>),
    /// Another type, with all its bytes.
    Other(u16, &'a [u8]),
}

impl<'a> RemappingStructure<'a> {
    /// `bytes` is the structure from its type field to its end.
    fn parse(kind: u16, bytes: &'a [u8]) -> Result<Self, DmarError> {
        // A structure that ends before its fixed fields do has a wrong length: the table itself goes on.
        let u8_at = |offset: usize| bytes.get(offset).copied().ok_or(DmarError::Length);
        let u16_at = |offset| field(bytes, offset).map(u16::from_le_bytes).ok_or(DmarError::Length);
        let u32_at = |offset| field(bytes, offset).map(u32::from_le_bytes).ok_or(DmarError::Length);
        let u64_at = |offset| field(bytes, offset).map(u64::from_le_bytes).ok_or(DmarError::Length);
        let scopes_at = |offset: usize| bytes.get(offset..).map(DeviceScopes::new).ok_or(DmarError::Length);
        Ok(match StructureType::from_bits(kind) {
            Some(StructureType::Drhd) => {
                let drhd = Drhd {
                    include_pci_all: u8_at(4)? & 1 != 0,
                    size: u8_at(5)? & 0xf,
                    segment: u16_at(6)?,
                    register_base: u64_at(8)?,
                };
                Self::Drhd(drhd, scopes_at(16)?)
            }
            Some(StructureType::Rmrr) => {
                let rmrr = Rmrr { segment: u16_at(6)?, base: u64_at(8)?, limit: u64_at(16)? };
                Self::Rmrr(rmrr, scopes_at(24)?)
            }
            Some(StructureType::Atsr) => {
                Self::Atsr(Atsr { all_ports: u8_at(4)? & 1 != 0, segment: u16_at(6)? }, scopes_at(8)?)
            }
            Some(StructureType::Rhsa) => {
                Self::Rhsa(Rhsa { register_base: u64_at(8)?, proximity_domain: u32_at(16)? })
            }
            Some(StructureType::Andd) => {
                let name = bytes.get(8..).ok_or(DmarError::Length)?;
                let end = name.iter().position(|&byte| byte == 0).ok_or(DmarError::Length)?;
                Self::Andd(Andd { device_number: u8_at(7)?, object_name: name.get(..end).unwrap_or(&[]) })
            }
            Some(StructureType::Satc) => {
                Self::Satc(Satc { atc_required: u8_at(4)? & 1 != 0, segment: u16_at(6)? }, scopes_at(8)?)
            }
            Some(StructureType::Sidp) => Self::Sidp(Sidp { segment: u16_at(6)? }, scopes_at(8)?),
            None => Self::Other(kind, bytes),
        })
    }
}

/// The remapping structures of a table. A length that does not fit the table ends the iteration with an error; a
/// structure that is too short for its type is an error of its own, and the next one follows.
#[derive(Clone, Debug)]
pub struct Structures<'a> {
    bytes: &'a [u8],
}

impl<'a> Structures<'a> {
    fn split(&self) -> Result<(u16, &'a [u8], &'a [u8]), DmarError> {
        let kind = field(self.bytes, 0).map(u16::from_le_bytes).ok_or(DmarError::Truncated)?;
        let length = field(self.bytes, 2).map(u16::from_le_bytes).ok_or(DmarError::Truncated)? as usize;
        if length < 4 {
            return Err(DmarError::Length);
        }
        let (structure, rest) = self.bytes.split_at_checked(length).ok_or(DmarError::Truncated)?;
        Ok((kind, structure, rest))
    }
}

impl<'a> Iterator for Structures<'a> {
    type Item = Result<RemappingStructure<'a>, DmarError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.bytes.is_empty() {
            return None;
        }
        match self.split() {
            Ok((kind, structure, rest)) => {
                self.bytes = rest;
                Some(RemappingStructure::parse(kind, structure))
            }
            Err(error) => {
                self.bytes = &[];
                Some(Err(error))
            }
        }
    }
}
