// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Domains: a table, its domain-id, and the devices that use it (Linux iommu.c, cache.c).

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use vtd_spec::{AddressRange, AddressWidth, Descriptor, DomainId, Pasid, SourceId};

use crate::cache;
use crate::error::Error;
use crate::iommu::Iommu;
use crate::memory::Memory;
use crate::page_table::{Access, Mapping, PageTable};
use crate::queue::unit_has_forgotten;
use crate::registers::Registers;
use crate::state::{Attachment, FIRST_STAGE_DID, FirstStageTable};
use crate::state::{Domain, DomainHandle, Stage};

impl<R: Registers, M: Memory> Iommu<R, M> {
    /// A domain with an empty table.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] where the unit lacks the stage; [`Error::NoDomainId`]; [`Error::OutOfMemory`].
    pub fn create_domain(&mut self, stage: Stage) -> Result<DomainHandle, Error> {
        self.new_domain(stage, false)
    }

    /// A second-stage domain that guests' first stages can be nested on.
    ///
    /// # Errors
    ///
    /// Those of [`create_domain`](Self::create_domain); the unit needs ECAP.NEST.
    pub fn create_nest_parent(&mut self, width: AddressWidth) -> Result<DomainHandle, Error> {
        if !self.capabilities.ecap.nest() {
            return Err(Error::lacks("nested translation (ECAP.NEST)"));
        }
        self.new_domain(Stage::Second(width), true)
    }

    fn new_domain(&mut self, stage: Stage, nest_parent: bool) -> Result<DomainHandle, Error> {
        let ecap = self.capabilities.ecap;
        match stage {
            Stage::First(_) if !ecap.fsts() => {
                return Err(Error::lacks("first-stage translation (ECAP.FSTS)"));
            }
            Stage::First(mode) if !mode.is_supported(self.capabilities.cap) => {
                return Err(Error::lacks("5-level first-stage tables (CAP.FS5LP)"));
            }
            Stage::Second(_) if !ecap.ssts() => {
                return Err(Error::lacks("second-stage translation (ECAP.SSTS)"));
            }
            _ => {}
        }
        let table = PageTable::new(&self.memory, stage, &self.capabilities, self.walks_are_coherent())?;
        let id = match self.domain_ids.allocate() {
            Ok(id) => id,
            Err(error) => {
                self.memory.free(table.root, 1);
                return Err(error);
            }
        };
        let handle = DomainHandle(self.next_domain);
        self.next_domain += 1;
        let (attached, nested) = (BTreeSet::new(), BTreeMap::new());
        let domain = Domain { id, stage, table, nest_parent, attached, nested, lingers: false };
        self.domains.insert(handle, domain);
        Ok(handle)
    }

    /// Ends a domain and frees its tables; they and the domain-id stay out of use where the unit may still use them.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchDomain`], [`Error::DomainBusy`].
    pub fn destroy_domain(&mut self, domain: DomainHandle) -> Result<(), Error> {
        if self.domain(domain)?.is_attached() {
            return Err(Error::DomainBusy);
        }
        if let Some(gone) = self.domains.remove(&domain) {
            // Each detachment has invalidated all there was of it, or failed to.
            self.release_tables(gone.table.tables(&self.memory), !gone.lingers);
            if !gone.lingers {
                self.domain_ids.free(gone.id);
            }
        }
        Ok(())
    }

    /// Frees all domains, for a unit that is off.
    pub(crate) fn free_domains(&mut self) {
        for domain in core::mem::take(&mut self.domains).values() {
            for table in domain.table.tables(&self.memory) {
                self.memory.free(table, 1);
            }
        }
    }

    /// The domain-id that tags the domain's translations.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchDomain`].
    pub fn domain_id(&self, domain: DomainHandle) -> Result<DomainId, Error> {
        Ok(self.domain(domain)?.id)
    }

    /// The domain-id that tags what a PASID of a device has cached, where it is attached; PASID
    /// 0 stands for requests without PASID. Each PASID that is nested has one of its own, as long as there are any.
    pub fn domain_id_of(&self, source_id: SourceId, pasid: Pasid) -> Option<DomainId> {
        match self.device(source_id).ok()?.attachments.get(&pasid)? {
            Attachment::Domain(domain) => self.domain_id(*domain).ok(),
            Attachment::Nested(domain) => self.domain(*domain).ok()?.nested_id(source_id, pasid),
            Attachment::Table | Attachment::PassThrough => Some(FIRST_STAGE_DID),
        }
    }

