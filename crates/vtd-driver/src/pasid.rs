// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! PASID tables and their entries (Linux pasid.c): set-up of each type, teardown with its flushes in order.
//!
//! PASID 0 is the device's own entry, for requests without PASID (RID_PASID).

use alloc::vec::Vec;

use vtd_spec::{
    AddressRange, AddressWidth, DomainId, FirstStagePagingMode, Pasid, PasidDirectoryEntry, PasidEntry,
    PasidGranularTranslationType, SecondStageEntry, SourceId,
};

use crate::cache;
use crate::error::Error;
use crate::iommu::Iommu;
use crate::memory::Memory;
use crate::page_table::walked_width;
use crate::queue::unit_has_forgotten;
use crate::registers::Registers;
use crate::state::DomainHandle;
use crate::state::FIRST_STAGE_DID;
use crate::state::{Attachment, FirstStageTable, NestedTable};

/// Empty PASID tables that a device keeps: the next PASID is likely to lie in one.
const EMPTY_TABLES: usize = 16;

impl<R: Registers, M: Memory> Iommu<R, M> {
    /// Address of the entry of a PASID; makes the table where there is none.
    pub(crate) fn pasid_entry_address(&self, source_id: SourceId, pasid: Pasid) -> Result<u64, Error> {
        let device = self.device(source_id)?;
        if pasid.get() >= device.pasid_limit() {
            return Err(Error::PasidOutOfRange { source_id, pasid });
        }
        let directory = device.directory + 8 * u64::from(pasid.get() >> 6);
        let mut entry = PasidDirectoryEntry::from_bits(self.memory.load(directory));
        if !entry.p() {
            let table = self.allocate_table(1)?;
            let new = PasidDirectoryEntry::new().with_p(true).with_smptblptr(table);
            match self.memory.compare_exchange(directory, entry.into_bits(), new.into_bits()) {
                Ok(()) => {
                    self.flush_entry(directory, 1);
                    entry = new;
                }
                Err(found) => {
                    self.memory.free(table, 1);
                    entry = PasidDirectoryEntry::from_bits(found);
                }
            }
        }
        Ok(entry.smptblptr() + 64 * u64::from(pasid.get() & 0x3f))
    }

    /// The PASID table entry as it stands in memory; zero where there is no table.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchDevice`], [`Error::PasidOutOfRange`].
    pub fn pasid_entry(&self, source_id: SourceId, pasid: Pasid) -> Result<PasidEntry, Error> {
        let device = self.device(source_id)?;
        if pasid.get() >= device.pasid_limit() {
            return Err(Error::PasidOutOfRange { source_id, pasid });
        }
        let directory = self.memory.load(device.directory + 8 * u64::from(pasid.get() >> 6));
        let directory = PasidDirectoryEntry::from_bits(directory);
        if !directory.p() {
            return Ok(PasidEntry::new());
        }
        let address = directory.smptblptr() + 64 * u64::from(pasid.get() & 0x3f);
        let mut qwords = [0; 8];
        for (index, qword) in qwords.iter_mut().enumerate() {
            *qword = self.memory.load(address + 8 * index as u64);
        }
        Ok(PasidEntry::from_qwords(qwords))
    }

    /// Makes an entry present: everything else first, P last; then the flushes of a new entry
    /// (pasid.c:pasid_flush_caches). On failure the entry is as before: not present.
    fn set_up_entry(
        &mut self,
        source_id: SourceId,
        pasid: Pasid,
        entry: PasidEntry,
        attachment: Attachment,
    ) -> Result<(), Error> {
        let device = self.device(source_id)?;
        if device.attachments.contains_key(&pasid) {
            return Err(Error::PasidBusy { source_id, pasid });
        }
        let address = self.pasid_entry_address(source_id, pasid)?;
        if PasidEntry::from_qwords([self.memory.load(address), 0, 0, 0, 0, 0, 0, 0]).p() {
            return Err(Error::PasidBusy { source_id, pasid });
        }
        self.store_entry(address, &[0; 8]);
        self.store_entry(address, &entry.with_p(true).to_qwords());
        self.device_mut(source_id)?.attachments.insert(pasid, attachment);
        let did = entry.did();
        let flushed = if self.capabilities.cap.cm() {
            self.submit(&[cache::pasid_cache_pasid(did, pasid), cache::pasid_iotlb(did, pasid)])
        } else {
            self.flush_write_buffer()
        };
        if let Err(error) = flushed {
            // The entry may be in use already.
            let _ = self.tear_down(source_id, pasid, false);
            return Err(error);
        }
        Ok(())
    }

