// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Interrupt remapping table entries, indexed by handle (and subhandle). \[S 9.9, 9.10\]

use crate::bits::{mask, wide};
use crate::{Capabilities, SourceId};

/// DLM of a remapped interrupt; values of 3 and 6 are reserved. \[S 9.9\]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum DeliveryMode {
    /// Fixed.
    #[default]
    Fixed = 0,
    /// Lowest priority.
    LowestPriority = 1,
    /// System management interrupt.
    Smi = 2,
    /// Non-maskable interrupt.
    Nmi = 4,
    /// INIT.
    Init = 5,
    /// ExtINT.
    ExtInt = 7,
}

impl DeliveryMode {
    /// From the 3-bit field; `None` for a reserved encoding.
    pub const fn from_bits(dlm: u8) -> Option<Self> {
        Some(match dlm {
            0 => Self::Fixed,
            1 => Self::LowestPriority,
            2 => Self::Smi,
            4 => Self::Nmi,
            5 => Self::Init,
            7 => Self::ExtInt,
            _ => return None,
        })
    }

    /// The field's encoding.
    pub const fn into_bits(self) -> u8 {
        self as u8
    }
}

/// SVT: how the requester of an interrupt is verified. \[S 9.9\]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum SourceValidation {
    /// Not at all.
    None = 0,
    /// The source-id equals SID in the bits that SQ leaves.
    SourceId = 1,
    /// The bus number lies between SID bits 15:8 and SID bits 7:0, both included.
    BusRange = 2,
}

impl SourceValidation {
    /// From the 2-bit field; `None` for the reserved encoding.
    pub const fn from_bits(svt: u8) -> Option<Self> {
        match svt {
            0 => Some(Self::None),
            1 => Some(Self::SourceId),
            2 => Some(Self::BusRange),
            _ => None,
        }
    }
}

/// SQ: which function bits of the source-id are compared. \[S 9.9\]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum SourceQualifier {
    /// All 16 bits.
    All = 0,
    /// All but bit 2.
    IgnoreBit2 = 1,
    /// All but bits 2:1.
    IgnoreBits2To1 = 2,
    /// All but bits 2:0.
    IgnoreBits2To0 = 3,
}

impl SourceQualifier {
    /// From the 2-bit field; higher bits are ignored.
    pub const fn from_bits(sq: u8) -> Self {
        match sq & 3 {
            0 => Self::All,
            1 => Self::IgnoreBit2,
            2 => Self::IgnoreBits2To1,
            _ => Self::IgnoreBits2To0,
        }
    }

    /// The bits of the source-id that are compared.
    pub const fn mask(self) -> u16 {
        match self {
            Self::All => 0xffff,
            Self::IgnoreBit2 => 0xfffb,
            Self::IgnoreBits2To1 => 0xfff9,
            Self::IgnoreBits2To0 => 0xfff8,
        }
    }
}

wide! {
    /// Interrupt remapping table entry (IRTE), 128 bit. \[S 9.9 remapped, 9.10 posted\]
    pub struct InterruptRemapEntry: 2 {
        /// Present.
        flag p, with_p: 0 : 0;
        /// Fault processing disable; evaluated even with P=0.
        flag fpd, with_fpd: 0 : 1;
        /// Destination mode: 0 physical, 1 logical (remapped).
        flag dm, with_dm: 0 : 2;
        /// Redirection hint (remapped).
        flag rh, with_rh: 0 : 3;
        /// Trigger mode: 0 edge, 1 level (remapped).
        flag tm, with_tm: 0 : 4;
        /// Delivery mode, raw (remapped); see [`delivery_mode`](Self::delivery_mode).
        uint(u8) dlm, with_dlm: 0 : 5, 3;
        /// Bits for software.
        uint(u8) avail, with_avail: 0 : 8, 4;
        /// Urgent (posted).
        flag urg, with_urg: 0 : 14;
        /// IRTE mode: 0 remapped, 1 posted. Reserved if CAP.PI=0.
        flag im, with_im: 0 : 15;
        /// Vector; in a posted entry the virtual vector.
        uint(u8) vector, with_vector: 0 : 16, 8;
        /// Destination, raw (remapped): see [`destination`](Self::destination).
        uint(u32) dst, with_dst: 0 : 32, 32;
        /// Source-id to compare with, or a bus range.
        sid sid, with_sid: 1 : 0;
        /// Source-id qualifier, raw; see [`source_qualifier`](Self::source_qualifier).
        uint(u8) sq, with_sq: 1 : 16, 2;
        /// Source validation type, raw; see [`source_validation`](Self::source_validation).
        uint(u8) svt, with_svt: 1 : 18, 2;
    }
}

