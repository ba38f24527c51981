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
//! any of them held, but code of a device model with its own function's caches, for an access or a pin:
//!
//! 1. the list of functions (`Core::functions`), for as long as it takes to copy or to replace it,
//! 2. a function's caches (`Function::read`, `Function::write`), one function at a time; a thread that holds them may
//!    access again (`function/held.rs`), and then has nothing filled (`function/apart.rs`),
//! 3. how interrupts are treated (`Core::interrupts`),
//! 4. the register page (`Core::registers`).
//!
//! The invalidation queue and a global command are no locks but claims (`Registers::claim_queue`, `claim_command`): who
//! has one calls out freely. Who writes a register claims, does what is bounded and needs no waiting, and leaves the rest to
//! the [`Executor`], claim included: so register writes wait for nobody.
#![forbid(unsafe_code)]

mod address_space;
mod cache;
mod config;
mod core;
mod endpoint;
mod endpoint_sink;
mod executor;
mod fault;
mod function;
mod global_command;
mod in_flight;
mod interrupt;
mod late_sink;
mod memory;
mod notify;
mod observer;
mod outcome;
mod page_request;
mod pasid_allocator;
mod pinned;
mod queue;
mod registers;
mod remapping;
mod request;
mod rights;
mod statistics;
mod sync;
#[cfg(test)]
mod sync_tests;
mod tables;
mod unit;
mod unit_state;
mod virtual_command;
mod worker;

pub use config::{ConfigError, UnitConfig, VirtualCommandEncoding};
pub use endpoint::Endpoint;
pub use endpoint_sink::EndpointSink;
pub use executor::{Executor, Work};
pub use late_sink::LateSink;
pub use notify::{Message, Notify};
pub use observer::Observer;
pub use pasid_allocator::PasidAllocator;
pub use pinned::Pinned;
pub use remapping::{Binding, FirstStageTable, LookUp, RequestsWithoutPasid, Translation};
pub use request::{Access, DeviceTlbInvalidation, DmaError, PageGroupResponse, PageRequest, Requester};
pub use statistics::Statistics;
pub use unit::{SourceIdInUse, Unit};
pub use vtd_spec::{AddressRange, DomainId, FaultReason, Pasid, ResponseCode, SourceId};
