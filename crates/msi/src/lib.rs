// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A message signalled interrupt, as it goes from a function through the remapping unit to the processors: what all crates
//! that send, remap or deliver one pass around.
//!
//! ```
//! # use msi::Message;
//! let message = Message { address: 0xfee0_1000, data: 0x31 };
//! assert!(message.is_to_local_apics());
//! assert_eq!(message.address_words(), [0xfee0_1000, 0]);
//! ```

#![no_std]
#![forbid(unsafe_code)]

/// A message signalled interrupt: one DWORD write of `data` to `address`. \[PCI local bus specification 3.0, 6.8\]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Message {
    /// Where the write goes, a multiple of 4; `0xFEEx_xxxx` in the low half is the interrupt range.
    pub address: u64,
    /// What is written. To local APICs: vector, delivery mode, trigger mode.
    pub data: u32,
}

impl Message {
    /// Whether it goes to the interrupt range, and not to memory. \[Intel SDM volume 3, "Message Signalled Interrupts"\]
    pub const fn is_to_local_apics(self) -> bool {
        self.address as u32 >> 20 == 0xfee
    }

    /// The address as its low and high DWORD, the way that KVM's and VFIO's structures take it.
    pub const fn address_words(self) -> [u32; 2] {
        [self.address as u32, (self.address >> 32) as u32]
    }
}
