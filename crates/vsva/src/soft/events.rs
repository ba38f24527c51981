// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the physical unit reports, passed on to whoever listens for the function.

use std::sync::PoisonError;

use vtd_spec::{FaultReason, FaultRequestType, ResponseCode};
use vtd_unit::{Access, PageRequest, Requester};

use super::soft_host::SoftHost;
use crate::host::{FaultPasid, HostFault};

impl SoftHost {
    /// Reads faults and page requests, and passes them on with the driver unlocked.
    pub(super) fn serve_interrupts(&self) {
        let _passing = self.passing.lock().unwrap_or_else(PoisonError::into_inner);
        let (faults, requests) = {
            let mut driver = self.driver();
            let faults = driver.iommu.take_faults();
            let requests = driver.iommu.take_page_requests();
            (faults, requests)
        };
        for record in faults.records {
            let reason = FaultReason::ALL.iter().copied().find(|reason| reason.code() == record.fr());
            let function = self.find_source(record.sid());
            let Some(((function, events), reason)) =
                function.and_then(|function| Some((function.id, function.sink.events()?))).zip(reason)
            else {
                tracing::debug!(?record, "a fault of no assigned function");
                continue;
            };
            let access = match record.request_type() {
                FaultRequestType::Write => Access::Write,
                FaultRequestType::AtomicOp => Access::Atomic,
                _ => Access::Read,
            };
            let pasid = if record.pp() { FaultPasid::Host(record.pv()) } else { FaultPasid::None };
            let (address, privileged) = (record.fi(), record.privileged());
            events.fault(function, HostFault { reason, pasid, address, access, privileged });
        }
        match requests {
            Ok(requests) => {
                for request in requests.requests {
                    self.pass_on(&request);
                }
            }
            Err(error) => tracing::error!(%error, "soft host: page requests"),
        }
    }

    fn pass_on(&self, request: &vtd_driver::PageRequest) {
        let function = self.find_source(request.source_id);
        let events = function.and_then(|function| Some((function.id, function.sink.events()?)));
        match events {
            Some((id, events)) => {
                let requester = Requester { pasid: request.pasid, privileged: false };
                let vtd_driver::PageRequest { address, read, write, last, group, .. } = *request;
                // The group's index is all that the queue needs to know of it.
                events.page_request(id, PageRequest { requester, address, read, write, last, group }, 0);
            }
            None => {
                let answered = self.driver().iommu.respond(request, ResponseCode::InvalidRequest);
                if let Err(error) = answered {
                    tracing::error!(%error, "soft host: a page request of no assigned function");
                }
            }
        }
    }
}
