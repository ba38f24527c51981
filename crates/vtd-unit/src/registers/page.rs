// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The values of the registers, and the rules for each of their bits.

use vtd_spec::registers::offset;
use vtd_spec::{Capabilities, EventControl, FaultStatus, GlobalStatus, RootTableAddress};

use crate::config::VirtualCommandEncoding;
use crate::notify::Message;
use crate::unit_state::{InterruptRemapping, PendingCommand, Remapping};

/// Size of the register page in bytes.
pub(crate) const PAGE_BYTES: u64 = 4096;
pub(super) const DWORDS: usize = PAGE_BYTES as usize / 4;

/// A message source of the unit: its control register; data and address registers follow it. \[S 11.4.8\]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    Fault,
    InvalidationCompletion,
    PageRequest,
}

impl Event {
    pub(super) const fn control(self) -> u64 {
        match self {
            Self::Fault => offset::FECTL,
            Self::InvalidationCompletion => offset::IECTL,
            Self::PageRequest => offset::PECTL,
        }
    }
}

/// The register page.
#[derive(Debug)]
pub(crate) struct Registers {
    pub(super) values: Box<[u32; DWORDS]>,
    /// Bits that software sets and clears.
    pub(super) writable: Box<[u32; DWORDS]>,
    /// Bits that software clears by writing 1.
    pub(super) clearable: Box<[u32; DWORDS]>,
    /// Bits that read as 0 whatever was written.
    pub(super) write_only: Box<[u32; DWORDS]>,
    pub(crate) capabilities: Capabilities,
    /// First fault recording register and how many there are.
    pub(crate) fault_records: (u64, u16),
    /// Where the next fault is recorded.
    pub(crate) fault_index: u16,
    /// RTADDR as the last Set Root Table Pointer latched it.
    pub(crate) root_table: RootTableAddress,
    /// TE as last commanded; GSTS.TES follows once every function knows.
    pub(crate) enable_remapping: bool,
    /// Interrupt remapping as last commanded.
    pub(crate) interrupts: InterruptRemapping,
    /// The virtual command interface, where there is one.
    pub(crate) virtual_command: Option<VirtualCommandEncoding>,
    /// What GCMD was told and is not in effect yet, and whether somebody brings it into effect.
    pub(super) command: PendingCommand,
    pub(super) command_running: bool,
    /// The invalidation queue is enabled, as last commanded; GSTS.QIES follows.
    pub(super) queue_enabled: bool,
    /// Someone is processing the invalidation queue.
    pub(crate) queue_running: bool,
    /// Counts enablings of the queue, so that its worker notices one.
    pub(crate) queue_epoch: u64,
}

impl Registers {
    pub(super) fn event(&mut self, event: Event) {
        let control = event.control();
        self.writable32(control, 1 << 31);
        self.writable32(control + 4, 0xffff);
        self.writable32(control + 8, !3);
        // Software that never enables EIM writes the upper half all the same. [Linux dmar.c:dmar_msi_write]
        self.writable32(control + 12, !0);
    }

    pub(super) fn writable32(&mut self, offset: u64, mask: u32) {
        self.writable[index(offset)] |= mask;
    }

    pub(crate) fn writable64(&mut self, offset: u64, mask: u64) {
        self.writable32(offset, mask as u32);
        self.writable32(offset + 4, (mask >> 32) as u32);
    }

    pub(crate) fn write_only64(&mut self, offset: u64, mask: u64) {
        self.write_only[index(offset)] |= mask as u32;
        self.write_only[index(offset + 4)] |= (mask >> 32) as u32;
    }

    pub(super) fn clearable32(&mut self, offset: u64, mask: u32) {
        self.clearable[index(offset)] |= mask;
    }

    pub(crate) fn get32(&self, offset: u64) -> u32 {
        self.values[index(offset)]
    }

    pub(crate) fn set32(&mut self, offset: u64, value: u32) {
        self.values[index(offset)] = value;
    }

    pub(crate) fn get64(&self, offset: u64) -> u64 {
        u64::from(self.get32(offset)) | u64::from(self.get32(offset + 4)) << 32
    }

    pub(crate) fn set64(&mut self, offset: u64, value: u64) {
        self.set32(offset, value as u32);
        self.set32(offset + 4, (value >> 32) as u32);
    }

    /// Global Status.
    pub(crate) fn status(&self) -> GlobalStatus {
        GlobalStatus::from_bits(self.get32(offset::GSTS))
    }

    /// Replaces Global Status.
    pub(crate) fn set_status(&mut self, status: GlobalStatus) {
        self.set32(offset::GSTS, status.into_bits());
    }

    /// Reads `data.len()` bytes at `offset`; bytes outside the page read 0.
    pub(crate) fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        for (byte, at) in data.iter_mut().zip(offset..PAGE_BYTES) {
            let readable = self.values[index(at)] & !self.write_only[index(at)];
            *byte = (readable >> (8 * (at % 4))) as u8;
        }
    }

    /// Raises an interrupt condition: a message to send now, or nothing while the event is masked. \[S 7.3\]
    #[must_use]
    pub(crate) fn raise(&mut self, event: Event) -> Option<Message> {
        if EventControl::from_bits(self.get32(event.control())).im() {
            self.set_pending(event, true);
            return None;
        }
        self.set_pending(event, false);
        Some(self.message(event))
    }

    /// IM went from 1 to 0 with a message pending: it is due now.
    pub(super) fn unmasked(&mut self, event: Event, old: u32) -> Option<Message> {
        let now = EventControl::from_bits(self.get32(event.control()));
        let due = EventControl::from_bits(old).im() && !now.im() && now.ip();
        due.then(|| {
            self.set_pending(event, false);
            self.message(event)
        })
    }

    pub(super) fn message(&self, event: Event) -> Message {
        let control = event.control();
        Message { data: self.get32(control + 4), address: self.get64(control + 8) }
    }

    pub(crate) fn set_pending(&mut self, event: Event, pending: bool) {
        let control = EventControl::from_bits(self.get32(event.control())).with_ip(pending);
        self.set32(event.control(), control.into_bits());
    }

    pub(crate) fn fault_status(&self) -> FaultStatus {
        FaultStatus::from_bits(self.get32(offset::FSTS))
    }

    pub(crate) fn remapping(&self) -> Remapping {
        Remapping {
            enabled: self.enable_remapping,
            mode: self.root_table.ttm(),
            root_table: self.root_table.rta(),
            interrupts: self.interrupts.enabled,
        }
    }
}

/// Index of the doubleword that holds the byte at `offset`, which is inside the page.
pub(super) fn index(offset: u64) -> usize {
    (offset as usize % PAGE_BYTES as usize) / 4
}
