// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One assigned function: keeps the host's attachments at what the guest's tables say, and carries invalidations,
//! page requests, responses and faults across.
//!
//! Two locks, never the other way round: `changes` serialises what changes attachments and is held over calls to
//! the host; `shadow` is held for look-ups only. What comes up from the host takes `shadow` alone.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use vm_memory::GuestMemoryBackend;
use vtd_spec::{AddressRange, DomainId, FaultReason, Pasid, SourceId};
use vtd_unit::{
    Access, Binding, DeviceTlbInvalidation, Endpoint, EndpointSink, Message, PageGroupResponse, PageRequest,
    Requester, ResponseCode, Unit,
};

use crate::host::{
    Attachment, DeviceId, FaultPasid, HostError, HostEvents, HostFault, HostIommu, Invalidation,
    InvalidationKind,
};
use crate::pasids::HostPasids;
use crate::shadow::{Bound, Shadow, WithoutPasid, attachment, without_pasid};
use crate::trace::{Event, Tracer};

/// Invalidations that are collected before they go down without a wait descriptor having asked.
const BATCH: usize = 256;

/// Times a host is given a batch of which it does nothing.
const INVALIDATE_TRIES: usize = 3;

/// Which entries a PASID-cache invalidation concerns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    All,
    Domain(DomainId),
}

