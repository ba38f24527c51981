// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The page request queue registers: PQH, PQT, PQA, PRS.

use bitfield_struct::bitfield;

use crate::bits::{from_page, to_page};

/// Moves the field of PQH and PQT (bits 18:5) to the byte offset it stands for.
const fn from_32_bytes(field: u32) -> u32 {
    field << 5
}

/// Moves a byte offset to the field of PQH and PQT.
const fn to_32_bytes(offset: u32) -> u32 {
    offset >> 5
}

/// PQA. \[S 11.4.11.3\]
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct PageRequestQueueAddress {
    /// Page request queue size: 2^PQS pages of 4 KiB.
    #[bits(3)]
    pub pqs: u8,
    #[bits(9)]
    __: u16,
    /// Host physical address of the queue, 4 KiB aligned.
    #[bits(52, from = from_page, into = to_page)]
    pub pqa: u64,
}

impl PageRequestQueueAddress {
    /// Size of the queue in bytes.
    pub const fn size(self) -> u64 {
        4096 << self.pqs()
    }

    /// Number of descriptors (32 bytes each) in the queue; one of them stays free.
    pub const fn entries(self) -> u32 {
        128 << self.pqs()
    }
}

/// PQH, written by software. \[S 11.4.11.1\]
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct PageRequestQueueHead {
    #[bits(5)]
    __: u8,
    /// Byte offset of the descriptor that software processes next.
    #[bits(14, from = from_32_bytes, into = to_32_bytes)]
    pub pqh: u32,
    #[bits(45)]
    __: u64,
}

/// PQT, written by hardware; software writes it only to initialise it. \[S 11.4.11.2\]
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct PageRequestQueueTail {
    #[bits(5)]
    __: u8,
    /// Byte offset where hardware writes the next descriptor.
    #[bits(14, from = from_32_bytes, into = to_32_bytes)]
    pub pqt: u32,
    #[bits(45)]
    __: u64,
}

/// PRS. \[S 11.4.11.4\]
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct PageRequestStatus {
    /// Pending page request; write 1 to clear.
    pub ppr: bool,
    /// Page request overflow; write 1 to clear.
    pub pro: bool,
    #[bits(30)]
    __: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queue_of_a_linux_boot_has_2048_entries() {
        let pqa = PageRequestQueueAddress::from_bits(0x255_0004);
        assert_eq!((pqa.pqa(), pqa.size(), pqa.entries()), (0x255_0000, 65536, 2048));
    }

    #[test]
    fn head_and_tail_are_byte_offsets() {
        assert_eq!(PageRequestQueueHead::from_bits(0x7_ffff).pqh(), 0x7_ffe0);
        assert_eq!(PageRequestQueueTail::new().with_pqt(0x40).into_bits(), 0x40);
        assert_eq!(PageRequestStatus::new().with_pro(true).into_bits(), 2);
    }
}
