// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! First-stage tables that others keep.

use vtd_spec::FirstStagePagingMode;

/// A first-stage table kept by somebody else: a process's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FirstStageTable {
    /// Physical address of the top table (the address in CR3).
    pub root: u64,
    /// Its levels.
    pub mode: FirstStagePagingMode,
}

/// A guest's first-stage table, to be nested on a second-stage domain. Nothing in it is trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NestedTable {
    /// Guest physical address of the top table; bits 11:0 (a CR3 has flags there) do not count.
    pub root: u64,
    /// Width of the input addresses in bits: 48 or 57.
    pub address_width: u32,
    /// Supervisor requests are served.
    pub sre: bool,
    /// Extended-accessed flags are set.
    pub eafe: bool,
    /// Supervisor writes honour R/W; takes effect with `sre` only.
    pub wpe: bool,
    /// Any memory type is asked for (PCD, PWT, EMTE, CD). The architecture no longer passes them down.
    pub memory_types: bool,
}

impl NestedTable {
    /// A table without options.
    pub const fn new(root: u64, address_width: u32) -> Self {
        Self { root, address_width, sre: false, eafe: false, wpe: false, memory_types: false }
    }
}
