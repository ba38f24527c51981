// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The unit as its driver holds it.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use vtd_spec::{Capabilities, GlobalCommand, SourceId};

use crate::error::Error;
use crate::memory::Memory;
use crate::registers::Registers;
use crate::state::Device;
use crate::state::InterruptTable;
use crate::state::PageRequestQueue;
use crate::state::Queue;
use crate::state::{Domain, DomainHandle, DomainIds};

/// One remapping unit, driven.
///
/// See the crate's documentation for locks and errors; the methods lie in the modules that Linux has them in. Dropped, it
/// leaves the unit as it is, with its memory: [`shutdown`](Self::shutdown) ends it.
pub struct Iommu<R, M> {
    pub(crate) registers: R,
    pub(crate) memory: M,
    pub(crate) capabilities: Capabilities,
    /// The persistent bits of GCMD.
    pub(crate) command: GlobalCommand,
    pub(crate) queue: Queue,
    pub(crate) root_table: u64,
    pub(crate) interrupt_table: Option<InterruptTable>,
    pub(crate) page_requests: Option<PageRequestQueue>,
    pub(crate) devices: BTreeMap<SourceId, Device>,
    pub(crate) domains: BTreeMap<DomainHandle, Domain>,
    pub(crate) domain_ids: DomainIds,
    pub(crate) next_domain: u64,
    /// Tables that the unit may still use, since an invalidation failed: address and pages.
    pub(crate) quarantine: Vec<(u64, usize)>,
}

impl<R: Registers, M: Memory> Iommu<R, M> {
    /// What the unit can do.
    pub fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    /// The register page, for the platform's own use.
    pub fn registers(&self) -> &R {
        &self.registers
    }

    /// The devices that have been added, in ascending order.
    pub fn devices(&self) -> impl Iterator<Item = SourceId> + '_ {
        self.devices.keys().copied()
    }

    pub(crate) fn device(&self, source_id: SourceId) -> Result<&Device, Error> {
        self.devices.get(&source_id).ok_or(Error::NoSuchDevice { source_id })
    }

    pub(crate) fn device_mut(&mut self, source_id: SourceId) -> Result<&mut Device, Error> {
        self.devices.get_mut(&source_id).ok_or(Error::NoSuchDevice { source_id })
    }

    pub(crate) fn domain(&self, domain: DomainHandle) -> Result<&Domain, Error> {
        self.domains.get(&domain).ok_or(Error::NoSuchDomain)
    }

    /// One table page, visible to the unit as zeros.
    pub(crate) fn allocate_table(&self, pages: usize) -> Result<u64, Error> {
        let address = self.memory.allocate(pages).ok_or(Error::OutOfMemory)?;
        if !self.capabilities.ecap.c() {
            self.memory.flush(address, pages as u64 * 4096);
        }
        Ok(address)
    }

    /// Stores the words of a root, context or PASID table entry, the one with the present bit last.
    pub(crate) fn store_entry(&self, address: u64, qwords: &[u64]) {
        for (index, qword) in qwords.iter().enumerate().rev() {
            if index == 0 && qwords.len() > 1 {
                self.flush_entry(address, qwords.len());
            }
            self.memory.store(address + 8 * index as u64, *qword);
        }
        self.flush_entry(address, qwords.len());
    }

    /// Writes an entry back for a unit that does not snoop the tables (ECAP.C=0).
    pub(crate) fn flush_entry(&self, address: u64, qwords: usize) {
        if !self.capabilities.ecap.c() {
            self.memory.flush(address, 8 * qwords as u64);
        }
    }

    /// Whether page walks see processor caches (Linux iommu.c:iommu_paging_structure_coherency).
    pub(crate) fn walks_are_coherent(&self) -> bool {
        self.capabilities.ecap.smpwc()
    }

    /// Frees table pages whose translations have been invalidated, or keeps them where that failed.
    pub(crate) fn release_tables(&mut self, tables: Vec<u64>, invalidated: bool) {
        self.release(tables.into_iter().map(|table| (table, 1)), invalidated);
    }

    /// As [`release_tables`](Self::release_tables), with the pages of each table.
    pub(crate) fn release(&mut self, tables: impl Iterator<Item = (u64, usize)>, invalidated: bool) {
        if invalidated {
            tables.for_each(|(table, pages)| self.memory.free(table, pages));
        } else {
            self.quarantine.extend(tables);
        }
    }
}

#[cfg(test)]
mod tests;
