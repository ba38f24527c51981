// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Another table in the place of one, and from a second stage alone to a table nested on it and back, while the entry stays
//! present.
//!
//! What type an entry is and where the second stage lies share one quadword, and so does all of the first stage (the table,
//! its mode and its options), which only a nested entry looks at: the device sees what was or what is, and never a mixture
//! or nothing. The domain-id, which changes with the type, is only a name for what is cached.

use alloc::vec::Vec;

use vtd_spec::{AddressRange, Pasid, PasidEntry, PasidGranularTranslationType, SourceId};

use crate::cache;
use crate::error::Error;
use crate::iommu::Iommu;
use crate::memory::Memory;
use crate::queue::unit_has_forgotten;
use crate::registers::Registers;
use crate::state::Attachment;
use crate::state::DomainHandle;
use crate::state::NestedTable;

impl<R: Registers, M: Memory> Iommu<R, M> {
    /// Replaces the first stage of a nested entry.
    ///
    /// # Errors
    ///
    /// Those of [`setup_nested`](Self::setup_nested), with the old table left in place; [`Error::NotBound`] where the
    /// PASID is not nested on this domain. With the queue's errors the new table is in place.
    pub fn replace_nested(
        &mut self,
        source_id: SourceId,
        pasid: Pasid,
        domain: DomainHandle,
        table: NestedTable,
    ) -> Result<(), Error> {
        let entry = self.nested_entry(domain, table)?;
        if self.attachment(source_id, pasid)? != Some(Attachment::Nested(domain)) {
            return Err(Error::NotBound { source_id, pasid });
        }
        self.store_first_stage(source_id, pasid, entry)?;
        let did = self.pasid_entry(source_id, pasid)?.did();
        self.submit_replaced(
            source_id,
            pasid,
            &[cache::pasid_cache_pasid(did, pasid), cache::pasid_iotlb(did, pasid)],
        )
    }

    /// Replaces what a PASID of a device has on a nest parent, its second stage alone or a table nested on it, by `table`
    /// nested on it, or by its second stage alone.
    ///
    /// # Errors
    ///
    /// Those of [`setup_nested`](Self::setup_nested), with everything left as it was; [`Error::NotBound`] where the PASID
    /// is not attached to this domain. With the queue's errors the new state is in place.
    pub fn replace_stages(
        &mut self,
        source_id: SourceId,
        pasid: Pasid,
        domain: DomainHandle,
        table: Option<NestedTable>,
    ) -> Result<(), Error> {
        if !self.domain(domain)?.is_nest_parent() {
            return Err(Error::NotNestParent);
        }
        let before = self.attachment(source_id, pasid)?;
        if ![Attachment::Domain(domain), Attachment::Nested(domain)].map(Some).contains(&before) {
            return Err(Error::NotBound { source_id, pasid });
        }
        let (entry, attachment) = match table {
            // Only the first stage changes: only the PASID's translations go.
            Some(table) if before == Some(Attachment::Nested(domain)) => {
                return self.replace_nested(source_id, pasid, domain, table);
            }
            Some(table) => {
                let entry = self.nested_entry(domain, table)?;
                (entry.with_did(self.nested_domain_id(domain)?), Attachment::Nested(domain))
            }
            None => {
                let entry = self.new_entry(PasidGranularTranslationType::SecondStage, Default::default());
                (self.with_second_stage(entry, domain)?, Attachment::Domain(domain))
            }
        };
        if table.is_some() {
            self.store_first_stage(source_id, pasid, entry)?;
        }
        let address = self.pasid_entry_address(source_id, pasid)?;
        let (old, new) = (self.pasid_entry(source_id, pasid)?.did(), entry.did());
        let qwords = entry.with_p(true).to_qwords();
        // Whatever is cached between the two is what was, under the new domain-id, which is flushed below as well.
        self.store_entry(address + 8, &[qwords[1]]);
        self.store_entry(address, &[qwords[0]]);
        self.device_mut(source_id)?.attachments.insert(pasid, attachment);
        let mut gone = None;
        if let Some(parent) = self.domains.get_mut(&domain) {
            gone = parent.remove_attachment(source_id, pasid, true);
            match attachment {
                Attachment::Nested(_) => parent.add_nested(source_id, pasid, new),
                _ => parent.add_attached(source_id, pasid),
            }
        }
        let mut descriptors = Vec::new();
        for did in [old, new].into_iter().take(if old == new { 1 } else { 2 }) {
            descriptors.extend([cache::pasid_cache_pasid(did, pasid), cache::iotlb_domain(did)]);
        }
        let replaced = self.submit_replaced(source_id, pasid, &descriptors);
        if let Some(id) = gone.filter(|_| unit_has_forgotten(&replaced)) {
            self.domain_ids.free(id);
        }
        replaced
    }

    fn attachment(&self, source_id: SourceId, pasid: Pasid) -> Result<Option<Attachment>, Error> {
        Ok(self.device(source_id)?.attachments.get(&pasid).copied())
    }

    /// The quadword of the first stage.
    fn store_first_stage(
        &mut self,
        source_id: SourceId,
        pasid: Pasid,
        entry: PasidEntry,
    ) -> Result<(), Error> {
        let address = self.pasid_entry_address(source_id, pasid)?;
        self.store_entry(address + 16, &[entry.to_qwords()[2]]);
        Ok(())
    }

    /// Flushes what was cached of a replaced entry, the device's cache last.
    fn submit_replaced(
        &mut self,
        source_id: SourceId,
        pasid: Pasid,
        unit: &[vtd_spec::Descriptor],
    ) -> Result<(), Error> {
        let mut descriptors = unit.to_vec();
        descriptors.extend(self.device(source_id)?.device_tlb(pasid, AddressRange::ALL));
        self.submit(&descriptors)
    }
}
