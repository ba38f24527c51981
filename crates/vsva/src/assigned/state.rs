// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The state of an assigned function, and what its files look up in it.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use vm_memory::GuestMemoryBackend;
use vtd_spec::{DomainId, Pasid, SourceId};
use vtd_unit::{Endpoint, Message, Unit};

use crate::host::{Attachment, DeviceId, HostIommu, Invalidation};
use crate::pasids::HostPasids;
use crate::shadow::{Bound, Shadow};
use crate::trace::{Event, Tracer};

/// A function of the guest that a host has assigned.
pub struct Assigned<M> {
    pub(super) unit: Unit<M>,
    pub(super) source_id: SourceId,
    pub(super) device: DeviceId,
    pub(super) host: Arc<dyn HostIommu>,
    pub(super) pasids: Arc<HostPasids>,
    pub(super) tracer: Option<Arc<dyn Tracer>>,
    /// The function's port into the guest's unit.
    pub(super) port: OnceLock<Endpoint<M>>,
    pub(super) changes: Mutex<Changes>,
    /// Which entries are to be read at the next wait.
    pub(super) stale: Mutex<Option<Scope>>,
    /// The function goes: nothing is read for it any more.
    pub(super) closing: AtomicBool,
    pub(super) shadow: Mutex<Shadow>,
}

/// What is under way towards the host.
#[derive(Default)]
pub(super) struct Changes {
    /// Invalidations that were not passed down yet.
    pub(super) batch: Vec<Invalidation>,
    /// New bindings that wait for a PASID, and the first of those that were not taken in.
    pub(super) waiting: Vec<Waiting>,
    pub(super) beyond: Option<Pasid>,
    /// What the host was too busy for: PASIDs, and requests without one.
    pub(super) again: BTreeSet<Option<Pasid>>,
    /// The user was told that what the guest asks for cannot be had.
    pub(super) told: bool,
    /// The joint is gone: nothing is attached any more.
    pub(super) closed: bool,
}

/// Which entries a PASID-cache invalidation concerns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    All,
    Domain(DomainId),
}

impl Scope {
    /// Whether it concerns an entry that was `before` and is `now`, each by its domain-id.
    pub(super) fn holds(self, before: Option<DomainId>, now: Option<DomainId>) -> bool {
        let Self::Domain(domain) = self else { return true };
        // What was not present or not valid is cached under domain 0 in caching mode. [S 6.1]
        before.unwrap_or_default() == domain || now == Some(domain)
    }

    /// Whether something that is bound is of the scope.
    pub(super) fn is_of(self, bound: &Bound) -> bool {
        match self {
            Self::All => true,
            Self::Domain(domain) => bound.domain == domain,
        }
    }
}

/// A new binding for which the host had no PASID left.
pub(super) struct Waiting {
    pub(super) guest: Pasid,
    pub(super) to: Attachment,
    pub(super) domain: DomainId,
}

impl<M: GuestMemoryBackend + Send + Sync + 'static> Assigned<M> {
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

    pub(super) fn changes(&self) -> MutexGuard<'_, Changes> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn shadow(&self) -> MutexGuard<'_, Shadow> {
        self.shadow.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn trace(&self, event: &Event) {
        if let Some(tracer) = &self.tracer {
            tracer.event(self.source_id, event);
        }
    }

    /// Notes that entries are to be read.
    pub(crate) fn note_stale(&self, scope: Scope) {
        let mut stale = self.stale();
        *stale = Some(match *stale {
            Some(before) if before != scope => Scope::All,
            _ => scope,
        });
    }

    /// Whether some are.
    pub(crate) fn is_stale(&self) -> bool {
        self.stale().is_some() && !self.closing.load(Ordering::Relaxed)
    }

    pub(super) fn stale(&self) -> MutexGuard<'_, Option<Scope>> {
        self.stale.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
