// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Who made the tables, as each of them says.

/// Six characters. \[ACPI 5.2.6\]
pub const OEM_ID: [u8; 6] = *b"VSVA  ";
/// Eight characters.
pub const OEM_TABLE_ID: [u8; 8] = *b"VSVAVMM ";
/// Counts changes of the tables.
pub const OEM_REVISION: u32 = 1;
