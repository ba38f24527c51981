// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Writing a table.

use alloc::vec;
use alloc::vec::Vec;

use super::header::DmarHeader;
use super::structures::{Andd, Atsr, Drhd, Rhsa, Rmrr, Satc, Sidp, StructureType};
use super::{DeviceScope, DmarError};

/// A table with the structures that `add` adds, in ascending order of their types. `add` is called again where the table turns
/// out to be larger.
///
/// ```
/// # use vtd_spec::dmar::{self, DmarFlags, DmarHeader, Drhd};
/// # let header = DmarHeader {
/// #     oem_id: *b"OEMOEM", oem_table_id: *b"OEMTABLE", oem_revision: 1, creator_id: *b"TEST",
/// #     creator_revision: 1, host_address_width: 46, flags: DmarFlags::new(),
/// # };
/// let unit = Drhd { include_pci_all: true, size: 0, segment: 0, register_base: 0xfed9_0000 };
/// let table = dmar::table(&header, |writer| writer.drhd(&unit, &[]).map(|_| ()))?;
/// assert_eq!(table.len(), DmarHeader::SIZE + 16);
/// # Ok::<(), dmar::DmarError>(())
/// ```
///
/// # Errors
///
/// What `add` fails with; [`DmarError::TooLong`].
pub fn table(
    header: &DmarHeader,
    add: impl Fn(&mut Writer<'_>) -> Result<(), DmarError>,
) -> Result<Vec<u8>, DmarError> {
    let mut bytes = vec![0; 256];
    loop {
        let mut writer = Writer::new(&mut bytes, header)?;
        match add(&mut writer).and_then(|()| writer.finish()) {
            // A table that no buffer is large enough for is too long before that.
            Err(DmarError::BufferTooSmall) => bytes.resize(2 * bytes.len(), 0),
            Err(error) => return Err(error),
            Ok(length) => {
                bytes.truncate(length);
                return Ok(bytes);
            }
        }
    }
}

/// Builds a table in a buffer: the header, structures in ascending order of their types, then [`finish`](Self::finish).
///
/// A structure that fails leaves the table as it was before.
#[derive(Debug)]
pub struct Writer<'a> {
    buffer: &'a mut [u8],
    length: usize,
    last: StructureType,
}

impl<'a> Writer<'a> {
    /// Begins a table at the first byte of `buffer`.
    ///
    /// # Errors
    ///
    /// [`DmarError::BufferTooSmall`].
    pub fn new(buffer: &'a mut [u8], header: &DmarHeader) -> Result<Self, DmarError> {
        let Some(start) = buffer.first_chunk_mut::<{ DmarHeader::SIZE }>() else {
            return Err(DmarError::BufferTooSmall);
        };
        *start = header.encode();
        Ok(Self { buffer, length: DmarHeader::SIZE, last: StructureType::Drhd })
    }

