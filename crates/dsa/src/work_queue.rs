// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A work queue: its entry in the WQCFG table and the descriptors that wait in it. \[D 9.2.24\]

use std::collections::VecDeque;

use vtd_unit::{Pasid, Requester};

use crate::bus::PciState;
use crate::descriptor::{Descriptor, Limits};
use crate::registers::{MAX_BATCH_SHIFT, OPCAP_VALUE};

/// DWORDs in an entry of the table.
const DWORDS: usize = 16;

const SIZE: usize = 0;
const THRESHOLD: usize = 1;
const MODE: usize = 2;
const LIMITS: usize = 3;
const STATUS: usize = 6;
const OPERATIONS: usize = 8;

const MODE_DEDICATED: u32 = 1 << 0;
const MODE_BLOCK_ON_FAULT: u32 = 1 << 1;
const MODE_ATS_DISABLE: u32 = 1 << 2;
const MODE_PRS_DISABLE: u32 = 1 << 3;
const MODE_PASID_ENABLE: u32 = 1 << 28;
const MODE_PRIVILEGED: u32 = 1 << 29;

/// The state of a work queue, as bits 31:30 of WQCFG DWORD 6 show it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum QueueState {
    Disabled = 0,
    Enabled = 1,
    /// Accepts nothing; what it holds is executed or discarded.
    Draining = 2,
}

/// Why a queue cannot be enabled: CMDSTATUS error codes. \[D table 9-6\]
pub(crate) mod enable_error {
    pub const SIZE: u8 = 0x22;
    pub const PRIORITY: u8 = 0x23;
    pub const MODE: u8 = 0x24;
    pub const BLOCK_ON_FAULT: u8 = 0x25;
    pub const PASID: u8 = 0x26;
    pub const MAX_BATCH: u8 = 0x27;
    pub const PRIVILEGE: u8 = 0x2a;
    pub const ATS_DISABLE: u8 = 0x2c;
    pub const OPERATIONS: u8 = 0x2d;
    pub const PRS_DISABLE: u8 = 0x2e;
}

/// A descriptor in its queue.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Waiting {
    /// The how many-th descriptor of the queue it is.
    pub sequence: u64,
    pub descriptor: Descriptor,
}

/// The configuration of a queue, fixed while the queue is not Disabled. DWORDs as the table shows them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct QueueConfig([u32; DWORDS]);

impl QueueConfig {
    const fn reset(size: u32) -> Self {
        let mut dwords = [0; DWORDS];
        dwords[SIZE] = size;
        dwords[OPERATIONS] = OPCAP_VALUE as u32;
        dwords[OPERATIONS + 1] = (OPCAP_VALUE >> 32) as u32;
        Self(dwords)
    }

    /// Entries.
    pub const fn size(&self) -> u32 {
        self.0[SIZE]
    }

    const fn mode(&self, bit: u32) -> bool {
        self.0[MODE] & bit != 0
    }

    /// Share of the engines relative to the other queues of the group, 1 to 15.
    pub const fn priority(&self) -> u32 {
        self.0[MODE] >> 4 & 0xf
    }

    /// The PASID of all accesses, if any.
    pub const fn pasid(&self) -> Option<Pasid> {
        if self.mode(MODE_PASID_ENABLE) { Some(Pasid::truncated(self.0[MODE] >> 8)) } else { None }
    }

    pub const fn privileged(&self) -> bool {
        self.mode(MODE_PRIVILEGED)
    }

    /// What the queue's requests carry. \[D 3.12\]
    pub const fn requester(&self, pci: &PciState) -> Requester {
        Requester { pasid: self.pasid(), privileged: self.privileged() && pci.privileged }
    }

    const fn max_batch_shift(&self) -> u32 {
        self.0[LIMITS] >> 5 & 0xf
    }

