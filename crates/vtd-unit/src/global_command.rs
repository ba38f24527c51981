// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Carries out what software writes to GCMD. \[S 11.4.4\]

use std::sync::Arc;

use vm_memory::GuestMemoryBackend;
use vtd_spec::GlobalCommand;

use crate::core::Core;
use crate::worker::Worker;

impl<M: GuestMemoryBackend + Send + Sync + 'static> Core<M> {
    /// Takes a write of GCMD, and finishes it where nothing has to be waited for; else the executor does. GSTS tells of a
    /// change when it is in effect and what it concerns has drained. Whether the queue is to be run.
    pub(crate) fn command(self: &Arc<Self>, command: GlobalCommand) -> bool {
        let (run_queue, begun) = {
            let mut registers = self.registers();
            registers.begin_command(command);
            (registers.claim_queue(), registers.claim_command())
        };
        if begun && !self.finish_command(Worker::Processor) {
            let core = Arc::downgrade(self);
            self.executor.execute(Box::new(move || {
                if let Some(core) = core.upgrade() {
                    core.finish_command(Worker::Executor);
                }
            }));
        }
        run_queue
    }

    /// Brings what software has commanded into effect, as it is now: again where it has changed meanwhile. False where
    /// `worker` must not wait for what stands in the way; then the command is still claimed.
    fn finish_command(&self, worker: Worker) -> bool {
        loop {
            let pending = self.registers().pending_command();
            // How long an observer takes is for the tables to say.
            if worker == Worker::Processor && pending.remaps() && self.is_observed() {
                return false;
            }
            if pending.concerns_requests() && !self.apply_remapping(worker) {
                return false;
            }
            if pending.concerns_interrupts() && !self.apply_interrupt_remapping(worker) {
                return false;
            }
            if pending.concerns_interrupts() {
                self.each_observer(|observer| observer.interrupts_changed());
            }
            if pending.remaps() {
                self.each_observer(|observer| observer.remapping_changed());
            }
            if self.registers().finish_command(&pending) {
                return true;
            }
        }
    }

    /// Takes over how the registers now say that interrupts are treated, and waits for the messages that were treated
    /// otherwise. False where `worker` must not wait for them.
    pub(crate) fn apply_interrupt_remapping(&self, worker: Worker) -> bool {
        {
            let mut interrupts = self.interrupts_mut();
            *interrupts = self.registers().interrupts;
        }
        self.drain_messages(worker == Worker::Executor)
    }

    /// Gives every function the unit-wide state that the registers now hold, which empties their caches and waits
    /// for their accesses in flight. False where `worker` must not wait for them.
    pub(crate) fn apply_remapping(&self, worker: Worker) -> bool {
        self.functions().iter().all(|function| {
            worker.with(function, |cache| {
                let remapping = self.registers().remapping();
                cache.set_remapping(remapping);
            })
        })
    }
}
