// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What comes of a request that cannot be carried out. \[S 7.1\]

pub(crate) use vtd_spec::FaultRequestType as FaultType;
use vtd_spec::{FaultReason, Pasid, SourceId};

use crate::request::{Access, Requester};

/// A request that was blocked, before anyone decides what becomes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Blocked {
    pub reason: FaultReason,
    /// Fault Processing Disable was set in an entry on the way: a qualified fault leaves no record.
    pub suppressed: bool,
}

impl Blocked {
    pub(crate) const fn new(reason: FaultReason, fpd: bool) -> Self {
        Self { reason, suppressed: fpd && reason.is_qualified() }
    }
}

/// Address type of the faulting request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AddressType {
    Untranslated = 0,
    Translation = 1,
    Translated = 2,
}

/// All that a fault record holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    pub reason: FaultReason,
    pub source_id: SourceId,
    /// Only of a request that carried one.
    pub pasid: Option<Pasid>,
    pub privileged: bool,
    /// The address as the device gave it; for interrupt requests the index in bits 63:48.
    pub address: u64,
    pub kind: FaultType,
    pub address_type: AddressType,
}

impl Fault {
    /// That of a DMA request.
    pub(crate) fn of_access(
        source_id: SourceId,
        reason: FaultReason,
        requester: Requester,
        address: u64,
        access: Access,
        address_type: AddressType,
    ) -> Self {
        let kind = match access {
            // A translation request is a read. [S 4.1.2]
            _ if address_type == AddressType::Translation => FaultType::Read,
            Access::Read | Access::ZeroLengthRead => FaultType::Read,
            Access::Write => FaultType::Write,
            Access::Atomic => FaultType::AtomicOp,
        };
        let Requester { pasid, privileged } = requester;
        Self { reason, source_id, pasid, privileged, address, kind, address_type }
    }
}

/// Whether a blocked request leaves a record: of translation requests, what a page request may cure does not.
/// \[S 7.1.2\]
pub(crate) fn is_recorded(reason: FaultReason, address_type: AddressType) -> bool {
    address_type != AddressType::Translation || reason.is_recorded_for_translation_request()
}