    /// What the queue's descriptors are checked against. `user_interrupts` is GENCFG user-mode interrupts enable.
    pub const fn limits(&self, user_interrupts: bool) -> Limits {
        Limits {
            block_on_fault: self.mode(MODE_BLOCK_ON_FAULT),
            max_transfer: 1 << (self.0[LIMITS] & 0x1f),
            max_batch: 1 << self.max_batch_shift(),
            operations: self.operations(),
            interrupts: user_interrupts || self.pasid().is_none() || self.privileged(),
            in_batch: false,
        }
    }

    const fn operations(&self) -> u64 {
        self.0[OPERATIONS] as u64 | (self.0[OPERATIONS + 1] as u64) << 32
    }

    /// The checks of the Enable WQ command that concern the configuration alone. \[D 5.2\]
    pub fn check(&self, pci: &PciState) -> Result<(), u8> {
        let beyond =
            self.operations() & !OPCAP_VALUE != 0 || self.0[OPERATIONS + 2..].iter().any(|d| *d != 0);
        let checks = [
            (self.size() == 0, enable_error::SIZE),
            (self.priority() == 0, enable_error::PRIORITY),
            (!self.mode(MODE_DEDICATED), enable_error::MODE),
            (self.mode(MODE_BLOCK_ON_FAULT) && !pci.pri, enable_error::BLOCK_ON_FAULT),
            (self.mode(MODE_PASID_ENABLE) && !pci.pasid, enable_error::PASID),
            (
                self.max_batch_shift() == 0 || self.max_batch_shift() > MAX_BATCH_SHIFT,
                enable_error::MAX_BATCH,
            ),
            (self.privileged() && !pci.privileged, enable_error::PRIVILEGE),
            (self.mode(MODE_ATS_DISABLE), enable_error::ATS_DISABLE),
            (beyond, enable_error::OPERATIONS),
            (self.mode(MODE_PRS_DISABLE), enable_error::PRS_DISABLE),
        ];
        checks.iter().find(|(wrong, _)| *wrong).map_or(Ok(()), |(_, error)| Err(*error))
    }
}

/// A work queue.
pub(crate) struct WorkQueue {
    pub config: QueueConfig,
    pub state: QueueState,
    pub waiting: VecDeque<Waiting>,
    /// The sequence number of the next descriptor.
    pub next_sequence: u64,
    /// Turns left before the queues of lower priority get theirs.
    pub credit: u32,
}

impl WorkQueue {
    pub fn new() -> Self {
        Self {
            config: QueueConfig::reset(0),
            state: QueueState::Disabled,
            waiting: VecDeque::new(),
            next_sequence: 0,
            credit: 0,
        }
    }

    /// Clears the configuration but for the size. \[D 5.2, Reset WQ\]
    pub fn reset_config(&mut self) {
        self.config = QueueConfig::reset(self.config.size());
    }

    /// Clears the whole configuration. \[D table 9-4\]
    pub fn clear_config(&mut self) {
        self.config = QueueConfig::reset(0);
    }

    pub fn read(&self, dword: usize) -> u32 {
        match dword {
            STATUS => (self.state as u32) << 30,
            _ => self.config.0.get(dword).copied().unwrap_or(0),
        }
    }

