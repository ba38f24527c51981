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

/// What was commanded and is not in effect yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct PendingCommand {
    /// Counts commands: those after it are not in this.
    pub number: u64,
    /// The root table pointer is to be set.
    pub srtp: bool,
    /// The interrupt remapping table pointer is to be set.
    pub sirtp: bool,
    /// Requests are remapped otherwise, or no longer, or from now on.
    pub remaps: bool,
    /// The same of interrupts.
    pub filters: bool,
}

impl PendingCommand {
    /// Whether whoever mirrors the tables must look again.
    pub(crate) const fn remaps(&self) -> bool {
        self.remaps
    }

    /// Whether functions treat their requests otherwise: those to the interrupt range depend on both.
    pub(crate) const fn concerns_requests(&self) -> bool {
        self.remaps || self.filters
    }

    /// Whether interrupts are treated otherwise.
    pub(crate) const fn concerns_interrupts(&self) -> bool {
        self.filters || self.sirtp
    }
}
