// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What comes up from the host, page requests and faults, and the guest's answers.

use vm_memory::GuestMemoryBackend;
use vtd_spec::{FaultReason, Pasid};
use vtd_unit::{PageGroupResponse, PageRequest, Requester, ResponseCode};

use super::state::Assigned;
use crate::host::{DeviceId, FaultPasid, HostEvents, HostFault};
use crate::shadow::Outstanding;
use crate::trace::Event;

impl<M: GuestMemoryBackend + Send + Sync + 'static> Assigned<M> {
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

    fn answer(&self, closed: Vec<(u16, Outstanding)>) {
        for (group, Outstanding { host, cookie }) in closed {
            let code = ResponseCode::InvalidRequest;
            self.host.respond(self.device, PageGroupResponse { pasid: host, group, code }, cookie);
        }
    }

    /// The guest has answered a group.
    pub(super) fn guest_response(&self, response: PageGroupResponse) {
        let closed = self.shadow().close_group(response.pasid, response.group);
        // An answer to no request is discarded, as the function itself would.
        let Some(Outstanding { host, cookie }) = closed else { return };
        self.trace(&Event::Response(response));
        self.host.respond(self.device, PageGroupResponse { pasid: host, ..response }, cookie);
        if let Some(guest) = response.pasid {
            let times = self.shadow().settled(guest);
            (0..times).for_each(|_| self.pasids.release(guest));
        }
    }
}

impl<M: GuestMemoryBackend + Send + Sync + 'static> HostEvents for Assigned<M> {
    fn page_request(&self, device: DeviceId, request: PageRequest, cookie: u64) {
        let host = request.requester.pasid;
        let expects_answer = request.last && (request.read || request.write);
        let guest = {
            let mut shadow = self.shadow();
            let guest = match host {
                None => Some(None),
                Some(host) => shadow.guest(host).map(Some),
            };
            let group = Outstanding { host, cookie };
            guest.filter(|guest| !expects_answer || shadow.open_group(*guest, request.group, group))
        };
        let (Some(pasid), Some(port)) = (guest, self.port.get()) else {
            if expects_answer {
                let code = ResponseCode::InvalidRequest;
                let response = PageGroupResponse { pasid: host, group: request.group, code };
                self.host.respond(device, response, cookie);
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
            FaultPasid::Host(host) if self.host.nesting_info().identical_pasids => Some(Some(host)),
            FaultPasid::Host(host) => self.shadow().guest(host).map(Some),
        };
        let (Some(pasid), Some(port)) = (guest, self.port.get()) else { return };
        // The host does not know why the guest has nothing there, nor whose faults it does not want to hear of.
        let said = self.unit.look_up(self.source_id, pasid);
        let reason = match said.fault {
            Some(reason) if is_of_tables(fault.reason) => reason,
            _ => guest_reason(fault.reason),
        };
        if said.fpd && reason.is_qualified() {
            return;
        }
        self.trace(&Event::Fault { guest: pasid, reason, address: fault.address });
        let requester = Requester { pasid, privileged: fault.privileged };
        port.report_fault(reason, requester, fault.address, fault.access);
    }
}

/// Whether a request was blocked on its way to a PASID entry, by the entry or before it. What the host has there is its own
/// affair: for the guest, its own tables count.
fn is_of_tables(reason: FaultReason) -> bool {
    use FaultReason as R;
    (R::Rta1.code()..=R::Spt4_1.code()).contains(&reason.code())
}

/// How a guest without a second stage reads a reason that its own tables do not account for: what the host's second stage
/// denies is memory that the guest does not have, and what the host has not bound is not present.
fn guest_reason(reason: FaultReason) -> FaultReason {
    use FaultReason as R;
    match reason {
        R::Sss1 | R::Sss2 | R::Sss3 | R::Sss4 | R::Sss5 | R::Sss6 | R::Sgn5 | R::Sgn7 => R::Sfs1,
        R::Sfs5 | R::Sfs6 | R::Sfs7 | R::Sfs8 => R::Sfs1,
        other if is_of_tables(other) => R::Spt2,
        other => other,
    }
}
