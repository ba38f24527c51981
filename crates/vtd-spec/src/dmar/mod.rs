// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The ACPI DMAR table: how firmware tells software about remapping units. \[S 8\]
//!
//! [`Writer`] builds a table in a caller's buffer, [`Dmar`] reads one; neither allocates. Reading checks every length
//! and never panics, whatever the bytes.

mod header;
mod read;
mod scope;
mod structures;
mod write;

pub use header::{DmarFlags, DmarHeader};
pub use read::{Dmar, RemappingStructure, Structures};
pub use scope::{DeviceScope, DeviceScopes, ScopeFlags, ScopeType};
pub use structures::{Andd, Atsr, Drhd, Rhsa, Rmrr, Satc, Sidp, StructureType};
pub use write::{Writer, table};

use core::fmt;

/// Why a table cannot be read or written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DmarError {
    /// The bytes end before the structure does.
    Truncated,
    /// The signature is not "DMAR".
    Signature,
    /// The bytes of the table do not add up to zero.
    Checksum,
    /// A length field is too small for its structure, or no length a device scope can have.
    Length,
    /// The buffer to write to is too small.
    BufferTooSmall,
    /// A structure longer than its 16-bit length field (a scope: 8-bit) can tell.
    TooLong,
    /// A structure of a lower type than the one before: types ascend. \[S 8.2\]
    OutOfOrder,
    /// An object name that contains a NUL byte.
    Name,
}

impl fmt::Display for DmarError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Truncated => "the DMAR table ends inside a structure",
            Self::Signature => "the table's signature is not DMAR",
            Self::Checksum => "the DMAR table's checksum is wrong",
            Self::Length => "a length in the DMAR table is too small",
            Self::BufferTooSmall => "the buffer is too small for the DMAR table",
            Self::TooLong => "a structure is too long for its length field",
            Self::OutOfOrder => "remapping structures must be in ascending order of their types",
            Self::Name => "an ACPI object name contains a NUL byte",
        })
    }
}

impl core::error::Error for DmarError {}

/// The `N` bytes from `offset`; `None` beyond the end.
fn field<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    bytes.get(offset..)?.first_chunk::<N>().copied()
}

#[cfg(test)]
mod tests;
