// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! An Intel VT-d remapping unit in software.
//!
//! A VMM gives a [`Unit`] the memory its tables lie in, traps its register page, and connects each device model
//! through an [`Endpoint`]. The unit is scalable mode's: PASID tables with first-stage and pass-through translation,
//! the invalidation queue, device-TLBs, page requests and faults, as software finds them on hardware.
//!
//! # Locks
//!
//! From the outside in; no lock is taken while one further in is held, and nothing outside the crate is called with
//! any of them held:
//!
//! 1. the list of functions (`Core::functions`),
//! 2. a function's caches (`Function::read`, `Function::write`), one function at a time,
//! 3. how interrupts are treated (`Core::interrupts`),
//! 4. the register page (`Core::registers`).
//!
//! The invalidation queue is no lock but a claim (`Registers::queue_running`): its holder calls out freely.
#![forbid(unsafe_code)]

mod config;
mod context;
mod endpoint;
mod fault;
mod first_stage;
mod function;
mod interrupt;
mod legacy;
mod memory;
mod notify;
mod observer;
mod page_request;
mod pasid;
mod pasid_translation;
mod pinned;
mod queue;
mod registers;
mod second_stage;
mod sequence;
mod statistics;
mod tlb;
mod unit;
mod virtual_command;
mod walk;

pub use config::{ConfigError, UnitConfig};
pub use endpoint::{
    Access, DeviceTlbInvalidation, DmaError, Endpoint, EndpointSink, PageGroupResponse, PageRequest,
    Requester,
};
pub use notify::{Message, Notify};
pub use observer::{Binding, FirstStageTable, LookUp, Observer, RequestsWithoutPasid, Translation};
pub use pinned::Pinned;
pub use statistics::Statistics;
pub use unit::Unit;
pub use virtual_command::{PasidAllocator, VirtualCommandEncoding};
pub use vtd_spec::{AddressRange, DomainId, FaultReason, Pasid, ResponseCode, SourceId};
