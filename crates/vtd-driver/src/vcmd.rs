// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! PASIDs by virtual command: a guest asks its host for each PASID (V9 patches 07 to 09: `vcmd_alloc_pasid`,
//! `vcmd_free_pasid`, `register_pasid_allocator`). \[S 11.4.16\]

use core::ops::RangeInclusive;

use ioasid::{CustomAllocator, CustomAllocatorId, Ioasid};
use vtd_spec::Pasid;
use vtd_spec::registers::virtual_command::{
    COMMAND_ALLOCATE_PASID, COMMAND_FREE_PASID, STATUS_SUCCESS, early, r#final,
};

use crate::address_space::Pasids;
use crate::error::Error;
use crate::iommu::Iommu;
use crate::memory::Memory;
use crate::registers::Registers;

/// Where the registers lie and how they are laid out. The unit does not say: the platform knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Encoding {
    /// Revisions 3.0 to 3.2 of the specification: Linux from V9 to 5.14.
    Early,
    /// Revision 3.3 and later: Linux from 5.15 until 6.3 (and the stable kernels that have commit 4d99efb229e6).
    Final,
}

/// The virtual command interface of a unit that allocates PASIDs.
pub struct VirtualCommand<R> {
    registers: R,
    encoding: Encoding,
    /// The command whose response has not been seen.
    unanswered: Option<u8>,
}

/// What VCRSP says once it is not in progress.
#[derive(Clone, Copy)]
struct Response {
    status: u8,
    result: u64,
}

impl<R: Registers> VirtualCommand<R> {
    /// The interface, where the unit has it and it allocates PASIDs: ECAP.VCS, then VCCAP.PAS, read this once (each read
    /// costs a guest an exit). Of a final VCCAP both bits count that are called PAS: bit 1 by the specification, bit 0 by
    /// Linux.
    pub fn discover(registers: R, encoding: Encoding) -> Option<Self> {
        let ecap = registers.read64(vtd_spec::offset::ECAP);
        if !vtd_spec::ExtendedCapability::from_bits(ecap).vcs() {
            return None;
        }
        let allocates = match encoding {
            Encoding::Early => {
                early::VirtualCommandCapability::from_bits(registers.read64(early::VCCAP)).pas()
            }
            Encoding::Final => {
                let capability =
                    r#final::VirtualCommandCapability::from_bits(registers.read64(r#final::VCCAP));
                capability.pas() || capability.ns()
            }
        };
        allocates.then_some(Self { registers, encoding, unanswered: None })
    }

    /// Allocates a PASID of the host's choice.
    ///
    /// # Errors
    ///
    /// [`Error::VirtualCommandNoPasid`], [`Error::VirtualCommand`], [`Error::VirtualCommandTimeout`].
    pub fn allocate(&mut self) -> Result<Pasid, Error> {
        let result = self.command(COMMAND_ALLOCATE_PASID, 0)?;
        Ok(Pasid::truncated(result as u32))
    }

    /// Gives a PASID back.
    ///
    /// # Errors
    ///
    /// As [`allocate`](Self::allocate).
    pub fn free(&mut self, pasid: Pasid) -> Result<(), Error> {
        self.command(COMMAND_FREE_PASID, pasid.get().into()).map(|_| ())
    }

    /// Writes a command and spins until its response is there. One that was given up is waited for first: the interface
    /// takes no other before, and a PASID that it allocated after all is given back.
    fn command(&mut self, command: u8, operand: u64) -> Result<u64, Error> {
        if let Some(unanswered) = self.unanswered {
            let late = self.response()?;
            if let (COMMAND_ALLOCATE_PASID, Ok(pasid)) = (unanswered, self.result(late)) {
                self.write(COMMAND_FREE_PASID, pasid);
                self.response()?;
            }
        }
        self.write(command, operand);
        let response = self.response()?;
        self.result(response)
    }

    fn write(&mut self, command: u8, operand: u64) {
        let (register, value) = match self.encoding {
            Encoding::Early => {
                let value = early::VirtualCommand::new().with_cmd(command).with_op(operand);
                (early::VCMD, value.into_bits())
            }
            Encoding::Final => {
                let value = r#final::VirtualCommand::new().with_cmd(command).with_op(operand);
                (r#final::VCMD, value.into_bits())
            }
        };
        self.registers.write64(register, value);
        self.unanswered = Some(command);
    }

    /// The response to what was written last.
    fn response(&mut self) -> Result<Response, Error> {
        let mut polls = 0;
        loop {
            let (in_progress, status, result) = match self.encoding {
                Encoding::Early => {
                    let value = self.registers.read64(early::VCRSP);
                    let response = early::VirtualCommandResponse::from_bits(value);
                    (response.ip(), response.sc(), response.rslt())
                }
                Encoding::Final => {
                    let value = self.registers.read64(r#final::VCRSP);
                    let response = r#final::VirtualCommandResponse::from_bits(value);
                    (response.ip(), response.sc(), response.rslt())
                }
            };
            if !in_progress {
                self.unanswered = None;
                return Ok(Response { status, result });
            }
            if !self.registers.relax(polls) {
                return Err(Error::VirtualCommandTimeout);
            }
            polls += 1;
        }
    }

    fn result(&self, response: Response) -> Result<u64, Error> {
        match response.status {
            STATUS_SUCCESS => Ok(response.result),
            status if self.says_no_pasid(status) => Err(Error::VirtualCommandNoPasid),
            status => Err(Error::VirtualCommand { status }),
        }
    }

    /// Linux to 5.11 took 1 for "no PASID" and 5.12 on 2; hosts exist for either.
    fn says_no_pasid(&self, status: u8) -> bool {
        match self.encoding {
            Encoding::Early => matches!(status, 1 | early::STATUS_NO_PASID),
            Encoding::Final => status == r#final::STATUS_NO_PASID,
        }
    }
}

impl<R: Registers + Send> CustomAllocator for VirtualCommand<R> {
    fn interface(&self) -> &'static str {
        "virtual command"
    }

    /// The host chooses among all PASIDs (iommu.c:intel_ioasid_alloc): an id that the range does not hold is given back by
    /// the caller. PASID 0 is never to be had.
    fn allocate(&mut self, range: RangeInclusive<Ioasid>) -> Option<Ioasid> {
        if *range.start() == 0 || range.is_empty() {
            return None;
        }
        Self::allocate(self).ok().map(Pasid::get)
    }

    fn free(&mut self, id: Ioasid) {
        // Nothing can be done about a host that does not take it back; the PASID is lost to this system.
        let _ = Self::free(self, Pasid::truncated(id));
    }
}

/// Has the PASIDs of the system allocated by virtual command where the unit's host wants it so: caching mode, scalable
/// mode, ECAP.VCS and VCCAP.PAS. `None` where one is missing.
///
/// # Errors
///
/// [`Error::Pasid`] while PASIDs of the built-in allocator are out (Linux then turns scalable mode off).
pub fn register<R, M>(
    iommu: &Iommu<R, M>,
    pasids: &mut Pasids,
    encoding: Encoding,
) -> Result<Option<CustomAllocatorId>, Error>
where
    R: Registers + Clone + Send + 'static,
    M: Memory,
{
    let capabilities = iommu.capabilities();
    if !capabilities.cap.cm() || !capabilities.ecap.smts() {
        return Ok(None);
    }
    let Some(interface) = VirtualCommand::discover(iommu.registers().clone(), encoding) else {
        return Ok(None);
    };
    Ok(Some(pasids.register_allocator(interface)?))
}

#[cfg(test)]
mod tests;
