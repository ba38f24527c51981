// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! For an endpoint that is made before its device.

use std::sync::{Arc, OnceLock};

use crate::endpoint_sink::EndpointSink;
use crate::request::{Access, DeviceTlbInvalidation, PageGroupResponse, Requester};

/// What a function hears goes to a device that is named later: for a device that is made with its endpoint. Until then there
/// is nobody to hear it. The unit keeps the sink, and so the device, as long as the function is there.
///
/// ```
/// # use std::sync::Arc;
/// # use vm_memory::{GuestAddress, GuestMemoryMmap};
/// # use vtd_unit::{Endpoint, EndpointSink, LateSink, Message, Notify, SourceId, Unit, UnitConfig};
/// # struct Deaf;
/// # impl Notify for Deaf {
/// #     fn message(&self, _: Message) {}
/// # }
/// struct Device {
///     endpoint: Endpoint<GuestMemoryMmap>,
/// }
///
/// impl EndpointSink for Device {}
///
/// # let memory = Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)])?);
/// # let unit = Unit::new(&UnitConfig::default(), memory, Arc::new(Deaf))?;
/// let sink = Arc::new(LateSink::default());
/// let endpoint = unit.endpoint(SourceId::new(0, 1, 0), Arc::clone(&sink) as _)?;
/// let device = Arc::new(Device { endpoint });
/// assert!(sink.set(Arc::clone(&device) as _));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Default)]
pub struct LateSink(OnceLock<Arc<dyn EndpointSink>>);

impl LateSink {
    /// Names the device. False where there is one already, which stays.
    pub fn set(&self, device: Arc<dyn EndpointSink>) -> bool {
        self.0.set(device).is_ok()
    }
}

impl EndpointSink for LateSink {
    fn page_group_response(&self, response: PageGroupResponse) {
        if let Some(device) = self.0.get() {
            device.page_group_response(response);
        }
    }

    fn automatic_page_group_response(&self, response: PageGroupResponse) {
        if let Some(device) = self.0.get() {
            device.automatic_page_group_response(response);
        }
    }

    fn device_tlb_invalidation(&self, invalidation: DeviceTlbInvalidation) {
        if let Some(device) = self.0.get() {
            device.device_tlb_invalidation(invalidation);
        }
    }

    fn pins_recalled(&self) {
        if let Some(device) = self.0.get() {
            device.pins_recalled();
        }
    }

    fn pasid_refused(&self, requester: Requester, address: u64, access: Access) {
        if let Some(device) = self.0.get() {
            device.pasid_refused(requester, address, access);
        }
    }
}

/// A function that hears nothing: one without ATS and page requests needs no more.
impl EndpointSink for () {}
