// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Reads and writes of the registers and tables in BAR 0.

use super::shared::{DeviceState, Effects, State};
use crate::bus::PciState;
use crate::registers::{
    self, CMDCAP_VALUE, CMDSTATUS_ACTIVE, ENGCAP_VALUE, GENCAP_VALUE, GENCFG_USER_INTERRUPTS, GENCTRL_HALT,
    GENCTRL_SOFTWARE_ERROR, GRPCAP_VALUE, GRPCFG, GRPCFG_END, GRPCFG_STRIDE, MSIXPERM, MSIXPERM_END,
    OFFSETS_VALUE, OPCAP_VALUE, SWERROR, SWERROR_END, VERSION_VALUE, WQCAP_VALUE, WQCFG, WQCFG_END,
    WQCFG_STRIDE, cause,
};
use crate::software_error::{SoftwareError, code};

impl State {
    /// The QWORD at `offset`, which is a multiple of 8. Registers that do not exist read 0.
    pub fn read(&self, offset: u64) -> u64 {
        match offset {
            registers::VERSION => VERSION_VALUE,
            registers::GENCAP => GENCAP_VALUE,
            registers::WQCAP => WQCAP_VALUE,
            registers::GRPCAP => GRPCAP_VALUE,
            registers::ENGCAP => ENGCAP_VALUE,
            registers::OPCAP => OPCAP_VALUE,
            registers::OFFSETS => OFFSETS_VALUE,
            registers::GENCFG => self.general_config.into(),
            registers::GENCTRL => self.general_control.into(),
            registers::GENSTS => self.device as u64,
            registers::INTCAUSE => self.causes.into(),
            registers::CMDSTATUS => {
                let active = if self.command.is_some() { CMDSTATUS_ACTIVE } else { 0 };
                u64::from(if active != 0 { active } else { self.command_error.into() })
            }
            registers::CMDCAP => CMDCAP_VALUE,
            SWERROR..SWERROR_END => self.software_error.read(((offset - SWERROR) / 8) as usize),
            MSIXPERM..MSIXPERM_END => self
                .permissions
                .get(((offset - MSIXPERM) / 8) as usize)
                .map_or(0, |entry| entry.read().into()),
            WQCFG..WQCFG_END => {
                let (queue, dword) = entry(offset - WQCFG, WQCFG_STRIDE);
                self.queues.get(queue).map_or(0, |queue| pair(queue.read(dword), queue.read(dword + 1)))
            }
            GRPCFG..GRPCFG_END => {
                let (group, dword) = entry(offset - GRPCFG, GRPCFG_STRIDE);
                self.groups.get(group).map_or(0, |group| pair(group.read(dword), group.read(dword + 1)))
            }
            _ => 0,
        }
    }

    /// A write of the bits in `mask` of the DWORD at `offset`, which is a multiple of 4. What cannot be written
    /// ignores it. CMD is not written here.
    pub fn write(&mut self, offset: u64, value: u32, mask: u32, effects: &mut Effects) {
        let disabled = self.device == DeviceState::Disabled;
        let merge = |old: u32, writable: u32| old & !(mask & writable) | value & mask & writable;
        match offset {
            registers::GENCFG if disabled => {
                self.general_config = merge(self.general_config, GENCFG_USER_INTERRUPTS);
            }
            registers::GENCTRL => {
                self.general_control = merge(self.general_control, GENCTRL_SOFTWARE_ERROR | GENCTRL_HALT);
            }
            registers::INTCAUSE => {
                self.causes &= !(value & mask);
                for deferred in [cause::COMMAND, cause::HALT] {
                    if self.deferred_causes & deferred != 0 {
                        self.deferred_causes &= !deferred;
                        self.raise(deferred, effects);
                    }
                }
            }
            SWERROR => self.software_error.clear(value & mask),
            MSIXPERM..MSIXPERM_END if offset.is_multiple_of(8) => {
                if let Some(entry) = self.permissions.get_mut(((offset - MSIXPERM) / 8) as usize) {
                    entry.write(value, mask);
                }
            }
            WQCFG..WQCFG_END => {
                let (queue, dword) = entry(offset - WQCFG, WQCFG_STRIDE);
                if let Some(queue) = self.queues.get_mut(queue) {
                    queue.write(dword, value, mask, disabled);
                }
            }
            GRPCFG..GRPCFG_END if disabled => {
                let (group, dword) = entry(offset - GRPCFG, GRPCFG_STRIDE);
                if let Some(group) = self.groups.get_mut(group) {
                    group.write(dword, value, mask);
                }
            }
            _ => {}
        }
    }

    /// A write of CMD. \[D 9.2.14\]
    pub fn write_command(&mut self, value: u32, pci: &PciState, effects: &mut Effects) {
        if self.command.is_some() {
            let error = SoftwareError { code: code::COMMAND_ACTIVE, ..Default::default() };
            return self.report(&error, effects);
        }
        self.start_command(value, pci, effects);
    }
}

/// Index and DWORD of an offset in a table.
const fn entry(offset: u64, stride: u64) -> (usize, usize) {
    ((offset / stride) as usize, (offset % stride / 4) as usize)
}

const fn pair(low: u32, high: u32) -> u64 {
    low as u64 | (high as u64) << 32
}
