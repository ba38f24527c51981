// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Interrupt requests: the message formats of sources, and messages made from table entries. \[S 5.1.2\]

use crate::tables::{DeliveryMode, InterruptRemapEntry, PostedInterruptDescriptor};
pub use msi::Message;

/// Start of the interrupt address range FEEx_xxxx. \[S 3.15\]
pub const INTERRUPT_RANGE_BASE: u64 = 0xfee0_0000;
/// Last byte of the interrupt address range.
pub const INTERRUPT_RANGE_LAST: u64 = 0xfeef_ffff;

/// Whether an address lies in the interrupt address range FEEx_xxxx. \[S 3.15\]
pub const fn is_interrupt_address(address: u64) -> bool {
    address >= INTERRUPT_RANGE_BASE && address <= INTERRUPT_RANGE_LAST
}

/// An interrupt request in one of its two formats. \[S 5.1.2\]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum InterruptRequest {
    /// Address bit 4 clear.
    Compatibility(CompatibilityRequest),
    /// Address bit 4 set: an index into the interrupt remapping table.
    Remappable(RemappableRequest),
}

impl InterruptRequest {
    /// Decodes a DWORD write; `None` if the address is not in the interrupt range.
    pub const fn decode(message: Message) -> Option<Self> {
        let Message { address, data } = message;
        if !is_interrupt_address(address) {
            return None;
        }
        if address & 1 << 4 == 0 {
            return Some(Self::Compatibility(CompatibilityRequest { message }));
        }
        Some(Self::Remappable(RemappableRequest {
            handle: (address >> 5 & 0x7fff) as u16 | ((address >> 2 & 1) as u16) << 15,
            shv: address & 1 << 3 != 0,
            data,
        }))
    }
}

/// A compatibility-format request: an ordinary MSI. \[S 5.1.2.1\]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CompatibilityRequest {
    message: Message,
}

impl CompatibilityRequest {
    /// The message as it came: what is delivered if it passes.
    pub const fn message(&self) -> Message {
        self.message
    }

    /// Destination APIC id, address bits 19:12.
    pub const fn destination(&self) -> u8 {
        (self.message.address >> 12) as u8
    }

    /// Redirection hint, address bit 3.
    pub const fn rh(&self) -> bool {
        self.message.address & 1 << 3 != 0
    }

    /// Destination mode, address bit 2: 0 physical, 1 logical.
    pub const fn dm(&self) -> bool {
        self.message.address & 1 << 2 != 0
    }

    /// Vector, data bits 7:0.
    pub const fn vector(&self) -> u8 {
        self.message.data as u8
    }

    /// Delivery mode, data bits 10:8, raw.
    pub const fn dlm(&self) -> u8 {
        (self.message.data >> 8) as u8 & 7
    }

    /// Level, data bit 14: 1 asserted.
    pub const fn level(&self) -> bool {
        self.message.data & 1 << 14 != 0
    }

    /// Trigger mode, data bit 15: 0 edge, 1 level.
    pub const fn tm(&self) -> bool {
        self.message.data & 1 << 15 != 0
    }
}

/// A remappable-format request. \[S 5.1.2.2\]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RemappableRequest {
    /// Handle, 16 bits: address bits 2 and 19:5.
    pub handle: u16,
    /// Subhandle valid, address bit 3.
    pub shv: bool,
    /// Data; ignored if SHV=0. Bits 15:0 are the subhandle.
    pub data: u32,
}

impl RemappableRequest {
    /// The interrupt index: the handle, with SHV=1 plus the subhandle. It may exceed 16 bits, and then any table.
    /// \[S 5.1.3\]
    pub const fn index(&self) -> u32 {
        if self.shv { self.handle as u32 + (self.data & 0xffff) } else { self.handle as u32 }
    }

    /// Whether a reserved bit is set: data bits 31:16 if SHV=1. \[fault 20h\]
    pub const fn reserved(&self) -> bool {
        self.shv && self.data >> 16 != 0
    }

    /// The message for this request.
    pub const fn message(&self) -> Message {
        Message {
            address: INTERRUPT_RANGE_BASE
                | ((self.handle & 0x7fff) as u64) << 5
                | 1 << 4
                | (self.shv as u64) << 3
                | (self.handle as u64 >> 15) << 2,
            data: self.data,
        }
    }
}

/// An interrupt as it goes to the processors' APICs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Interrupt {
    /// Destination APIC id: 8 bits in xAPIC mode, else 32.
    pub destination: u32,
    /// Destination mode: `false` physical, `true` logical.
    pub logical: bool,
    /// Redirection hint.
    pub redirection_hint: bool,
    /// Delivery mode.
    pub delivery_mode: DeliveryMode,
    /// Trigger mode: `false` edge, `true` level.
    pub level_triggered: bool,
    /// Vector.
    pub vector: u8,
}

impl Interrupt {
    /// The interrupt of a remapped entry; `None` for a reserved delivery mode. `eime` is IRTA.EIME. \[S 5.1.4\]
    pub const fn remapped(entry: &InterruptRemapEntry, eime: bool) -> Option<Self> {
        let Some(delivery_mode) = entry.delivery_mode() else {
            return None;
        };
        Some(Self {
            destination: entry.destination(eime),
            logical: entry.dm(),
            redirection_hint: entry.rh(),
            delivery_mode,
            level_triggered: entry.tm(),
            vector: entry.vector(),
        })
    }

