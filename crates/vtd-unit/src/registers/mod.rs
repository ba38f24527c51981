// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The register page: what software reads and writes, by the attribute of each bit. What a write sets off beyond
//! its own bits is returned as [`Effects`] and carried out by the unit, with no lock of the page held.

mod command;
mod fault;
mod invalidation;
mod page;
mod page_request;
mod queue;
mod virtual_command;

pub(crate) use page::{PAGE_BYTES, Registers};
pub(crate) use queue::{Next, TimeOut};
use vtd_spec::registers::offset;
use vtd_spec::{Capabilities, FaultStatus, RootTableAddress};

use crate::config::VirtualCommandEncoding;
use crate::notify::Message;
use crate::unit_state::{InterruptRemapping, PendingCommand};
use page::{DWORDS, Event, index};

/// What a register write asks the unit to do once the page is unlocked.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Effects {
    /// Messages to send.
    pub messages: Vec<Message>,
    /// A value was written to GCMD.
    pub command: Option<u32>,
    /// The invalidation queue may have work and nobody is working on it.
    pub run_queue: bool,
    /// A virtual command to carry out.
    pub virtual_command: Option<u64>,
}

impl Registers {
    /// The page after power-up.
    pub(crate) fn new(capabilities: Capabilities, virtual_command: Option<VirtualCommandEncoding>) -> Self {
        let mut registers = Self {
            values: Box::new([0; DWORDS]),
            writable: Box::new([0; DWORDS]),
            clearable: Box::new([0; DWORDS]),
            write_only: Box::new([0; DWORDS]),
            capabilities,
            fault_records: (capabilities.cap.fault_record_offset(), capabilities.cap.fault_records()),
            fault_index: 0,
            root_table: RootTableAddress::from_bits(0),
            enable_remapping: false,
            interrupts: InterruptRemapping::default(),
            virtual_command,
            command: PendingCommand::default(),
            command_running: false,
            queue_enabled: false,
            queue_running: false,
            queue_epoch: 0,
        };
        registers.attributes();
        registers.reset(true);
        registers
    }

    /// Sets the attributes of each register. Bits not named are read-only. \[S 11.4\]
    fn attributes(&mut self) {
        let ecap = self.capabilities.ecap;
        // Addresses above the host address width are stored as written: what uses them finds no memory there.
        const PAGE_ADDRESS: u64 = !0xfff;
        self.writable64(offset::RTADDR, PAGE_ADDRESS | 0xc00 | if ecap.ssirws() { 0x80 } else { 0 });
        self.register_invalidation_attributes();
        self.clearable32(offset::FSTS, FaultStatus::WRITE_1_TO_CLEAR.into_bits());
        self.event(Event::Fault);
        let (base, count) = self.fault_records;
        for record in 0..u64::from(count) {
            self.clearable32(base + record * 16 + 12, 1 << 31);
        }
        if ecap.qi() {
            self.writable64(offset::IQT, 0x7_fff0);
            self.writable64(offset::IQA, PAGE_ADDRESS | 0x807);
            self.clearable32(offset::ICS, 1);
            self.event(Event::InvalidationCompletion);
        }
        if ecap.ir() {
            self.writable64(offset::IRTA, PAGE_ADDRESS | 0xf | if ecap.eim() { 0x800 } else { 0 });
        }
        if let Some(command) = self.virtual_command_offset() {
            self.writable64(command, !0);
            // The extended operand: no command here has one.
            self.writable64(command + 8, !0);
        }
        if ecap.prs() {
            self.writable64(offset::PQH, 0x7_ffe0);
            self.writable64(offset::PQT, 0x7_ffe0);
            self.writable64(offset::PQA, PAGE_ADDRESS | 7);
            self.clearable32(offset::PRS, 3);
            self.event(Event::PageRequest);
        }
    }

