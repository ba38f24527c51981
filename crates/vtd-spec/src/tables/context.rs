// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Context entries: one per function. \[S 9.3, 9.4\]

use crate::bits::{mask, wide};
use crate::{AddressWidth, Capabilities};

/// The TT field of a legacy context entry: which requests are translated, and how. \[S 9.3\]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum LegacyTranslationType {
    /// Untranslated requests go through the second stage; translation and translated requests are blocked.
    Untranslated = 0,
    /// All three kinds are served; reserved if ECAP.DT=0.
    WithDeviceTlb = 1,
    /// Untranslated requests pass through; the others are blocked; reserved if ECAP.PT=0.
    PassThrough = 2,
}

impl LegacyTranslationType {
    /// From the 2-bit field; `None` for the reserved encoding.
    pub const fn from_bits(tt: u8) -> Option<Self> {
        match tt {
            0 => Some(Self::Untranslated),
            1 => Some(Self::WithDeviceTlb),
            2 => Some(Self::PassThrough),
            _ => None,
        }
    }

    /// The field's encoding.
    pub const fn into_bits(self) -> u8 {
        self as u8
    }

    /// Whether the unit offers this type.
    pub const fn is_supported(self, caps: &Capabilities) -> bool {
        match self {
            Self::Untranslated => true,
            Self::WithDeviceTlb => caps.ecap.dt(),
            Self::PassThrough => caps.ecap.pt(),
        }
    }
}

wide! {
    /// Legacy-mode context entry, 128 bit; 256 per table, indexed by devfn. \[S 9.3\]
    pub struct LegacyContextEntry: 2 {
        /// Present.
        flag p, with_p: 0 : 0;
        /// Fault processing disable: suppresses qualified faults; evaluated even with P=0.
        flag fpd, with_fpd: 0 : 1;
        /// Translation type, raw; see [`translation_type`](Self::translation_type).
        uint(u8) tt, with_tt: 0 : 2, 2;
        /// Second-stage page table pointer; ignored with TT=2.
        addr ssptptr, with_ssptptr: 0 : 12, 52;
        /// Address width, raw; see [`address_width`](Self::address_width).
        uint(u8) aw, with_aw: 1 : 0, 3;
        /// Domain-id.
        did did, with_did: 1 : 8;
    }
}

impl LegacyContextEntry {
    /// TT as a type; `None` for the reserved encoding. \[LCT.4.2\]
    pub const fn translation_type(&self) -> Option<LegacyTranslationType> {
        LegacyTranslationType::from_bits(self.tt())
    }

    /// AW as a width; `None` for a reserved encoding. \[LCT.4.1\]
    pub const fn address_width(&self) -> Option<AddressWidth> {
        AddressWidth::from_bits(self.aw())
    }

    /// Whether a reserved bit is set. \[LCT.3\] Not covered: values of AW and TT. SSPTPTR is ignored with TT=2.
    pub const fn reserved(&self, caps: &Capabilities) -> bool {
        let pointer =
            if self.tt() == LegacyTranslationType::PassThrough as u8 { 0 } else { caps.address_reserved() };
        let did = (!caps.did_mask() as u64) << 8;
        self.0[0] & (mask(11, 4) | pointer) != 0 || self.0[1] & (1 << 7 | did | mask(63, 24)) != 0
    }
}

wide! {
    /// Scalable-mode context entry, 256 bit; 128 per table, indexed by devfn & 0x7f. \[S 9.4\]
    pub struct ScalableContextEntry: 4 {
        /// Present (field P).
        flag present, with_present: 0 : 0;
        /// Fault processing disable: suppresses qualified faults; evaluated even with P=0.
        flag fpd, with_fpd: 0 : 1;
        /// Device-TLB enable: translation and translated requests are served. Reserved if ECAP.DT=0.
        flag dte, with_dte: 0 : 2;
        /// PASID enable: requests with PASID are served. Reserved if ECAP.PASID=0.
        flag paside, with_paside: 0 : 3;
        /// Page request enable. Reserved if ECAP.PRS=0; invalid with DTE=0.
        flag pre, with_pre: 0 : 4;
        /// Host permission table enable. Reserved if ECAP.HPTS=0.
        flag hpte, with_hpte: 0 : 5;
        /// Enable PASID in translated requests. Reserved if ECAP.PTRS=0; invalid with PASIDE=0.
        flag eptr, with_eptr: 0 : 6;
        /// PASID directory table size: 2^(PDTS+7) entries; see [`pasid_limit`](Self::pasid_limit).
        uint(u8) pdts, with_pdts: 0 : 9, 3;
        /// PASID directory pointer, a host physical address.
        addr pasid_dir_ptr, with_pasid_dir_ptr: 0 : 12, 52;
        /// PASID of requests without PASID. Reserved if ECAP.RPS=0 (then 0 is used).
        pasid rid_pasid, with_rid_pasid: 1 : 0;
        /// Privilege of requests without PASID. Reserved if ECAP.RPRIVS=0 (then user).
        flag rid_priv, with_rid_priv: 1 : 20;
    }
}

