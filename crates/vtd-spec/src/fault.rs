// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Fault reasons and what a requester is told. \[S 7.1.3 table 30, 5.1.4.1 table 15\]

use core::fmt;

use crate::ResponseCode;

/// How a faulted request is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AtsResponse {
    /// Unsupported Request. For a translation request it makes the device disable ATS.
    UnsupportedRequest,
    /// Completer Abort.
    CompleterAbort,
    /// Translation completion with success and R=W=U=S=0: a recoverable fault, which a page request may cure. Not
    /// recorded, but for [`FaultReason::Sfs10`].
    Success0,
    /// Translation completion with success and the effective permissions. Not recorded.
    Effective,
    /// This kind of request does not meet the condition.
    NotApplicable,
}

use AtsResponse::{
    CompleterAbort as Ca, Effective as Eff, NotApplicable as Na, Success0 as S0, UnsupportedRequest as Ur,
};

/// Declares [`FaultReason`]. Columns: name, code, Qualified or Unqualified, answer to an untranslated request, to a
/// translation request, to a translated request, Invalid Request to a page request or Na.
macro_rules! fault_reasons {
    ($($(#[$meta:meta])* $variant:ident = $name:literal, $code:literal, $qualified:ident, $untranslated:ident,
       $translation:ident, $translated:ident, $page:ident;)*) => {
        /// Why a request was blocked: the condition codes of the specification.
        ///
        /// Several conditions share a code. Their names are the specification's without the first dot (LCT.4.1 is
        /// `Lct4_1`); interrupt remapping conditions have no names there and are called by their code.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum FaultReason {
            $($(#[$meta])* $variant,)*
        }

        impl FaultReason {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The code in field FR of a fault record.
            pub const fn code(self) -> u8 {
                match self {
                    $(Self::$variant => $code,)*
                }
            }

            /// The specification's name of the condition; of interrupt conditions the code.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }

            /// Whether a set FPD bit on the path suppresses the record.
            pub const fn is_qualified(self) -> bool {
                match self {
                    $(Self::$variant => fault_reasons!(@qualified $qualified),)*
                }
            }

            /// The answer to an untranslated request.
            pub const fn untranslated_response(self) -> AtsResponse {
                match self {
                    $(Self::$variant => $untranslated,)*
                }
            }

            /// The answer to a translation request.
            pub const fn ats_response(self) -> AtsResponse {
                match self {
                    $(Self::$variant => $translation,)*
                }
            }

            /// The answer to a translated request.
            pub const fn translated_response(self) -> AtsResponse {
                match self {
                    $(Self::$variant => $translated,)*
                }
            }

            /// The response to a page request that expects one; `None` where a page request does not meet the condition.
            ///
            /// One that expects none is dropped. Either way the fault is recorded.
            pub const fn page_request_response(self) -> Option<ResponseCode> {
                match self {
                    $(Self::$variant => fault_reasons!(@page $page),)*
                }
            }
        }
    };
    (@qualified Q) => { true };
    (@qualified U) => { false };
    (@page Ir) => { Some(ResponseCode::InvalidRequest) };
    (@page Na) => { None };
}

fault_reasons! {
    /// LRT.1: The root entry could not be read.
    Lrt1 = "LRT.1", 0x08, U, Ur, Ca, Ur, Na;
    /// LRT.2: The root entry is not present.
    Lrt2 = "LRT.2", 0x01, U, Ur, Ur, Ur, Na;
    /// LRT.3: The root entry has a reserved bit set.
    Lrt3 = "LRT.3", 0x0a, U, Ur, Ca, Ur, Na;
    /// LCT.1: The context entry could not be read.
    Lct1 = "LCT.1", 0x09, U, Ur, Ca, Ur, Na;
    /// LCT.2: The context entry is not present.
    Lct2 = "LCT.2", 0x02, Q, Ur, Ur, Ur, Na;
    /// LCT.3: The context entry has a reserved bit set.
    Lct3 = "LCT.3", 0x0b, Q, Ur, Ca, Ur, Na;
    /// LCT.4.1: AW of the context entry is not supported.
    Lct4_1 = "LCT.4.1", 0x03, Q, Ur, Ca, Ur, Na;
    /// LCT.4.2: TT of the context entry is not supported.
    Lct4_2 = "LCT.4.2", 0x03, Q, Ur, Ca, Ur, Na;
    /// LCT.4.3: The table that SSPTPTR of the context entry points to could not be read.
    Lct4_3 = "LCT.4.3", 0x03, Q, Ur, Ca, Na, Na;
    /// LCT.5: TT blocks translation and translated requests.
    Lct5 = "LCT.5", 0x0d, Q, Na, Ur, Ur, Na;
    /// LSS.1: A lower second-stage table could not be read.
    Lss1 = "LSS.1", 0x07, Q, Ur, Ca, Na, Na;
    /// LSS.2: A present second-stage entry has a reserved bit set.
    Lss2 = "LSS.2", 0x0c, Q, Ur, Ca, Na, Na;
    /// LGN.1.1: The address is above 2^min(MGAW, AW) - 1.
    Lgn1_1 = "LGN.1.1", 0x04, Q, Ur, S0, Na, Na;
    /// LGN.1.2: A translated address is above the host address width.
    Lgn1_2 = "LGN.1.2", 0x04, Q, Na, Na, Ur, Na;
    /// LGN.1.3: A passed-through address is above the host address width.
    Lgn1_3 = "LGN.1.3", 0x04, Q, Ur, Na, Na, Na;
    /// LGN.2: A write or AtomicOp without write permission.
    Lgn2 = "LGN.2", 0x05, Q, Ur, Eff, Na, Na;
    /// LGN.3: A read or AtomicOp without read permission (zero-length reads of write-only pages pass with CAP.ZLR).
    Lgn3 = "LGN.3", 0x06, Q, Ur, Eff, Na, Na;
    /// LGN.4: The output address is in the interrupt range FEEx_xxxx.
    Lgn4 = "LGN.4", 0x0e, Q, Ur, Ca, Ur, Na;
    /// RTA.1: TTM is reserved, or not supported (scalable without SMTS, abort-DMA without ADMS).
    Rta1 = "RTA.1", 0x30, U, Ur, Ca, Ur, Ir;
    /// RTA.1.4: SSIRWE is set in legacy mode (requests without PASID).
    Rta1_4 = "RTA.1.4", 0x30, U, Ur, Ca, Ur, Na;
    /// RTA.2: A request with PASID in legacy mode.
    Rta2 = "RTA.2", 0x31, U, Ur, Ur, Ur, Na;
    /// RTA.3: A page request in legacy mode.
    Rta3 = "RTA.3", 0x32, U, Na, Na, Na, Ir;
    /// RTA.4: Abort-DMA mode.
    Rta4 = "RTA.4", 0x33, U, Ur, Ur, Ur, Ir;
    /// RTA.5: A request with PASID and ER set; VER major 8 or later.
    Rta5 = "RTA.5", 0x34, U, Ur, Ur, Ur, Na;
    /// SRT.1: The scalable root entry could not be read.
    Srt1 = "SRT.1", 0x38, U, Ur, Ca, Ur, Ir;
    /// SRT.2: The half of the scalable root entry is not present.
    Srt2 = "SRT.2", 0x39, U, Ur, Ur, Ur, Ir;
    /// SRT.3: The half of the scalable root entry has a reserved bit set.
    Srt3 = "SRT.3", 0x3a, U, Ur, Ca, Ur, Ir;
    /// SCT.1: The scalable context entry could not be read.
    Sct1 = "SCT.1", 0x40, U, Ur, Ca, Ur, Ir;
    /// SCT.2: The scalable context entry is not present.
    Sct2 = "SCT.2", 0x41, Q, Ur, Ur, Ur, Ir;
    /// SCT.3: The scalable context entry has a reserved bit set.
    Sct3 = "SCT.3", 0x42, Q, Ur, Ca, Ur, Ir;
    /// SCT.4.1: DTE=0 with PRE=1.
    Sct4_1 = "SCT.4.1", 0x43, Q, Ur, Ca, Ur, Ir;
    /// SCT.4.2: RID_PASID is beyond the directory (PDTS).
    Sct4_2 = "SCT.4.2", 0x43, Q, Ur, Ca, Ur, Ir;
    /// SCT.4.3: EPTR=1 with PASIDE=0 (untranslated and translation requests: only those without PASID).
    Sct4_3 = "SCT.4.3", 0x43, Q, Ur, Ca, Ur, Ir;
    /// SCT.5: A translation or translated request with DTE=0.
    Sct5 = "SCT.5", 0x44, Q, Na, Ur, Ur, Na;
    /// SCT.6: A request with PASID and PASIDE=0.
    Sct6 = "SCT.6", 0x45, Q, Ur, Ur, Na, Ir;
    /// SCT.7: The PASID is beyond the directory (PDTS).
    Sct7 = "SCT.7", 0x46, Q, Ur, Ur, Ur, Ir;
    /// SCT.8: A page request with PRE=0.
    Sct8 = "SCT.8", 0x47, Q, Na, Na, Na, Ir;
    /// SCT.9: The PASID of a request with PASID equals RID_PASID.
    Sct9 = "SCT.9", 0x48, Q, Ur, Ur, Ur, Ir;
    /// SCT.10: A translated request with PASID and EPTR=0.
    Sct10 = "SCT.10", 0x49, Q, Na, Na, Ur, Na;
    /// SPD.1: The PASID directory entry could not be read.
    Spd1 = "SPD.1", 0x50, U, Ur, Ca, Ca, Ir;
    /// SPD.2: The PASID directory entry is not present.
    Spd2 = "SPD.2", 0x51, Q, Ur, S0, Ur, Ir;
    /// SPD.3: The PASID directory entry has a reserved bit set.
    Spd3 = "SPD.3", 0x52, Q, Ur, Ca, Ca, Ir;
    /// SPT.1: The PASID entry could not be read.
    Spt1 = "SPT.1", 0x58, U, Ur, Ca, Ca, Ir;
    /// SPT.2: The PASID entry is not present.
    Spt2 = "SPT.2", 0x59, Q, Ur, S0, Ur, Ir;
    /// SPT.3: The PASID entry has a reserved bit set.
    Spt3 = "SPT.3", 0x5a, Q, Ur, Ca, Ca, Ir;
    /// SPT.4.1: AW of the PASID entry is not supported.
    Spt4_1 = "SPT.4.1", 0x5b, Q, Ur, Ca, Ca, Ir;
    /// SPT.4.2: PGTT of the PASID entry is reserved or not supported.
    Spt4_2 = "SPT.4.2", 0x5b, Q, Ur, Ca, Ca, Ir;
    /// SPT.4.3: FSPM of the PASID entry is not supported.
    Spt4_3 = "SPT.4.3", 0x5b, Q, Ur, Ca, Ca, Ir;
    /// SPT.4.4: Nested: FSPTPTR is above 2^min(MGAW, AW) - 1.
    Spt4_4 = "SPT.4.4", 0x5b, Q, Ur, Ca, Ca, Ir;
    /// SPT.5: ER is set and ECAP.ERS=0; VER major 7 or earlier.
    Spt5 = "SPT.5", 0x5c, Q, Ur, S0, Na, Na;
    /// SPT.6: A privileged request with SRE=0.
    Spt6 = "SPT.6", 0x5d, Q, Ur, S0, Na, Na;
    /// SPT.9: A translated address beyond the host permission table.
    Spt9 = "SPT.9", 0x60, Q, Na, Na, Ur, Na;
    /// SFS.1: A lower first-stage table could not be read.
    Sfs1 = "SFS.1", 0x70, Q, Ur, S0, Na, Na;
    /// SFS.2: A first-stage entry is not present.
    Sfs2 = "SFS.2", 0x71, Q, Ur, S0, Na, Na;
    /// SFS.3: A present first-stage entry has a reserved bit set.
    Sfs3 = "SFS.3", 0x72, Q, Ur, S0, Na, Na;
    /// SFS.4: The table that FSPTPTR points to could not be read.
    Sfs4 = "SFS.4", 0x73, Q, Ur, S0, Na, Na;
    /// SFS.5: Nested: the address in a first-stage entry is above 2^min(MGAW, AW) - 1.
    Sfs5 = "SFS.5", 0x74, Q, Ur, S0, Na, Na;
    /// SFS.6: Nested: the second stage does not permit reads of the table that FSPTPTR points to.
    Sfs6 = "SFS.6", 0x75, Q, Ur, S0, Na, Na;
    /// SFS.7: Nested: the second stage does not permit reads of a lower first-stage table.
    Sfs7 = "SFS.7", 0x76, Q, Ur, S0, Na, Na;
    /// SFS.8: Nested: the second stage does not permit the write that sets A, D or EA.
    Sfs8 = "SFS.8", 0x77, Q, Ur, S0, Na, Na;
    /// SSS.1: A lower second-stage table could not be read.
    Sss1 = "SSS.1", 0x78, Q, Ur, Ca, Na, Na;
    /// SSS.2: A second-stage entry, or all of them together, permits neither reads nor writes.
    Sss2 = "SSS.2", 0x79, Q, Ur, S0, Na, Na;
    /// SSS.3: A present second-stage entry has a reserved bit set.
    Sss3 = "SSS.3", 0x7a, Q, Ur, Ca, Na, Na;
    /// SSS.4: The table that SSPTPTR points to could not be read.
    Sss4 = "SSS.4", 0x7b, Q, Ur, Ca, Na, Na;
    /// SSS.5: Second-stage A or D must be set, but page walks do not snoop.
    Sss5 = "SSS.5", 0x7c, Q, Ur, Ca, Na, Na;
    /// SSS.6: Second-stage A or D could not be set.
    Sss6 = "SSS.6", 0x7d, Q, Ur, Ca, Na, Na;
    /// SGN.1: A first-stage input address is not canonical.
    Sgn1 = "SGN.1", 0x80, Q, Ur, S0, Na, Na;
    /// SGN.2: A user request met U/S=0.
    Sgn2 = "SGN.2", 0x81, Q, Ur, S0, Na, Na;
    /// SGN.4.1: A translated address is above the host address width.
    Sgn4_1 = "SGN.4.1", 0x83, Q, Na, Na, Ur, Na;
    /// SGN.4.2: A passed-through address is above the host address width.
    Sgn4_2 = "SGN.4.2", 0x83, Q, Ur, S0, Na, Na;
    /// SGN.5: A second-stage input address is above 2^min(MGAW, AW) - 1.
    Sgn5 = "SGN.5", 0x84, Q, Ur, S0, Na, Na;
    /// SGN.6: A write or AtomicOp without write permission.
    Sgn6 = "SGN.6", 0x85, Q, Ur, Eff, Na, Na;
    /// SGN.7: A read or AtomicOp without read permission.
    Sgn7 = "SGN.7", 0x86, Q, Ur, Eff, Na, Na;
    /// SGN.8.1: Untranslated request: the output address is in the interrupt range FEEx_xxxx.
    Sgn8_1 = "SGN.8.1", 0x87, Q, Ur, Na, Na, Na;
    /// SGN.8.2: Translation request: the output address is in the interrupt range FEEx_xxxx.
    Sgn8_2 = "SGN.8.2", 0x87, Q, Na, Ca, Na, Na;
    /// SGN.8.3: Translated request: the address is in the interrupt range FEEx_xxxx.
    Sgn8_3 = "SGN.8.3", 0x87, Q, Na, Na, Ur, Na;
    /// SGN.10: The PASID is wider than ECAP.PSS allows.
    Sgn10 = "SGN.10", 0x89, Q, Ur, Ur, Ur, Na;
    /// SFS.9: First-stage A, D or EA must be set, but page walks do not snoop.
    Sfs9 = "SFS.9", 0x90, Q, Ur, S0, Na, Na;
    /// SFS.10: First-stage A, D or EA could not be set. Also recorded for translation requests.
    Sfs10 = "SFS.10", 0x91, Q, Ur, S0, Na, Na;
    /// HPT.1: An HPT entry named by another HPT entry could not be read.
    Hpt1 = "HPT.1", 0xa0, Q, Na, Na, Ca, Na;
    /// HPT.2: An HPT entry has a reserved bit set.
    Hpt2 = "HPT.2", 0xa1, Q, Na, Na, Ca, Na;
    /// HPT.3: The HPT entry that HPTPTR points to could not be read.
    Hpt3 = "HPT.3", 0xa2, Q, Na, Na, Ca, Na;
    /// HPT.4: A zero-length read (with CAP.ZLR) found no permission in the HPT.
    Hpt4 = "HPT.4", 0xa3, Q, Na, Na, Ur, Na;
    /// HPT.5: A translated write or AtomicOp without write permission in the HPT.
    Hpt5 = "HPT.5", 0xa4, Q, Na, Na, Ur, Na;
    /// HPT.6: A translated read or AtomicOp without read permission in the HPT.
    Hpt6 = "HPT.6", 0xa5, Q, Na, Na, Ur, Na;
    /// 20h: The remappable request has a reserved bit set.
    Ir20 = "20h", 0x20, U, Ur, Na, Na, Na;
    /// 21h: The index is beyond the interrupt remapping table.
    Ir21 = "21h", 0x21, U, Ur, Na, Na, Na;
    /// 22h: The IRTE is not present.
    Ir22 = "22h", 0x22, Q, Ur, Na, Na, Na;
    /// 23h: The IRTE could not be read.
    Ir23 = "23h", 0x23, U, Ur, Na, Na, Na;
    /// 24h: The IRTE has a reserved bit set.
    Ir24 = "24h", 0x24, Q, Ur, Na, Na, Na;
    /// 25h: A compatibility-format request was blocked.
    Ir25 = "25h", 0x25, U, Ur, Na, Na, Na;
    /// 26h: The requester did not pass source validation.
    Ir26 = "26h", 0x26, Q, Ur, Na, Na, Na;
    /// 27h: The posted interrupt descriptor could not be read or written.
    Ir27 = "27h", 0x27, Q, Ur, Na, Na, Na;
    /// 28h: The posted interrupt descriptor has a reserved bit set.
    Ir28 = "28h", 0x28, Q, Ur, Na, Na, Na;
    /// 29h: An untranslated request without PASID to FEEx_xxxx that is no interrupt (length, read, AtomicOp).
    Ir29 = "29h", 0x29, U, Ur, Na, Na, Na;
    /// 2Ah: ECAP.EIMER=1 and IRTA.EIME=0.
    Ir2a = "2Ah", 0x2a, U, Ur, Na, Na, Na;
    /// 2Bh: ECAP.IRREQ=1 and interrupt remapping is not enabled.
    Ir2b = "2Bh", 0x2b, U, Ur, Na, Na, Na;
}

impl FaultReason {
    /// The conditions that a code in field FR of a fault record stands for; none for an undefined code.
    pub fn with_code(code: u8) -> impl Iterator<Item = Self> {
        Self::ALL.iter().copied().filter(move |reason| reason.code() == code)
    }

    /// Whether the fault of a *translation request* is recorded: the recoverable ones are not. \[S 7.1.2\]
    pub const fn is_recorded_for_translation_request(self) -> bool {
        match self.ats_response() {
            Ur | Ca => true,
            S0 => matches!(self, Self::Sfs10),
            Eff | Na => false,
        }
    }

    /// Whether this is a fault of an interrupt request. \[S 5.1.4.1\]
    pub const fn is_interrupt(self) -> bool {
        matches!(self.code(), 0x20..=0x2b)
    }
}

impl fmt::Display for FaultReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_interrupt() {
            write!(f, "fault {}", self.name())
        } else {
            write!(f, "{} ({:02x}h)", self.name(), self.code())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unqualified_faults_are_those_met_before_an_fpd_bit_can_be_read() {
        let unqualified: std::vec::Vec<u8> = FaultReason::ALL
            .iter()
            .filter(|reason| !reason.is_qualified())
            .map(|reason| reason.code())
            .collect();
        assert_eq!(
            unqualified,
            [
                0x08, 0x01, 0x0a, 0x09, 0x30, 0x30, 0x31, 0x32, 0x33, 0x34, 0x38, 0x39, 0x3a, 0x40, 0x50,
                0x58, 0x20, 0x21, 0x23, 0x25, 0x29, 0x2a, 0x2b
            ]
        );
    }

    #[test]
    fn conditions_with_the_same_code_have_the_same_name_up_to_the_last_number() {
        for a in FaultReason::ALL {
            for b in FaultReason::ALL {
                let same_code = a.code() == b.code();
                let stem =
                    |name: &'static str| name.splitn(3, '.').take(2).collect::<std::vec::Vec<_>>().join(".");
                assert_eq!(same_code, stem(a.name()) == stem(b.name()), "{a} {b}");
            }
        }
    }

    #[test]
    fn a_code_stands_for_its_conditions() {
        let reasons = |code| FaultReason::with_code(code).collect::<std::vec::Vec<_>>();
        assert_eq!(reasons(0x71), [FaultReason::Sfs2]);
        assert_eq!(reasons(0x43), [FaultReason::Sct4_1, FaultReason::Sct4_2, FaultReason::Sct4_3]);
        // Withdrawn (no execute), and never defined.
        assert!(reasons(0x82).is_empty() && reasons(0).is_empty() && reasons(0xff).is_empty());
        let named: usize = (0..=u8::MAX).map(|code| reasons(code).len()).sum();
        assert_eq!(named, FaultReason::ALL.len());
    }

    #[test]
    fn faults_that_a_page_request_can_cure_complete_with_success() {
        for reason in [
            FaultReason::Spd2,
            FaultReason::Spt2,
            FaultReason::Sfs2,
            FaultReason::Sss2,
            FaultReason::Sgn1,
            FaultReason::Lgn1_1,
        ] {
            assert_eq!(reason.ats_response(), AtsResponse::Success0, "{reason}");
            assert!(!reason.is_recorded_for_translation_request(), "{reason}");
        }
        for reason in [FaultReason::Sgn6, FaultReason::Sgn7, FaultReason::Lgn2, FaultReason::Lgn3] {
            assert_eq!(reason.ats_response(), AtsResponse::Effective, "{reason}");
        }
        assert!(FaultReason::Sfs10.is_recorded_for_translation_request());
        assert!(FaultReason::Spt3.is_recorded_for_translation_request());
    }

    #[test]
    fn page_requests_are_answered_with_invalid_request_up_to_the_pasid_entry() {
        for reason in FaultReason::ALL {
            let expected = matches!(reason, FaultReason::Rta1 | FaultReason::Rta3 | FaultReason::Rta4)
                || (matches!(reason.code(), 0x38..=0x5b)
                    && !matches!(reason, FaultReason::Sct5 | FaultReason::Sct10));
            let response = expected.then_some(ResponseCode::InvalidRequest);
            assert_eq!(reason.page_request_response(), response, "{reason}");
        }
    }

    #[test]
    fn kinds_of_requests_meet_only_their_conditions() {
        assert_eq!(FaultReason::Sct5.untranslated_response(), AtsResponse::NotApplicable);
        assert_eq!(FaultReason::Spd1.translated_response(), AtsResponse::CompleterAbort);
        assert_eq!(FaultReason::Sct1.translated_response(), AtsResponse::UnsupportedRequest);
        assert_eq!(FaultReason::Sgn8_2.ats_response(), AtsResponse::CompleterAbort);
        assert_eq!(FaultReason::Hpt2.translated_response(), AtsResponse::CompleterAbort);
        assert_eq!(FaultReason::Hpt5.translated_response(), AtsResponse::UnsupportedRequest);
    }
}
