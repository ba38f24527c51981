// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The tables in memory: root, context, PASID, paging and interrupt remapping entries. \[S 9\]
//!
//! All are little-endian. `reserved` answers for a *present* entry: test the present bit first, since everything else
//! of a not-present entry (except FPD) is ignored.

mod context;
mod first_stage;
mod interrupt_remap;
mod pasid;
mod pasid_directory;
mod posted_interrupt;
mod root;
mod second_stage;

pub use context::{LegacyContextEntry, LegacyTranslationType, ScalableContextEntry};
pub use first_stage::FirstStageEntry;
pub use interrupt_remap::{DeliveryMode, InterruptRemapEntry, SourceQualifier, SourceValidation};
pub use pasid::{PasidEntry, PasidGranularTranslationType};
pub use pasid_directory::PasidDirectoryEntry;
pub use posted_interrupt::PostedInterruptDescriptor;
pub use root::{RootEntry, RootHalf, ScalableRootEntry};
pub use second_stage::SecondStageEntry;

/// Units for the tests of this module.
#[cfg(test)]
pub(crate) mod test_caps {
    use crate::{Capabilities, Capability, ExtendedCapability};

    /// The unit that Linux was seen to boot on, with SMPWC and C; host addresses have 46 bits.
    pub(crate) fn reference() -> Capabilities {
        Capabilities {
            cap: Capability::from_bits(0x81d2_008c_222f_0686),
            ecap: ExtendedCapability::from_bits(0x1_8d9a_20f0_0f4f),
            haw: 46,
        }
    }

    /// A unit with every capability.
    pub(crate) fn all() -> Capabilities {
        Capabilities {
            cap: Capability::from_bits(u64::MAX).with_nd(6),
            ecap: ExtendedCapability::from_bits(u64::MAX).with_pss(19),
            haw: 46,
        }
    }

