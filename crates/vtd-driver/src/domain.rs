// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Domains: a table, its domain-id, and the devices that use it (Linux iommu.c, cache.c).

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use vtd_spec::{
    AddressRange, AddressWidth, Capabilities, Descriptor, DomainId, FirstStagePagingMode, Pasid, SourceId,
};

use crate::cache;
use crate::context::Ats;
use crate::error::Error;
use crate::iommu::{FIRST_STAGE_DID, Iommu};
use crate::memory::Memory;
use crate::page_table::{Access, Mapping, PageTable};
use crate::pasid::FirstStageTable;
use crate::queue::unit_has_forgotten;
use crate::registers::Registers;

/// The stage that a domain's table is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stage {
    /// First stage: the processor's format.
    First(FirstStagePagingMode),
    /// Second stage. The width may exceed the unit's: the levels that it lacks are skipped, and what only they could reach
    /// is out of range.
    Second(AddressWidth),
}

/// A domain of one unit. Never used again for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DomainHandle(u64);

/// A domain.
pub(crate) struct Domain {
    pub(crate) id: DomainId,
    stage: Stage,
    table: PageTable,
    nest_parent: bool,
    attached: BTreeSet<(SourceId, Pasid)>,
    /// How many PASIDs of each device are nested on it.
    nested: BTreeMap<SourceId, BTreeSet<Pasid>>,
    /// An invalidation failed when a PASID was detached: the unit may go on using the table and what the domain-id tags.
    lingers: bool,
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

    fn is_attached(&self) -> bool {
        !self.attached.is_empty() || !self.nested.is_empty()
    }
}

/// Domain-ids: 0 belongs to hardware in caching mode, 1 to tables that are no domain's.
pub(crate) struct DomainIds {
    used: Vec<u64>,
    limit: u32,
}

impl DomainIds {
    pub(crate) fn new(capabilities: &Capabilities) -> Self {
        let used = alloc::vec![1 | 1 << FIRST_STAGE_DID.0];
        Self { used, limit: u32::from(capabilities.did_mask()) + 1 }
    }

    fn allocate(&mut self) -> Result<DomainId, Error> {
        let word = match self.used.iter().position(|word| *word != u64::MAX) {
            Some(word) => word,
            None => {
                self.used.push(0);
                self.used.len() - 1
            }
        };
        let bit = self.used[word].trailing_ones();
        let id = word as u32 * 64 + bit;
        if id >= self.limit {
            return Err(Error::NoDomainId);
        }
        self.used[word] |= 1 << bit;
        Ok(DomainId(id as u16))
    }

    fn free(&mut self, id: DomainId) {
        if let Some(word) = self.used.get_mut(usize::from(id.0 / 64)) {
            *word &= !(1 << (id.0 % 64));
        }
    }
}

impl<R: Registers, M: Memory> Iommu<R, M> {
    pub(crate) fn domain(&self, domain: DomainHandle) -> Result<&Domain, Error> {
        self.domains.get(&domain).ok_or(Error::NoSuchDomain)
    }

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
            let descriptor = cache::iotlb_pages(domain.id, range, false, &self.capabilities);
            return self.submit(&[descriptor]);
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
                // Of nested translations this takes all, since their addresses are others. [S table 23]
                Stage::Second(_) => {
                    descriptors.push(cache::iotlb_pages(domain.id, range, leaf, &self.capabilities));
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
