// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The bodies of the fuzz targets, as functions that ordinary tests run as well.

#![forbid(unsafe_code)]

pub mod concurrent;
mod deaf;
pub mod dsa;
pub mod joint;
/// Books of a host, as the tests of the joint keep them.
#[path = "../../crates/vsva/tests/rig/ledger.rs"]
#[allow(missing_docs, reason = "documented where it is a fixture")]
mod ledger;
pub mod pci;
mod steps;
pub mod unit;
mod until;
pub mod virtio;