impl InterruptRemapEntry {
    /// DLM as a mode; `None` for a reserved encoding.
    pub const fn delivery_mode(&self) -> Option<DeliveryMode> {
        DeliveryMode::from_bits(self.dlm())
    }

    /// SVT as a type; `None` for the reserved encoding.
    pub const fn source_validation(&self) -> Option<SourceValidation> {
        SourceValidation::from_bits(self.svt())
    }

    /// SQ as a type.
    pub const fn source_qualifier(&self) -> SourceQualifier {
        SourceQualifier::from_bits(self.sq())
    }

    /// Whether SVT, SQ and SID admit this requester; `false` for the reserved SVT. \[S 5.1.4\]
    pub const fn admits(&self, requester: SourceId) -> bool {
        let sid = self.sid();
        match self.source_validation() {
            Some(SourceValidation::None) => true,
            Some(SourceValidation::SourceId) => (sid.0 ^ requester.0) & self.source_qualifier().mask() == 0,
            Some(SourceValidation::BusRange) => {
                sid.bus() <= requester.bus() && requester.bus() <= sid.devfn()
            }
            None => false,
        }
    }

    /// The destination APIC id of a remapped interrupt: DST, or with `eime` = false its bits 15:8 (xAPIC mode).
    pub const fn destination(&self, eime: bool) -> u32 {
        if eime { self.dst() } else { self.dst() >> 8 & 0xff }
    }

    /// This entry with the destination APIC id replaced; with `eime` = false only the low 8 bits are kept.
    #[must_use]
    pub const fn with_destination(self, apic_id: u32, eime: bool) -> Self {
        self.with_dst(if eime { apic_id } else { (apic_id & 0xff) << 8 })
    }

    /// The posted interrupt descriptor's address (PDA) of a posted entry, 64-byte aligned.
    pub const fn pda(&self) -> u64 {
        (self.0[0] >> 32 & mask(31, 6)) | (self.0[1] & mask(63, 32))
    }

    /// This entry with PDA replaced; bits 5:0 of the address are dropped.
    #[must_use]
    pub const fn with_pda(mut self, address: u64) -> Self {
        self.0[0] = (self.0[0] & mask(37, 0)) | (address & mask(31, 6)) << 32;
        self.0[1] = (self.0[1] & mask(31, 0)) | (address & mask(63, 32));
        self
    }

