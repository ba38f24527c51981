// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! PCI Express as a guest sees it: root-complex integrated endpoints on bus 0 behind a root complex with ECAM.
//!
//! - [`ConfigSpace`] is one function's configuration space: header, BARs, MSI-X, PCI Express, ATS, PASID and PRI
//!   capabilities with their write masks. A device model builds one with [`ConfigSpaceBuilder`], passes guest
//!   accesses to it and acts on the [`ConfigChanges`] that a write returns.
//! - [`MsixTable`] is the MSI-X table and pending bit array, which live in a BAR.
//! - [`PciFunction`] is what a device model implements; [`RootComplex`] finds the function of an access, whether it
//!   comes by ECAM, by the I/O ports 0xCF8 to 0xCFF or by an address inside a BAR.
//! - [`HostBridge`] is the function 00:00.0 that operating systems expect.
//!
//! Nothing here knows memory or interrupts: device models do their DMA and send their messages through ports of
//! their own. Guests are hostile; no access of theirs panics or does unbounded work.
//!
//! Sources are cited as `[PCIe n]`: section n of the PCI Express Base Specification, revision 6.0.
#![forbid(unsafe_code)]

mod bar;
mod builder;
mod config;
mod function;
mod host_bridge;
mod layout;
mod msix;
mod root_complex;

pub use bar::{BAR_COUNT, Bar, BarRange, BarRanges};
pub use builder::{
    AtsCapability, BuildError, ConfigSpaceBuilder, Identity, PasidCapability, PcieCapability, PriCapability,
};
pub use config::{AtsControl, CONFIG_SPACE_SIZE, ConfigChanges, ConfigSpace, PasidControl, PriControl};
pub use function::PciFunction;
pub use host_bridge::HostBridge;
pub use layout::{CapabilityId, ExtendedCapabilityId};
pub use msix::{Message, MsixControl, MsixLayout, MsixTable};
pub use root_complex::{AddError, CONFIG_ADDRESS_PORT, CONFIG_DATA_PORT, ECAM_BUS_SIZE, RootComplex};