    /// A write of the bits in `mask`. What is read-only now keeps its value, without an error: Linux writes the whole
    /// table again each time it enables a queue (device.c:idxd_wq_config_write).
    pub fn write(&mut self, dword: usize, value: u32, mask: u32, device_disabled: bool) {
        let writable = match dword {
            SIZE if device_disabled => 0xffff,
            THRESHOLD => 0xffff,
            _ if self.state != QueueState::Disabled => 0,
            MODE => 0x3fff_ffff,
            LIMITS => 0x1ff,
            OPERATIONS..DWORDS => u32::MAX,
            _ => 0,
        };
        if let Some(register) = self.config.0.get_mut(dword) {
            let mask = mask & writable;
            *register = *register & !mask | value & mask;
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) const PCI: PciState = PciState {
        bus_master: true,
        pasid: true,
        privileged: true,
        ats: true,
        pri: true,
        pri_allocation: 32,
        pri_capacity: 512,
    };

    fn queue() -> WorkQueue {
        let mut queue = WorkQueue::new();
        for (dword, value) in [(0, 16), (2, 0x1003_ab53 | 1 << 28), (3, 21 | 5 << 5)] {
            queue.write(dword, value, u32::MAX, true);
        }
        queue
    }

    #[test]
    fn fields_are_decoded() {
        let config = queue().config;
        assert_eq!(config.size(), 16);
        assert_eq!(config.priority(), 5);
        assert_eq!(config.pasid(), Pasid::new(0x3ab));
        let limits = config.limits(false);
        assert!(limits.block_on_fault && !limits.interrupts);
        assert_eq!((limits.max_transfer, limits.max_batch), (2 << 20, 32));
        assert!(config.limits(true).interrupts);
        config.check(&PCI).unwrap();
    }

    #[test]
    fn each_wrong_field_has_its_error() {
        let cases: [(usize, u32, u8); 11] = [
            (0, 0, enable_error::SIZE),
            (2, 0x1000_0101, enable_error::PRIORITY),
            (2, 0x1000_0110, enable_error::MODE),
            (2, 0x3000_0111, 0),
            (2, 0x0000_0115, enable_error::ATS_DISABLE),
            (2, 0x0000_0119, enable_error::PRS_DISABLE),
            (3, 21, enable_error::MAX_BATCH),
            (3, 21 | 11 << 5, enable_error::MAX_BATCH),
            (8, 1 << 10, enable_error::OPERATIONS),
            (9, 2, enable_error::OPERATIONS),
            (15, 1, enable_error::OPERATIONS),
        ];
        for (dword, value, error) in cases {
            let mut queue = queue();
            queue.write(dword, value, u32::MAX, true);
            let expected = if error == 0 { Ok(()) } else { Err(error) };
            assert_eq!(queue.config.check(&PCI), expected, "{dword} {value:#x}");
        }
        let config = queue().config;
        let off = |pci: PciState| config.check(&pci).unwrap_err();
        assert_eq!(off(PciState { pri: false, ..PCI }), enable_error::BLOCK_ON_FAULT);
        assert_eq!(off(PciState { pasid: false, ..PCI }), enable_error::PASID);
        let mut queue = queue();
        queue.write(2, 0x3000_0111, u32::MAX, true);
        let pci = PciState { privileged: false, ..PCI };
        assert_eq!(queue.config.check(&pci), Err(enable_error::PRIVILEGE));
    }

    #[test]
    fn locked_and_reserved_fields_ignore_writes() {
        let mut queue = queue();
        let before: Vec<u32> = (0..DWORDS).map(|dword| queue.read(dword)).collect();
        queue.state = QueueState::Enabled;
        for dword in 0..DWORDS {
            queue.write(dword, 0x5a5a_5a5a, u32::MAX, false);
        }
        for (dword, before) in before.iter().enumerate() {
            let expected = match dword {
                THRESHOLD => 0x5a5a,
                STATUS => 1 << 30,
                _ => *before,
            };
            assert_eq!(queue.read(dword), expected, "{dword}");
        }
        queue.state = QueueState::Disabled;
        for dword in 0..DWORDS {
            queue.write(dword, u32::MAX, u32::MAX, false);
        }
        let all: Vec<u32> = (0..8).map(|dword| queue.read(dword)).collect();
        assert_eq!(all, [16, 0xffff, 0x3fff_ffff, 0x1ff, 0, 0, 0, 0]);
    }

    #[test]
    fn a_reset_keeps_the_size_only() {
        let mut queue = queue();
        queue.write(8, 1, u32::MAX, true);
        queue.reset_config();
        let all: Vec<u32> = (0..DWORDS).map(|dword| queue.read(dword)).collect();
        assert_eq!(all[..8], [16, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(all[8..], [OPCAP_VALUE as u32, 1, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn parts_of_a_register_can_be_written() {
        let mut queue = queue();
        queue.write(0, 0x7700, 0xff00, true);
        assert_eq!(queue.read(0), 0x7710);
    }
}
