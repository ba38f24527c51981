// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Invalidations are collected, and go down together.

use vm_memory::GuestMemoryBackend;
use vtd_spec::{AddressRange, Pasid};

use super::state::{Assigned, Changes};
use crate::host::{Invalidation, InvalidationKind};
use crate::trace::Event;

/// Invalidations that are collected before they go down without a wait descriptor having asked.
const BATCH: usize = 256;

/// Times a host is given a batch of which it does nothing.
const INVALIDATE_TRIES: usize = 3;

impl<M: GuestMemoryBackend + Send + Sync + 'static> Assigned<M> {
    pub(super) fn pass_down(
        &self,
        changes: &mut Changes,
        pasid: Option<Pasid>,
        range: AddressRange,
        kind: InvalidationKind,
    ) {
        let invalidation = Invalidation { device: self.device, pasid, range, kind };
        self.trace(&Event::Invalidate(invalidation));
        changes.batch.push(invalidation);
        if changes.batch.len() >= BATCH {
            self.flush(changes);
        }
    }

    pub(super) fn flush(&self, changes: &mut Changes) {
        let batch = &mut changes.batch;
        let mut tries = 0;
        while !batch.is_empty() {
            let done = self.host.invalidate(batch).min(batch.len());
            batch.drain(..done);
            tries = if done == 0 { tries + 1 } else { 0 };
            if tries == INVALIDATE_TRIES {
                // Stale translations must not survive: rather none at all, until the guest announces an entry again.
                tracing::error!(function = %self.source_id, "the host does not invalidate: unbinding what it concerns");
                for invalidation in batch.drain(..) {
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
}
