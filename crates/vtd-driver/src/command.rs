// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! GCMD and GSTS: commands of the unit, and the wait for each. \[Linux iommu.h: IOMMU_WAIT_OP\]

use vtd_spec::GlobalCommand;
use vtd_spec::registers::offset;

use crate::error::Error;
use crate::iommu::Iommu;
use crate::memory::Memory;
use crate::registers::Registers;

pub(crate) const QUEUE: GlobalCommand = GlobalCommand::new().with_qie(true);
pub(crate) const TRANSLATION: GlobalCommand = GlobalCommand::new().with_te(true);
pub(crate) const INTERRUPTS: GlobalCommand = GlobalCommand::new().with_ire(true);
pub(crate) const COMPATIBILITY_FORMAT: GlobalCommand = GlobalCommand::new().with_cfi(true);
pub(crate) const SET_ROOT: GlobalCommand = GlobalCommand::new().with_srtp(true);
pub(crate) const SET_INTERRUPT_TABLE: GlobalCommand = GlobalCommand::new().with_sirtp(true);
pub(crate) const WRITE_BUFFER_FLUSH: GlobalCommand = GlobalCommand::new().with_wbf(true);

impl<R: Registers, M: Memory> Iommu<R, M> {
    /// Changes a persistent bit and waits until GSTS shows it.
    pub(crate) fn set_command(&mut self, bit: GlobalCommand, on: bool) -> Result<(), Error> {
        let bit = bit.into_bits();
        let value = if on { self.command.into_bits() | bit } else { self.command.into_bits() & !bit };
        // What may be on is turned off in the end, also if it took the command too late.
        self.command = GlobalCommand::from_bits(self.command.into_bits() | value);
        self.registers.write32(offset::GCMD, value);
        self.await_status(value, bit, if on { bit } else { 0 })?;
        self.command = GlobalCommand::from_bits(value);
        Ok(())
    }

    /// Sets a one-shot bit and waits until it is done.
    pub(crate) fn one_shot(&mut self, bit: GlobalCommand) -> Result<(), Error> {
        let value = self.command.into_bits() | bit.into_bits();
        self.registers.write32(offset::GCMD, value);
        // WBFS is set while the flush runs, RTPS and IRTPS once the pointer is taken.
        let done = if bit.wbf() { 0 } else { bit.into_bits() };
        self.await_status(value, bit.into_bits(), done)
    }

    fn await_status(&self, command: u32, mask: u32, wanted: u32) -> Result<(), Error> {
        let mut polls = 0;
        while self.registers.read32(offset::GSTS) & mask != wanted {
            if !self.registers.relax(polls) {
                return Err(Error::CommandTimeout { command });
            }
            polls += 1;
        }
        Ok(())
    }

    /// Flushes the unit's write buffer where it asks for that (CAP.RWBF).
    pub(crate) fn flush_write_buffer(&mut self) -> Result<(), Error> {
        if self.capabilities.cap.rwbf() { self.one_shot(WRITE_BUFFER_FLUSH) } else { Ok(()) }
    }
}
