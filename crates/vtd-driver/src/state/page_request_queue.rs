// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The page request queue, and what comes in it.

use alloc::vec::Vec;

use vtd_spec::{Pasid, SourceId};

/// PQA.PQS: 2^PQS pages.
pub(crate) const SIZE_SHIFT: u8 = 4;
/// Pages of the queue.
pub(crate) const PAGES: usize = 1 << SIZE_SHIFT;
/// A page request of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PageRequest {
    /// The device.
    pub source_id: SourceId,
    /// PASID; `None` for a request without.
    pub pasid: Option<Pasid>,
    /// The page.
    pub address: u64,
    /// Reading is asked for.
    pub read: bool,
    /// Writing is asked for.
    pub write: bool,
    /// Page request group index, 9 bits.
    pub group: u16,
    /// Last of its group: the one to be answered, by [`Iommu::respond`](crate::Iommu::respond).
    pub last: bool,
}

/// What the queue held.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PageRequests {
    /// The requests to be served, in order.
    pub requests: Vec<PageRequest>,
    /// Requests were lost: groups of which the last request has not come yet are to be forgotten, the device begins
    /// anew (prq.c:iopf_queue_discard_partial).
    pub overflow: bool,
}

/// The queue, and what a drain found in it.
pub(crate) struct PageRequestQueue {
    pub(crate) base: u64,
    pub(crate) pending: PageRequests,
}

impl PageRequestQueue {
    pub(crate) fn new(base: u64) -> Self {
        Self { base, pending: PageRequests::default() }
    }
}

impl PageRequest {
    /// PASID 0 stands for requests without PASID.
    pub(crate) fn is_of(&self, (source_id, pasid): (SourceId, Pasid)) -> bool {
        self.source_id == source_id && self.pasid.unwrap_or(Pasid::ZERO) == pasid
    }
}
