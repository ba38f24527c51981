// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The host behind assigned devices: a software host with a physical remapping unit of its own, joined to the guest's
//! unit.
//!
//! An assigned device's DMA goes through the host's unit. What the guest's unit still does for it is remap its
//! interrupts, and hand its page requests and faults to the guest.

use std::sync::{Arc, OnceLock, Weak};

use vsva::{
    AssignError, Assigned, DeviceId, HostIommu, HostMemory, Joint, SoftHost, SoftHostConfig, SoftHostError,
    Tracer,
};
use vtd_unit::{Endpoint, EndpointSink, Message, Notify, SourceId, Unit};

use crate::figures::{Figures, Nested};
use crate::memory::Memory;

/// Why there is no host behind assigned devices.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The software host.
    #[error(transparent)]
    SoftHost(#[from] SoftHostError),
    /// The guest's unit and the host's do not go together.
    #[error(transparent)]
    Assign(#[from] AssignError),
}

/// A software host joined to a guest's unit. When it is dropped, after the devices, everything is unbound and then the
/// host goes.
pub struct Host {
    // Dropped in this order.
    joint: Joint<Memory>,
    soft: Arc<SoftHost>,
    figures: Arc<Figures>,
}

impl Host {
    /// Brings a host up around the guest's `memory` and joins `unit` to it; `tracer` hears of what crosses.
    ///
    /// # Errors
    ///
    /// The unit promises what the host lacks, or something cannot be had.
    pub fn new(unit: &Unit<Memory>, memory: &Memory, tracer: Option<Arc<dyn Tracer>>) -> Result<Self, Error> {
        let soft = SoftHost::new(&SoftHostConfig::default(), memory)?;
        let figures = Arc::new(Figures::new(Arc::clone(&soft), tracer));
        let host = Arc::clone(&soft) as Arc<dyn HostIommu>;
        let joint = Joint::new(unit, host, Some(Arc::clone(&figures) as Arc<dyn Tracer>))?;
        Ok(Self { joint, soft, figures })
    }

    /// A function of the host for a device model that hears through `sink`, not yet assigned: its requests are blocked
    /// and its messages lost.
    ///
    /// # Errors
    ///
    /// The host has no place for it.
    pub fn function(&self, sink: Arc<dyn EndpointSink>) -> Result<HostFunction, Error> {
        let messages = Arc::new(GuestMessages::default());
        let (id, endpoint) = self.soft.function(sink, Arc::clone(&messages) as Arc<dyn Notify>)?;
        Ok(HostFunction { id, endpoint, messages })
    }

    /// Gives the guest a function of the host as `source_id`.
    ///
    /// # Errors
    ///
    /// The guest has a function of that source-id.
    pub fn assign(
        &self,
        source_id: SourceId,
        function: &HostFunction,
    ) -> Result<Arc<Assigned<Memory>>, Error> {
        self.figures.name(source_id, function.id);
        let assigned = self.joint.assign(source_id, function.id)?;
        function.messages.0.get_or_init(|| Arc::downgrade(&assigned));
        Ok(assigned)
    }

    /// What the host has done for assigned devices so far.
    pub fn nested(&self) -> Nested {
        self.figures.nested()
    }
}

/// A function of the host, as a device model gets it.
pub struct HostFunction {
    id: DeviceId,
    /// The function's port into the host's unit.
    pub endpoint: Endpoint<HostMemory>,
    messages: Arc<GuestMessages>,
}

/// Messages of an assigned device: the guest's unit remaps them by the function's source-id in the guest. Weak: the
/// host keeps this, and what is assigned keeps the host.
#[derive(Default)]
struct GuestMessages(OnceLock<Weak<Assigned<Memory>>>);

impl Notify for GuestMessages {
    fn message(&self, message: Message) {
        if let Some(assigned) = self.0.get().and_then(Weak::upgrade) {
            assigned.message(message);
        }
    }
}

#[cfg(test)]
mod tests {
    use vtd_unit::{PageGroupResponse, UnitConfig};

    use super::*;
    use crate::memory;

    struct Nothing;

    impl EndpointSink for Nothing {
        fn page_group_response(&self, _: PageGroupResponse) {}
    }

    impl Notify for Nothing {
        fn message(&self, _: Message) {}
    }

    #[test]
    fn nothing_of_a_host_stays_behind_it() {
        let memory = memory::allocate(memory::MemoryOptions::ordinary(16 << 20)).unwrap();
        let unit = Unit::new(&UnitConfig::default(), Arc::clone(&memory), Arc::new(Nothing)).unwrap();
        let host = Host::new(&unit, &memory, None).unwrap();
        let functions = [1, 2].map(|device| {
            let function = host.function(Arc::new(Nothing)).unwrap();
            host.assign(SourceId::new(0, device, 0), &function).unwrap();
            function
        });
        let [endpoint, other] = functions.each_ref().map(|function| function.endpoint.clone());
        let mut byte = [0];
        endpoint.read(Default::default(), 0, &mut byte).unwrap();
        drop(functions);
        let soft = Arc::downgrade(&host.soft);
        drop(host);
        // Requests of devices that are still there are blocked, and nobody keeps the host.
        assert!(endpoint.read(Default::default(), 0, &mut byte).is_err());
        assert!(other.read(Default::default(), 0, &mut byte).is_err());
        assert!(soft.upgrade().is_none());
        endpoint.message(Message { address: 0xfee0_0000, data: 0 });
    }
}
