// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Interrupt remapping: from a function's message to the message that reaches the processors. \[S 5.1\]
//!
//! Nothing of the table is cached: each interrupt reads its entry once, under the lock that an interrupt entry cache
//! invalidation takes. Its message is sent with the lock released, and counted until it has arrived: the invalidation waits
//! for those that were remapped before it. \[S 6.8\]

use vm_memory::GuestMemoryBackend;
use vtd_spec::interrupt::Interrupt;
use vtd_spec::{
    FaultReason, InterruptRemapEntry, InterruptRemapTableAddress, InterruptRequest, RemappableRequest,
    SourceId,
};

use crate::core::Core;
use crate::function::{Function, is_interrupt_range};
use crate::memory::load_qwords;
use crate::notify::Message;
use crate::outcome::{AddressType, Blocked, Fault, FaultType};
use crate::unit_state::InterruptRemapping;

impl<M: GuestMemoryBackend> Core<M> {
    /// Takes an interrupt request of a function: delivers it, remapped or not, or records why it is blocked.
    /// \[S 5.1.4; order as reference H.2\]
    pub(crate) fn interrupt(&self, function: &Function, message: Message) {
        let source_id = function.source_id;
        let remapped = {
            let remapping = self.interrupts();
            self.remap(&remapping, source_id, message).map(|message| (message, self.messages.enter()))
        };
        match remapped {
            Ok((message, _entered)) => function.messages.message(message),
            Err((blocked, index)) => self.record_fault(
                blocked,
                &Fault {
                    reason: blocked.reason,
                    source_id,
                    pasid: None,
                    privileged: false,
                    address: u64::from(index) << 48,
                    kind: FaultType::Write,
                    address_type: AddressType::Untranslated,
                },
            ),
        }
    }

    /// Waits until every message has arrived that was remapped before; without `wait` only if there is none. False where
    /// that is still to be done.
    pub(crate) fn drain_messages(&self, wait: bool) -> bool {
        let before = {
            let _remapping = self.interrupts_mut();
            if self.messages.is_empty() {
                return true;
            }
            if !wait {
                return false;
            }
            self.messages.turn()
        };
        self.messages.wait(&before);
        true
    }

    /// What [`Self::interrupt`] would do with a message.
    pub(crate) fn look_up_message(&self, source_id: SourceId, message: Message) -> Result<Message, Blocked> {
        if !is_interrupt_range(message.address) {
            return Err(Blocked::new(FaultReason::Ir29, false));
        }
        let remapping = self.interrupts();
        self.remap(&remapping, source_id, message).map_err(|(blocked, _)| blocked)
    }

    fn remap(
        &self,
        remapping: &InterruptRemapping,
        source_id: SourceId,
        message: Message,
    ) -> Result<Message, (Blocked, u16)> {
        if !remapping.enabled {
            return Ok(message);
        }
        let request = InterruptRequest::decode(message);
        let request = match request {
            // Not in the interrupt range: the function's port lets none of these through.
            None => return Err((Blocked::new(FaultReason::Ir29, false), 0)),
            Some(InterruptRequest::Compatibility(_)) => {
                let passes = remapping.compatibility && !remapping.table.eime();
                let blocked = (Blocked::new(FaultReason::Ir25, false), 0);
                return if passes { Ok(message) } else { Err(blocked) };
            }
            Some(InterruptRequest::Remappable(request)) => request,
        };
        self.remap_entry(source_id, &request, remapping.table)
            .map_err(|blocked| (blocked, request.index() as u16))
    }

    fn remap_entry(
        &self,
        source_id: SourceId,
        request: &RemappableRequest,
        table: InterruptRemapTableAddress,
    ) -> Result<Message, Blocked> {
        let blocked = |reason| Err(Blocked::new(reason, false));
        if request.reserved() {
            return blocked(FaultReason::Ir20);
        }
        let index = u64::from(request.index());
        let entry = table.irta().checked_add(index * 16).filter(|_| index < 2 << table.s());
        let Some(address) = entry.filter(|entry| *entry <= self.capabilities.max_host_address()) else {
            return blocked(FaultReason::Ir21);
        };
        let Ok(qwords) = load_qwords(&*self.memory, address) else { return blocked(FaultReason::Ir23) };
        let entry = InterruptRemapEntry::from_qwords(qwords);
        let blocked = |reason| Err(Blocked::new(reason, entry.fpd()));
        if !entry.p() {
            return blocked(FaultReason::Ir22);
        }
        let eime = table.eime();
        if entry.reserved(eime, &self.capabilities) || entry.source_validation().is_none() {
            return blocked(FaultReason::Ir24);
        }
        if !entry.admits(source_id) {
            return blocked(FaultReason::Ir26);
        }
        let Some(interrupt) = Interrupt::remapped(&entry, eime) else { return blocked(FaultReason::Ir24) };
        Ok(interrupt.message().unwrap_or_else(|| interrupt.message_with_32_bit_destination()))
    }
}
