// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Faults: how a blocked request becomes a record and an event. \[S 7.2, 7.3\]

use vtd_spec::SourceId;

use crate::core::Core;
use crate::notify::Message;
use crate::outcome::{Blocked, Fault};

impl<M> Core<M> {
    /// Records a fault, unless an FPD on its way says otherwise.
    pub(crate) fn record_fault(&self, blocked: Blocked, fault: &Fault) {
        if blocked.suppressed {
            return;
        }
        let message = self.registers().record_fault(fault);
        self.send_messages(message);
    }

    pub(crate) fn send_messages(&self, messages: impl IntoIterator<Item = Message>) {
        for message in messages {
            self.notify.message(message);
        }
    }

    /// An invalidation completion that answers nothing arrived. \[S 6.5.2.10\]
    pub(crate) fn invalidation_completion_error(&self, source_id: SourceId) {
        let message = {
            let mut registers = self.registers();
            let status = registers.fault_status();
            if !status.ice() {
                let record = registers.queue_error().with_icesid(source_id.0);
                registers.set_queue_error(record);
            }
            registers.raise_fault_condition(|status| status.with_ice(true))
        };
        self.send_messages(message);
    }
}
