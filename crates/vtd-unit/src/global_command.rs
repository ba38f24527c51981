// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Carries out what software writes to GCMD. \[S 11.4.4\]

use vtd_spec::registers::offset;
use vtd_spec::{GlobalCommand, InterruptRemapTableAddress, RootTableAddress};

use crate::core::Core;

impl<M> Core<M> {
    /// Carries out a write of GCMD, bit by bit in a fixed order; returns whether the queue is to be run. GSTS tells of a
    /// change when it is in effect and what it concerns has drained. \[S 11.4.4\]
    pub(crate) fn command(&self, command: GlobalCommand) -> bool {
        let core = self;
        let (run_queue, remap, filter) = {
            let mut registers = core.registers();
            let mut status = registers.status();
            let ecap = registers.capabilities.ecap;
            if ecap.qi() && command.qie() != status.qies() {
                status = status.with_qies(command.qie());
                registers.queue_epoch += 1;
                registers.set64(offset::IQH, 0);
            }
            if command.srtp() {
                registers.root_table = RootTableAddress::from_bits(registers.get64(offset::RTADDR));
                status = status.with_rtps(false);
            }
            let mut filter = false;
            if ecap.ir() {
                if command.sirtp() {
                    let table = InterruptRemapTableAddress::from_bits(registers.get64(offset::IRTA));
                    registers.interrupts.table = table;
                    status = status.with_irtps(false);
                }
                filter = registers.interrupts.enabled != command.ire();
                registers.interrupts.enabled = command.ire();
                registers.interrupts.compatibility = command.cfi();
            }
            let remap = command.srtp() || command.te() != status.tes();
            registers.set_status(status);
            registers.enable_remapping = command.te();
            if !command.te() && !registers.interrupts.enabled {
                registers.fault_index = 0;
            }
            (registers.claim_queue(), remap, filter)
        };
        if core.capabilities.ecap.ir() {
            core.apply_interrupt_remapping();
        }
        if remap || filter {
            core.apply_remapping();
        }
        if remap && let Some(observer) = core.observer() {
            observer.remapping_changed();
        }
        let mut registers = core.registers();
        let (before, interrupts) = (registers.status(), registers.interrupts);
        let status = before
            .with_rtps(before.rtps() || command.srtp())
            .with_tes(registers.enable_remapping)
            .with_irtps(before.irtps() || command.sirtp() && core.capabilities.ecap.ir())
            .with_ires(interrupts.enabled)
            .with_cfis(interrupts.compatibility);
        registers.set_status(status);
        run_queue
    }

    /// Takes over how the registers now say that interrupts are treated.
    pub(crate) fn apply_interrupt_remapping(&self) {
        let mut interrupts = self.interrupts_mut();
        *interrupts = self.registers().interrupts;
    }

    /// Gives every function the unit-wide state that the registers now hold, which empties their caches and waits
    /// for their accesses in flight. Whoever comes last applies the newest state.
    pub(crate) fn apply_remapping(&self) {
        let functions = self.functions_mut();
        let remapping = self.registers().remapping();
        for function in functions.iter() {
            function.write().set_remapping(remapping);
        }
    }
}
