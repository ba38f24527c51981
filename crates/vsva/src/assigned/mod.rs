// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One assigned function: keeps the host's attachments at what the guest's tables say, and carries invalidations,
//! page requests, responses and faults across.
//!
//! Two locks, never the other way round: `changes` serialises what changes attachments and is held over calls to
//! the host; `shadow` is held for look-ups only. What comes up from the host takes `shadow` alone.

mod detach;
mod events;
mod flush;
mod invalidation;
mod state;
mod sync;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};

use vm_memory::GuestMemoryBackend;
use vtd_spec::{Pasid, SourceId};
use vtd_unit::{DeviceTlbInvalidation, EndpointSink, PageGroupResponse, SourceIdInUse, Unit};

use crate::host::{DeviceId, HostEvents, HostIommu};
use crate::pasids::HostPasids;
use crate::shadow::{Shadow, WithoutPasid};
use crate::trace::Tracer;
pub use state::Assigned;
use state::Changes;
pub(crate) use state::Scope;

/// What the guest's unit tells the function. Weak: the unit keeps its sinks, and the function keeps the unit.
struct Port<M>(Weak<Assigned<M>>);

impl<M: GuestMemoryBackend + Send + Sync + 'static> EndpointSink for Port<M> {
    fn page_group_response(&self, response: PageGroupResponse) {
        if let Some(assigned) = self.0.upgrade() {
            assigned.guest_response(response);
        }
    }

    fn device_tlb_invalidation(&self, invalidation: DeviceTlbInvalidation) {
        if let Some(assigned) = self.0.upgrade() {
            assigned.invalidate_device_tlb(&invalidation);
        }
    }
}

impl<M: GuestMemoryBackend + Send + Sync + 'static> Assigned<M> {
    pub(crate) fn new(
        unit: &Unit<M>,
        source_id: SourceId,
        device: DeviceId,
        host: &Arc<dyn HostIommu>,
        pasids: &Arc<HostPasids>,
        tracer: Option<Arc<dyn Tracer>>,
    ) -> Result<Arc<Self>, SourceIdInUse> {
        let assigned = Arc::new(Self {
            unit: unit.clone(),
            source_id,
            device,
            host: Arc::clone(host),
            pasids: Arc::clone(pasids),
            tracer,
            port: OnceLock::new(),
            changes: Mutex::default(),
            stale: Mutex::default(),
            closing: AtomicBool::new(false),
            shadow: Mutex::new(Shadow::new()),
        });
        let port = unit.endpoint(source_id, Arc::new(Port(Arc::downgrade(&assigned))))?;
        let _ = assigned.port.set(port);
        let events: Weak<dyn HostEvents> = Arc::downgrade(&assigned) as Weak<dyn HostEvents>;
        host.listen(device, events);
        Ok(assigned)
    }

    /// Unbinds everything and reads the guest's tables afresh: after a reset of the function.
    pub fn reset(&self) {
        self.unbind_everything(&mut self.changes());
        self.sync(Scope::All);
    }

    /// As [`Self::reset`], on the unit's executor: for a reset by a register that a virtual processor has written.
    pub fn reset_later(self: &Arc<Self>) {
        let assigned = Arc::downgrade(self);
        self.unit.executor().execute(Box::new(move || {
            if let Some(assigned) = assigned.upgrade() {
                assigned.reset();
            }
        }));
    }

    /// Unbinds everything for good: the machine goes.
    pub(crate) fn close(&self) {
        self.closing.store(true, Ordering::Relaxed);
        let mut changes = self.changes();
        changes.closed = true;
        self.unbind_everything(&mut changes);
    }

    fn unbind_everything(&self, changes: &mut Changes) {
        self.unbind_between(changes, 0, Pasid::MAX.get() + 1, Scope::All);
        changes.batch.clear();
        changes.waiting.clear();
        changes.beyond = None;
        changes.again.clear();
        let attached = self.shadow().without_pasid != WithoutPasid::Blocked;
        if attached {
            self.detach_without_pasid();
        } else {
            self.host.block(self.device, None);
        }
        self.abandon(None);
    }
}
