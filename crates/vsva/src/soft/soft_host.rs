// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The host itself: its physical unit, its memory, and the functions that it has.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread::JoinHandle;

use vtd_driver::{Ats, DeviceConfig};
use vtd_spec::{Pasid, PasidEntry, SourceId};
use vtd_unit::{Endpoint, EndpointSink, Notify, Statistics, Unit};

use super::config::{SoftHostConfig, SoftHostError};
use super::driver::Driver;
use super::function::{Function, FunctionSink};
use super::interrupts::Interrupts;
use super::memory::{HostMemory, Piece};
use crate::host::{DeviceId, HostError};

/// A host in software. Bring it up with [`SoftHost::new`].
pub struct SoftHost {
    pub(super) config: SoftHostConfig,
    pub(super) unit: Unit<HostMemory>,
    pub(super) memory: Arc<HostMemory>,
    pub(super) pieces: Vec<Piece>,
    pub(super) interrupts: Arc<Interrupts>,
    pub(super) thread: Mutex<Option<JoinHandle<()>>>,
    /// Held over submissions to the physical unit. What the unit calls meanwhile only wakes threads.
    pub(super) driver: Mutex<Driver>,
    /// Held while page requests that were taken off the unit's queue are on their way up.
    pub(super) passing: Mutex<()>,
    pub(super) functions: RwLock<Vec<Arc<Function>>>,
}

impl SoftHost {
    /// A function of the host for a device model, whose interrupts go to `messages`: its name, and its port. Its requests
    /// are blocked until it is assigned.
    ///
    /// # Errors
    ///
    /// The driver's.
    pub fn function(
        &self,
        device: Arc<dyn EndpointSink>,
        messages: Arc<dyn Notify>,
    ) -> Result<(DeviceId, Endpoint<HostMemory>), SoftHostError> {
        let mut functions = self.functions.write().unwrap_or_else(PoisonError::into_inner);
        let number = functions.len() as u32 + 1;
        let id = DeviceId(number);
        let source_id = SourceId::new((number >> 5) as u8, (number & 0x1f) as u8, 0);
        // All functions here forget every PASID at once.
        let ats = Some(Ats { global_invalidate: true, ..Ats::default() });
        self.driver().iommu.add_device(DeviceConfig { ats, ..DeviceConfig::with_sva(source_id) })?;
        let sink = Arc::new(FunctionSink::new(id, device));
        let endpoint = self.unit.endpoint_with_messages(
            source_id,
            Arc::clone(&sink) as Arc<dyn EndpointSink>,
            messages,
        )?;
        if !self.config.identical_pasids {
            endpoint.translate_pasids();
        }
        functions.push(Arc::new(Function { id, source_id, sink, endpoint: endpoint.clone() }));
        Ok((id, endpoint))
    }

    /// Where a guest physical address lies in the host's memory.
    pub fn host_physical(&self, guest_physical: u64) -> Option<u64> {
        let piece = self.piece(guest_physical)?;
        Some(piece.host + (guest_physical - piece.guest))
    }

    /// The piece of the guest's memory around an address.
    pub(super) fn piece(&self, guest_physical: u64) -> Option<Piece> {
        let holds = |piece: &&Piece| (piece.guest..piece.guest + piece.length).contains(&guest_physical);
        self.pieces.iter().find(holds).copied()
    }

    /// The host's PASID table entry as it stands in its memory.
    pub fn entry(&self, device: DeviceId, pasid: Pasid) -> Option<PasidEntry> {
        let source_id = self.find(device).ok()?.source_id;
        self.driver().iommu.pasid_entry(source_id, pasid).ok().filter(PasidEntry::p)
    }

    /// The host's memory.
    pub fn memory(&self) -> &Arc<HostMemory> {
        &self.memory
    }

    /// What the physical unit has done so far.
    pub fn statistics(&self) -> Statistics {
        self.unit.statistics()
    }

    /// PASIDs that the guest holds.
    pub fn allocated_pasids(&self) -> u32 {
        let driver = self.driver();
        driver.pasids.usage(driver.set).map_or(0, |(_, allocated)| allocated)
    }

    /// Takes a piece of the guest's memory away from its devices, or gives it back: what a host does that moves or
    /// reclaims it. No access to it is in flight when this returns.
    ///
    /// # Errors
    ///
    /// Addresses that are not the guest's or not whole pages; the driver's.
    pub fn set_mapped(&self, guest_physical: u64, length: u64, mapped: bool) -> Result<(), SoftHostError> {
        let end = guest_physical.checked_add(length).ok_or(SoftHostError::Layout)?;
        // What neighbours for the guest need not do so on the host.
        let mut parts = Vec::new();
        let mut at = guest_physical;
        while at < end {
            let piece = self.piece(at).ok_or(SoftHostError::Layout)?;
            let length = (piece.guest + piece.length).min(end) - at;
            parts.push((at, piece.host + (at - piece.guest), length));
            at += length;
        }
        let mut driver = self.driver();
        let domain = driver.domain;
        for (guest, host, length) in parts {
            if mapped {
                driver.iommu.map(domain, guest, host, length, vtd_driver::Access::ReadWrite)?;
            } else {
                driver.iommu.unmap(domain, guest, length)?;
            }
        }
        Ok(())
    }

    pub(super) fn driver(&self) -> MutexGuard<'_, Driver> {
        self.driver.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn find(&self, device: DeviceId) -> Result<Arc<Function>, HostError> {
        let functions = self.functions.read().unwrap_or_else(PoisonError::into_inner);
        functions.iter().find(|function| function.id == device).cloned().ok_or(HostError::NoDevice(device))
    }

    pub(super) fn find_source(&self, source_id: SourceId) -> Option<Arc<Function>> {
        let functions = self.functions.read().unwrap_or_else(PoisonError::into_inner);
        functions.iter().find(|function| function.source_id == source_id).cloned()
    }
}

impl Drop for SoftHost {
    fn drop(&mut self) {
        self.interrupts.raise(|pending| pending.stop = true);
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        // The thread itself may hold the last reference.
        if let Some(thread) = thread.filter(|thread| thread.thread().id() != std::thread::current().id()) {
            let _ = thread.join();
        }
    }
}
