// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! PASID table entries, indexed by PASID bits 5:0. \[S 9.6\]

use crate::bits::{mask, wide};
use crate::{AddressWidth, Capabilities, FirstStagePagingMode};

/// PGTT: how the requests of a PASID are translated. \[S 9.6\]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum PasidGranularTranslationType {
    /// First stage only; needs ECAP.FSTS.
    FirstStage = 1,
    /// Second stage only; needs ECAP.SSTS.
    SecondStage = 2,
    /// First stage nested on the second stage; needs ECAP.NEST.
    Nested = 3,
    /// No translation; needs ECAP.PT.
    PassThrough = 4,
}

impl PasidGranularTranslationType {
    /// From the 3-bit field; `None` for a reserved encoding.
    pub const fn from_bits(pgtt: u8) -> Option<Self> {
        match pgtt {
            1 => Some(Self::FirstStage),
            2 => Some(Self::SecondStage),
            3 => Some(Self::Nested),
            4 => Some(Self::PassThrough),
            _ => None,
        }
    }

    /// The field's encoding.
    pub const fn into_bits(self) -> u8 {
        self as u8
    }

    /// Whether the unit offers this type. \[SPT.4.2\]
    pub const fn is_supported(self, caps: &Capabilities) -> bool {
        match self {
            Self::FirstStage => caps.ecap.fsts(),
            Self::SecondStage => caps.ecap.ssts(),
            Self::Nested => caps.ecap.nest(),
            Self::PassThrough => caps.ecap.pt(),
        }
    }

    /// Whether first-stage tables take part.
    pub const fn uses_first_stage(self) -> bool {
        matches!(self, Self::FirstStage | Self::Nested)
    }

    /// Whether second-stage tables take part.
    pub const fn uses_second_stage(self) -> bool {
        matches!(self, Self::SecondStage | Self::Nested)
    }
}

wide! {
    /// PASID table entry, 512 bit; 64 per table. \[S 9.6\]
    pub struct PasidEntry: 8 {
        /// Present.
        flag p, with_p: 0 : 0;
        /// Fault processing disable; evaluated even with P=0.
        flag fpd, with_fpd: 0 : 1;
        /// Second-stage address width, raw; see [`address_width`](Self::address_width). Ignored for first-stage and
        /// pass-through.
        uint(u8) aw, with_aw: 0 : 2, 3;
        /// PGTT, raw; see [`pgtt`](Self::pgtt).
        uint(u8) pgtt_bits, with_pgtt_bits: 0 : 6, 3;
        /// Second-stage accessed and dirty enable. Ignored for first-stage and pass-through.
        flag ssade, with_ssade: 0 : 9;
        /// Second-stage page table pointer, a host physical address.
        addr ssptptr, with_ssptptr: 0 : 12, 52;
        /// Domain-id: the tag of cached translations.
        did did, with_did: 1 : 0;
        /// Page walk snoop. Reserved if ECAP.SMPWC=0.
        flag pwsnp, with_pwsnp: 1 : 23;
        /// Page snoop: data accesses snoop. Reserved if ECAP.SC=0.
        flag pgsnp, with_pgsnp: 1 : 24;
        /// Cache disable. Reserved if ECAP.MTS=0.
        flag cd, with_cd: 1 : 25;
        /// Extended memory type enable. Reserved if ECAP.MTS=0.
        flag emte, with_emte: 1 : 26;
        /// Page attribute table: PA0 to PA7, 4 bits each. Reserved if ECAP.MTS=0.
        uint(u32) pat, with_pat: 1 : 32, 32;
        /// Supervisor request enable. Reserved if ECAP.SRS=0.
        flag sre, with_sre: 2 : 0;
        /// First-stage paging mode, raw; see [`paging_mode`](Self::paging_mode).
        uint(u8) fspm, with_fspm: 2 : 2, 2;
        /// Write protect enable: supervisor writes honour R/W. Reserved if ECAP.FSTS=0.
        flag wpe, with_wpe: 2 : 4;
        /// Extended accessed flag enable. Reserved if ECAP.EAFS=0.
        flag eafe, with_eafe: 2 : 7;
        /// First-stage page table pointer: a host physical address, with nested translation a guest physical one.
        addr fsptptr, with_fsptptr: 2 : 12, 52;
        /// Host permission table size. Reserved if ECAP.HPTS=0.
        uint(u8) hptsz, with_hptsz: 4 : 0, 2;
        /// Host permission table prefetch disable (HPTPFD). Reserved if ECAP.HPTS=0.
        flag hptpfd, with_hptpfd: 4 : 2;
        /// Host permission table pointer. Reserved if ECAP.HPTS=0.
        addr hptptr, with_hptptr: 4 : 12, 52;
        /// Domain-id of the host permission table. Reserved if ECAP.HPTS=0.
        did hptdid, with_hptdid: 5 : 0;
    }
}

