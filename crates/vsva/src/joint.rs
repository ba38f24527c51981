// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The joint itself: hears the guest's unit and tells every assigned function what concerns it.

use std::sync::{Arc, PoisonError, RwLock};

use vm_memory::GuestMemoryBackend;
use vtd_spec::descriptors::{
    ContextGranularity, IotlbGranularity, PasidCacheGranularity, PasidIotlbGranularity,
};
use vtd_spec::{AddressRange, Descriptor, Pasid, SourceId};
use vtd_unit::{Observer, PasidAllocator, SourceIdInUse, Unit};

use crate::assigned::{Assigned, Scope};
use crate::host::{DeviceId, HostIommu, Unsupported};
use crate::pasids::HostPasids;
use crate::trace::Tracer;

/// Why a function cannot be assigned, or a joint not be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AssignError {
    /// The guest's unit promises what the host lacks.
    #[error(transparent)]
    Unsupported(#[from] Unsupported),
    /// Without caching mode a guest does not announce entries that become present, so nothing can be shadowed.
    #[error("assigned devices need caching mode: turn the IOMMU option cm on")]
    NoCachingMode,
    /// The guest's PASIDs are another joint's to allocate.
    #[error(
        "the IOMMU is joined to a host already, which allocates its PASIDs: turn the IOMMU option vcmd off"
    )]
    Joined,
    /// There is a function of that source-id.
    #[error(transparent)]
    SourceId(#[from] SourceIdInUse),
}

type Functions<M> = RwLock<Vec<Arc<Assigned<M>>>>;

/// Joins a guest's unit to a host. Dropping it takes every function out again; the unit can then be joined anew.
pub struct Joint<M: GuestMemoryBackend + Send + Sync + 'static> {
    unit: Unit<M>,
    host: Arc<dyn HostIommu>,
    pasids: Arc<HostPasids>,
    tracer: Option<Arc<dyn Tracer>>,
    functions: Arc<Functions<M>>,
    // The unit keeps its observer and its allocator weakly: these keep them.
    _observer: Arc<dyn Observer>,
    _allocator: Arc<dyn PasidAllocator>,
}

struct Ear<M> {
    functions: Arc<Functions<M>>,
    pasids: Arc<HostPasids>,
}

impl<M: GuestMemoryBackend + Send + Sync + 'static> Joint<M> {
    /// Joins `unit` to `host`; `tracer` hears of what happens.
    ///
    /// # Errors
    ///
    /// The unit promises what the host lacks, does not report caching mode, or is joined already.
    pub fn new(
        unit: &Unit<M>,
        host: Arc<dyn HostIommu>,
        tracer: Option<Arc<dyn Tracer>>,
    ) -> Result<Self, AssignError> {
        let capabilities = unit.capabilities();
        host.nesting_info().check(&capabilities)?;
        if !capabilities.cap.cm() {
            return Err(AssignError::NoCachingMode);
        }
        let functions = Arc::new(RwLock::new(Vec::new()));
        let pasids = Arc::new(HostPasids::new(Arc::clone(&host)));
        let ear = Ear { functions: Arc::clone(&functions), pasids: Arc::clone(&pasids) };
        let ear = Arc::new(ear);
        let allocator = Arc::clone(&ear) as Arc<dyn PasidAllocator>;
        let observer = ear as Arc<dyn Observer>;
        if unit.has_virtual_command() && !unit.set_pasid_allocator(&allocator) {
            return Err(AssignError::Joined);
        }
        unit.add_observer(&observer);
        let (_observer, _allocator) = (observer, allocator);
        Ok(Self { unit: unit.clone(), host, pasids, tracer, functions, _observer, _allocator })
    }

    /// Gives the guest the host's function `device` as `source_id`.
    ///
    /// # Errors
    ///
    /// The unit promises what the host lacks for this function, or the guest has a function of that source-id.
    pub fn assign(&self, source_id: SourceId, device: DeviceId) -> Result<Arc<Assigned<M>>, AssignError> {
        self.host.nesting_info_of(device).check(&self.unit.capabilities())?;
        let assigned =
            Assigned::new(&self.unit, source_id, device, &self.host, &self.pasids, self.tracer.clone())?;
        let mut functions = self.functions.write().unwrap_or_else(PoisonError::into_inner);
        functions.push(Arc::clone(&assigned));
        drop(functions);
        // What the guest announces meanwhile is heard already.
        assigned.sync(Scope::All);
        Ok(assigned)
    }

    /// Takes a function from the guest, as hot-unplug does: nothing is bound any more, groups that wait are answered, and
    /// its source-id is free. False where the guest has none of that source-id.
    pub fn unassign(&self, source_id: SourceId) -> bool {
        let gone = {
            let mut functions = self.functions.write().unwrap_or_else(PoisonError::into_inner);
            let at = functions.iter().position(|function| function.source_id() == source_id);
            at.map(|at| functions.remove(at))
        };
        let Some(function) = gone else { return false };
        function.close();
        self.unit.remove_endpoint(source_id)
    }
}