    /// The notification of a posted interrupt: fixed, edge, physical. \[S 5.2.3\]
    pub const fn notification(descriptor: &PostedInterruptDescriptor, eime: bool) -> Self {
        Self {
            destination: descriptor.destination(eime),
            logical: false,
            redirection_hint: false,
            delivery_mode: DeliveryMode::Fixed,
            level_triggered: false,
            vector: descriptor.nv(),
        }
    }

    /// The compatibility-format message; `None` where the destination needs more than 8 bits. Level is asserted.
    pub const fn message(&self) -> Option<Message> {
        if self.destination > 0xff { None } else { Some(self.compose(0, 0)) }
    }

    /// As [`message`](Self::message) with a 15-bit destination: bits 14:8 in address bits 11:5 (the extended destination
    /// id that KVM, Hyper-V and Xen offer their guests). `None` where the destination needs more than 15 bits.
    pub const fn message_with_extended_destination(&self) -> Option<Message> {
        if self.destination > 0x7fff {
            return None;
        }
        Some(self.compose((self.destination as u64 >> 8) << 5, 0))
    }

    /// As [`message`](Self::message) with a 32-bit destination: bits 31:8 in address bits 63:40. It is what KVM takes in
    /// an MSI route with `KVM_X2APIC_API_USE_32BIT_IDS`, and what FEUADDR and its likes hold. \[S 5.1.6.2\]
    pub const fn message_with_32_bit_destination(&self) -> Message {
        self.compose(0, (self.destination as u64 & !0xff) << 32)
    }

    const fn compose(&self, low: u64, high: u64) -> Message {
        Message {
            address: high
                | INTERRUPT_RANGE_BASE
                | (self.destination as u64 & 0xff) << 12
                | low
                | (self.redirection_hint as u64) << 3
                | (self.logical as u64) << 2,
            data: (self.level_triggered as u32) << 15
                | 1 << 14
                | (self.delivery_mode.into_bits() as u32) << 8
                | self.vector as u32,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decode(address: u64, data: u32) -> Option<InterruptRequest> {
        InterruptRequest::decode(Message { address, data })
    }

    #[test]
    fn only_the_interrupt_range_holds_requests() {
        assert_eq!(decode(0xfedf_fffc, 0), None);
        assert_eq!(decode(0xfef0_0000, 0), None);
        assert_eq!(decode(0x1_fee0_0000, 0), None);
        assert!(decode(0xfee0_0000, 0).is_some() && decode(0xfeef_fffc, 0).is_some());
    }

    #[test]
    fn compatibility_format_decodes() {
        let Some(InterruptRequest::Compatibility(request)) = decode(0xfee1_200c, 0xc131) else {
            panic!("address bit 4 is clear");
        };
        assert_eq!((request.destination(), request.vector(), request.dlm()), (0x12, 0x31, 1));
        assert!(request.rh() && request.dm() && request.level() && request.tm());
    }

    #[test]
    fn remappable_format_decodes() {
        // Handle 0x8001 with subhandle 2.
        let Some(InterruptRequest::Remappable(request)) = decode(0xfee0_003c, 2) else {
            panic!("address bit 4 is set");
        };
        assert_eq!((request.handle, request.shv, request.index()), (0x8001, true, 0x8003));
        assert!(!request.reserved());
        assert!(RemappableRequest { data: 0x1_0000, ..request }.reserved());
        assert!(!RemappableRequest { data: 0x1_0000, shv: false, ..request }.reserved());
    }

    #[test]
    fn index_may_exceed_sixteen_bits() {
        let request = RemappableRequest { handle: 0xffff, shv: true, data: 0xffff };
        assert_eq!(request.index(), 0x1_fffe);
        assert_eq!(RemappableRequest { shv: false, ..request }.index(), 0xffff);
    }

    #[test]
    fn remapped_entry_becomes_a_message() {
        let entry = InterruptRemapEntry::new()
            .with_dm(true)
            .with_rh(true)
            .with_vector(0x31)
            .with_dlm(1)
            .with_tm(true)
            .with_destination(0x1203, true);
        let narrow = Interrupt::remapped(&entry.with_destination(3, false), false).unwrap();
        assert_eq!(narrow.message(), Some(Message { address: 0xfee0_300c, data: 0xc131 }));
        let wide = Interrupt::remapped(&entry, true).unwrap();
        assert_eq!(wide.message(), None);
        assert_eq!(wide.message_with_extended_destination().unwrap().address, 0xfee0_324c);
        assert_eq!(wide.message_with_32_bit_destination().address, 0x0000_1200_fee0_300c);
        assert_eq!(Interrupt::remapped(&entry.with_dlm(3), true), None);
        let far = Interrupt { destination: 0x8000, ..wide };
        assert_eq!(far.message_with_extended_destination(), None);
    }

    #[test]
    fn notification_is_fixed_edge_and_physical() {
        let descriptor = PostedInterruptDescriptor::new().with_nv(0xf2).with_ndst(0x0500);
        let message = Interrupt::notification(&descriptor, false).message().unwrap();
        assert_eq!(message, Message { address: 0xfee0_5000, data: 0x40f2 });
    }

    proptest! {
        #[test]
        fn remappable_requests_round_trip(handle: u16, shv: bool, data: u32) {
            let request = RemappableRequest { handle, shv, data };
            prop_assert_eq!(InterruptRequest::decode(request.message()), Some(InterruptRequest::Remappable(request)));
        }
    }
}
