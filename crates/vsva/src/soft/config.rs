// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a soft host is made of, and why there is none.

use vtd_unit::UnitConfig;

/// What a soft host is made of.
#[derive(Clone, Debug)]
pub struct SoftHostConfig {
    /// Its physical unit.
    pub unit: UnitConfig,
    /// PASIDs that the guest may have at a time. \[Linux vfio_pasid.c: pasid_quota\]
    pub pasid_quota: u32,
    /// Bytes of host memory for the driver's tables.
    pub table_bytes: u64,
    /// Whether the host's PASIDs are the guest's, as where PASID tables are a device's own.
    pub identical_pasids: bool,
}

impl Default for SoftHostConfig {
    fn default() -> Self {
        Self {
            unit: UnitConfig {
                cm: false,
                ssts: true,
                ssads: true,
                nest: true,
                haw: 48,
                fault_records: 32,
                ..UnitConfig::default()
            },
            pasid_quota: 1000,
            table_bytes: 64 << 20,
            identical_pasids: false,
        }
    }
}

/// Why there is no soft host.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SoftHostError {
    /// Guest memory is private to the guest.
    #[error("the soft host needs guest memory that is backed by a file (a memfd)")]
    NotShared,
    /// The memory cannot be mapped again.
    #[error("cannot map guest memory for the soft host: {0}")]
    Map(String),
    /// The pieces do not fit into the host's address space.
    #[error("guest memory does not fit into the soft host's address space")]
    Layout,
    /// The physical unit's options.
    #[error(transparent)]
    Unit(#[from] vtd_unit::ConfigError),
    /// Two functions of one name.
    #[error(transparent)]
    SourceId(#[from] vtd_unit::SourceIdInUse),
    /// The driver.
    #[error("soft host: {0}")]
    Driver(#[from] vtd_driver::Error),
    /// The PASID quota.
    #[error("soft host: {0}")]
    Quota(#[from] ioasid::Error),
    /// No thread.
    #[error("cannot start the soft host's interrupt thread: {0}")]
    Thread(String),
}
