// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A host that needs no hardware: a physical remapping unit in software, programmed by the driver half alone, with the
//! guest's memory somewhere in a physical address space of its own.
//!
//! Device models get their port from [`SoftHost::function`]: their DMA goes through the physical unit, whose PASID table
//! the host keeps. Whatever the guest wants there comes through [`HostIommu`](crate::HostIommu).

mod bring_up;
mod config;
mod driver;
mod events;
mod follow;
mod function;
mod host_iommu;
mod interrupts;
mod memory;
mod soft_host;

pub use config::{SoftHostConfig, SoftHostError};
pub use follow::{Followed, FollowedEntry};
pub use memory::HostMemory;
pub use soft_host::SoftHost;
