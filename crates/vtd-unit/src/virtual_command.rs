// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The virtual command interface: PASIDs allocated and freed by the host on the guest's word. \[S 11.4.16\]
//!
//! Linux used it as a guest from 5.7 to 6.3, in two encodings at different offsets that overlap: a unit offers one.

use vtd_spec::Pasid;
use vtd_spec::registers::virtual_command::{
    COMMAND_ALLOCATE_PASID, COMMAND_FREE_PASID, COMMAND_NULL, STATUS_SUCCESS, STATUS_UNDEFINED_COMMAND,
    early, r#final,
};

use crate::registers::Registers;

/// Where a unit has its virtual command registers, and how they are laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VirtualCommandEncoding {
    /// That of specification 3.0 to 3.2: Linux 5.7 to 5.14.
    Early,
    /// That of specification 3.3 and later: Linux 5.15 to 6.3, and 5.10 with later fixes.
    Final,
}

/// Allocates PASIDs for the guest. Called with no lock of the unit held.
pub trait PasidAllocator: Send + Sync {
    /// A PASID that is the caller's until it is freed; `None` where there is none left.
    fn allocate(&self) -> Option<Pasid>;

    /// Gives a PASID back; false where it was not the caller's.
    fn free(&self, pasid: Pasid) -> bool;
}

impl VirtualCommandEncoding {
    const fn offsets(self) -> Offsets {
        match self {
            Self::Early => Offsets { capability: early::VCCAP, command: early::VCMD, response: early::VCRSP },
            Self::Final => {
                Offsets { capability: r#final::VCCAP, command: r#final::VCMD, response: r#final::VCRSP }
            }
        }
    }

    fn decode(self, bits: u64) -> (u8, u64) {
        match self {
            Self::Early => {
                let command = early::VirtualCommand::from_bits(bits);
                (command.cmd(), command.op())
            }
            Self::Final => {
                let command = r#final::VirtualCommand::from_bits(bits);
                (command.cmd(), command.op())
            }
        }
    }

    fn response(self, status: u8, result: u64) -> u64 {
        match self {
            Self::Early => early::VirtualCommandResponse::new().with_sc(status).with_rslt(result).into_bits(),
            Self::Final => {
                r#final::VirtualCommandResponse::new().with_sc(status).with_rslt(result).into_bits()
            }
        }
    }

    const fn no_pasid(self) -> u8 {
        match self {
            Self::Early => early::STATUS_NO_PASID,
            Self::Final => r#final::STATUS_NO_PASID,
        }
    }

    /// Carries a command out; returns VCRSP.
    pub(crate) fn execute(self, bits: u64, allocator: Option<&dyn PasidAllocator>) -> u64 {
        let (command, operand) = self.decode(bits);
        let pasid = || u32::try_from(operand).ok().and_then(Pasid::new);
        let (status, result) = match command {
            COMMAND_NULL => (STATUS_SUCCESS, 0),
            COMMAND_ALLOCATE_PASID => match allocator.and_then(PasidAllocator::allocate) {
                Some(pasid) => (STATUS_SUCCESS, u64::from(pasid.get())),
                None => (self.no_pasid(), 0),
            },
            COMMAND_FREE_PASID => {
                let freed = pasid().zip(allocator).is_some_and(|(pasid, allocator)| allocator.free(pasid));
                (if freed { STATUS_SUCCESS } else { self.no_pasid() }, 0)
            }
            _ => (STATUS_UNDEFINED_COMMAND, 0),
        };
        self.response(status, result)
    }
}

struct Offsets {
    capability: u64,
    command: u64,
    response: u64,
}

/// In-progress bit of VCRSP, in both encodings.
const IN_PROGRESS: u64 = 1;

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
        if let Some(encoding) = self.virtual_command {
            self.set64(encoding.offsets().response, response);
        }
    }
}
