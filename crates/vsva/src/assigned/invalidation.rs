// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Invalidations on their way down: collected, and in effect on the host before the guest's wait completes.

use vm_memory::GuestMemoryBackend;
use vtd_spec::{AddressRange, DomainId, Pasid};
use vtd_unit::DeviceTlbInvalidation;

use super::state::{Assigned, Scope};
use crate::host::{Attachment, InvalidationKind};
use crate::shadow::{Bound, WithoutPasid};

/// Whether the guest has a stage of its own in it. What is attached to the second stage alone is the host's to invalidate.
fn is_nested(bound: &Bound) -> bool {
    matches!(bound.attachment, Attachment::Nested(_))
}

impl<M: GuestMemoryBackend + Send + Sync + 'static> Assigned<M> {
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
            let bound = shadow.bound(pasid).filter(|bound| bound.domain == domain && is_nested(bound));
            let without = matches!(shadow.without_pasid,
                WithoutPasid::Attached(Attachment::Nested(_), Some(entry)) if entry == (pasid, domain));
            (bound, without)
        };
        let kind = InvalidationKind::Iotlb { leaf_only };
        if let Some(bound) = bound {
            self.pass_down(&mut changes, Some(bound.host), range, kind);
        }
        if without {
            self.pass_down(&mut changes, None, range, kind);
        }
    }

    /// An invalidation of everything that a first stage has a part in: in a domain, or all.
    pub(crate) fn invalidate_first_stages(&self, scope: Scope) {
        let mut changes = self.changes();
        let kind = InvalidationKind::Iotlb { leaf_only: false };
        let (hosts, without) = {
            let shadow = self.shadow();
            let hosts: Vec<Pasid> = shadow
                .guests_from(Pasid::ZERO)
                .filter(|(_, bound)| is_nested(bound) && scope.is_of(bound))
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
            self.pass_down(&mut changes, Some(host), AddressRange::ALL, kind);
        }
        if without {
            self.pass_down(&mut changes, None, AddressRange::ALL, kind);
        }
    }

    pub(super) fn invalidate_device_tlb(&self, invalidation: &DeviceTlbInvalidation) {
        let mut changes = self.changes();
        let (range, kind) = (invalidation.range, InvalidationKind::DeviceTlb);
        if invalidation.global {
            let hosts: Vec<Pasid> = self
                .shadow()
                .guests_from(Pasid::ZERO)
                .filter(|(_, bound)| is_nested(bound))
                .map(|(_, bound)| bound.host)
                .collect();
            for host in hosts {
                self.pass_down(&mut changes, Some(host), range, kind);
            }
            return;
        }
        match invalidation.pasid {
            None => {
                let without = self.shadow().without_pasid;
                if matches!(without.attachment(), Some(Attachment::Nested(_))) {
                    self.pass_down(&mut changes, None, range, kind);
                }
            }
            Some(guest) => {
                // A PASID that is not bound has nothing cached: unbinding has emptied it.
                let bound = {
                    let mut shadow = self.shadow();
                    shadow.note_drain(guest);
                    shadow.bound(guest).filter(is_nested)
                };
                if let Some(bound) = bound {
                    self.pass_down(&mut changes, Some(bound.host), range, kind);
                }
            }
        }
    }

    /// Everything heard so far is in effect on the host when this returns.
    pub(crate) fn complete(&self, page_request_drain: bool) {
        self.try_again();
        self.flush(&mut self.changes());
        // A guest that drains a PASID owes no more answers: whatever still waits gets one now.
        let drained = self.shadow().take_drained(page_request_drain);
        for guest in drained {
            self.abandon(Some(Some(guest)));
        }
    }
}
