// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The virtual command interface: PASIDs allocated and freed by the host on the guest's word. \[S 11.4.16\]
//!
//! Linux used it as a guest from 5.7 to 6.3, in two encodings at different offsets that overlap: a unit offers one.

use vtd_spec::Pasid;
use vtd_spec::registers::virtual_command::{
    COMMAND_ALLOCATE_PASID, COMMAND_FREE_PASID, COMMAND_NULL, STATUS_SUCCESS, STATUS_UNDEFINED_COMMAND,
    early, r#final,
};

use crate::config::VirtualCommandEncoding;
use crate::pasid_allocator::PasidAllocator;

impl VirtualCommandEncoding {
    fn decode(self, bits: u64) -> (u8, u64) {
        match self {
            Self::Early | Self::EarlyNoPasid1 => {
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
            Self::Early | Self::EarlyNoPasid1 => {
                early::VirtualCommandResponse::new().with_sc(status).with_rslt(result).into_bits()
            }
            Self::Final => {
                r#final::VirtualCommandResponse::new().with_sc(status).with_rslt(result).into_bits()
            }
        }
    }

    const fn no_pasid(self) -> u8 {
        match self {
            Self::Early => early::STATUS_NO_PASID,
            Self::EarlyNoPasid1 => early::STATUS_NO_PASID_LINUX_5_11,
            Self::Final => r#final::STATUS_NO_PASID,
        }
    }

    /// Whether a command may have to wait for what the host is doing.
    pub(crate) fn may_wait(self, bits: u64) -> bool {
        self.decode(bits).0 == COMMAND_FREE_PASID
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