impl ScalableContextEntry {
    /// The first PASID beyond the directory: 2^(PDTS+13), which may exceed the 20 bits a PASID has.
    pub const fn pasid_limit(&self) -> u32 {
        1 << (self.pdts() as u32 + 13)
    }

    /// Whether a reserved bit is set. \[SCT.3\] Not covered: the programming errors of SCT.4.
    pub const fn reserved(&self, caps: &Capabilities) -> bool {
        let ecap = caps.ecap;
        let q0 = caps.address_reserved()
            | mask(8, 7)
            | (!ecap.dt() as u64) << 2
            | (!ecap.pasid() as u64) << 3
            | (!ecap.prs() as u64) << 4
            | (!ecap.hpts() as u64) << 5
            | (!ecap.ptrs() as u64) << 6;
        let mut q1 = mask(63, 21);
        if !ecap.rps() {
            q1 |= mask(19, 0);
        }
        if !ecap.rprivs() {
            q1 |= 1 << 20;
        }
        self.0[0] & q0 | self.0[1] & q1 | self.0[2] | self.0[3] != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tables::test_caps::{all, none, reference};
    use crate::{DomainId, Pasid};

    #[test]
    fn legacy_entry_reserved_bits() {
        let caps = Capabilities { cap: reference().cap.with_nd(4), ..reference() };
        for bit in 0..128 {
            let mut qwords = [0u64; 2];
            qwords[bit / 64] = 1 << (bit % 64);
            // ND 4: 12 bits of domain-id, bits 83:72.
            let expected = matches!(bit, 4..=11 | 46..=63 | 71 | 84..=127);
            assert_eq!(LegacyContextEntry::from_qwords(qwords).reserved(&caps), expected, "bit {bit}");
        }
        let pass = LegacyContextEntry::new().with_tt(2).with_ssptptr(1 << 60);
        assert!(!pass.reserved(&caps), "SSPTPTR is ignored with pass-through");
    }

    #[test]
    fn legacy_entry_fields() {
        let entry = LegacyContextEntry::from_qwords([0x1234_5001, 0x0000_0000_0000_0702]);
        assert_eq!((entry.p(), entry.fpd(), entry.ssptptr()), (true, false, 0x1234_5000));
        assert_eq!((entry.did(), entry.address_width()), (DomainId(7), Some(AddressWidth::Bits48)));
        assert_eq!(entry.translation_type(), Some(LegacyTranslationType::Untranslated));
        assert_eq!(entry.with_tt(3).translation_type(), None);
        assert!(!LegacyTranslationType::PassThrough.is_supported(&none()));
        assert!(LegacyTranslationType::WithDeviceTlb.is_supported(&reference()));
    }

    #[test]
    fn entry_that_linux_writes_is_valid() {
        // pasid.c:context_entry_set_pasid_table: dir | PDTS << 9 | PRE | PASIDE | DTE | P.
        let entry = ScalableContextEntry::from_qwords([0x234_5000 | 7 << 9 | 0x1d, 0, 0, 0]);
        assert!(entry.present() && entry.dte() && entry.paside() && entry.pre() && !entry.fpd());
        assert_eq!((entry.pdts(), entry.pasid_limit()), (7, 1 << 20));
        assert_eq!((entry.pasid_dir_ptr(), entry.rid_pasid()), (0x234_5000, Pasid::ZERO));
        assert!(!entry.reserved(&reference()));
    }

    #[test]
    fn scalable_entry_reserved_bits_follow_the_capabilities() {
        let reserved = |bit: usize, caps: &Capabilities| {
            let mut qwords = [0u64; 4];
            qwords[bit / 64] = 1 << (bit % 64);
            ScalableContextEntry::from_qwords(qwords).reserved(caps)
        };
        for bit in 0..256 {
            let always = matches!(bit, 7 | 8 | 46..=63 | 85..=255);
            assert_eq!(reserved(bit, &all()), always, "bit {bit}");
            let conditional = matches!(bit, 2..=6 | 64..=84);
            assert_eq!(reserved(bit, &none()), always || conditional, "bit {bit}");
        }
    }
}
