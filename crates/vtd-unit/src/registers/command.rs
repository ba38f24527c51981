// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! GCMD and GSTS: what software commands, and when GSTS says that it is done. \[S 11.4.4\]

use vtd_spec::registers::offset;
use vtd_spec::{GlobalCommand, InterruptRemapTableAddress, RootTableAddress};

use super::page::Registers;
use crate::unit_state::PendingCommand;

impl Registers {
    /// Takes a command over, bit by bit in a fixed order. GSTS follows when it is in effect.
    pub(crate) fn begin_command(&mut self, command: GlobalCommand) {
        let status = self.status();
        let ecap = self.capabilities.ecap;
        self.command.number += 1;
        if ecap.qi() && command.qie() != self.queue_enabled {
            self.queue_enabled = command.qie();
            self.queue_epoch += 1;
            self.set64(offset::IQH, 0);
            self.settle_queue_status();
        }
        if command.srtp() {
            self.root_table = RootTableAddress::from_bits(self.get64(offset::RTADDR));
            self.command.srtp = true;
            self.command.remaps = true;
            self.set_status(self.status().with_rtps(false));
        }
        // Without a table there is nothing to enable: what lies at address 0 is none.
        let enable = command.te() && (status.rtps() || self.command.srtp);
        if enable != self.enable_remapping {
            self.enable_remapping = enable;
            self.command.remaps = true;
        }
        if ecap.ir() {
            if command.sirtp() {
                self.interrupts.table = InterruptRemapTableAddress::from_bits(self.get64(offset::IRTA));
                self.command.sirtp = true;
                self.set_status(self.status().with_irtps(false));
            }
            let enable = command.ire() && (status.irtps() || self.command.sirtp);
            self.command.filters |= enable != self.interrupts.enabled;
            self.command.filters |= command.cfi() != self.interrupts.compatibility;
            self.interrupts.enabled = enable;
            self.interrupts.compatibility = command.cfi();
        }
        if !self.enable_remapping && !self.interrupts.enabled {
            self.fault_index = 0;
        }
    }

    /// Whether the caller is to bring what was commanded into effect: nobody does so yet.
    pub(crate) fn claim_command(&mut self) -> bool {
        !std::mem::replace(&mut self.command_running, true)
    }

    /// What is to be brought into effect.
    pub(crate) fn pending_command(&self) -> PendingCommand {
        self.command
    }

    /// What was commanded up to `done` is in effect. False where more has been commanded since; else the claim is given up.
    pub(crate) fn finish_command(&mut self, done: &PendingCommand) -> bool {
        if self.command.number != done.number {
            return false;
        }
        self.command = PendingCommand { number: done.number, ..PendingCommand::default() };
        self.command_running = false;
        let status = self.status();
        let status = status
            .with_rtps(status.rtps() || done.srtp)
            .with_tes(self.enable_remapping)
            .with_irtps(status.irtps() || done.sirtp)
            .with_ires(self.interrupts.enabled)
            .with_cfis(self.interrupts.compatibility);
        self.set_status(status);
        true
    }

    /// Forgets what was commanded: the registers are reset. Who works on it notices.
    pub(super) fn reset_command(&mut self) {
        self.command = PendingCommand { number: self.command.number + 1, ..PendingCommand::default() };
    }

    /// GSTS.QIES rises at once, and falls when the descriptor under way has been carried out.
    pub(super) fn settle_queue_status(&mut self) {
        if self.queue_enabled || !self.queue_running {
            self.set_status(self.status().with_qies(self.queue_enabled));
        }
    }
}