    /// What every new entry has: the domain-id, and walks that snoop where they can.
    pub(crate) fn new_entry(&self, pgtt: PasidGranularTranslationType, did: DomainId) -> PasidEntry {
        PasidEntry::new().with_pgtt(pgtt).with_did(did).with_pwsnp(self.capabilities.ecap.smpwc())
    }

    /// The largest second-stage width of the unit, which Linux writes to AW where the field is ignored.
    fn widest(&self) -> u8 {
        walked_width(AddressWidth::Bits57, self.capabilities.cap).map_or(0, AddressWidth::into_bits)
    }

    fn check_first_stage(&self, mode: FirstStagePagingMode) -> Result<(), Error> {
        if !self.capabilities.ecap.fsts() {
            return Err(Error::lacks("first-stage translation (ECAP.FSTS)"));
        }
        if !mode.is_supported(self.capabilities.cap) {
            return Err(Error::lacks("5-level first-stage tables (CAP.FS5LP)"));
        }
        Ok(())
    }

    /// First stage only (pasid.c:intel_pasid_setup_first_level).
    pub(crate) fn set_up_first_stage(
        &mut self,
        source_id: SourceId,
        pasid: Pasid,
        table: FirstStageTable,
        domain: Option<(DomainHandle, DomainId)>,
    ) -> Result<(), Error> {
        self.check_first_stage(table.mode)?;
        if table.root & 0xfff != 0 || table.root & self.capabilities.address_reserved() != 0 {
            return Err(Error::TableOutOfRange { address: table.root });
        }
        let (did, attachment) = match domain {
            Some((handle, did)) => (did, Attachment::Domain(handle)),
            None => (FIRST_STAGE_DID, Attachment::Table),
        };
        let entry = self
            .new_entry(PasidGranularTranslationType::FirstStage, did)
            .with_aw(self.widest())
            .with_fspm(table.mode.into_bits())
            .with_fsptptr(table.root);
        self.set_up_entry(source_id, pasid, entry, attachment)
    }

    /// Second stage only (pasid.c:intel_pasid_setup_second_level).
    pub(crate) fn set_up_second_stage(
        &mut self,
        source_id: SourceId,
        pasid: Pasid,
        domain: DomainHandle,
    ) -> Result<(), Error> {
        if !self.capabilities.ecap.ssts() {
            return Err(Error::lacks("second-stage translation (ECAP.SSTS)"));
        }
        let entry = self.new_entry(PasidGranularTranslationType::SecondStage, DomainId(0));
        let entry = self.with_second_stage(entry, domain)?;
        self.set_up_entry(source_id, pasid, entry, Attachment::Domain(domain))
    }

    /// No translation (pasid.c:intel_pasid_setup_pass_through).
    pub(crate) fn set_up_pass_through(&mut self, source_id: SourceId, pasid: Pasid) -> Result<(), Error> {
        if !self.capabilities.ecap.pt() {
            return Err(Error::lacks("pass-through (ECAP.PT)"));
        }
        let entry =
            self.new_entry(PasidGranularTranslationType::PassThrough, FIRST_STAGE_DID).with_aw(self.widest());
        self.set_up_entry(source_id, pasid, entry, Attachment::PassThrough)
    }