    /// Whether a reserved bit is set. `eime` is IRTA.EIME as latched by SIRTP.
    ///
    /// Not covered: reserved values of DLM and SVT. In a posted entry also bits of PDA beyond HAW are reserved.
    pub const fn reserved(&self, eime: bool, caps: &Capabilities) -> bool {
        let q0;
        let mut q1 = mask(31, 20);
        if self.im() {
            let posting = if caps.cap.pi() { 0 } else { 1 << 15 };
            q0 = mask(7, 2) | mask(13, 12) | mask(31, 24) | mask(37, 32) | posting;
            q1 |= caps.address_reserved() & mask(63, 32);
        } else {
            let destination = if eime { 0 } else { mask(63, 48) | mask(39, 32) };
            q0 = mask(14, 12) | mask(31, 24) | destination;
            q1 |= mask(63, 32);
        }
        self.0[0] & q0 | self.0[1] & q1 != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tables::test_caps::{all, none};

    fn reserved(bit: usize, base: InterruptRemapEntry, eime: bool, caps: &Capabilities) -> bool {
        let mut qwords = base.to_qwords();
        qwords[bit / 64] |= 1 << (bit % 64);
        InterruptRemapEntry::from_qwords(qwords).reserved(eime, caps)
    }

    #[test]
    fn reserved_bits_of_a_remapped_entry() {
        // Bit 15 makes the entry a posted one, so it is left out.
        for bit in (0..128).filter(|&bit| bit != 15) {
            let always = matches!(bit, 12..=14 | 24..=31 | 84..=127);
            let xapic = matches!(bit, 32..=39 | 48..=63);
            assert_eq!(reserved(bit, InterruptRemapEntry::new(), true, &all()), always, "bit {bit}");
            assert_eq!(
                reserved(bit, InterruptRemapEntry::new(), false, &all()),
                always || xapic,
                "bit {bit}"
            );
        }
    }

    #[test]
    fn reserved_bits_of_a_posted_entry() {
        let posted = InterruptRemapEntry::new().with_im(true);
        for bit in 0..128 {
            let expected = matches!(bit, 2..=7 | 12 | 13 | 24..=37 | 84..=95 | 110..=127);
            assert_eq!(reserved(bit, posted, false, &all()), expected, "bit {bit}");
        }
        assert!(posted.reserved(false, &none()), "posting needs CAP.PI");
    }

    #[test]
    fn entry_as_linux_writes_it_decodes() {
        // xAPIC id 3, logical, redirection hint, vector 0x31, SID 00:1f.0 verified in full.
        let entry = InterruptRemapEntry::new()
            .with_p(true)
            .with_dm(true)
            .with_rh(true)
            .with_vector(0x31)
            .with_destination(3, false)
            .with_sid(SourceId(0xf8))
            .with_svt(1);
        assert_eq!(entry.to_qwords(), [0x0000_0300_0031_000d, 0x4_00f8]);
        assert_eq!(entry.destination(false), 3);
        assert_eq!(entry.delivery_mode(), Some(DeliveryMode::Fixed));
        assert!(!entry.reserved(false, &none()));
    }

    #[test]
    fn source_validation_compares_what_the_qualifier_leaves() {
        let entry = InterruptRemapEntry::new().with_sid(SourceId::new(1, 2, 5)).with_svt(1);
        assert!(entry.admits(SourceId::new(1, 2, 5)) && !entry.admits(SourceId::new(1, 2, 1)));
        assert!(entry.with_sq(1).admits(SourceId::new(1, 2, 1)));
        assert!(!entry.with_sq(1).admits(SourceId::new(1, 2, 3)));
        assert!(entry.with_sq(2).admits(SourceId::new(1, 2, 3)));
        assert!(entry.with_sq(3).admits(SourceId::new(1, 2, 0)));
        assert!(!entry.with_sq(3).admits(SourceId::new(1, 3, 5)));
        let range = InterruptRemapEntry::new().with_sid(SourceId(0x0204)).with_svt(2);
        assert_eq!(
            [1, 2, 4, 5].map(|bus| range.admits(SourceId::new(bus, 0, 0))),
            [false, true, true, false]
        );
        assert!(entry.with_svt(0).admits(SourceId(0)) && !entry.with_svt(3).admits(SourceId::new(1, 2, 5)));
    }

    #[test]
    fn posted_descriptor_address_is_split_over_both_words() {
        let entry =
            InterruptRemapEntry::new().with_im(true).with_vector(0x77).with_pda(0x1234_5678_9abc_def0);
        assert_eq!(entry.pda(), 0x1234_5678_9abc_dec0);
        assert_eq!(entry.to_qwords(), [0x9abc_dec0_0077_8000, 0x1234_5678_0000_0000]);
    }

    #[test]
    fn delivery_modes_round_trip() {
        for dlm in 0..8 {
            match DeliveryMode::from_bits(dlm) {
                Some(mode) => assert_eq!(mode.into_bits(), dlm),
                None => assert!(dlm == 3 || dlm == 6),
            }
        }
    }
}
