// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A function of the soft host: what stands between a device model and the host's unit, as the host's own mediation
//! does. The device knows guest PASIDs, the unit the host's.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use vtd_spec::{FaultReason, Pasid, SourceId};
use vtd_unit::{Access, DeviceTlbInvalidation, Endpoint, EndpointSink, PageGroupResponse, Requester};

use super::memory::HostMemory;
use crate::host::{DeviceId, FaultPasid, HostEvents, HostFault};

/// What a device hears through its function.
pub(crate) struct FunctionSink {
    id: DeviceId,
    device: Arc<dyn EndpointSink>,
    events: Mutex<Option<Weak<dyn HostEvents>>>,
    /// The device's PASID that each of the host's stands for. Entries outlive their translation, for answers that are
    /// on their way when it ends, until the host's PASID stands for another.
    guests: Mutex<HashMap<Pasid, Pasid>>,
}

impl FunctionSink {
    pub(crate) fn new(id: DeviceId, device: Arc<dyn EndpointSink>) -> Self {
        Self { id, device, events: Mutex::default(), guests: Mutex::default() }
    }

    pub(crate) fn listen(&self, events: Weak<dyn HostEvents>) {
        *self.events.lock().unwrap_or_else(PoisonError::into_inner) = Some(events);
    }

    pub(crate) fn events(&self) -> Option<Arc<dyn HostEvents>> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).as_ref()?.upgrade()
    }

    pub(crate) fn stands_for(&self, host: Pasid, guest: Pasid) {
        self.guests.lock().unwrap_or_else(PoisonError::into_inner).insert(host, guest);
    }

    fn guest(&self, host: Pasid) -> Pasid {
        // One that never stood for anything has no one to hear of it.
        self.guests.lock().unwrap_or_else(PoisonError::into_inner).get(&host).copied().unwrap_or(host)
    }
}

impl EndpointSink for FunctionSink {
    fn page_group_response(&self, response: PageGroupResponse) {
        let pasid = response.pasid.map(|host| self.guest(host));
        self.device.page_group_response(PageGroupResponse { pasid, ..response });
    }

    fn automatic_page_group_response(&self, response: PageGroupResponse) {
        self.device.page_group_response(response);
    }

    fn device_tlb_invalidation(&self, invalidation: DeviceTlbInvalidation) {
        let pasid = invalidation.pasid.map(|host| self.guest(host));
        self.device.device_tlb_invalidation(DeviceTlbInvalidation { pasid, ..invalidation });
    }

    fn pasid_refused(&self, requester: Requester, address: u64, access: Access) {
        if let (Some(events), Some(pasid)) = (self.events(), requester.pasid) {
            let fault = HostFault {
                // What the guest's own unit would say of a PASID without an entry.
                reason: FaultReason::Spt2,
                pasid: FaultPasid::Device(pasid),
                address,
                access,
                privileged: requester.privileged,
            };
            events.fault(self.id, fault);
        }
    }
}

/// A function of the soft host.
pub(crate) struct Function {
    pub id: DeviceId,
    pub source_id: SourceId,
    pub sink: Arc<FunctionSink>,
    pub endpoint: Endpoint<HostMemory>,
}
