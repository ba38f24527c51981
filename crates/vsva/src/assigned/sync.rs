// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The host's attachments follow the guest's tables: entries are read, compared with the shadow, attached, replaced and
//! detached.

use std::ops::ControlFlow;
use std::sync::atomic::Ordering;

use vm_memory::GuestMemoryBackend;
use vtd_spec::{DomainId, Pasid};
use vtd_unit::{Binding, RequestsWithoutPasid, Translation};

use super::state::{Assigned, Changes, Scope, Waiting};
use crate::host::{Attachment, HostError};
use crate::shadow::{Bound, WithoutPasid, attachment, without_pasid};
use crate::trace::Event;

impl<M: GuestMemoryBackend + Send + Sync + 'static> Assigned<M> {
    /// Reads all entries in scope and attaches, replaces and detaches until the host has what they say.
    pub(crate) fn sync(&self, scope: Scope) {
        self.note_stale(scope);
        while self.is_stale() {
            self.catch_up(self.queue_generation());
        }
        self.settle();
    }

    /// The unit's count of enablings and disablings of its queue.
    pub(crate) fn queue_generation(&self) -> u64 {
        self.unit.queue_generation()
    }

    /// Reads what is to be read, but for bindings that find no PASID left: those are for [`Self::settle`], once all functions
    /// have given back what they no longer use. Where the queue was disabled or enabled since it had this `generation`, or the
    /// unit reset, it is still to be read afterwards.
    pub(crate) fn catch_up(&self, generation: u64) {
        let Some(scope) = self.stale().take() else { return };
        if !self.sync_entries(scope, generation) {
            self.note_stale(scope);
        }
    }

    /// Whether all entries in scope were read.
    fn sync_entries(&self, scope: Scope, generation: u64) -> bool {
        let mut changes = self.changes();
        if changes.closed {
            return true;
        }
        changes.waiting.clear();
        changes.beyond = None;
        if scope == Scope::All {
            // All of it is asked for again.
            changes.again.clear();
        }
        self.sync_without_pasid(&mut changes, |_, before, now| scope.holds(before, now));
        // Bound PASIDs from here on have not been looked at.
        let mut next = 0;
        let interrupted =
            || self.closing.load(Ordering::Relaxed) || self.unit.queue_generation() != generation;
        let all = self.unit.bindings(self.source_id, Pasid::ZERO, &interrupted, &mut |pasid, binding| {
            self.unbind_between(&mut changes, next, pasid.get(), scope);
            self.sync_entry(&mut changes, pasid, Some(binding), scope);
            next = pasid.get() + 1;
            // Beyond what can be bound nothing new is looked for.
            if changes.beyond.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        if !all {
            return false;
        }
        if changes.beyond.is_some() {
            // What is bound already is still followed, each on its own.
            for guest in self.bound_from(next) {
                let binding = self.unit.binding(self.source_id, guest);
                self.sync_entry(&mut changes, guest, binding, scope);
            }
        } else {
            self.unbind_between(&mut changes, next, Pasid::MAX.get() + 1, scope);
        }
        true
    }

    /// The guest's PASIDs that are bound, from a number on.
    fn bound_from(&self, first: u32) -> Vec<Pasid> {
        let Some(first) = Pasid::new(first) else { return Vec::new() };
        self.shadow().guests_from(first).map(|(guest, _)| guest).collect()
    }

    /// Binds what has found no PASID so far; what still finds none is refused.
    pub(crate) fn settle(&self) {
        let mut changes = self.changes();
        if changes.closed {
            return;
        }
        for Waiting { guest, to, domain } in std::mem::take(&mut changes.waiting) {
            if let Err(error) = self.bind_new(&mut changes, guest, to, domain) {
                self.not_bound(&mut changes, guest, error);
            }
        }
        if let Some(guest) = changes.beyond.take() {
            self.refused(Some(guest), HostError::NoPasid);
        }
    }

    /// Reads the entry of one PASID, where the guest's or the shadow's names `domain`.
    pub(crate) fn sync_pasid(&self, domain: DomainId, pasid: Pasid) {
        {
            let mut changes = self.changes();
            if changes.closed {
                return;
            }
            let scope = Scope::Domain(domain);
            let binding = self.unit.binding(self.source_id, pasid);
            self.sync_entry(&mut changes, pasid, binding, scope);
            self.sync_without_pasid(&mut changes, |rid_pasid, before, now| {
                rid_pasid == Some(pasid) && scope.holds(before, now)
            });
        }
        self.settle();
    }

    /// Asks the host again for what it was too busy for.
    pub(super) fn try_again(&self) {
        let mut changes = self.changes();
        if changes.again.is_empty() || changes.closed {
            return;
        }
        for guest in std::mem::take(&mut changes.again) {
            match guest {
                Some(guest) => {
                    let binding = self.unit.binding(self.source_id, guest);
                    self.sync_entry(&mut changes, guest, binding, Scope::All);
                }
                None => self.sync_without_pasid(&mut changes, |_, _, _| true),
            }
        }
        drop(changes);
        self.settle();
    }

    /// The guest's PASID is not bound: to be tried again, or for a reason of its entry's.
    fn not_bound(&self, changes: &mut Changes, guest: Pasid, error: HostError) {
        if error == HostError::Busy {
            changes.again.insert(Some(guest));
        } else {
            self.refused(Some(guest), error);
        }
    }

    /// Detaches what is bound in `first..end`, whose tables are gone.
    pub(super) fn unbind_between(&self, changes: &mut Changes, first: u32, end: u32, scope: Scope) {
        let Some(first) = Pasid::new(first) else { return };
        let gone: Vec<Pasid> = self
            .shadow()
            .guests_from(first)
            .take_while(|(guest, _)| guest.get() < end)
            .filter(|(_, bound)| scope.is_of(bound))
            .map(|(guest, _)| guest)
            .collect();
        for guest in gone {
            self.unbind(changes, guest);
        }
    }

    fn sync_entry(&self, changes: &mut Changes, guest: Pasid, binding: Option<Binding>, scope: Scope) {
        let before = self.shadow().bound(guest);
        if !scope.holds(before.map(|bound| bound.domain), binding.map(|binding| binding.domain)) {
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
            (before, Some((to, domain))) => self.bind(changes, guest, before.is_some(), to, domain),
        }
    }

    fn bind(&self, changes: &mut Changes, guest: Pasid, replaces: bool, to: Attachment, domain: DomainId) {
        self.flush(changes);
        // A host that did not invalidate has lost it.
        let bound = self.shadow().bound(guest).filter(|_| replaces);
        if let Some(bound) = bound {
            return self.rebind(changes, guest, bound, to, domain);
        }
        match self.bind_new(changes, guest, to, domain) {
            Ok(()) => {}
            // What is given back further up, or on another function, may serve; there is no more of it than is held.
            Err(HostError::NoPasid) if changes.waiting.len() < self.pasids.held() => {
                changes.waiting.push(Waiting { guest, to, domain });
            }
            // However many there are: one tells of them all.
            Err(HostError::NoPasid) => {
                changes.beyond.get_or_insert(guest);
            }
            Err(error) => self.not_bound(changes, guest, error),
        }
    }

    fn rebind(&self, changes: &mut Changes, guest: Pasid, bound: Bound, to: Attachment, domain: DomainId) {
        let Bound { host, attachment: before, .. } = bound;
        let attached = self.host.attach(self.device, Some(host), to);
        // What was there stays, also for a guest that names the entry by its new domain when it takes it away.
        let attachment = if attached.is_ok() { to } else { before };
        self.shadow().insert(guest, Bound { host, domain, attachment });
        match attached {
            Ok(()) => {
                self.forget_ended_groups(&mut self.shadow(), Some(guest));
                self.trace(&Event::Bind { guest: Some(guest), host: Some(host), to, replaced: true });
            }
            // Nothing may use what the guest has taken away, until the host is asked again.
            Err(HostError::Busy) => {
                self.detach(guest);
                changes.again.insert(Some(guest));
            }
            Err(error) => {
                if matches!(error, HostError::Lost(_)) {
                    self.detach(guest);
                }
                self.refused(Some(guest), error);
            }
        }
    }

    fn bind_new(
        &self,
        changes: &mut Changes,
        guest: Pasid,
        to: Attachment,
        domain: DomainId,
    ) -> Result<(), HostError> {
        self.flush(changes);
        let host = self.pasids.acquire(guest)?;
        self.attach_new(guest, host, to).inspect_err(|_| self.pasids.release(guest))?;
        self.shadow().insert(guest, Bound { host, domain, attachment: to });
        self.trace(&Event::Bind { guest: Some(guest), host: Some(host), to, replaced: false });
        Ok(())
    }

    fn attach_new(&self, guest: Pasid, host: Pasid, to: Attachment) -> Result<(), HostError> {
        self.host.attach(self.device, Some(host), to)?;
        self.host
            .set_pasid_translation(self.device, guest, Some(host))
            .inspect_err(|_| self.host.block(self.device, Some(host)))
    }

    /// The guest gives a PASID up, whatever its tables say of it.
    pub(crate) fn give_up(&self, guest: Pasid) {
        self.unbind(&mut self.changes(), guest);
    }

    fn unbind(&self, changes: &mut Changes, guest: Pasid) {
        self.flush(changes);
        self.detach(guest);
    }

    /// What becomes of requests without PASID, if `concerns` says so of the PASID whose entry they use, and its domain-id
    /// before and now.
    fn sync_without_pasid(
        &self,
        changes: &mut Changes,
        concerns: impl Fn(Option<Pasid>, Option<DomainId>, Option<DomainId>) -> bool,
    ) {
        let requests = self.unit.requests_without_pasid(self.source_id);
        self.tell_of_second_stage(changes, &requests);
        let now = without_pasid(&requests);
        let before = self.shadow().without_pasid;
        let (was, is) = (before.entry(), now.entry());
        let pasid = is.or(was).map(|(pasid, _)| pasid);
        if now == before || !concerns(pasid, was.map(|(_, domain)| domain), is.map(|(_, domain)| domain)) {
            return;
        }
        if now.attachment() != before.attachment() {
            self.flush(changes);
            match now.attachment() {
                None => self.detach_without_pasid(),
                Some(to) => {
                    if let Err(error) = self.host.attach(self.device, None, to) {
                        if matches!(error, HostError::Busy | HostError::Lost(_)) {
                            self.detach_without_pasid();
                        }
                        if error == HostError::Busy {
                            changes.again.insert(None);
                            return;
                        }
                        // As for PASIDs: what was there stays, under its new domain.
                        let mut shadow = self.shadow();
                        if let WithoutPasid::Attached(_, entry) = &mut shadow.without_pasid {
                            *entry = is;
                        }
                        drop(shadow);
                        self.refused(None, error);
                        return;
                    }
                    let replaced = before.attachment().is_some();
                    self.trace(&Event::Bind { guest: None, host: None, to, replaced });
                }
            }
        }
        self.shadow().without_pasid = now;
    }

    /// A guest that translates by second stages of its own is told in vain by faults alone: the user is told how it can be had.
    fn tell_of_second_stage(&self, changes: &mut Changes, requests: &RequestsWithoutPasid) {
        let second = matches!(
            requests,
            RequestsWithoutPasid::Remapped(Binding { translation: Translation::SecondStage, .. })
        );
        if second && !std::mem::replace(&mut changes.told, true) {
            tracing::warn!(
                function = %self.source_id,
                "the guest translates this assigned device's DMA by a second stage of its own (legacy mode), which the host \
                 cannot nest: it is blocked. Boot the guest with intel_iommu=on,sm_on, or with iommu=pt"
            );
        }
    }
}