impl PasidEntry {
    /// PGTT as a type; `None` for a reserved encoding. \[SPT.4.2\]
    pub const fn pgtt(&self) -> Option<PasidGranularTranslationType> {
        PasidGranularTranslationType::from_bits(self.pgtt_bits())
    }

    /// This entry with PGTT replaced.
    #[must_use]
    pub const fn with_pgtt(self, pgtt: PasidGranularTranslationType) -> Self {
        self.with_pgtt_bits(pgtt.into_bits())
    }

    /// AW as a width; `None` for a reserved encoding. \[SPT.4.1\]
    pub const fn address_width(&self) -> Option<AddressWidth> {
        AddressWidth::from_bits(self.aw())
    }

    /// FSPM as a mode; `None` for a reserved encoding. \[SPT.4.3\]
    pub const fn paging_mode(&self) -> Option<FirstStagePagingMode> {
        FirstStagePagingMode::from_bits(self.fspm())
    }

    /// Whether a reserved bit is set. \[SPT.3\]
    ///
    /// Not covered: the *values* of AW, PGTT and FSPM, which are errors of their own (SPT.4). AW is never reserved for
    /// first-stage and pass-through, not even if ECAP.SSTS=0: Linux writes it for every type
    /// (pasid.c:pasid_pte_config_first_level) although the field is then called Reserved(0).
    pub const fn reserved(&self, caps: &Capabilities) -> bool {
        let ecap = caps.ecap;
        let pointer = caps.address_reserved();

        let mut q0 = 1 << 5 | mask(11, 10) | pointer;
        if !ecap.ssts() {
            q0 |= mask(63, 12);
            if self.pgtt_bits() != PasidGranularTranslationType::FirstStage as u8
                && self.pgtt_bits() != PasidGranularTranslationType::PassThrough as u8
            {
                q0 |= mask(4, 2);
            }
        }
        if !ecap.ssts() || !ecap.ssads() {
            q0 |= 1 << 9;
        }

        let mut q1 = !caps.did_mask() as u64 | mask(22, 16) | mask(31, 27);
        if !ecap.smpwc() {
            q1 |= 1 << 23;
        }
        if !ecap.sc() {
            q1 |= 1 << 24;
        }
        if !ecap.mts() {
            q1 |= mask(26, 25) | mask(63, 32);
        }

        // Bits 6:5 (NXE and SMEP of older revisions) are ignored, not reserved.
        let mut q2 = 1 << 1 | mask(11, 8) | pointer;
        if !ecap.srs() {
            q2 |= 1;
        }
        if !ecap.fsts() {
            q2 |= mask(4, 2) | mask(63, 12);
        }
        if !ecap.eafs() {
            q2 |= 1 << 7;
        }

        let (q4, q5) = if ecap.hpts() {
            (mask(11, 3) | pointer, mask(63, 16) | !caps.did_mask() as u64)
        } else {
            (u64::MAX, u64::MAX)
        };

        let [w0, w1, w2, w3, w4, w5, w6, w7] = self.0;
        w0 & q0 | w1 & q1 | w2 & q2 | w3 | w4 & q4 | w5 & q5 | w6 | w7 != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DomainId;
    use crate::tables::test_caps::{all, none, reference};
    use PasidGranularTranslationType::*;

    fn reserved(bit: usize, base: PasidEntry, caps: &Capabilities) -> bool {
        let mut qwords = base.to_qwords();
        qwords[bit / 64] |= 1 << (bit % 64);
        PasidEntry::from_qwords(qwords).reserved(caps)
    }

    #[test]
    fn bits_that_are_reserved_whatever_the_unit_can_do() {
        for bit in 0..512 {
            let always = matches!(
                bit,
                5 | 10 | 11 | 46..=63 | 80..=86 | 91..=95 | 129 | 136..=139 | 174..=255 | 259..=267 | 302..=319
                    | 336..=511
            );
            assert_eq!(reserved(bit, PasidEntry::new(), &all()), always, "bit {bit}");
        }
    }

    #[test]
    fn bits_that_a_unit_without_capabilities_reserves() {
        for bit in 0..512 {
            let free = matches!(bit, 0 | 1 | 6..=8 | 64..=79 | 133 | 134);
            assert_eq!(reserved(bit, PasidEntry::new(), &none()), !free, "bit {bit}");
        }
    }

    #[test]
    fn each_conditional_field_hangs_on_its_own_capability() {
        let ecap = all().ecap;
        for (without, bits) in [
            (ecap.with_ssads(false), &[9][..]),
            (ecap.with_ssts(false), &[2, 3, 4, 9, 12, 45]),
            (ecap.with_smpwc(false), &[87]),
            (ecap.with_sc(false), &[88]),
            (ecap.with_mts(false), &[89, 90, 96, 127]),
            (ecap.with_srs(false), &[128]),
            (ecap.with_fsts(false), &[130, 131, 132, 140, 173]),
            (ecap.with_eafs(false), &[135]),
            (ecap.with_hpts(false), &[256, 257, 258, 268, 301, 320, 335]),
        ] {
            let caps = Capabilities { ecap: without, ..all() };
            for &bit in bits {
                assert!(reserved(bit, PasidEntry::new(), &caps), "bit {bit}");
                assert!(!reserved(bit, PasidEntry::new(), &all()), "bit {bit}");
            }
        }
    }

    #[test]
    fn domain_id_bits_beyond_nd_are_reserved() {
        let caps = Capabilities { cap: all().cap.with_nd(2), ..all() };
        for bit in 64..80 {
            assert_eq!(reserved(bit, PasidEntry::new(), &caps), bit >= 72, "bit {bit}");
        }
    }

    #[test]
    fn address_width_is_ignored_for_first_stage_and_pass_through_without_second_stage() {
        for (pgtt, expected) in
            [(FirstStage, false), (PassThrough, false), (SecondStage, true), (Nested, true)]
        {
            let entry = PasidEntry::new().with_pgtt(pgtt).with_aw(2);
            assert_eq!(entry.reserved(&reference()), expected, "{pgtt:?}");
        }
    }

    #[test]
    fn first_stage_entry_that_linux_writes_is_valid() {
        // P | PGTT 1 | AW 2; DID 5 | PWSNP; FSPTPTR, 4 levels.
        let entry = PasidEntry::from_qwords([0x49, 0x80_0005, 0x1234_5000, 0, 0, 0, 0, 0]);
        assert!(entry.p() && !entry.fpd() && entry.pwsnp());
        assert_eq!((entry.pgtt(), entry.did()), (Some(FirstStage), DomainId(5)));
        assert_eq!(entry.paging_mode(), Some(FirstStagePagingMode::Level4));
        assert_eq!(entry.fsptptr(), 0x1234_5000);
        assert!(!entry.reserved(&reference()));
        let built = PasidEntry::new()
            .with_p(true)
            .with_pgtt(FirstStage)
            .with_aw(2)
            .with_did(DomainId(5))
            .with_pwsnp(true)
            .with_fsptptr(0x1234_5000);
        assert_eq!(built, entry);
    }

    #[test]
    fn nested_fields_lie_at_the_specified_bits() {
        let entry = PasidEntry::new()
            .with_pgtt(Nested)
            .with_ssade(true)
            .with_ssptptr(0x7000)
            .with_sre(true)
            .with_fspm(1)
            .with_wpe(true)
            .with_eafe(true)
            .with_pat(0x0007_0406)
            .with_pgsnp(true)
            .with_hptdid(DomainId(3));
        assert_eq!(entry.to_qwords(), [0x72c0, 0x0007_0406_0100_0000, 0x95, 0, 0, 3, 0, 0]);
        assert!(!entry.reserved(&all()));
    }

    #[test]
    fn type_support_follows_the_capabilities() {
        assert_eq!([0, 5, 6, 7].map(PasidGranularTranslationType::from_bits), [None; 4]);
        for pgtt in [FirstStage, SecondStage, Nested, PassThrough] {
            assert_eq!(PasidGranularTranslationType::from_bits(pgtt.into_bits()), Some(pgtt));
            assert!(pgtt.is_supported(&all()) && !pgtt.is_supported(&none()));
        }
        assert!(FirstStage.is_supported(&reference()) && !Nested.is_supported(&reference()));
    }
}
