// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Administrative commands and their encoding. \[D 3.15, table 9-5\]

use crate::registers::QUEUES;

/// CMDSTATUS error codes. \[D table 9-6\]
pub(crate) mod error {
    pub const UNDEFINED: u8 = 0x01;
    pub const QUEUE_INDEX: u8 = 0x02;
    pub const RESERVED: u8 = 0x04;
    pub const HALTED: u8 = 0x05;
    pub const NOT_DISABLED: u8 = 0x10;
    pub const BUS_MASTER: u8 = 0x12;
    pub const PRI_ALLOCATION: u8 = 0x13;
    pub const TOTAL_SIZE: u8 = 0x14;
    pub const GROUP: u8 = 0x15;
    pub const QUEUE_GROUP: u8 = 0x16;
    pub const ENGINE_GROUP: u8 = 0x17;
    pub const DEVICE_NOT_ENABLED: u8 = 0x20;
    pub const QUEUE_NOT_DISABLED: u8 = 0x21;
    pub const NOT_ENABLED: u8 = 0x31;
    pub const QUEUE_NOT_ENABLED: u8 = 0x32;
}

/// Bit n: work queue n.
pub(crate) type QueueSet = u8;

/// Every work queue.
pub(crate) const ALL: QueueSet = u8::MAX;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Command {
    EnableDevice,
    DisableDevice,
    DrainAll,
    AbortAll,
    ResetDevice,
    EnableQueue(usize),
    DisableQueues(QueueSet),
    DrainQueues(QueueSet),
    AbortQueues(QueueSet),
    ResetQueues(QueueSet),
    DrainPasid(u32),
    AbortPasid(u32),
}

impl Command {
    /// Decodes a value of the CMD register; the error is a CMDSTATUS code.
    pub fn parse(value: u32) -> Result<Self, u8> {
        let operand = value & 0xf_ffff;
        let code = value >> 20 & 0x1f;
        let plain = |command| if operand == 0 { Ok(command) } else { Err(error::RESERVED) };
        let queues = || {
            // Bits 19:16 select a group of 16 queues; there is a part of the first.
            let known = operand < 1 << QUEUES;
            if known { Ok(operand as QueueSet) } else { Err(error::QUEUE_INDEX) }
        };
        if value & 0x7e00_0000 != 0 {
            return Err(error::RESERVED);
        }
        match code {
            1 => plain(Self::EnableDevice),
            2 => plain(Self::DisableDevice),
            3 => plain(Self::DrainAll),
            4 => plain(Self::AbortAll),
            5 => plain(Self::ResetDevice),
            6 if operand > 0xff => Err(error::RESERVED),
            6 if operand as usize >= QUEUES => Err(error::QUEUE_INDEX),
            6 => Ok(Self::EnableQueue(operand as usize)),
            7 => queues().map(Self::DisableQueues),
            8 => queues().map(Self::DrainQueues),
            9 => queues().map(Self::AbortQueues),
            10 => queues().map(Self::ResetQueues),
            11 => Ok(Self::DrainPasid(operand)),
            12 => Ok(Self::AbortPasid(operand)),
            _ => Err(error::UNDEFINED),
        }
    }
}

/// A command that has not finished.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pending {
    pub command: Command,
    /// For each queue, descriptors with a lower sequence number have to be gone.
    pub awaited: [u64; QUEUES],
    /// CMD bit 31.
    pub interrupt: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_decoded_and_their_operands_checked() {
        let cases = [
            (0, Err(error::UNDEFINED)),
            (1 << 20, Ok(Command::EnableDevice)),
            (1 << 20 | 1 << 31, Ok(Command::EnableDevice)),
            (1 << 20 | 1, Err(error::RESERVED)),
            (2 << 20, Ok(Command::DisableDevice)),
            (3 << 20, Ok(Command::DrainAll)),
            (4 << 20, Ok(Command::AbortAll)),
            (5 << 20, Ok(Command::ResetDevice)),
            (5 << 20 | 1 << 25, Err(error::RESERVED)),
            (6 << 20 | 7, Ok(Command::EnableQueue(7))),
            (6 << 20 | 8, Err(error::QUEUE_INDEX)),
            (6 << 20 | 0x100, Err(error::RESERVED)),
            (7 << 20 | 0x81, Ok(Command::DisableQueues(0x81))),
            (8 << 20 | 0x100, Err(error::QUEUE_INDEX)),
            (9 << 20 | 0x1_0001, Err(error::QUEUE_INDEX)),
            (9 << 20 | 2, Ok(Command::AbortQueues(2))),
            (8 << 20 | 2, Ok(Command::DrainQueues(2))),
            (10 << 20 | 0xff, Ok(Command::ResetQueues(0xff))),
            (11 << 20 | 0xf_ffff, Ok(Command::DrainPasid(0xf_ffff))),
            (12 << 20 | 5, Ok(Command::AbortPasid(5))),
            (13 << 20, Err(error::UNDEFINED)),
            (31 << 20, Err(error::UNDEFINED)),
        ];
        for (value, expected) in cases {
            assert_eq!(Command::parse(value), expected, "{value:#x}");
        }
    }
}