impl Scope {
    fn holds(self, before: Option<&Bound>, now: Option<&Binding>) -> bool {
        match self {
            Self::All => true,
            Self::Domain(domain) => {
                before.is_some_and(|bound| bound.domain == domain)
                    || now.is_some_and(|binding| binding.domain == domain)
            }
        }
    }
}

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
    changes: Mutex<Vec<Invalidation>>,
    /// The joint is gone: nothing is attached any more. Changes under `changes`.
    closed: AtomicBool,
    shadow: Mutex<Shadow>,
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
    ) -> Arc<Self> {
        let assigned = Arc::new(Self {
            unit: unit.clone(),
            source_id,
            device,
            host: Arc::clone(host),
            pasids: Arc::clone(pasids),
            tracer,
            port: OnceLock::new(),
            changes: Mutex::default(),
            closed: AtomicBool::new(false),
            shadow: Mutex::new(Shadow::new()),
        });
        let port = unit.endpoint(source_id, Arc::new(Port(Arc::downgrade(&assigned))));
        let _ = assigned.port.set(port);
        let events: Weak<dyn HostEvents> = Arc::downgrade(&assigned) as Weak<dyn HostEvents>;
        host.listen(device, events);
        assigned
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
        self.sync_all(Scope::All);
    }

    fn changes(&self) -> MutexGuard<'_, Vec<Invalidation>> {
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

    /// Reads all entries in scope and attaches, replaces and detaches until the host has what they say.
    pub(crate) fn sync_all(&self, scope: Scope) {
        let mut changes = self.changes();
        if self.closed.load(Ordering::Relaxed) {
            return;
        }
        self.sync_without_pasid(&mut changes);
        // Bound PASIDs from here on have not been looked at.
        let mut next = 0;
        self.unit.bindings(self.source_id, Pasid::ZERO, &mut |pasid, binding| {
            self.unbind_between(&mut changes, next, pasid.get(), scope);
            self.sync_entry(&mut changes, pasid, binding, scope);
            next = pasid.get() + 1;
            ControlFlow::Continue(())
        });
        self.unbind_between(&mut changes, next, Pasid::MAX.get() + 1, scope);
    }

    /// Reads the entry of one PASID, where the guest's or the shadow's names `domain`.
    pub(crate) fn sync_pasid(&self, domain: DomainId, pasid: Pasid) {
        let mut changes = self.changes();
        if self.closed.load(Ordering::Relaxed) {
            return;
        }
        let binding = self.unit.binding(self.source_id, pasid);
        self.sync_entry(&mut changes, pasid, binding, Scope::Domain(domain));
        self.sync_without_pasid(&mut changes);
    }

    /// Detaches what is bound in `first..end`, whose tables are gone.
    fn unbind_between(&self, changes: &mut Vec<Invalidation>, first: u32, end: u32, scope: Scope) {
        let Some(first) = Pasid::new(first) else { return };
        let gone: Vec<Pasid> = self
            .shadow()
            .guests_from(first)
            .take_while(|(guest, _)| guest.get() < end)
            .filter(|(_, bound)| scope.holds(Some(bound), None))
            .map(|(guest, _)| guest)
            .collect();
        for guest in gone {
            self.unbind(changes, guest);
        }
    }

    fn sync_entry(
        &self,
        changes: &mut Vec<Invalidation>,
        guest: Pasid,
        binding: Option<Binding>,
        scope: Scope,
    ) {
        let before = self.shadow().bound(guest);
        if !scope.holds(before.as_ref(), binding.as_ref()) {
            return;
        }
        match (before, binding.and_then(|binding| Some((attachment(&binding)?, binding.domain)))) {
            (None, None) => {}
            (Some(_), None) => self.unbind(changes, guest),
            (Some(bound), Some((to, domain))) if bound.attachment == to => {
                if bound.domain != domain {
                    // The host has domain-ids of its own.
                    self.shadow().insert(guest, Bound { domain, ..bound });
                }
            }
            (before, Some((to, domain))) => self.bind(changes, guest, before, to, domain),
        }
    }

    fn bind(
        &self,
        changes: &mut Vec<Invalidation>,
        guest: Pasid,
        before: Option<Bound>,
        to: Attachment,
        domain: DomainId,
    ) {
        self.flush(changes);
        // A host that did not invalidate has lost it.
        let before = before.and_then(|_| self.shadow().bound(guest));
        let attached = match before {
            Some(bound) => self.host.attach(self.device, Some(bound.host), to).map(|()| bound.host),
            None => self.pasids.acquire(guest).and_then(|host| {
                self.attach_new(guest, host, to).inspect_err(|_| self.pasids.release(guest))?;
                Ok(host)
            }),
        };
        match attached {
            Ok(host) => {
                self.shadow().insert(guest, Bound { host, domain, attachment: to });
                let (guest, host) = (Some(guest), Some(host));
                self.trace(&Event::Bind { guest, host, to, replaced: before.is_some() });
            }
            Err(error) => self.refused(Some(guest), error),
        }
    }

    fn attach_new(&self, guest: Pasid, host: Pasid, to: Attachment) -> Result<(), HostError> {
        self.host.attach(self.device, Some(host), to)?;
        self.host
            .set_pasid_translation(self.device, guest, Some(host))
            .inspect_err(|_| self.host.block(self.device, Some(host)))
    }

    fn unbind(&self, changes: &mut Vec<Invalidation>, guest: Pasid) {
        self.flush(changes);
        self.detach(guest);
    }

    fn detach(&self, guest: Pasid) {
        let Some(bound) = self.shadow().bound(guest) else { return };
        // First no new request under this PASID, then none in flight, then no waiting for a page.
        if let Err(error) = self.host.set_pasid_translation(self.device, guest, None) {
            tracing::debug!(%error, %guest, "the host keeps the PASID's translation: it is blocked all the same");
        }
        self.host.block(self.device, Some(bound.host));
        // In one step: a request that is on its way up finds the PASID and waits for the guest's answer, or does not find
        // it. What waits is the guest's to answer, as if the function were its own: a device that were drained early would
        // let it free what it still works on.
        let waits = {
            let mut shadow = self.shadow();
            shadow.remove(guest);
            shadow.linger(guest)
        };
        if !waits {
            self.pasids.release(guest);
        }
        self.trace(&Event::Unbind { guest: Some(guest), host: Some(bound.host) });
    }

    /// Answers the groups that wait for a guest that will not answer them: those of a PASID, or all.
    pub(crate) fn abandon(&self, guest: Option<Option<Pasid>>) {
        let (closed, gone) = {
            let mut shadow = self.shadow();
            let closed = shadow.close_groups_of(guest);
            let gone: Vec<_> =
                shadow.lingering().into_iter().map(|guest| (guest, shadow.settled(guest))).collect();
            (closed, gone)
        };
        self.answer(closed);
        for (guest, times) in gone {
            (0..times).for_each(|_| self.pasids.release(guest));
        }
    }

    fn answer(&self, closed: Vec<(u16, Option<Pasid>)>) {
        for (group, pasid) in closed {
            let code = ResponseCode::InvalidRequest;
            self.host.respond(self.device, PageGroupResponse { pasid, group, code });
        }
    }

    /// The host has refused: nothing has changed there, and the guest reads of it what its entry would have raised.
    fn refused(&self, guest: Option<Pasid>, error: HostError) {
        tracing::debug!(%error, function = %self.source_id, "the host refuses an attachment");
        if let Some(port) = self.port.get() {
            let requester = Requester { pasid: guest, privileged: false };
            port.report_fault(error.fault_reason(), requester, 0, Access::Read);
        }
        self.trace(&Event::Refused { guest, error });
    }

    fn sync_without_pasid(&self, changes: &mut Vec<Invalidation>) {
        let now = without_pasid(&self.unit.requests_without_pasid(self.source_id));
        let before = self.shadow().without_pasid;
        if now == before {
            return;
        }
        let target = |state: WithoutPasid| match state {
            WithoutPasid::Blocked => None,
            WithoutPasid::Attached(to, _) => Some(to),
        };
        if target(now) != target(before) {
            self.flush(changes);
            match target(now) {
                None => self.detach_without_pasid(),
                Some(to) => {
                    if let Err(error) = self.host.attach(self.device, None, to) {
                        self.refused(None, error);
                        return;
                    }
                    let replaced = target(before).is_some();
                    self.trace(&Event::Bind { guest: None, host: None, to, replaced });
                }
            }
        }
        self.shadow().without_pasid = now;
    }

    fn detach_without_pasid(&self) {
        self.host.block(self.device, None);
        self.shadow().without_pasid = WithoutPasid::Blocked;
        self.abandon(Some(None));
        self.trace(&Event::Unbind { guest: None, host: None });
    }

    /// An invalidation of the guest's first stage: of one PASID in a domain.
    pub(crate) fn invalidate_pasid(
        &self,
        domain: DomainId,
        pasid: Pasid,
        range: AddressRange,
        leaf_only: bool,
    ) {
        let mut changes = self.changes();
        let (bound, without) = {
            let shadow = self.shadow();
            let bound = shadow.bound(pasid).filter(|bound| bound.domain == domain);
            let without = matches!(shadow.without_pasid,
                WithoutPasid::Attached(Attachment::Nested(_), Some(entry)) if entry == (pasid, domain));
            (bound, without)
        };
        let kind = InvalidationKind::Iotlb { leaf_only };
        if let Some(bound) = bound {
            self.push(&mut changes, Some(bound.host), range, kind);
        }
        if without {
            self.push(&mut changes, None, range, kind);
        }
    }

    /// An invalidation of everything that a first stage has a part in: in a domain, or all.
    pub(crate) fn invalidate_first_stages(&self, scope: Scope) {
        let mut changes = self.changes();
        let kind = InvalidationKind::Iotlb { leaf_only: false };
        let (hosts, without) = {
            let shadow = self.shadow();
            let nested = |bound: &Bound| matches!(bound.attachment, Attachment::Nested(_));
            let hosts: Vec<Pasid> = shadow
                .guests_from(Pasid::ZERO)
                .filter(|(_, bound)| nested(bound) && scope.holds(Some(bound), None))
                .map(|(_, bound)| bound.host)
                .collect();
            let without = match shadow.without_pasid {
                WithoutPasid::Attached(Attachment::Nested(_), Some((_, domain))) => {
                    scope == Scope::All || scope == Scope::Domain(domain)
                }
                _ => false,
            };
            (hosts, without)
        };
        for host in hosts {
            self.push(&mut changes, Some(host), AddressRange::ALL, kind);
        }
        if without {
            self.push(&mut changes, None, AddressRange::ALL, kind);
        }
    }

    fn invalidate_device_tlb(&self, invalidation: &DeviceTlbInvalidation) {
        let mut changes = self.changes();
        let (range, kind) = (invalidation.range, InvalidationKind::DeviceTlb);
        if invalidation.global {
            let hosts: Vec<Pasid> =
                self.shadow().guests_from(Pasid::ZERO).map(|(_, bound)| bound.host).collect();
            for host in hosts {
                self.push(&mut changes, Some(host), range, kind);
            }
            return;
        }
        match invalidation.pasid {
            None => self.push(&mut changes, None, range, kind),
            Some(guest) => {
                // A PASID that is not bound has nothing cached: unbinding has emptied it.
                let bound = {
                    let mut shadow = self.shadow();
                    shadow.note_drain(guest);
                    shadow.bound(guest)
                };
                if let Some(bound) = bound {
                    self.push(&mut changes, Some(bound.host), range, kind);
                }
            }
        }
    }

    fn push(
        &self,
        changes: &mut Vec<Invalidation>,
        pasid: Option<Pasid>,
        range: AddressRange,
        kind: InvalidationKind,
    ) {
        let invalidation = Invalidation { device: self.device, pasid, range, kind };
        self.trace(&Event::Invalidate(invalidation));
        changes.push(invalidation);
        if changes.len() >= BATCH {
            self.flush(changes);
        }
    }

    /// Everything heard so far is in effect on the host when this returns.
    pub(crate) fn complete(&self, page_request_drain: bool) {
        self.flush(&mut self.changes());
        // A guest that drains a PASID owes no more answers: whatever still waits gets one now.
        let drained = self.shadow().take_drained(page_request_drain);
        for guest in drained {
            self.abandon(Some(Some(guest)));
        }
    }

    fn flush(&self, changes: &mut Vec<Invalidation>) {
        let mut tries = 0;
        while !changes.is_empty() {
            let done = self.host.invalidate(changes).min(changes.len());
            changes.drain(..done);
            tries = if done == 0 { tries + 1 } else { 0 };
            if tries == INVALIDATE_TRIES {
                // Stale translations must not survive: rather none at all, until the guest announces an entry again.
                tracing::error!(function = %self.source_id, "the host does not invalidate: unbinding what it concerns");
                for invalidation in changes.drain(..) {
                    let guest = invalidation.pasid.map(|host| self.shadow().guest(host));
                    match guest {
                        None => self.detach_without_pasid(),
                        Some(Some(guest)) => self.detach(guest),
                        Some(None) => {}
                    }
                }
            }
        }
    }

    /// Unbinds everything for good: the machine goes.
    pub(crate) fn close(&self) {
        let mut changes = self.changes();
        self.closed.store(true, Ordering::Relaxed);
        self.release(&mut changes);
    }

    fn release(&self, changes: &mut Vec<Invalidation>) {
        self.unbind_between(changes, 0, Pasid::MAX.get() + 1, Scope::All);
        changes.clear();
        let attached = self.shadow().without_pasid != WithoutPasid::Blocked;
        if attached {
            self.detach_without_pasid();
        } else {
            self.host.block(self.device, None);
        }
        self.abandon(None);
    }

    /// The guest has answered a group.
    fn guest_response(&self, response: PageGroupResponse) {
        let closed = self.shadow().close_group(response.pasid, response.group);
        // An answer to no request is discarded, as the function itself would.
        let Some(host) = closed else { return };
        self.trace(&Event::Response(response));
        self.host.respond(self.device, PageGroupResponse { pasid: host, ..response });
        if let Some(guest) = response.pasid {
            let times = self.shadow().settled(guest);
            (0..times).for_each(|_| self.pasids.release(guest));
        }
    }
}

