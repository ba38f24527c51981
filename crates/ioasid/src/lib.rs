// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The allocator of PASIDs (I/O address space ids): one per system, whose ids everybody who shares an address space
//! with a device takes from it.
//!
//! - Ids belong to **sets**, one per owner (a machine, the host itself). A set has a quota, and finds and frees
//!   its own ids only.
//! - An id carries its owner's **data**: what a driver has bound to it.
//! - Whoever keeps tables of its own by PASID hears of **bind**, **unbind** and **free**.
//! - A **custom allocator** (the virtual command interface of a guest's IOMMU) may take the place of the built-in one.
//!
//! It is Linux's drivers/iommu/ioasid.c (5.5 to 6.3) with the sets of the "IOASID extensions" series, as a value: all
//! methods that change something take `&mut self`, so the lock around it is the caller's. Nothing here costs more with
//! 100,000 ids than with one.
//!
//! ```
//! use ioasid::{Allocator, DEFAULT_QUOTA, Error};
//!
//! let mut pasids: Allocator<&str> = Allocator::new(1..=0xf_ffff)?;
//! let machine = pasids.create_set(DEFAULT_QUOTA)?;
//! let other = pasids.create_set(DEFAULT_QUOTA)?;
//! let pasid = pasids.allocate(machine, 1..=0xf_ffff, Some("a process"))?;
//! assert_eq!(pasids.find(Some(machine), pasid)?, Some(&"a process"));
//! assert_eq!(pasids.find(Some(other), pasid), Err(Error::NotInSet { id: pasid }));
//! # Ok::<(), Error>(())
//! ```
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod allocator;
mod custom;
mod error;
mod id_map;
mod notification;
mod set;

pub use allocator::Allocator;
pub use custom::{CustomAllocator, CustomAllocatorId};
pub use error::Error;
pub use notification::{Event, Notification, NotifierId};
pub use set::{DEFAULT_QUOTA, SetId};

/// An id: a PASID, up to [`MAX_ID`].
pub type Ioasid = u32;

/// The largest id there is: a PASID has 20 bits. \[S 3.2\]
pub const MAX_ID: Ioasid = 0xf_ffff;
