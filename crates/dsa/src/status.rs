// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Operation status codes and the 32-byte completion record. \[D 5.8.1, 8.2\]

use crate::dma::{Fault, FaultKind};

/// Size and alignment of a completion record in bytes.
pub(crate) const RECORD_SIZE: usize = 32;

/// An operation status code: bits 5:0 of the first byte of a completion record. \[D table 5-6\]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Status(pub u8);

impl Status {
    pub const SUCCESS: Self = Self(0x01);
    /// Success, but a checked result is not the expected one.
    pub const FALSE_PREDICATE: Self = Self(0x02);
    /// Partial completion due to a page fault.
    pub const PAGE_FAULT: Self = Self(0x03);
    /// Partial completion: the page request was answered Invalid Request, or too often without effect.
    pub const PAGE_REQUEST_INVALID: Self = Self(0x04);
    /// Some descriptor of the batch did not succeed.
    pub const BATCH_FAILED: Self = Self(0x05);
    pub const BATCH_PAGE_FAULT: Self = Self(0x06);
    pub const DELTA_OFFSET_ORDER: Self = Self(0x07);
    pub const DELTA_OFFSET_RANGE: Self = Self(0x08);
    pub const UNSUPPORTED_OPERATION: Self = Self(0x10);
    pub const INVALID_FLAGS: Self = Self(0x11);
    pub const RESERVED_FIELD: Self = Self(0x12);
    pub const TRANSFER_SIZE: Self = Self(0x13);
    pub const DESCRIPTOR_COUNT: Self = Self(0x14);
    pub const DELTA_RECORD_SIZE: Self = Self(0x15);
    pub const OVERLAP: Self = Self(0x16);
    pub const DUALCAST_ALIGNMENT: Self = Self(0x17);
    pub const LIST_ALIGNMENT: Self = Self(0x18);
    pub const INTERRUPT_HANDLE: Self = Self(0x19);
    /// Completion record page fault: software error register only.
    pub const RECORD_PAGE_FAULT: Self = Self(0x1a);
    /// Completion record not 32-byte aligned: software error register only.
    pub const RECORD_ALIGNMENT: Self = Self(0x1b);
    pub const ALIGNMENT: Self = Self(0x1c);
    /// A read was answered Unsupported Request or Completer Abort.
    pub const READ_ERROR: Self = Self(0x20);
    /// A translation request was refused, or a page request answered Response Failure.
    pub const TRANSLATION_ERROR: Self = Self(0x22);

    /// The status of an operation that a fault ended early.
    pub const fn of_fault(fault: &Fault) -> Self {
        match fault.kind {
            FaultKind::Page => Self::PAGE_FAULT,
            FaultKind::InvalidRequest => Self::PAGE_REQUEST_INVALID,
            FaultKind::ReadError => Self::READ_ERROR,
            FaultKind::Translation => Self::TRANSLATION_ERROR,
        }
    }

    /// Whether a fence behind the descriptor lets later descriptors run. \[D 3.8\]
    pub const fn lets_fence_pass(self) -> bool {
        self.0 == Self::SUCCESS.0
    }

    /// Whether the status reaches memory even where no completion record was requested. \[D table 5-2, flag 3\]
    pub const fn always_recorded(self) -> bool {
        !matches!(self, Self::SUCCESS | Self::FALSE_PREDICATE | Self::BATCH_FAILED)
    }

    /// Whether bit 7 of the status byte tells that the faulting access was a write.
    const fn carries_direction(self) -> bool {
        matches!(self, Self::PAGE_FAULT | Self::PAGE_REQUEST_INVALID | Self::BATCH_PAGE_FAULT)
    }
}

/// A completion record before it is encoded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Record {
    pub status: Status,
    pub result: u8,
    /// Bytes or, for a batch, descriptors completed.
    pub completed: u32,
    /// The access that ended the operation early.
    pub fault: Option<Fault>,
    /// Bytes 16 to 23: delta record size, CRC value or invalid flags.
    pub extra: u64,
}

impl Record {
    pub const fn new(status: Status) -> Self {
        Self { status, result: 0, completed: 0, fault: None, extra: 0 }
    }

    /// The record of an operation that `fault` ended after `completed` bytes.
    pub const fn partial(fault: Fault, completed: u32) -> Self {
        Self { status: Status::of_fault(&fault), result: 0, completed, fault: Some(fault), extra: 0 }
    }

    pub const fn with_result(self, result: u8) -> Self {
        Self { result, ..self }
    }

    pub const fn with_extra(self, extra: u64) -> Self {
        Self { extra, ..self }
    }

    /// The record as memory holds it.
    pub fn encode(&self) -> [u8; RECORD_SIZE] {
        let mut bytes = [0; RECORD_SIZE];
        let write = matches!(self.fault, Some(Fault { write: true, .. }));
        bytes[0] = self.status.0 | (u8::from(write && self.status.carries_direction()) << 7);
        bytes[1] = self.result;
        bytes[4..8].copy_from_slice(&self.completed.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.fault.map_or(0, |fault| fault.address).to_le_bytes());
        bytes[16..24].copy_from_slice(&self.extra.to_le_bytes());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partial_record_has_progress_address_and_direction() {
        let fault = Fault { address: 0x1234_5000, write: true, kind: FaultKind::Page };
        let bytes = Record::partial(fault, 0x0102_0304).with_result(1).with_extra(0x55).encode();
        assert_eq!(bytes[0], 0x83);
        assert_eq!(bytes[1], 1);
        assert_eq!(bytes[4..8], [4, 3, 2, 1]);
        assert_eq!(bytes[8..16], 0x1234_5000_u64.to_le_bytes());
        assert_eq!(bytes[16], 0x55);
        assert_eq!(bytes[24..], [0; 8]);
    }

    #[test]
    fn the_direction_bit_is_for_page_faults_only() {
        for (kind, first) in
            [(FaultKind::InvalidRequest, 0x84), (FaultKind::ReadError, 0x20), (FaultKind::Translation, 0x22)]
        {
            let fault = Fault { address: 0, write: true, kind };
            assert_eq!(Record::partial(fault, 0).encode()[0], first);
        }
    }
}
