// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the caller says of a device.

use vtd_spec::SourceId;

/// A device's address translation services. \[PCIe 10.5.1\]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Ats {
    /// Invalidate Queue Depth: invalidations it takes at a time, 5 bits; 0 means 32.
    pub invalidate_queue_depth: u8,
    /// Source-id of its physical function, where the unit has ECAP.DIT; zero otherwise.
    pub pfsid: SourceId,
    /// Global Invalidate Supported (ATS Capability register): one invalidation reaches all its PASIDs. Without it, each
    /// PASID takes one of its own.
    pub global_invalidate: bool,
}

/// A device, as its configuration space describes it. What is on here is enabled in the device by the caller: PASID, then
/// ATS, then page requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceConfig {
    /// Source-id.
    pub source_id: SourceId,
    /// Width of its PASIDs in bits, 0 to 20; 0 for a device without.
    pub pasid_bits: u8,
    /// ATS, where it is enabled.
    pub ats: Option<Ats>,
    /// Whether its page request interface is enabled; needs ATS.
    pub page_requests: bool,
    /// Whether several parts of it, each assigned on its own (mediated devices), may bind the same PASID.
    pub shared: bool,
}

impl DeviceConfig {
    /// A device that makes requests without PASID only, and no ATS.
    pub const fn new(source_id: SourceId) -> Self {
        Self { source_id, pasid_bits: 0, ats: None, page_requests: false, shared: false }
    }

    /// A device with 20 PASID bits, ATS and page requests: what shared virtual addressing takes.
    pub const fn with_sva(source_id: SourceId) -> Self {
        Self {
            pasid_bits: 20,
            ats: Some(Ats { invalidate_queue_depth: 0, pfsid: SourceId(0), global_invalidate: false }),
            page_requests: true,
            ..Self::new(source_id)
        }
    }
}
