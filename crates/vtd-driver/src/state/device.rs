// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A device: its PASID directory, and what its PASIDs are attached to.

use alloc::collections::{BTreeMap, BTreeSet};

use vtd_spec::{AddressRange, Descriptor, Pasid};

use super::device_config::DeviceConfig;
use super::domain_id::DomainHandle;
use crate::cache;

/// What a PASID of a device is attached to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Attachment {
    /// A domain's own table.
    Domain(DomainHandle),
    /// A guest's first stage on a domain.
    Nested(DomainHandle),
    /// A first-stage table that somebody else keeps.
    Table,
    /// No translation.
    PassThrough,
}

/// A device behind the unit.
pub(crate) struct Device {
    pub(crate) config: DeviceConfig,
    pub(crate) directory: u64,
    pub(crate) directory_pages: usize,
    pub(crate) attachments: BTreeMap<Pasid, Attachment>,
    /// Entries of the directory whose tables have been left empty.
    pub(crate) left_empty: BTreeSet<u32>,
}

impl Device {
    /// The first PASID it does not have. A device without PASIDs still has entry 0, for its requests without.
    pub(crate) fn pasid_limit(&self) -> u32 {
        1 << self.config.pasid_bits
    }

    /// Whether a table of the directory, by its entry, has nothing attached.
    pub(crate) fn is_empty(&self, table: u32) -> bool {
        let pasid = |number| Pasid::truncated(table << 6 | number);
        self.attachments.range(pasid(0)..=pasid(63)).next().is_none()
    }

    /// The invalidation of what the device may have translated by a PASID.
    pub(crate) fn device_tlb(&self, pasid: Pasid, range: AddressRange) -> Option<Descriptor> {
        let ats = self.config.ats?;
        Some(cache::device_tlb_of_pasid(self.config.source_id, ats, pasid, range))
    }
}
