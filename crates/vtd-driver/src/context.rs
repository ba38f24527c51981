// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Devices: root and context entries, and the PASID directory each device has to itself (Linux iommu.c,
//! pasid.c:intel_pasid_setup_sm_context).

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;

use vtd_spec::{AddressRange, DomainId, PasidDirectoryEntry, RootHalf, ScalableContextEntry, SourceId};

use crate::cache;
use crate::error::Error;
use crate::iommu::Iommu;
use crate::memory::Memory;
use crate::queue::unit_has_forgotten;
use crate::registers::Registers;
use crate::state::{Device, DeviceConfig};

impl<R: Registers, M: Memory> Iommu<R, M> {
    /// Adds a device: an empty PASID directory behind its context entry. Its requests are blocked until something is
    /// attached.
    ///
    /// # Errors
    ///
    /// [`Error::DeviceExists`]; [`Error::Unsupported`] for what the unit cannot do for it; [`Error::OutOfMemory`]; the
    /// queue's.
    pub fn add_device(&mut self, config: DeviceConfig) -> Result<(), Error> {
        let source_id = config.source_id;
        let ecap = self.capabilities.ecap;
        if self.devices.contains_key(&source_id) {
            return Err(Error::DeviceExists { source_id });
        }
        for (fits, capability) in [
            (config.pasid_bits == 0 || ecap.pasid(), "requests with PASID (ECAP.PASID)"),
            (
                u32::from(config.pasid_bits) <= self.capabilities.pasid_bits(),
                "that many PASID bits (ECAP.PSS)",
            ),
            (config.ats.is_none() || ecap.dt(), "device-TLBs (ECAP.DT)"),
            (!config.page_requests || config.ats.is_some(), "page requests from a device without ATS"),
            (!config.page_requests || ecap.prs() && ecap.pds(), "page requests with drain (ECAP.PRS, PDS)"),
        ] {
            if !fits {
                return Err(Error::lacks(capability));
            }
        }

        let context = self.context_address(source_id)?;
        // A directory entry of 8 bytes for 64 PASIDs.
        let bytes = (1usize << config.pasid_bits >> 6) * 8;
        let directory_pages = bytes.div_ceil(4096).max(1).next_power_of_two();
        let directory = self.allocate_table(directory_pages)?;
        let entry = ScalableContextEntry::new()
            .with_present(true)
            .with_dte(config.ats.is_some())
            .with_paside(config.pasid_bits != 0)
            .with_pre(config.page_requests)
            // 2^(PDTS+7) directory entries; a page holds 2^9.
            .with_pdts(2 + directory_pages.trailing_zeros() as u8)
            .with_pasid_dir_ptr(directory);
        self.store_entry(context, &entry.to_qwords());
        let device = Device {
            config,
            directory,
            directory_pages,
            attachments: BTreeMap::new(),
            left_empty: BTreeSet::new(),
        };
        self.devices.insert(source_id, device);
        let announced = self.flush_new_context(source_id);
        if announced.is_err() {
            // The entry may be in use already.
            let _ = self.remove_device(source_id);
        }
        announced
    }

    /// A context entry became present (iommu.c:context_present_cache_flush): with caching mode the unit may have cached
    /// that it was not, tagged with domain 0.
    fn flush_new_context(&mut self, source_id: SourceId) -> Result<(), Error> {
        if !self.capabilities.cap.cm() {
            return self.flush_write_buffer();
        }
        self.submit(&[cache::context_device(source_id), cache::iotlb_domain(DomainId(0))])
    }

    /// Takes a device out: detaches all its PASIDs, then clears its context entry. \[S table 28\]
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchDevice`]; otherwise the device is gone all the same.
    pub fn remove_device(&mut self, source_id: SourceId) -> Result<(), Error> {
        let mut result = Ok(());
        while let Some((&pasid, _)) = self.device(source_id)?.attachments.first_key_value() {
            result = result.and(self.detach(source_id, pasid));
            if self.device(source_id)?.attachments.contains_key(&pasid) {
                return result;
            }
        }
        let context = self.context_address(source_id)?;
        self.store_entry(context, &[0; 4]);
        let device = self.device(source_id)?;
        let mut descriptors = alloc::vec![
            cache::context_device(source_id),
            cache::pasid_cache_global(),
            cache::iotlb_global(),
        ];
        if let Some(ats) = device.config.ats {
            descriptors.push(cache::device_tlb(source_id, ats, AddressRange::ALL));
            // Each of its PASIDs has been invalidated when it was detached: this is for what it should not have.
            if ats.global_invalidate && device.config.pasid_bits != 0 {
                descriptors.push(cache::global_device_tlb(source_id, ats, AddressRange::ALL));
            }
        }
        let flushed = self.submit(&descriptors);
        if let Some(device) = self.devices.remove(&source_id) {
            let tables = self.directory_of(&device);
            self.release(tables.into_iter(), unit_has_forgotten(&flushed));
        }
        result.and(flushed)
    }

    /// A device's PASID directory and the tables in it: address and pages.
    fn directory_of(&self, device: &Device) -> Vec<(u64, usize)> {
        let mut tables = alloc::vec![(device.directory, device.directory_pages)];
        for index in 0..device.directory_pages as u64 * 512 {
            let entry = PasidDirectoryEntry::from_bits(self.memory.load(device.directory + 8 * index));
            if entry.p() {
                tables.push((entry.smptblptr(), 1));
            }
        }
        tables
    }

    /// Frees all that devices have, for a unit that is off.
    pub(crate) fn free_devices(&mut self) {
        for device in core::mem::take(&mut self.devices).values() {
            let tables = self.directory_of(device);
            self.release(tables.into_iter(), true);
        }
        if self.root_table == 0 {
            return;
        }
        for index in 0..512 {
            let half = RootHalf::from_bits(self.memory.load(self.root_table + 8 * index));
            if half.present() {
                self.memory.free(half.context_table(), 1);
            }
        }
    }

    /// Address of a device's context entry (iommu.c:iommu_context_addr); makes the table where there is none.
    fn context_address(&self, source_id: SourceId) -> Result<u64, Error> {
        let upper = u64::from(source_id.devfn() >> 7);
        let root = self.root_table + 16 * u64::from(source_id.bus()) + 8 * upper;
        let mut half = RootHalf::from_bits(self.memory.load(root));
        if !half.present() {
            half = RootHalf::from_bits(self.allocate_table(1)? | 1);
            self.store_entry(root, &[half.into_bits()]);
        }
        Ok(half.context_table() + 32 * u64::from(source_id.devfn() & 0x7f))
    }
}

#[cfg(test)]
mod tests;
