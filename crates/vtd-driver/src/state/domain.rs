// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A domain: its table, its domain-id, and who uses it.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use vtd_spec::{AddressRange, AddressWidth, Descriptor, DomainId, Pasid, SourceId};

use super::device_config::Ats;
use super::domain_id::Stage;
use crate::cache;
use crate::page_table::PageTable;

/// Beyond so many domain-ids, or entries, all is forgotten at once.
const MAX_NESTED_FLUSHES: usize = 16;

/// A domain.
pub(crate) struct Domain {
    pub(crate) id: DomainId,
    pub(crate) stage: Stage,
    pub(crate) table: PageTable,
    pub(crate) nest_parent: bool,
    pub(crate) attached: BTreeSet<(SourceId, Pasid)>,
    /// The PASIDs of each device that are nested on it, with the domain-id that tags what each has cached: one of its own,
    /// so that what a page request takes out of the caches on its way is not the other PASIDs' (section 6.5.3.1; Linux
    /// nested.c), or the domain's where none was left.
    pub(crate) nested: BTreeMap<SourceId, BTreeMap<Pasid, DomainId>>,
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

    pub(crate) fn add_nested(&mut self, source_id: SourceId, pasid: Pasid, id: DomainId) {
        self.nested.entry(source_id).or_default().insert(pasid, id);
    }

    /// The domain-id of what a PASID that is nested here has cached.
    pub(crate) fn nested_id(&self, source_id: SourceId, pasid: Pasid) -> Option<DomainId> {
        self.nested.get(&source_id)?.get(&pasid).copied()
    }

    /// What makes the unit forget all that second-stage entries of `range` have a part in. `page` is the descriptor for the
    /// domain's own domain-id.
    pub(crate) fn second_stage_flush(&self, page: Descriptor) -> Vec<Descriptor> {
        let nested = || self.nested.values().flat_map(BTreeMap::values).filter(|id| **id != self.id);
        if nested().nth(MAX_NESTED_FLUSHES).is_some() {
            return alloc::vec![cache::iotlb_global()];
        }
        // The addresses of nested translations are others: all of them go. [S table 23]
        let mut descriptors = alloc::vec![page];
        descriptors.extend(nested().map(|id| cache::iotlb_domain(*id)));
        descriptors
    }

    /// What makes the unit forget the PASID table entries of a device's PASIDs that are nested here.
    pub(crate) fn nested_pasid_cache(&self, source_id: SourceId) -> Vec<Descriptor> {
        let pasids = self.nested.get(&source_id);
        match pasids.map_or(0, BTreeMap::len) {
            0 => alloc::vec![cache::pasid_cache_domain(self.id)],
            1..=MAX_NESTED_FLUSHES => pasids
                .into_iter()
                .flatten()
                .map(|(pasid, id)| cache::pasid_cache_pasid(*id, *pasid))
                .collect(),
            _ => alloc::vec![cache::pasid_cache_global()],
        }
    }

    /// `forgotten`: the unit no longer uses the domain for this PASID. What comes back is the domain-id that was the
    /// PASID's own, and can be another's if the unit has forgotten it.
    pub(crate) fn remove_attachment(
        &mut self,
        source_id: SourceId,
        pasid: Pasid,
        forgotten: bool,
    ) -> Option<DomainId> {
        self.lingers |= !forgotten;
        self.attached.remove(&(source_id, pasid));
        let pasids = self.nested.get_mut(&source_id)?;
        let id = pasids.remove(&pasid);
        if pasids.is_empty() {
            self.nested.remove(&source_id);
        }
        id.filter(|id| *id != self.id)
    }

    /// Everything that a device may have translated by PASIDs nested on this domain: the addresses are the guest's, and
    /// all of them may lead to what has changed.
    pub(crate) fn nested_device_tlb(&self, source_id: SourceId, ats: Ats) -> Vec<Descriptor> {
        let mut descriptors = Vec::new();
        for pasid in self.nested.get(&source_id).into_iter().flat_map(BTreeMap::keys) {
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
