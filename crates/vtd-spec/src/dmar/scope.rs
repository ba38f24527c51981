// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Device scopes: which devices a structure is about. \[S 8.3.1\]

use bitfield_struct::bitfield;

use super::{DmarError, field};
use crate::SourceId;

/// What a device scope names. \[S 8.3.1\]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ScopeType {
    /// 1: a PCI endpoint.
    PciEndpoint,
    /// 2: a PCI bridge and everything below it.
    PciSubHierarchy,
    /// 3: an I/O APIC; the enumeration id is its id in the MADT, bus and path are its source-id.
    IoApic,
    /// 4: an HPET; the enumeration id is its number, bus and path are its source-id.
    Hpet,
    /// 5: a device of the ACPI name space; the enumeration id is its ANDD device number.
    AcpiNamespace,
    /// Another type.
    Other(u8),
}

impl ScopeType {
    /// From the type byte.
    pub const fn from_bits(kind: u8) -> Self {
        match kind {
            1 => Self::PciEndpoint,
            2 => Self::PciSubHierarchy,
            3 => Self::IoApic,
            4 => Self::Hpet,
            5 => Self::AcpiNamespace,
            other => Self::Other(other),
        }
    }

    /// The type byte.
    pub const fn into_bits(self) -> u8 {
        match self {
            Self::PciEndpoint => 1,
            Self::PciSubHierarchy => 2,
            Self::IoApic => 3,
            Self::Hpet => 4,
            Self::AcpiNamespace => 5,
            Self::Other(other) => other,
        }
    }
}

/// Flags of a device scope; reserved except in SIDP. \[S 8.9\]
#[bitfield(u8)]
#[derive(PartialEq, Eq)]
pub struct ScopeFlags {
    /// Requests without PASID must not use nested translation.
    pub no_nested_for_rid_pasid: bool,
    /// PWSNP must not be set.
    pub no_pwsnp: bool,
    /// PGSNP must not be set.
    pub no_pgsnp: bool,
    /// The device's address translation cache is hardened.
    pub atc_hardened: bool,
    /// The device needs its address translation cache.
    pub atc_required: bool,
    #[bits(3)]
    __: u8,
}

/// A device scope structure. \[S 8.3.1\]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceScope<'a> {
    /// What it names.
    pub scope_type: ScopeType,
    /// Flags; zero except in SIDP.
    pub flags: ScopeFlags,
    /// Enumeration id, of types 3 to 5.
    pub enumeration_id: u8,
    /// Bus where the path begins.
    pub start_bus: u8,
    /// Device and function, from the start bus through the bridges to the device.
    pub path: &'a [[u8; 2]],
}

impl<'a> DeviceScope<'a> {
    /// Size of a scope without its path, in bytes.
    pub const FIXED_SIZE: usize = 6;

    /// A scope whose path is one device and function on `start_bus`.
    pub const fn new(scope_type: ScopeType, enumeration_id: u8, start_bus: u8, path: &'a [[u8; 2]]) -> Self {
        Self { scope_type, flags: ScopeFlags::new(), enumeration_id, start_bus, path }
    }

    /// Size in bytes.
    pub const fn size(&self) -> usize {
        Self::FIXED_SIZE + 2 * self.path.len()
    }

    /// The source-id, if the path has one step: behind bridges the bus numbers are software's.
    pub const fn source_id(&self) -> Option<SourceId> {
        match self.path {
            [[device, function]] => Some(SourceId::new(self.start_bus, *device, *function)),
            _ => None,
        }
    }
}

/// The device scopes of a structure. An error ends the iteration.
#[derive(Clone, Debug)]
pub struct DeviceScopes<'a> {
    bytes: &'a [u8],
}

impl<'a> DeviceScopes<'a> {
    pub(super) const fn new(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    fn parse(&self) -> Result<(DeviceScope<'a>, &'a [u8]), DmarError> {
        let [scope_type, length, flags, _, enumeration_id, start_bus] =
            field(self.bytes, 0).ok_or(DmarError::Truncated)?;
        let length = length as usize;
        if length < DeviceScope::FIXED_SIZE || !length.is_multiple_of(2) {
            return Err(DmarError::Length);
        }
        let (scope, rest) = self.bytes.split_at_checked(length).ok_or(DmarError::Truncated)?;
        let path = scope.get(DeviceScope::FIXED_SIZE..).unwrap_or(&[]).as_chunks::<2>().0;
        let scope = DeviceScope {
            scope_type: ScopeType::from_bits(scope_type),
            flags: ScopeFlags::from_bits(flags),
            enumeration_id,
            start_bus,
            path,
        };
        Ok((scope, rest))
    }
}

impl<'a> Iterator for DeviceScopes<'a> {
    type Item = Result<DeviceScope<'a>, DmarError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.bytes.is_empty() {
            return None;
        }
        match self.parse() {
            Ok((scope, rest)) => {
                self.bytes = rest;
                Some(Ok(scope))
            }
            Err(error) => {
                self.bytes = &[];
                Some(Err(error))
            }
        }
    }
}
