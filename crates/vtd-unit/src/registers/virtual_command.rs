// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The registers of the virtual command interface. \[S 11.4.16\]

use vtd_spec::registers::virtual_command::{early, r#final};

use super::page::Registers;
use crate::config::VirtualCommandEncoding;

struct Offsets {
    capability: u64,
    command: u64,
    response: u64,
}

/// In-progress bit of VCRSP, in both encodings.
const IN_PROGRESS: u64 = 1;

impl VirtualCommandEncoding {
    const fn offsets(self) -> Offsets {
        match self {
            Self::Early | Self::EarlyNoPasid1 => {
                Offsets { capability: early::VCCAP, command: early::VCMD, response: early::VCRSP }
            }
            Self::Final => {
                Offsets { capability: r#final::VCCAP, command: r#final::VCMD, response: r#final::VCRSP }
            }
        }
    }
}

impl Registers {
    /// Sets the capability register. Linux of all versions tests bit 0 for PASID allocation, the final
    /// specification has it in bit 1: both are set. \[Linux drivers/iommu/intel/pasid.h: vccap_pasid\]
    pub(crate) fn reset_virtual_command(&mut self) {
        if let Some(encoding) = self.virtual_command {
            let pas = if encoding == VirtualCommandEncoding::Final { 0b11 } else { 1 };
            self.set64(encoding.offsets().capability, pas);
        }
    }

    /// The offset of the doubleword whose write starts a command.
    pub(crate) fn virtual_command_offset(&self) -> Option<u64> {
        self.virtual_command.map(|encoding| encoding.offsets().command)
    }

    /// Takes a command to carry out, unless one is in progress.
    pub(crate) fn start_virtual_command(&mut self) -> Option<u64> {
        let offsets = self.virtual_command?.offsets();
        if self.get64(offsets.response) & IN_PROGRESS != 0 {
            return None;
        }
        self.set64(offsets.response, IN_PROGRESS);
        Some(self.get64(offsets.command))
    }

    pub(crate) fn finish_virtual_command(&mut self, response: u64) {
        let Some(encoding) = self.virtual_command else { return };
        let at = encoding.offsets().response;
        // A reset has forgotten it.
        if self.get64(at) & IN_PROGRESS != 0 {
            self.set64(at, response);
        }
    }
}
