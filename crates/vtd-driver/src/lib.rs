// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The operating-system half of Intel VT-d: what programs a remapping unit.
//!
//! A kernel, hypervisor or software host gives an [`Iommu`] two things, a [`Registers`] (the unit's register page) and a
//! [`Memory`] (pages to build tables in), and gets what the Linux driver offers its kernel: bring-up, domains with page
//! tables of either stage, PASID tables, invalidation, faults, page requests, processes bound to PASIDs ([`sva`]),
//! guests' PASIDs nested on a domain ([`nested`]) and PASIDs by virtual command ([`vcmd`]). It is `no_std` and needs
//! an allocator.
//!
//! # Locks and threads
//!
//! There are none here. Whatever changes something takes `&mut` [`Iommu`] (and `&mut` [`Pasids`], which all units of a
//! system share) and is done, invalidations included, when it returns; put a lock of your system around each. Interrupt
//! handlers only note which of [`Iommu::take_faults`] and [`Iommu::take_page_requests`] is to be called.
//!
//! # Errors
//!
//! What is refused has changed nothing. What cannot be undone, above all taking something away from a device, is
//! carried out to the end; the error then says what did not answer, and tables and domain-ids that the unit may still use
//! are kept out of use until [`Iommu::shutdown`].
//!
//! ```
//! # use vtd_driver::{Access, Config, DeviceConfig, Iommu, Memory, Registers, Stage};
//! # use vtd_spec::{FirstStagePagingMode, Message, Pasid, SourceId};
//! /// Lets a device use 2 MiB at `buffer` under the address 0x20_0000.
//! fn example<R: Registers, M: Memory>(registers: R, memory: M, buffer: u64) -> Result<(), vtd_driver::Error> {
//!     let mut iommu = Iommu::bring_up(registers, memory, Config::new(46))?;
//!     let device = SourceId::new(0, 3, 0);
//!     iommu.add_device(DeviceConfig::new(device))?;
//!     let domain = iommu.create_domain(Stage::First(FirstStagePagingMode::Level4))?;
//!     iommu.attach(domain, device, Pasid::ZERO)?;
//!     iommu.enable_translation()?;
//!     iommu.map(domain, 0x20_0000, buffer, 0x20_0000, Access::ReadWrite)?;
//!     iommu.unmap(domain, 0x20_0000, 0x20_0000)
//! }
//! ```
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod address_space;
mod bring_up;
pub mod cache;
mod command;
mod context;
mod domain;
mod error;
mod fault;
pub mod fault_ring;
mod interrupt;
mod iommu;
mod memory;
pub mod nested;
mod page_request;
mod page_table;
mod pasid;
mod queue;
mod registers;
mod replace;
mod state;
pub mod sva;
pub mod vcmd;

#[cfg(test)]
mod fake;

pub use address_space::{AddressSpace, BoundDevice, Pasids, SpaceKind};
pub use bring_up::Config;
pub use error::Error;
pub use fault::Faults;
pub use iommu::Iommu;
pub use memory::Memory;
pub use page_table::{Access, Mapping};
pub use registers::Registers;
pub use state::{
    Ats, DeviceConfig, DomainHandle, FirstStageTable, NestedTable, PageRequest, PageRequests, Stage,
};
