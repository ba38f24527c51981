// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The unit-wide state that decides what becomes of requests.

use vtd_spec::{InterruptRemapTableAddress, TranslationTableMode};

/// The unit-wide state that decides how a request is treated, as each function sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Remapping {
    /// DMA remapping is enabled (GSTS.TES).
    pub enabled: bool,
    /// The latched translation table mode.
    pub mode: TranslationTableMode,
    /// Address of the latched root table.
    pub root_table: u64,
    /// Interrupt remapping is enabled (GSTS.IRES).
    pub interrupts: bool,
}

/// The state that decides what becomes of an interrupt request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct InterruptRemapping {
    /// GSTS.IRES.
    pub enabled: bool,
    /// GSTS.CFIS: requests in compatibility format pass.
    pub compatibility: bool,
    /// IRTA, as latched.
    pub table: InterruptRemapTableAddress,
}
