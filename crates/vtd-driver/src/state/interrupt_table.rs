// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The interrupt remapping table.

/// The table: 65,536 entries of 16 bytes.
pub(crate) struct InterruptTable {
    pub(crate) address: u64,
}

impl InterruptTable {
    /// IRTA.S: 2^(S+1) entries.
    pub(crate) const SIZE_FIELD: u8 = 0xf;
    pub(crate) const PAGES: usize = 256;
}