impl<M: GuestMemoryBackend + Send + Sync + 'static> Drop for Joint<M> {
    fn drop(&mut self) {
        let functions = std::mem::take(&mut *self.functions.write().unwrap_or_else(PoisonError::into_inner));
        for function in functions {
            function.close();
            self.unit.remove_endpoint(function.source_id());
        }
        self.pasids.close();
    }
}

impl<M: GuestMemoryBackend + Send + Sync + 'static> Ear<M> {
    fn functions(&self) -> Vec<Arc<Assigned<M>>> {
        self.functions.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn each(&self, f: impl FnMut(&Arc<Assigned<M>>)) {
        self.functions().iter().for_each(f);
    }

    /// Notes that the tables of the functions that it concerns are to be read: once, at the next wait, however often it is
    /// said until then.
    fn note(&self, concerns: impl Fn(&Assigned<M>) -> bool, scope: Scope) {
        self.each(|function| {
            if concerns(function) {
                function.note_stale(scope);
            }
        });
    }

    /// Has the functions follow the guest's tables as far as that was noted.
    fn catch_up(&self) {
        let functions: Vec<_> = self.functions().into_iter().filter(|function| function.is_stale()).collect();
        let Some(first) = functions.first() else { return };
        // One for all: what ends the reading of one function's tables ends that of the others.
        let generation = first.queue_generation();
        functions.iter().for_each(|function| function.catch_up(generation));
        functions.iter().for_each(|function| function.settle());
    }
}

impl<M: GuestMemoryBackend + Send + Sync + 'static> PasidAllocator for Ear<M> {
    fn allocate(&self) -> Option<Pasid> {
        self.pasids.allocate()
    }

    /// A PASID that is still bound is unbound first: who frees it must be able to rely on that. \[Linux
    /// drivers/iommu/ioasid.c:ioasid_free\]
    fn free(&self, pasid: Pasid) -> bool {
        if !self.pasids.is_commanded(pasid) {
            return false;
        }
        self.each(|function| function.give_up(pasid));
        self.pasids.free(pasid)
    }
}

impl<M: GuestMemoryBackend + Send + Sync + 'static> Observer for Ear<M> {
    fn invalidated(&self, descriptor: &Descriptor) {
        match descriptor {
            Descriptor::ContextCache(context) => {
                let all = context.granularity != ContextGranularity::Device;
                // Also what was found through the context: some guests leave the PASID cache to it.
                self.note(|function| all || context.names(function.source_id()), Scope::All);
            }
            Descriptor::PasidCache(pasids) => match pasids.granularity {
                PasidCacheGranularity::Global => self.note(|_| true, Scope::All),
                PasidCacheGranularity::Domain => self.note(|_| true, Scope::Domain(pasids.did)),
                PasidCacheGranularity::Pasid => {
                    self.each(|function| function.sync_pasid(pasids.did, pasids.pasid));
                }
            },
            Descriptor::Iotlb(iotlb) => self.each(|function| {
                let scope = match iotlb.granularity {
                    IotlbGranularity::Global => Scope::All,
                    // Of a domain's first-stage translations all go, whatever the range. [S table 23]
                    IotlbGranularity::Domain | IotlbGranularity::Page => Scope::Domain(iotlb.did),
                };
                function.invalidate_first_stages(scope);
            }),
            Descriptor::PasidIotlb(iotlb) => self.each(|function| {
                let (range, leaf_only) = match iotlb.granularity {
                    PasidIotlbGranularity::Pasid => (AddressRange::ALL, false),
                    PasidIotlbGranularity::Page => (iotlb.range(), iotlb.ih),
                };
                function.invalidate_pasid(iotlb.did, iotlb.pasid, range, leaf_only);
            }),
            // Device-TLB invalidations reach the function they name through its port.
            Descriptor::DeviceTlb(_) | Descriptor::PasidDeviceTlb(_) => {}
            Descriptor::InterruptEntryCache(_)
            | Descriptor::Wait(_)
            | Descriptor::PageGroupResponse(_)
            | Descriptor::HptCache(_) => {}
        }
    }

    fn is_behind(&self) -> bool {
        self.functions().iter().any(|function| function.is_stale())
    }

    fn complete(&self, page_request_drain: bool) {
        self.catch_up();
        self.each(|function| function.complete(page_request_drain));
    }

    fn remapping_changed(&self) {
        self.note(|_| true, Scope::All);
        // What interrupts this has begun something new, which is to be read again.
        while self.is_behind() {
            self.catch_up();
        }
    }

    fn reset(&self) {
        // Whoever would have answered is gone, and so is whoever would have given PASIDs back.
        self.each(|function| function.abandon(None));
        self.pasids.release_commanded();
    }
}
