// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The host bridge: the function 00:00.0 in which operating systems recognise a PCI hierarchy
//! (Linux arch/x86/pci/direct.c: pci_sanity_check).

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::bar::BarRanges;
use crate::builder::{BuildError, ConfigSpaceBuilder, Identity};
use crate::config::ConfigSpace;
use crate::function::PciFunction;

const VENDOR_INTEL: u16 = 0x8086;
/// An identifier that no driver of Linux claims and no quirk concerns.
const DEVICE_HOST_BRIDGE: u16 = 0x0d57;
const CLASS_HOST_BRIDGE: u32 = 0x06_0000;

/// A host bridge: a header and nothing behind it.
pub struct HostBridge {
    config: Mutex<ConfigSpace>,
}

impl HostBridge {
    /// A host bridge after reset.
    ///
    /// # Errors
    ///
    /// None in practice: the configuration space is a fixed one.
    pub fn new() -> Result<Self, BuildError> {
        let config = ConfigSpaceBuilder::new(Identity {
            vendor: VENDOR_INTEL,
            device: DEVICE_HOST_BRIDGE,
            revision: 0,
            class: CLASS_HOST_BRIDGE,
            subsystem_vendor: 0,
            subsystem: 0,
        })
        .build()?;
        Ok(Self { config: Mutex::new(config) })
    }

    fn config(&self) -> MutexGuard<'_, ConfigSpace> {
        self.config.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PciFunction for HostBridge {
    fn config_read(&self, offset: u16, data: &mut [u8]) {
        self.config().read(offset, data);
    }

    fn config_write(&self, offset: u16, data: &[u8]) {
        self.config().write(offset, data);
    }

    fn bar_read(&self, _bar: usize, _offset: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn bar_write(&self, _bar: usize, _offset: u64, _data: &[u8]) {}

    fn bars(&self) -> BarRanges {
        BarRanges::default()
    }

    fn reset(&self) {
        self.config().reset();
    }
}
