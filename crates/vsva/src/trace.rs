// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What happens at the joint, as events for whoever wants to see it.

use vtd_spec::{FaultReason, Pasid, SourceId};
use vtd_unit::{PageGroupResponse, PageRequest};

use crate::host::{Attachment, HostError, Invalidation};

/// Something that happened at the joint. PASIDs are `None` for requests without PASID.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A guest's entry was attached on the host, or replaced what was attached before.
    Bind {
        /// The guest's PASID.
        guest: Option<Pasid>,
        /// The host's PASID.
        host: Option<Pasid>,
        /// What it was attached to.
        to: Attachment,
        /// Something was attached before.
        replaced: bool,
    },
    /// The host refused an attachment.
    Refused {
        /// The guest's PASID.
        guest: Option<Pasid>,
        /// Why.
        error: HostError,
    },
    /// What was attached no longer is.
    Unbind {
        /// The guest's PASID.
        guest: Option<Pasid>,
        /// The host's PASID.
        host: Option<Pasid>,
    },
    /// An invalidation went down.
    Invalidate(Invalidation),
    /// A page request went up, with the guest's PASID.
    PageRequest(PageRequest),
    /// A response went down, with the guest's PASID.
    Response(PageGroupResponse),
    /// A fault went up.
    Fault {
        /// The guest's PASID.
        guest: Option<Pasid>,
        /// The reason, as the guest reads it.
        reason: FaultReason,
        /// The address.
        address: u64,
    },
}

/// Hears of events at the joint. Called where they happen, so it must not wait for anything.
pub trait Tracer: Send + Sync {
    /// Something happened to a function.
    fn event(&self, function: SourceId, event: &Event);
}