    /// A guest's first stage nested on a second-stage domain (V9 patch 03: `intel_pasid_setup_nested`).
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] without nesting, 5 levels, supervisor requests or extended-accessed flags where they are
    /// asked for; [`Error::NotNestParent`]; [`Error::AddressWidth`]; [`Error::MemoryTypes`];
    /// [`Error::TableOutOfRange`]; [`Error::LevelsNotSkippable`]; [`Error::PasidOutOfRange`]; [`Error::PasidBusy`] where
    /// the entry is present; [`Error::OutOfMemory`]; the queue's.
    pub fn setup_nested(
        &mut self,
        source_id: SourceId,
        pasid: Pasid,
        domain: DomainHandle,
        table: NestedTable,
    ) -> Result<(), Error> {
        let entry = self.nested_entry(domain, table)?;
        let id = self.nested_domain_id(domain)?;
        match self.set_up_entry(source_id, pasid, entry.with_did(id), Attachment::Nested(domain)) {
            Ok(()) => {
                if let Some(parent) = self.domains.get_mut(&domain) {
                    parent.add_nested(source_id, pasid, id);
                }
                Ok(())
            }
            // The unit may have seen it, and has not said that it has forgotten.
            Err(error) if error.is_queues() => Err(error),
            Err(error) => {
                self.free_nested_domain_id(domain, id);
                Err(error)
            }
        }
    }

    /// A domain-id for what one PASID that is nested on a domain will have cached; the domain's where none is left.
    pub(crate) fn nested_domain_id(&mut self, domain: DomainHandle) -> Result<DomainId, Error> {
        let id = self.domain(domain)?.id;
        Ok(self.domain_ids.allocate().unwrap_or(id))
    }

    /// Gives back what [`Self::nested_domain_id`] gave.
    fn free_nested_domain_id(&mut self, domain: DomainHandle, id: DomainId) {
        let own = self.domains.get(&domain).map(|domain| domain.id);
        if Some(id) != own {
            self.domain_ids.free(id);
        }
    }

    /// A PASID entry for `table` nested on a domain, under the domain's own domain-id.
    pub(crate) fn nested_entry(&self, domain: DomainHandle, table: NestedTable) -> Result<PasidEntry, Error> {
        let ecap = self.capabilities.ecap;
        if !ecap.nest() {
            return Err(Error::lacks("nested translation (ECAP.NEST)"));
        }
        let parent = self.domain(domain)?;
        if !parent.is_nest_parent() {
            return Err(Error::NotNestParent);
        }
        let mode = match table.address_width {
            48 => FirstStagePagingMode::Level4,
            57 => FirstStagePagingMode::Level5,
            bits => return Err(Error::AddressWidth { bits }),
        };
        self.check_first_stage(mode)?;
        if table.sre && !ecap.srs() {
            return Err(Error::lacks("supervisor requests (ECAP.SRS)"));
        }
        if table.eafe && !ecap.eafs() {
            return Err(Error::lacks("extended-accessed flags (ECAP.EAFS)"));
        }
        if table.memory_types {
            return Err(Error::MemoryTypes);
        }
        let root = table.root & !0xfff;
        // A guest address: bounded by the parent, and by what the field may hold.
        if root > parent.last_address() || root & self.capabilities.address_reserved() != 0 {
            return Err(Error::TableOutOfRange { address: table.root });
        }
        let entry = self
            .new_entry(PasidGranularTranslationType::Nested, DomainId(0))
            .with_fspm(mode.into_bits())
            .with_fsptptr(root)
            .with_sre(table.sre)
            .with_wpe(table.wpe && table.sre)
            .with_eafe(table.eafe);
        self.with_second_stage(entry, domain)
    }

    /// The second-stage half of an entry: the domain's table from the level down that the unit has (Linux
    /// iommu.c:iommu_skip_agaw), and the domain's id.
    pub(crate) fn with_second_stage(
        &self,
        entry: PasidEntry,
        domain: DomainHandle,
    ) -> Result<PasidEntry, Error> {
        let domain = self.domain(domain)?;
        let walked = domain
            .second_stage()
            .and_then(|width| Some((width.levels(), walked_width(width, self.capabilities.cap)?)));
        let (mut root, Some((levels, walked))) = (domain.root(), walked) else {
            return Err(Error::NotNestParent);
        };
        for level in (walked.levels() + 1..=levels).rev() {
            let top = SecondStageEntry::from_bits(self.memory.load(root));
            if !top.present(false) {
                return Err(Error::LevelsNotSkippable);
            }
            root = top.address(level);
        }
        Ok(entry.with_did(domain.id).with_ssptptr(root).with_aw(walked.into_bits()))
    }

    /// Takes an entry away (pasid.c:intel_pasid_tear_down_entry): P cleared; PASID cache; the PASID-based IOTLB for first
    /// stage and pass-through, the domain's IOTLB for second stage and nested; the device-TLB; the entry zeroed.
    ///
    /// `ignore_faults` leaves FPD set: the device may go on using the PASID, and its faults are of no interest. Such an
    /// entry counts as attached until it is torn down in full. Otherwise page requests of the PASID are drained as well.
    pub(crate) fn tear_down(
        &mut self,
        source_id: SourceId,
        pasid: Pasid,
        ignore_faults: bool,
    ) -> Result<(), Error> {
        let device = self.device(source_id)?;
        let attachment = *device.attachments.get(&pasid).ok_or(Error::NotBound { source_id, pasid })?;
        let drain = device.config.page_requests && !ignore_faults;
        let device_tlb = device.device_tlb(pasid, AddressRange::ALL);
        let address = self.pasid_entry_address(source_id, pasid)?;
        let entry = self.pasid_entry(source_id, pasid)?;
        let did = entry.did();

        let mut result = Ok(());
        if entry.p() {
            self.store_entry(address, &[entry.with_p(false).to_qwords()[0]]);
            let mut descriptors = Vec::with_capacity(3);
            descriptors.push(cache::pasid_cache_pasid(did, pasid));
            descriptors.push(match entry.pgtt() {
                Some(pgtt) if pgtt.uses_second_stage() => cache::iotlb_domain(did),
                _ => cache::pasid_iotlb(did, pasid),
            });
            descriptors.extend(device_tlb);
            result = self.submit(&descriptors);
        }
        let forgotten = unit_has_forgotten(&result);
        self.store_entry(address, &PasidEntry::new().with_fpd(ignore_faults).to_qwords());
        if drain {
            result = result.and(self.drain_page_requests(source_id, pasid, did));
        }
        if !ignore_faults {
            let device = self.device_mut(source_id)?;
            device.attachments.remove(&pasid);
            // The first one has the entry of requests without PASID.
            let table = pasid.get() >> 6;
            if table != 0 && device.is_empty(table) {
                device.left_empty.insert(table);
            }
            match attachment {
                Attachment::Domain(domain) | Attachment::Nested(domain) => {
                    if let Some(domain) = self.domains.get_mut(&domain)
                        && let Some(id) = domain.remove_attachment(source_id, pasid, forgotten)
                        && forgotten
                    {
                        self.domain_ids.free(id);
                    }
                }
                Attachment::Table | Attachment::PassThrough => {}
            }
            result = result.and(self.give_empty_tables_back(source_id));
        }
        result
    }

    /// Frees tables that have been empty for a while, once there are some: the unit may have cached their directory entries, and
    /// forgets all PASIDs with them. [S 6.2.2.2]
    fn give_empty_tables_back(&mut self, source_id: SourceId) -> Result<(), Error> {
        let device = self.device_mut(source_id)?;
        if device.left_empty.len() <= EMPTY_TABLES {
            return Ok(());
        }
        let left = core::mem::take(&mut device.left_empty);
        let directory = device.directory;
        let empty: Vec<_> = left.into_iter().filter(|table| device.is_empty(*table)).collect();
        let mut tables = Vec::new();
        for table in empty {
            let address = directory + 8 * u64::from(table);
            let entry = PasidDirectoryEntry::from_bits(self.memory.load(address));
            if entry.p() {
                self.store_entry(address, &[0]);
                tables.push(entry.smptblptr());
            }
        }
        if tables.is_empty() {
            return Ok(());
        }
        let flushed = self.submit(&[cache::pasid_cache_global()]);
        self.release_tables(tables, unit_has_forgotten(&flushed));
        flushed
    }

    /// Attaches a device's requests without translation: PASID 0 for those without PASID.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`], [`Error::NoSuchDevice`], [`Error::PasidOutOfRange`], [`Error::PasidBusy`],
    /// [`Error::OutOfMemory`], the queue's.
    pub fn attach_pass_through(&mut self, source_id: SourceId, pasid: Pasid) -> Result<(), Error> {
        self.set_up_pass_through(source_id, pasid)
    }

    /// Detaches a PASID of a device, whatever it is attached to: PASID 0 for requests without PASID. From then on they
    /// are blocked. What [`sva`](crate::sva) or [`nested`](crate::nested) has bound is unbound there, or stays in the books
    /// of the [`Pasids`](crate::Pasids).
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchDevice`], [`Error::PasidOutOfRange`], [`Error::NotBound`]; with the queue's the PASID is detached
    /// all the same.
    pub fn detach(&mut self, source_id: SourceId, pasid: Pasid) -> Result<(), Error> {
        self.tear_down(source_id, pasid, false)
    }
}

#[cfg(test)]
mod tests;
