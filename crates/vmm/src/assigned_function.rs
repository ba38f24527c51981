// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! An assigned function as the guest's bus sees it: the device model, and what a reset of it means to its host.

use std::sync::Arc;

use pci::{BarRanges, PciFunction};
use vsva::Assigned;

use crate::memory::Memory;

/// Capability id of PCI Express. \[PCIe 7.5.3\]
const PCI_EXPRESS: u8 = 0x10;
/// Offset of Device Control in that capability, and its Initiate Function Level Reset. \[PCIe 7.5.3.4\]
const DEVICE_CONTROL: u16 = 8;
const FUNCTION_LEVEL_RESET: u16 = 1 << 15;
/// Where configuration space points at its first capability.
const CAPABILITIES: u16 = 0x34;

/// A device model that is assigned. A function level reset, and one of the machine, unbinds what the host had bound for
/// it; what the guest's tables then still say is bound afresh.
pub struct AssignedFunction {
    device: Arc<dyn PciFunction>,
    assigned: Arc<Assigned<Memory>>,
    device_control: Option<u16>,
}

impl AssignedFunction {
    /// `device`, assigned as `assigned`.
    pub fn new(device: Arc<dyn PciFunction>, assigned: Arc<Assigned<Memory>>) -> Self {
        let device_control = express_capability(&*device).map(|offset| offset + DEVICE_CONTROL);
        Self { device, assigned, device_control }
    }
}

/// Offset of the PCI Express capability.
fn express_capability(device: &dyn PciFunction) -> Option<u16> {
    let byte = |offset| {
        let mut data = [0];
        device.config_read(offset, &mut data);
        data[0]
    };
    let mut offset = u16::from(byte(CAPABILITIES));
    // There is room for 48 capabilities in the first 256 bytes.
    for _ in 0..48 {
        if offset < 0x40 {
            return None;
        }
        if byte(offset) == PCI_EXPRESS {
            return Some(offset);
        }
        offset = u16::from(byte(offset + 1) & !3);
    }
    None
}

/// Whether a write sets Initiate Function Level Reset of the Device Control register at `device_control`.
fn initiates_reset(device_control: u16, offset: u16, data: &[u8]) -> bool {
    let at = |register: u16| register.checked_sub(offset).and_then(|index| data.get(usize::from(index)));
    at(device_control + 1).is_some_and(|high| u16::from(*high) << 8 & FUNCTION_LEVEL_RESET != 0)
}

impl PciFunction for AssignedFunction {
    fn config_read(&self, offset: u16, data: &mut [u8]) {
        self.device.config_read(offset, data);
    }

    fn config_write(&self, offset: u16, data: &[u8]) {
        self.device.config_write(offset, data);
        if self.device_control.is_some_and(|register| initiates_reset(register, offset, data)) {
            self.assigned.reset_later();
        }
    }

    fn bar_read(&self, bar: usize, offset: u64, data: &mut [u8]) {
        self.device.bar_read(bar, offset, data);
    }

    fn bar_write(&self, bar: usize, offset: u64, data: &[u8]) {
        self.device.bar_write(bar, offset, data);
    }

    fn bars(&self) -> BarRanges {
        self.device.bars()
    }

    fn reset(&self) {
        self.device.reset();
        self.assigned.reset();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_write_that_sets_the_bit_resets() {
        let control = 0x48;
        assert!(initiates_reset(control, 0x48, &0x8000u16.to_le_bytes()));
        assert!(initiates_reset(control, 0x48, &0x0000_8000u32.to_le_bytes()));
        assert!(initiates_reset(control, 0x49, &[0x80]));
        for (offset, data) in
            [(0x48, &[0x80][..]), (0x49, &[0x7f]), (0x4a, &[0, 0x80]), (0x44, &[0, 0, 0, 0x80])]
        {
            assert!(!initiates_reset(control, offset, data), "{offset:#x} {data:?}");
        }
    }
}
