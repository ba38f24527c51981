// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The joint between a guest's remapping unit and a host's.
//!
//! A guest writes a PASID entry that points at a process's page table, and announces it with a PASID-cache
//! invalidation. The [`Joint`] hears it, reads the entry once, and attaches the table on the host ([`HostIommu`]),
//! nested on the second stage that maps the guest's memory. From then on an assigned device's DMA walks both.
//! Invalidations go down in the guest's order and are in effect before the guest's wait completes; page requests
//! and faults go up with the guest's ids, responses come down the same way.
#![forbid(unsafe_code)]

mod assigned;
mod host;
mod joint;
mod pasids;
mod shadow;
mod soft;
mod trace;
mod unit_registers;

pub use assigned::Assigned;
pub use host::{
    Attachment, DeviceId, FaultPasid, HostError, HostEvents, HostFault, HostIommu, Invalidation,
    InvalidationKind, NestingInfo, Unsupported,
};
pub use joint::{AssignError, Joint};
pub use soft::{Followed, FollowedEntry, HostMemory, SoftHost, SoftHostConfig, SoftHostError};
pub use trace::{Event, Tracer};
pub use unit_registers::UnitRegisters;
