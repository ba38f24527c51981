// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The 32-byte completion record [D 8.2; Linux include/uapi/linux/idxd.h:dsa_completion_record].

/// Bytes of a completion record, and its alignment.
pub const RECORD_SIZE: usize = 32;

/// Status codes [D 5.8.1].
pub mod status {
    pub const SUCCESS: u8 = 0x01;
    pub const FALSE_PREDICATE: u8 = 0x02;
    pub const PAGE_FAULT: u8 = 0x03;
    pub const PAGE_REQUEST_REFUSED: u8 = 0x04;
    pub const BATCH_FAILED: u8 = 0x05;
    pub const DELTA_NOT_INCREASING: u8 = 0x07;
    pub const DELTA_OFFSET: u8 = 0x08;
    pub const OPCODE: u8 = 0x10;
    pub const FLAGS: u8 = 0x11;
    pub const RESERVED_FIELD: u8 = 0x12;
    pub const TRANSFER_SIZE: u8 = 0x13;
    pub const DESCRIPTOR_COUNT: u8 = 0x14;
    pub const OVERLAP: u8 = 0x16;
    pub const DUALCAST_ALIGNMENT: u8 = 0x17;
    pub const LIST_ALIGNMENT: u8 = 0x18;
    pub const MISALIGNED: u8 = 0x1c;
    pub const READ_ERROR: u8 = 0x20;
    pub const WRITE_ERROR: u8 = 0x21;
    pub const TRANSLATION_ERROR: u8 = 0x22;
}

/// A decoded completion record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// Status code, bits 5:0 of byte 0.
    pub status: u8,
    /// Whether the access that faulted was a write (bit 7 of byte 0).
    pub fault_was_write: bool,
    /// Byte 1.
    pub result: u8,
    /// Bytes 4 to 7: bytes or descriptors completed.
    pub completed: u32,
    /// Bytes 8 to 15.
    pub fault_address: u64,
    /// Bytes 16 to 23: CRC value, delta record size, invalid flags.
    pub value: u64,
}

impl Completion {
    /// Decodes a record whose status has been seen to be non-zero.
    pub fn decode(record: &[u8; RECORD_SIZE]) -> Completion {
        let u64_at = |at: usize| u64::from_le_bytes(record[at..at + 8].try_into().unwrap_or_default());
        Completion {
            status: record[0] & 0x3f,
            fault_was_write: record[0] & 0x80 != 0,
            result: record[1],
            completed: (u64_at(0) >> 32) as u32,
            fault_address: u64_at(8),
            value: u64_at(16),
        }
    }

    /// What the status means, for people.
    pub fn meaning(&self) -> &'static str {
        match self.status {
            0x01 => "success",
            0x02 => "success, false predicate",
            0x03 => "page fault, partial completion",
            0x04 => "page request refused",
            0x05 => "batch: some descriptor failed",
            0x06 => "batch: page fault on the descriptor list",
            0x07 => "apply delta: offsets do not increase",
            0x08 => "apply delta: offset beyond the range",
            0x10 => "unsupported operation",
            0x11 => "invalid flags",
            0x12 => "non-zero reserved field",
            0x13 => "invalid transfer size",
            0x14 => "invalid descriptor count",
            0x15 => "invalid delta record size",
            0x16 => "overlapping buffers",
            0x17 => "dualcast destinations differ in bits 11:0",
            0x18 => "misaligned descriptor list",
            0x19 => "invalid interrupt handle",
            0x1a => "page fault on the completion record",
            0x1b => "misaligned completion record",
            0x1c => "misaligned address or size",
            0x1d => "privilege",
            0x1e => "traffic class",
            0x1f => "readback fault",
            0x20 => "read error",
            0x21 => "write error",
            0x22 => "translation error",
            _ => "unknown status",
        }
    }
}

impl std::fmt::Display for Completion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "status {:#04x}{} ({}), result {}, {} completed, fault address {:#x}",
            self.status,
            if self.fault_was_write { " on a write" } else { "" },
            self.meaning(),
            self.result,
            self.completed,
            self.fault_address
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partial_completion_is_decoded() {
        let mut record = [0u8; RECORD_SIZE];
        record[0] = 0x83;
        record[1] = 1;
        record[4..8].copy_from_slice(&0x1000u32.to_le_bytes());
        record[8..16].copy_from_slice(&0x7fff_1234_5000u64.to_le_bytes());
        record[16..24].copy_from_slice(&0xe306_9283u64.to_le_bytes());
        let c = Completion::decode(&record);
        assert_eq!((c.status, c.fault_was_write, c.result, c.completed), (3, true, 1, 0x1000));
        assert_eq!((c.fault_address, c.value), (0x7fff_1234_5000, 0xe306_9283));
        assert!(c.to_string().contains("page fault"));
    }
}