    /// Adds a remapping unit.
    ///
    /// # Errors
    ///
    /// [`DmarError::BufferTooSmall`], [`DmarError::TooLong`], [`DmarError::OutOfOrder`]; so for all structures.
    pub fn drhd(&mut self, drhd: &Drhd, scopes: &[DeviceScope<'_>]) -> Result<&mut Self, DmarError> {
        self.structure(StructureType::Drhd, scopes, |out| {
            out.put(&[drhd.include_pci_all as u8, drhd.size & 0xf])?;
            out.put(&drhd.segment.to_le_bytes())?;
            out.put(&drhd.register_base.to_le_bytes())
        })
    }

    /// Adds a reserved memory region.
    ///
    /// # Errors
    ///
    /// As [`drhd`](Self::drhd).
    pub fn rmrr(&mut self, rmrr: &Rmrr, scopes: &[DeviceScope<'_>]) -> Result<&mut Self, DmarError> {
        self.structure(StructureType::Rmrr, scopes, |out| {
            out.put(&[0; 2])?;
            out.put(&rmrr.segment.to_le_bytes())?;
            out.put(&rmrr.base.to_le_bytes())?;
            out.put(&rmrr.limit.to_le_bytes())
        })
    }

    /// Adds root ports with ATS.
    ///
    /// # Errors
    ///
    /// As [`drhd`](Self::drhd).
    pub fn atsr(&mut self, atsr: &Atsr, scopes: &[DeviceScope<'_>]) -> Result<&mut Self, DmarError> {
        self.structure(StructureType::Atsr, scopes, |out| {
            out.put(&[atsr.all_ports as u8, 0])?;
            out.put(&atsr.segment.to_le_bytes())
        })
    }

    /// Adds the proximity domain of a unit.
    ///
    /// # Errors
    ///
    /// As [`drhd`](Self::drhd).
    pub fn rhsa(&mut self, rhsa: &Rhsa) -> Result<&mut Self, DmarError> {
        self.structure(StructureType::Rhsa, &[], |out| {
            out.put(&[0; 4])?;
            out.put(&rhsa.register_base.to_le_bytes())?;
            out.put(&rhsa.proximity_domain.to_le_bytes())
        })
    }

    /// Adds a device of the ACPI name space.
    ///
    /// # Errors
    ///
    /// As [`drhd`](Self::drhd); [`DmarError::Name`] for a name with a NUL byte in it.
    pub fn andd(&mut self, andd: &Andd<'_>) -> Result<&mut Self, DmarError> {
        if andd.object_name.contains(&0) {
            return Err(DmarError::Name);
        }
        self.structure(StructureType::Andd, &[], |out| {
            out.put(&[0, 0, 0, andd.device_number])?;
            out.put(andd.object_name)?;
            out.put(&[0])
        })
    }

    /// Adds integrated devices with an address translation cache.
    ///
    /// # Errors
    ///
    /// As [`drhd`](Self::drhd).
    pub fn satc(&mut self, satc: &Satc, scopes: &[DeviceScope<'_>]) -> Result<&mut Self, DmarError> {
        self.structure(StructureType::Satc, scopes, |out| {
            out.put(&[satc.atc_required as u8, 0])?;
            out.put(&satc.segment.to_le_bytes())
        })
    }

    /// Adds properties of integrated devices.
    ///
    /// # Errors
    ///
    /// As [`drhd`](Self::drhd).
    pub fn sidp(&mut self, sidp: &Sidp, scopes: &[DeviceScope<'_>]) -> Result<&mut Self, DmarError> {
        self.structure(StructureType::Sidp, scopes, |out| {
            out.put(&[0; 2])?;
            out.put(&sidp.segment.to_le_bytes())
        })
    }

    /// Fills in length and checksum; returns the length of the table in bytes.
    ///
    /// # Errors
    ///
    /// [`DmarError::TooLong`] for a table of 4 GiB or more.
    pub fn finish(self) -> Result<usize, DmarError> {
        let length = u32::try_from(self.length).map_err(|_| DmarError::TooLong)?;
        let table = &mut self.buffer[..self.length];
        table[4..8].copy_from_slice(&length.to_le_bytes());
        table[9] = 0;
        let sum = table.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
        table[9] = sum.wrapping_neg();
        Ok(self.length)
    }

    /// Adds a structure: type and length, what `body` writes, the scopes.
    fn structure(
        &mut self,
        kind: StructureType,
        scopes: &[DeviceScope<'_>],
        body: impl FnOnce(&mut Cursor<'_>) -> Result<(), DmarError>,
    ) -> Result<&mut Self, DmarError> {
        if kind < self.last {
            return Err(DmarError::OutOfOrder);
        }
        let mut out = Cursor { buffer: &mut self.buffer[self.length..], at: 0 };
        out.put(&(kind as u16).to_le_bytes())?;
        out.put(&[0; 2])?;
        body(&mut out)?;
        for scope in scopes {
            let size = u8::try_from(scope.size()).map_err(|_| DmarError::TooLong)?;
            out.put(&[scope.scope_type.into_bits(), size, scope.flags.into_bits(), 0])?;
            out.put(&[scope.enumeration_id, scope.start_bus])?;
            out.put(scope.path.as_flattened())?;
        }
        let length = u16::try_from(out.at).map_err(|_| DmarError::TooLong)?;
        out.buffer[2..4].copy_from_slice(&length.to_le_bytes());
        self.length += length as usize;
        self.last = kind;
        Ok(self)
    }
}

/// Writes fields one behind the other.
struct Cursor<'a> {
    buffer: &'a mut [u8],
    at: usize,
}

impl Cursor<'_> {
    fn put(&mut self, bytes: &[u8]) -> Result<(), DmarError> {
        let end = self.at.checked_add(bytes.len()).ok_or(DmarError::BufferTooSmall)?;
        self.buffer.get_mut(self.at..end).ok_or(DmarError::BufferTooSmall)?.copy_from_slice(bytes);
        self.at = end;
        Ok(())
    }
}
