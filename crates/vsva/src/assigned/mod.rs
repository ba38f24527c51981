// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One assigned function: keeps the host's attachments at what the guest's tables say, and carries invalidations,
//! page requests, responses and faults across.
//!
//! Two locks, never the other way round: `changes` serialises what changes attachments and is held over calls to
//! the host; `shadow` is held for look-ups only. What comes up from the host takes `shadow` alone.

mod events;
mod invalidation;
mod sync;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use vm_memory::GuestMemoryBackend;
use vtd_spec::{Pasid, SourceId};
use vtd_unit::{
    DeviceTlbInvalidation, Endpoint, EndpointSink, Message, PageGroupResponse, SourceIdInUse, Unit,
};

use crate::host::{Attachment, DeviceId, HostEvents, HostIommu, Invalidation};
use crate::pasids::HostPasids;
use crate::shadow::{Shadow, WithoutPasid};
use crate::trace::{Event, Tracer};
pub(crate) use sync::Scope;
use sync::Waiting;

/// A function of the guest that a host has assigned.
pub struct Assigned<M> {
    unit: Unit<M>,
    source_id: SourceId,
    device: DeviceId,
    host: Arc<dyn HostIommu>,
    pasids: Arc<HostPasids>,
    tracer: Option<Arc<dyn Tracer>>,
    /// The function's port into the guest's unit.
    port: OnceLock<Endpoint<M>>,
    changes: Mutex<Changes>,
    /// Which entries are to be read at the next wait.
    stale: Mutex<Option<Scope>>,
    /// The function goes: nothing is read for it any more.
    closing: AtomicBool,
    shadow: Mutex<Shadow>,
}

/// What is under way towards the host.
#[derive(Default)]
struct Changes {
    /// Invalidations that were not passed down yet.
    batch: Vec<Invalidation>,
    /// New bindings that wait for a PASID, and the first of those that were not taken in.
    waiting: Vec<Waiting>,
    beyond: Option<Pasid>,
    /// What the host was too busy for: PASIDs, and requests without one.
    again: BTreeSet<Option<Pasid>>,
    /// The user was told that what the guest asks for cannot be had.
    told: bool,
    /// The joint is gone: nothing is attached any more.
    closed: bool,
}

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

    /// The function's source-id in the guest.
    pub fn source_id(&self) -> SourceId {
        self.source_id
    }

    /// The function's name on the host.
    pub fn device(&self) -> DeviceId {
        self.device
    }

    /// The host's PASID that stands for one of the guest, while it is bound.
    pub fn host_pasid(&self, guest: Pasid) -> Option<Pasid> {
        self.shadow().bound(guest).map(|bound| bound.host)
    }

    /// The guest's PASIDs that are bound, in order, with the host's and what they are attached to.
    pub fn bound(&self) -> Vec<(Pasid, Pasid, Attachment)> {
        let shadow = self.shadow();
        shadow.guests_from(Pasid::ZERO).map(|(guest, bound)| (guest, bound.host, bound.attachment)).collect()
    }

    /// Number of the guest's PASIDs that are bound.
    pub fn bound_count(&self) -> usize {
        self.shadow().len()
    }

    /// Sends a message of the function's: the guest's unit remaps it by the source-id that the guest knows.
    pub fn message(&self, message: Message) {
        if let Some(port) = self.port.get() {
            port.message(message);
        }
    }

    /// Unbinds everything and reads the guest's tables afresh: after a reset of the function.
    pub fn reset(&self) {
        self.release(&mut self.changes());
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

    fn changes(&self) -> MutexGuard<'_, Changes> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn shadow(&self) -> MutexGuard<'_, Shadow> {
        self.shadow.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn trace(&self, event: &Event) {
        if let Some(tracer) = &self.tracer {
            tracer.event(self.source_id, event);
        }
    }

    /// Unbinds everything for good: the machine goes.
    pub(crate) fn close(&self) {
        self.closing.store(true, Ordering::Relaxed);
        let mut changes = self.changes();
        changes.closed = true;
        self.release(&mut changes);
    }

    fn release(&self, changes: &mut Changes) {
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
