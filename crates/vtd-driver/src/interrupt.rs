// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The interrupt remapping table (Linux irq_remapping.c): enabled and written, the entries' meaning is the caller's.

use vtd_spec::registers::offset;
use vtd_spec::{InterruptRemapEntry, InterruptRemapTableAddress};

use crate::cache;
use crate::command;
use crate::error::Error;
use crate::iommu::Iommu;
use crate::memory::Memory;
use crate::registers::Registers;
use crate::state::InterruptTable;

impl<R: Registers, M: Memory> Iommu<R, M> {
    pub(crate) fn enable_interrupt_remapping(&mut self, eime: bool) -> Result<(), Error> {
        let Some(table) = &self.interrupt_table else { return Ok(()) };
        let irta = InterruptRemapTableAddress::new()
            .with_s(InterruptTable::SIZE_FIELD)
            .with_eime(eime)
            .with_irta(table.address);
        self.registers.write64(offset::IRTA, irta.into_bits());
        self.one_shot(command::SET_INTERRUPT_TABLE)?;
        if !self.capabilities.cap.esirtps() {
            self.submit(&[cache::interrupt_global()])?;
        }
        self.set_command(command::INTERRUPTS, true)?;
        if self.command.cfi() {
            // Whoever ran before let interrupts pass that name no entry of the table.
            self.set_command(command::COMPATIBILITY_FORMAT, false)?;
        }
        Ok(())
    }

    /// Writes an entry of the interrupt remapping table and invalidates it.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] while interrupt remapping is off; the queue's.
    pub fn set_interrupt_entry(&mut self, index: u16, entry: InterruptRemapEntry) -> Result<(), Error> {
        let table = self.interrupt_table.as_ref().ok_or(Error::lacks("interrupt remapping, which is off"))?;
        let address = table.address + 16 * u64::from(index);
        let qwords = entry.to_qwords();
        // Not present while its halves do not belong together.
        self.store_entry(address, &[0]);
        self.store_entry(address, &qwords);
        self.submit(&[cache::interrupt_index(index)])
    }
}
