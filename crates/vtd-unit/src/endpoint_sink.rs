// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a function hears from its root complex.

use crate::request::{Access, DeviceTlbInvalidation, PageGroupResponse, Requester};

/// What a function hears from its root complex. Each method does nothing by default: a function hears only of what it has, page
/// requests or ATS. Called with no lock of the unit held.
pub trait EndpointSink: Send + Sync {
    /// A page group response arrived. May be called on the thread that sends the request, before
    /// [`Endpoint::page_request`](crate::Endpoint::page_request) returns.
    fn page_group_response(&self, _response: PageGroupResponse) {}

    /// As [`Self::page_group_response`], where the unit answers a request that software will not see. The PASID is as the
    /// function named it, which makes a difference where [`Endpoint::translate_pasids`](crate::Endpoint::translate_pasids) is in force.
    fn automatic_page_group_response(&self, response: PageGroupResponse) {
        self.page_group_response(response);
    }

    /// A device-TLB invalidation arrived. The endpoint's own translation cache has dropped the range and no access
    /// that used it is in flight any more; a model that keeps translations of its own drops them before it
    /// returns, which completes the invalidation. Must not wait for a processor of the guest.
    fn device_tlb_invalidation(&self, _invalidation: DeviceTlbInvalidation) {}

    /// An invalidation waits for what this function holds ([`Endpoint::pin`](crate::Endpoint::pin)): who can end it sees to that
    /// soon. Until then nothing that waits behind the invalidation goes on in the guest. Called on the thread that waits,
    /// which the function must not keep.
    fn pins_recalled(&self) {}

    /// A request was blocked because its PASID stands for none of the unit's tables, and nothing was recorded. Only
    /// where [`Endpoint::translate_pasids`](crate::Endpoint::translate_pasids) is in force.
    fn pasid_refused(&self, _requester: Requester, _address: u64, _access: Access) {}
}