impl<M: GuestMemoryBackend + Send + Sync + 'static> HostEvents for Assigned<M> {
    fn page_request(&self, device: DeviceId, request: PageRequest) {
        let host = request.requester.pasid;
        let expects_answer = request.last && (request.read || request.write);
        let guest = {
            let mut shadow = self.shadow();
            let guest = match host {
                None => Some(None),
                Some(host) => shadow.guest(host).map(Some),
            };
            guest.filter(|guest| !expects_answer || shadow.open_group(*guest, request.group, host))
        };
        let (Some(pasid), Some(port)) = (guest, self.port.get()) else {
            if expects_answer {
                let code = ResponseCode::InvalidRequest;
                self.host.respond(device, PageGroupResponse { pasid: host, group: request.group, code });
            }
            return;
        };
        let requester = Requester { pasid, ..request.requester };
        let request = PageRequest { requester, ..request };
        self.trace(&Event::PageRequest(request));
        port.page_request(request);
    }

    fn fault(&self, _device: DeviceId, fault: HostFault) {
        let guest = match fault.pasid {
            FaultPasid::None => Some(None),
            FaultPasid::Device(pasid) => Some(Some(pasid)),
            FaultPasid::Host(host) => self.shadow().guest(host).map(Some),
        };
        let (Some(pasid), Some(port)) = (guest, self.port.get()) else { return };
        let reason = guest_reason(fault.reason);
        // The host does not know whose faults the guest does not want to hear of. [S 7.1.1]
        if reason.is_qualified() && self.unit.faults_are_suppressed(self.source_id, pasid) {
            return;
        }
        self.trace(&Event::Fault { guest: pasid, reason, address: fault.address });
        let requester = Requester { pasid, privileged: fault.privileged };
        port.report_fault(reason, requester, fault.address, fault.access);
    }
}

/// How a guest without a second stage reads a reason: what the host's second stage denies is memory that the guest
/// does not have.
fn guest_reason(reason: FaultReason) -> FaultReason {
    use FaultReason as R;
    match reason {
        R::Sss1 | R::Sss2 | R::Sss3 | R::Sss4 | R::Sss5 | R::Sss6 | R::Sgn5 | R::Sgn7 => R::Sfs1,
        R::Sfs5 | R::Sfs6 | R::Sfs7 | R::Sfs8 => R::Sfs1,
        other => other,
    }
}
