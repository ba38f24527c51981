// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The invalidation queue registers: IQH, IQT, IQA, ICS, IQERCD.

use bitfield_struct::bitfield;

use crate::DescriptorWidth;
use crate::bits::{from_page, to_page};

/// Moves the field of IQH and IQT (bits 18:4) to the byte offset it stands for.
const fn from_16_bytes(field: u32) -> u32 {
    field << 4
}

/// Moves a byte offset to the field of IQH and IQT.
const fn to_16_bytes(offset: u32) -> u32 {
    offset >> 4
}

/// IQA. \[S 11.4.9.3\]
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct InvalidationQueueAddress {
    /// Queue size: 2^QS pages of 4 KiB.
    #[bits(3)]
    pub qs: u8,
    #[bits(8)]
    __: u8,
    /// Descriptor width: 0 128 bit, 1 256 bit; see [`width`](Self::width).
    pub dw: bool,
    /// Host physical address of the queue, 4 KiB aligned.
    #[bits(52, from = from_page, into = to_page)]
    pub iqa: u64,
}

impl InvalidationQueueAddress {
    /// The descriptor width that DW tells.
    pub const fn width(self) -> DescriptorWidth {
        DescriptorWidth::from_dw(self.dw())
    }

    /// Size of the queue in bytes.
    pub const fn size(self) -> u64 {
        4096 << self.qs()
    }

    /// Number of descriptors in the queue.
    pub const fn entries(self) -> u32 {
        (self.size() / self.width().bytes() as u64) as u32
    }
}

/// IQH, read-only. \[S 11.4.9.1\]
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct InvalidationQueueHead {
    #[bits(4)]
    __: u8,
    /// Queue head: byte offset of the descriptor to be fetched next.
    #[bits(15, from = from_16_bytes, into = to_16_bytes)]
    pub qh: u32,
    #[bits(45)]
    __: u64,
}

/// IQT. \[S 11.4.9.2\]
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct InvalidationQueueTail {
    #[bits(4)]
    __: u8,
    /// Queue tail: byte offset behind the last descriptor that software wrote.
    #[bits(15, from = from_16_bytes, into = to_16_bytes)]
    pub qt: u32,
    #[bits(45)]
    __: u64,
}

impl InvalidationQueueTail {
    /// The offset of the tail, checked against the queue it belongs to.
    ///
    /// # Errors
    ///
    /// [`QueueError::TailAlignment`] where bit 4 is set with 256-bit descriptors, [`QueueError::InvalidTail`] where
    /// the offset is not below the size of the queue. \[S 11.4.9.9\]
    pub const fn check(self, iqa: InvalidationQueueAddress) -> Result<u32, QueueError> {
        let offset = self.qt();
        if offset & (iqa.width().bytes() as u32 - 1) != 0 {
            return Err(QueueError::TailAlignment);
        }
        if offset as u64 >= iqa.size() {
            return Err(QueueError::InvalidTail);
        }
        Ok(offset)
    }
}

/// ICS. \[S 11.4.9.4\]
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct InvalidationCompletionStatus {
    /// Invalidation wait descriptor complete; write 1 to clear.
    pub iwc: bool,
    #[bits(31)]
    __: u32,
}

/// IQERCD, read-only. \[S 11.4.9.9\]
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct QueueErrorRecord {
    /// Invalidation queue error info, valid with FSTS.IQE; see [`QueueError`].
    #[bits(4)]
    pub iqei: u8,
    #[bits(28)]
    __: u32,
    /// Source-id of the invalidation that timed out, valid with FSTS.ITE.
    pub itesid: u16,
    /// Source-id of the erroneous invalidation completion, valid with FSTS.ICE.
    pub icesid: u16,
}

impl QueueErrorRecord {
    /// The error that IQEI names; `None` for 0 (not available) and the undefined codes.
    pub const fn error(self) -> Option<QueueError> {
        QueueError::from_bits(self.iqei())
    }
}

/// Why the unit stopped fetching descriptors: IQERCD.IQEI. \[S 11.4.9.9\]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum QueueError {
    /// Invalid tail pointer.
    InvalidTail = 1,
    /// Error fetching the descriptor.
    FetchError = 2,
    /// Invalid descriptor type, also one that the mode or the capabilities do not have.
    InvalidType = 3,
    /// A reserved field is not zero, or a field has a reserved value.
    ReservedField = 4,
    /// Invalid descriptor width in IQA.
    InvalidWidth = 5,
    /// The tail is not aligned to the descriptor width.
    TailAlignment = 6,
    /// Invalid translation table mode in RTADDR.
    InvalidTtm = 7,
}

impl QueueError {
    /// From IQEI; `None` for 0 (not available) and the undefined codes.
    pub const fn from_bits(iqei: u8) -> Option<Self> {
        Some(match iqei {
            1 => Self::InvalidTail,
            2 => Self::FetchError,
            3 => Self::InvalidType,
            4 => Self::ReservedField,
            5 => Self::InvalidWidth,
            6 => Self::TailAlignment,
            7 => Self::InvalidTtm,
            _ => return None,
        })
    }

    /// The IQEI code.
    pub const fn into_bits(self) -> u8 {
        self as u8
    }
}

impl core::fmt::Display for QueueError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::InvalidTail => "invalid queue tail",
            Self::FetchError => "error fetching the descriptor",
            Self::InvalidType => "invalid descriptor type",
            Self::ReservedField => "reserved field violation",
            Self::InvalidWidth => "invalid descriptor width",
            Self::TailAlignment => "queue tail not aligned to the descriptor width",
            Self::InvalidTtm => "invalid translation table mode",
        })
    }
}

impl core::error::Error for QueueError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queue_of_a_linux_boot_has_256_wide_entries() {
        let iqa = InvalidationQueueAddress::from_bits(0x123_0801);
        assert_eq!((iqa.iqa(), iqa.qs(), iqa.dw()), (0x123_0000, 1, true));
        assert_eq!((iqa.size(), iqa.entries()), (8192, 256));
        assert_eq!(iqa.with_dw(false).entries(), 512);
    }

    #[test]
    fn tail_is_checked_for_alignment_and_bound() {
        let wide = InvalidationQueueAddress::new().with_dw(true);
        let narrow = InvalidationQueueAddress::new();
        let tail = InvalidationQueueTail::from_bits;
        assert_eq!(tail(0xfe0).check(wide), Ok(0xfe0));
        assert_eq!(tail(0xff0).check(narrow), Ok(0xff0));
        assert_eq!(tail(0x10).check(wide), Err(QueueError::TailAlignment));
        assert_eq!(tail(0x1000).check(wide), Err(QueueError::InvalidTail));
        assert_eq!(tail(0x7_ffe0).check(wide.with_qs(7)), Ok(0x7_ffe0));
    }

    #[test]
    fn error_codes_round_trip_and_the_rest_is_none() {
        for iqei in 0..16 {
            match QueueError::from_bits(iqei) {
                Some(error) => assert_eq!(error.into_bits(), iqei),
                None => assert!(iqei == 0 || iqei > 7),
            }
        }
        let record = QueueErrorRecord::new().with_iqei(4).with_itesid(0x1234).with_icesid(0x5678);
        assert_eq!(record.into_bits(), 0x5678_1234_0000_0004);
        assert_eq!(record.error(), Some(QueueError::ReservedField));
    }
}
