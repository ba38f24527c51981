// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The ways from the processors to the PCI root complex: ECAM, configuration ports and windows for BARs.

use std::sync::Arc;

use pci::{CONFIG_ADDRESS_PORT, RootComplex};

use crate::bus::BusDevice;
use crate::power::ResetControl;

/// Number of the ports from [`CONFIG_ADDRESS_PORT`] on.
pub const CONFIG_PORTS: u64 = 8;

/// The ECAM window.
pub struct Ecam(pub Arc<RootComplex>);

impl BusDevice for Ecam {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.0.ecam_read(offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.0.ecam_write(offset, data);
    }
}

/// The configuration ports 0xcf8 to 0xcff. Among the bytes of the address register, which answers to doublewords
/// alone, is the chipset's reset control register, a byte at 0xcf9.
pub struct ConfigPorts {
    /// Where accesses go.
    pub root: Arc<RootComplex>,
    /// The register at 0xcf9.
    pub reset: ResetControl,
}

impl ConfigPorts {
    const RESET_CONTROL: u64 = 1;
}

impl BusDevice for ConfigPorts {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if offset == Self::RESET_CONTROL && data.len() == 1 {
            self.reset.read(0, data);
        } else {
            self.root.io_read(CONFIG_ADDRESS_PORT + offset as u16, data);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if offset == Self::RESET_CONTROL && data.len() == 1 {
            self.reset.write(0, data);
        } else {
            self.root.io_write(CONFIG_ADDRESS_PORT + offset as u16, data);
        }
    }
}

/// A window of the root bridge in which BARs lie.
pub struct BarWindow {
    /// Where accesses go.
    pub root: Arc<RootComplex>,
    /// First address of the window.
    pub base: u64,
}

impl BusDevice for BarWindow {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if !self.root.mmio_read(self.base + offset, data) {
            data.fill(0xff);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.root.mmio_write(self.base + offset, data);
    }
}

#[cfg(test)]
mod tests {
    use pci::HostBridge;

    use super::*;
    use crate::stop::{Outcome, Stop};

    fn root() -> Arc<RootComplex> {
        let mut root = RootComplex::new();
        root.add(0, 0, Arc::new(HostBridge::new().unwrap())).unwrap();
        Arc::new(root)
    }

    #[test]
    fn ecam_and_ports_show_the_same_host_bridge() {
        let root = root();
        let ports = ConfigPorts { root: root.clone(), reset: ResetControl(Arc::new(Stop::default())) };
        let (mut ecam, mut port) = ([0; 4], [0; 4]);
        Ecam(root).read(0, &mut ecam);
        ports.write(0, &0x8000_0000u32.to_le_bytes());
        ports.read(4, &mut port);
        assert_eq!(ecam, port);
        assert_eq!(ecam[..2], [0x86, 0x80]);
    }

    #[test]
    fn a_byte_at_0xcf9_is_the_reset_register() {
        let stop = Arc::new(Stop::default());
        let ports = ConfigPorts { root: root(), reset: ResetControl(stop.clone()) };
        ports.write(0, &0x8000_0600u32.to_le_bytes());
        assert_eq!(stop.outcome(), None);
        ports.write(1, &[6]);
        assert_eq!(stop.outcome(), Some(Outcome::Reset));
    }

    #[test]
    fn addresses_of_a_window_that_no_bar_decodes_read_all_ones() {
        let window = BarWindow { root: root(), base: 0xc000_0000 };
        let mut data = [0; 8];
        window.read(0x1000, &mut data);
        assert_eq!(data, [0xff; 8]);
    }
}