    /// Attaches a device's PASID to a domain; PASID 0 stands for its requests without PASID.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchDomain`], [`Error::NoSuchDevice`], [`Error::PasidOutOfRange`], [`Error::PasidBusy`],
    /// [`Error::LevelsNotSkippable`], [`Error::OutOfMemory`], the queue's.
    pub fn attach(&mut self, domain: DomainHandle, source_id: SourceId, pasid: Pasid) -> Result<(), Error> {
        let (id, root, stage) = {
            let domain = self.domain(domain)?;
            (domain.id, domain.root(), domain.stage)
        };
        match stage {
            Stage::First(mode) => {
                let table = FirstStageTable { root, mode };
                self.set_up_first_stage(source_id, pasid, table, Some((domain, id)))?;
            }
            Stage::Second(_) => self.set_up_second_stage(source_id, pasid, domain)?,
        }
        if let Some(domain) = self.domains.get_mut(&domain) {
            domain.add_attached(source_id, pasid);
        }
        Ok(())
    }

    /// Maps `length` bytes at `address` to `physical`, in the largest pages that fit.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchDomain`], [`Error::Misaligned`], [`Error::OutOfRange`], [`Error::AlreadyMapped`],
    /// [`Error::OutOfMemory`]; nothing of the range is mapped then. With the queue's errors it is mapped, but the unit may
    /// not know it yet.
    pub fn map(
        &mut self,
        domain: DomainHandle,
        address: u64,
        physical: u64,
        length: u64,
        access: Access,
    ) -> Result<(), Error> {
        let table = &self.domain(domain)?.table;
        match table.map(&self.memory, address, physical, length, access) {
            Ok(()) => self.flush_new_range(domain, address, length),
            Err((error, mapped)) => {
                if mapped != 0 {
                    self.unmap(domain, address, mapped)?;
                }
                Err(error)
            }
        }
    }

    /// Entries became present: with caching mode the unit may have cached that second-stage ones were not
    /// (cache.c:cache_tag_flush_range_np). \[S 6.1\]
    fn flush_new_range(&mut self, domain: DomainHandle, address: u64, length: u64) -> Result<(), Error> {
        let domain = self.domain(domain)?;
        if !domain.is_attached() {
            return Ok(());
        }
        if self.capabilities.cap.cm() && domain.second_stage().is_some() {
            let range = AddressRange::covering(address, address + (length - 1));
            let page = cache::iotlb_pages(domain.id, range, false, &self.capabilities);
            return self.submit(&domain.second_stage_flush(page));
        }
        self.flush_write_buffer()
    }

    /// Unmaps whatever is mapped in `length` bytes at `address`. When this returns no device can reach it any more, and
    /// tables that have become superfluous are freed.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchDomain`], [`Error::Misaligned`], [`Error::OutOfRange`]; [`Error::WithinLargePage`] where the range
    /// begins or ends inside a large page. With the queue's errors the range is unmapped, but a device that did not
    /// answer may still have it in its cache.
    pub fn unmap(&mut self, domain: DomainHandle, address: u64, length: u64) -> Result<(), Error> {
        let mut freed = Vec::new();
        let table = &self.domain(domain)?.table;
        if !table.unmap(&self.memory, address, length, &mut freed)? {
            return Ok(());
        }
        let range = AddressRange::covering(address, address + (length - 1));
        let descriptors = self.range_flush(domain, range, freed.is_empty())?;
        let flushed = if descriptors.is_empty() { Ok(()) } else { self.submit(&descriptors) };
        let lingers = self.domain(domain)?.lingers;
        self.release_tables(freed, unit_has_forgotten(&flushed) && !lingers);
        flushed
    }

    /// What makes everybody forget a range of a domain (cache.c:cache_tag_flush_range): the IOTLB, then the devices.
    fn range_flush(
        &self,
        handle: DomainHandle,
        range: AddressRange,
        leaf: bool,
    ) -> Result<Vec<Descriptor>, Error> {
        let domain = self.domain(handle)?;
        let mut descriptors = Vec::new();
        if domain.is_attached() {
            match domain.stage {
                Stage::First(_) => {
                    let pasids: BTreeSet<Pasid> = domain.attached.iter().map(|(_, pasid)| *pasid).collect();
                    descriptors.extend(
                        pasids.iter().map(|pasid| cache::pasid_iotlb_pages(domain.id, *pasid, range, leaf)),
                    );
                }
                Stage::Second(_) => {
                    let page = cache::iotlb_pages(domain.id, range, leaf, &self.capabilities);
                    descriptors.extend(domain.second_stage_flush(page));
                }
            }
        }
        for (source_id, pasid) in &domain.attached {
            descriptors.extend(self.device(*source_id)?.device_tlb(*pasid, range));
        }
        for source_id in domain.nested.keys() {
            if let Some(ats) = self.device(*source_id)?.config.ats {
                descriptors.extend(domain.nested_device_tlb(*source_id, ats));
            }
        }
        Ok(descriptors)
    }

    /// What an address of a domain is mapped to.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchDomain`].
    pub fn lookup(&self, domain: DomainHandle, address: u64) -> Result<Option<Mapping>, Error> {
        Ok(self.domain(domain)?.table.lookup(&self.memory, address))
    }
}

#[cfg(test)]
mod tests;
