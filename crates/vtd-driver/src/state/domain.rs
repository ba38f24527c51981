// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A domain: its table, its domain-id, and who uses it.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use vtd_spec::{AddressRange, AddressWidth, Descriptor, DomainId, Pasid, SourceId};

use super::device_config::Ats;
use super::domain_id::Stage;
use crate::cache;
use crate::page_table::PageTable;

/// A domain.
pub(crate) struct Domain {
    pub(crate) id: DomainId,
    pub(crate) stage: Stage,
    pub(crate) table: PageTable,
    pub(crate) nest_parent: bool,
    pub(crate) attached: BTreeSet<(SourceId, Pasid)>,
    /// How many PASIDs of each device are nested on it.
    pub(crate) nested: BTreeMap<SourceId, BTreeSet<Pasid>>,
    /// An invalidation failed when a PASID was detached: the unit may go on using the table and what the domain-id tags.
    pub(crate) lingers: bool,
}

impl Domain {
    pub(crate) fn root(&self) -> u64 {
        self.table.root
    }

    pub(crate) fn second_stage(&self) -> Option<AddressWidth> {
        match self.stage {
            Stage::First(_) => None,
            Stage::Second(width) => Some(width),
        }
    }

    /// The last address it can map.
    pub(crate) fn last_address(&self) -> u64 {
        self.table.last
    }

    pub(crate) fn is_nest_parent(&self) -> bool {
        self.nest_parent
    }

    pub(crate) fn add_attached(&mut self, source_id: SourceId, pasid: Pasid) {
        self.attached.insert((source_id, pasid));
    }

    pub(crate) fn add_nested(&mut self, source_id: SourceId, pasid: Pasid) {
        self.nested.entry(source_id).or_default().insert(pasid);
    }

    /// `forgotten`: the unit no longer uses the domain for this PASID.
    pub(crate) fn remove_attachment(&mut self, source_id: SourceId, pasid: Pasid, forgotten: bool) {
        self.lingers |= !forgotten;
        self.attached.remove(&(source_id, pasid));
        if let Some(pasids) = self.nested.get_mut(&source_id) {
            pasids.remove(&pasid);
            if pasids.is_empty() {
                self.nested.remove(&source_id);
            }
        }
    }

    /// Everything that a device may have translated by PASIDs nested on this domain: the addresses are the guest's, and
    /// all of them may lead to what has changed.
    pub(crate) fn nested_device_tlb(&self, source_id: SourceId, ats: Ats) -> Vec<Descriptor> {
        let mut descriptors = Vec::new();
        for pasid in self.nested.get(&source_id).into_iter().flatten() {
            if *pasid != Pasid::ZERO && ats.global_invalidate {
                descriptors.push(cache::global_device_tlb(source_id, ats, AddressRange::ALL));
                break;
            }
            descriptors.push(cache::device_tlb_of_pasid(source_id, ats, *pasid, AddressRange::ALL));
        }
        descriptors
    }

    pub(crate) fn is_attached(&self) -> bool {
        !self.attached.is_empty() || !self.nested.is_empty()
    }
}