    /// A unit with none; domain-ids have 16 bits.
    pub(crate) fn none() -> Capabilities {
        Capabilities { cap: Capability::new().with_nd(6), ecap: ExtendedCapability::new(), haw: 46 }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{FaultRecord, PageRequestDescriptor};

    /// For arbitrary words: writing back what a field holds changes nothing, bytes and words agree, and a field that was
    /// overwritten holds the new value while writing the old one back restores the structure.
    macro_rules! fields_round_trip {
        ($test:ident, $type:ident: $($get:ident $with:ident),* $(,)?) => {
            proptest! {
                #[test]
                fn $test(words: [u64; $type::SIZE / 8], others: [u64; $type::SIZE / 8]) {
                    let entry = $type::from_qwords(words);
                    let other = $type::from_qwords(others);
                    prop_assert_eq!(entry.to_qwords(), words);
                    prop_assert_eq!($type::from_bytes(&entry.to_bytes()), entry);
                    prop_assert_eq!(&entry.to_bytes()[..8], &words[0].to_le_bytes());
                    $(
                        let changed = entry.$with(other.$get());
                        prop_assert_eq!(changed.$get(), other.$get());
                        prop_assert_eq!(changed.$with(entry.$get()), entry);
                    )*
                }
            }
        };
    }

    fields_round_trip!(root_entry_fields, RootEntry: p with_p, ctp with_ctp);
    fields_round_trip!(scalable_root_entry_fields, ScalableRootEntry:
        lp with_lp, lctp with_lctp, up with_up, uctp with_uctp);
    fields_round_trip!(legacy_context_entry_fields, LegacyContextEntry:
        p with_p, fpd with_fpd, tt with_tt, ssptptr with_ssptptr, aw with_aw, did with_did);
    fields_round_trip!(scalable_context_entry_fields, ScalableContextEntry:
        present with_present, fpd with_fpd, dte with_dte, paside with_paside, pre with_pre, hpte with_hpte,
        eptr with_eptr, pdts with_pdts, pasid_dir_ptr with_pasid_dir_ptr, rid_pasid with_rid_pasid,
        rid_priv with_rid_priv);
    fields_round_trip!(pasid_directory_entry_fields, PasidDirectoryEntry:
        p with_p, fpd with_fpd, smptblptr with_smptblptr);
    fields_round_trip!(pasid_entry_fields, PasidEntry:
        p with_p, fpd with_fpd, aw with_aw, pgtt_bits with_pgtt_bits, ssade with_ssade, ssptptr with_ssptptr,
        did with_did, pwsnp with_pwsnp, pgsnp with_pgsnp, cd with_cd, emte with_emte, pat with_pat, sre with_sre,
        fspm with_fspm, wpe with_wpe, eafe with_eafe, fsptptr with_fsptptr, hptsz with_hptsz, hptpfd with_hptpfd,
        hptptr with_hptptr, hptdid with_hptdid);
    fields_round_trip!(first_stage_entry_fields, FirstStageEntry:
        p with_p, rw with_rw, us with_us, pwt with_pwt, pcd with_pcd, a with_a, d with_d, ps with_ps, g with_g,
        ea with_ea, xd with_xd, addr with_addr);
    fields_round_trip!(second_stage_entry_fields, SecondStageEntry:
        r with_r, w with_w, emt with_emt, ipat with_ipat, ps with_ps, a with_a, d with_d, snp with_snp, ir with_ir,
        iw with_iw, addr with_addr);
    fields_round_trip!(interrupt_remap_entry_fields, InterruptRemapEntry:
        p with_p, fpd with_fpd, dm with_dm, rh with_rh, tm with_tm, dlm with_dlm, avail with_avail, urg with_urg,
        im with_im, vector with_vector, dst with_dst, sid with_sid, sq with_sq, svt with_svt, pda with_pda);
    fields_round_trip!(posted_interrupt_descriptor_fields, PostedInterruptDescriptor:
        on with_on, sn with_sn, nv with_nv, ndst with_ndst);
    fields_round_trip!(page_request_descriptor_fields, PageRequestDescriptor:
        descriptor_type with_descriptor_type, pp with_pp, rid with_rid, pasid with_pasid, exr with_exr,
        pmr with_pmr, rdr with_rdr, wrr with_wrr, lpig with_lpig, prgi with_prgi, addr with_addr);
    fields_round_trip!(fault_record_fields, FaultRecord:
        fi with_fi, interrupt_index with_interrupt_index, sid with_sid, t2 with_t2, privileged with_privileged,
        exe with_exe, pp with_pp, fr with_fr, pv with_pv, at with_at, t1 with_t1, f with_f,
        request_type with_request_type);

    proptest! {
        #[test]
        fn values_that_do_not_fit_their_field_touch_nothing_else(words: [u64; 8], value: u64) {
            let entry = PasidEntry::from_qwords(words);
            let changed = entry.with_fspm(value as u8).with_fsptptr(value);
            prop_assert_eq!(changed.fspm(), value as u8 & 3);
            prop_assert_eq!(changed.fsptptr(), value & !0xfff);
            prop_assert_eq!(changed.with_fspm(entry.fspm()).with_fsptptr(entry.fsptptr()), entry);
        }

        #[test]
        fn reserved_checks_of_any_bits_end_without_panic(
            words: [u64; 8], cap: u64, ecap: u64, haw: u8, level: u8, flag: bool,
        ) {
            let caps = crate::Capabilities {
                cap: crate::Capability::from_bits(cap),
                ecap: crate::ExtendedCapability::from_bits(ecap),
                haw,
            };
            let [a, b, c, d, ..] = words;
            let _ = PasidEntry::from_qwords(words).reserved(&caps);
            let _ = ScalableContextEntry::from_qwords([a, b, c, d]).reserved(&caps);
            let _ = LegacyContextEntry::from_qwords([a, b]).reserved(&caps);
            let _ = ScalableRootEntry::from_qwords([a, b]).half(level).reserved(&caps);
            let _ = InterruptRemapEntry::from_qwords([a, b]).reserved(flag, &caps);
            let first = FirstStageEntry::from_bits(a);
            let _ = (first.reserved(level, &caps), first.address(level));
            let second = SecondStageEntry::from_bits(a);
            let _ = (second.reserved(level, flag, &caps), second.address(level));
            let _ = (caps.pasid_bits(), caps.max_second_stage_input(crate::AddressWidth::Bits57));
            let _ = PostedInterruptDescriptor::from_qwords(words).with_posted(level).is_posted(level);
        }
    }
}
