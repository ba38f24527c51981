// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! From a second stage alone to a guest's first stage nested on it, and back, while the entry stays present.

use vtd_spec::{AddressRange, Pasid, PasidGranularTranslationType, SourceId};

use crate::cache;
use crate::context::Attachment;
use crate::domain::DomainHandle;
use crate::error::Error;
use crate::iommu::Iommu;
use crate::memory::Memory;
use crate::pasid::NestedTable;
use crate::registers::Registers;

impl<R: Registers, M: Memory> Iommu<R, M> {
    /// Replaces what a PASID of a device has on a nest parent, its second stage alone or a table nested on it, by `table`
    /// nested on it, or by its second stage alone. What type an entry is and where the second stage lies share one quadword,
    /// and so does all of the first stage, which only a nested entry looks at: the device sees what was or what is, and
    /// never a mixture or nothing.
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
        match self.device(source_id)?.attachments.get(&pasid) {
            Some(Attachment::Domain(at) | Attachment::Nested(at)) if *at == domain => {}
            _ => return Err(Error::NotBound { source_id, pasid }),
        }
        let (entry, attachment) = match table {
            Some(table) => (self.nested_entry(domain, table)?, Attachment::Nested(domain)),
            None => {
                let entry = self.entry(PasidGranularTranslationType::SecondStage, Default::default());
                (self.with_second_stage(entry, domain)?, Attachment::Domain(domain))
            }
        };
        let address = self.pasid_entry_address(source_id, pasid)?;
        let qwords = entry.with_p(true).to_qwords();
        if table.is_some() {
            self.store_entry(address + 16, &[qwords[2]]);
        }
        self.store_entry(address, &[qwords[0]]);
        self.device_mut(source_id)?.attachments.insert(pasid, attachment);
        if let Some(parent) = self.domains.get_mut(&domain) {
            parent.remove_attachment(source_id, pasid, true);
            match attachment {
                Attachment::Nested(_) => parent.add_nested(source_id, pasid),
                _ => parent.add_attached(source_id, pasid),
            }
        }
        let did = entry.did();
        let mut descriptors = alloc::vec![cache::pasid_cache_pasid(did, pasid), cache::iotlb_domain(did)];
        descriptors.extend(self.device(source_id)?.device_tlb(pasid, AddressRange::ALL));
        self.submit(&descriptors)
    }
}
