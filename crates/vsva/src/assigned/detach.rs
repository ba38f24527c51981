// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What is attached on the host is detached, and what it refuses told.

use vm_memory::GuestMemoryBackend;
use vtd_spec::Pasid;
use vtd_unit::{Access, Requester};

use super::state::Assigned;
use crate::host::HostError;
use crate::shadow::{Shadow, WithoutPasid};
use crate::trace::Event;

impl<M: GuestMemoryBackend + Send + Sync + 'static> Assigned<M> {
    pub(super) fn detach(&self, guest: Pasid) {
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
            self.forget_ended_groups(&mut shadow, Some(guest));
            shadow.linger(guest)
        };
        if !waits {
            self.pasids.release(guest);
        }
        self.trace(&Event::Unbind { guest: Some(guest), host: Some(bound.host) });
    }

    /// Groups of requests whose attachment has ended or was replaced: a host that answers them itself has done so.
    pub(super) fn forget_ended_groups(&self, shadow: &mut Shadow, guest: Option<Pasid>) {
        if self.host.nesting_info().ends_groups {
            shadow.close_groups_of(Some(guest));
        }
    }

    /// The host has refused: nothing has changed there, and the guest reads of it what its entry would have raised.
    pub(super) fn refused(&self, guest: Option<Pasid>, error: HostError) {
        tracing::debug!(%error, function = %self.source_id, "the host refuses an attachment");
        if let Some(port) = self.port.get() {
            let requester = Requester { pasid: guest, privileged: false };
            port.report_fault(error.fault_reason(), requester, 0, Access::Read);
        }
        self.trace(&Event::Refused { guest, error });
    }

    pub(super) fn detach_without_pasid(&self) {
        self.host.block(self.device, None);
        self.shadow().without_pasid = WithoutPasid::Blocked;
        self.forget_ended_groups(&mut self.shadow(), None);
        self.abandon(Some(None));
        self.trace(&Event::Unbind { guest: None, host: None });
    }
}