    /// Puts every register at its reset value; sticky ones only where power was lost too. \[S 11.2\]
    pub(crate) fn reset(&mut self, power_up: bool) {
        let sticky: Vec<(usize, u32)> = if power_up {
            Vec::new()
        } else {
            let (base, count) = self.fault_records;
            let records = (0..u64::from(count) * 4).map(|dword| base + dword * 4);
            [offset::FSTS, offset::ICS, offset::IQERCD, offset::IQERCD + 4, offset::PRS]
                .into_iter()
                .chain(records)
                .map(|offset| (index(offset), self.values[index(offset)]))
                .collect()
        };
        self.values.fill(0);
        for (index, value) in sticky {
            self.values[index] = value;
        }
        self.set32(offset::VER, 0x10);
        self.set64(offset::CAP, self.capabilities.cap.into_bits());
        self.set64(offset::ECAP, self.capabilities.ecap.into_bits());
        for event in [Event::Fault, Event::InvalidationCompletion, Event::PageRequest] {
            let implemented = self.writable[index(event.control())] != 0;
            self.set32(event.control(), if implemented { 1 << 31 } else { 0 });
        }
        self.reset_virtual_command();
        self.fault_index = 0;
        self.root_table = RootTableAddress::from_bits(0);
        self.enable_remapping = false;
        self.interrupts = InterruptRemapping::default();
        self.reset_command();
        self.queue_enabled = false;
        self.queue_epoch += 1;
    }

    /// Writes an aligned doubleword or quadword; accesses of other sizes and alignments, which the specification
    /// does not define, change nothing. \[S 11.2\]
    pub(crate) fn write(&mut self, offset: u64, data: &[u8]) -> Effects {
        let mut effects = Effects::default();
        if !matches!(data.len(), 4 | 8)
            || !offset.is_multiple_of(4)
            || offset > PAGE_BYTES - data.len() as u64
        {
            return effects;
        }
        let dwords = || {
            (offset..)
                .step_by(4)
                .zip(data.chunks_exact(4).map(|c| u32::from_le_bytes([c[0], c[1], c[2], c[3]])))
        };
        // All bits of the access first, then what they set off: a quadword's halves belong together.
        let mut unmasked = [None; 2];
        for (slot, (at, value)) in unmasked.iter_mut().zip(dwords()) {
            let i = index(at);
            let (old, writable) = (self.values[i], self.writable[i]);
            self.values[i] = (old & !writable | value & writable) & !(value & self.clearable[i]);
            *slot = Some(old);
        }
        for ((at, value), old) in dwords().zip(unmasked) {
            self.written(at, value, old.unwrap_or_default(), &mut effects);
        }
        effects
    }

    fn written(&mut self, at: u64, value: u32, old: u32, effects: &mut Effects) {
        match at {
            offset::GCMD => effects.command = Some(value),
            offset::FSTS => {
                self.settle_fault_event();
                effects.run_queue |= self.claim_queue();
            }
            offset::IQT => effects.run_queue |= self.claim_queue(),
            offset::ICS if self.get32(offset::ICS) & 1 == 0 => {
                self.set_pending(Event::InvalidationCompletion, false)
            }
            offset::PRS if self.get32(offset::PRS) & 3 == 0 => self.set_pending(Event::PageRequest, false),
            offset::FECTL => effects.messages.extend(self.unmasked(Event::Fault, old)),
            offset::IECTL => effects.messages.extend(self.unmasked(Event::InvalidationCompletion, old)),
            offset::PECTL => effects.messages.extend(self.unmasked(Event::PageRequest, old)),
            _ if Some(at) == self.virtual_command_offset() => {
                effects.virtual_command = self.start_virtual_command();
            }
            _ => {
                if let Some(register) = self.invalidation_register_at(at).filter(|_| value >> 31 != 0) {
                    self.start_register_invalidation(register);
                    effects.run_queue |= self.claim_queue();
                }
                let (base, count) = self.fault_records;
                if (base..base + u64::from(count) * 16).contains(&at) {
                    self.settle_fault_event();
                }
            }
        }
    }

    /// Whether the caller is to process the invalidation queue, or a command of an invalidation register: there is
    /// something to do, and nobody does it yet.
    pub(crate) fn claim_queue(&mut self) -> bool {
        let work =
            self.queue_enabled && self.queue_has_work() || self.pending_register_invalidation().is_some();
        let claimed = !self.queue_running && work;
        self.queue_running |= claimed;
        claimed
    }
}
