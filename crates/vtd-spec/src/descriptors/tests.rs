// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Tests over all descriptor types.

use proptest::prelude::*;

use super::*;
use crate::tables::test_caps::{all, none, reference};
use crate::{Capability, DomainId, ExtendedCapability, Pasid, SourceId};

use DescriptorWidth::{Bits128, Bits256};
use TranslationTableMode::{AbortDma, Legacy, Reserved, Scalable};

/// A unit with every capability whose queue tests need not mind the limits of AM and IM.
fn decode(words: [u64; 4]) -> Result<Descriptor, QueueError> {
    Descriptor::decode(words, Bits256, &all())
}

#[test]
fn undefined_types_are_invalid() {
    for low in 0..16u64 {
        for high in 0..8u64 {
            let word = low | high << 9;
            let defined = high == 0 && (1..=0xa).contains(&low);
            assert_eq!(DescriptorType::from_qword0(word).is_some(), defined, "{word:#x}");
            if !defined {
                assert_eq!(decode([word, 0, 0, 0]), Err(QueueError::InvalidType), "{word:#x}");
            }
        }
    }
}

/// Per type: a valid first word, and the bits that may be set in the two words.
const LAYOUTS: [(u64, [u64; 2]); 10] = [
    (0x11, [0x0003_ffff_ffff_003f, 0]),
    (0x12, [0x0000_0000_ffff_00ff, 0xffff_ffff_ffff_f07f]),
    (0x03, [0xfff0_ffff_001f_f00f, 0xffff_ffff_ffff_f001]),
    (0x04, [0x0000_ffff_f800_001f, 0]),
    (0x05, [0xffff_ffff_0000_00ff, 0xffff_ffff_ffff_fffc]),
    (0x26, [0x000f_ffff_ffff_003f, 0xffff_ffff_ffff_f07f]),
    (0x07, [0x000f_ffff_ffff_003f, 0]),
    (0x08, [0xffff_ffff_ffff_f1ff, 0xffff_ffff_ffff_f801]),
    (0x09, [0x000f_ffff_ffff_f01f, 0x0000_0000_0000_0ffc]),
    (0x1a, [0x0000_0000_ffff_003f, 0xffff_ffff_ffff_f1bf]),
];

#[test]
fn every_reserved_bit_is_a_reserved_field_violation() {
    for (base, allowed) in LAYOUTS {
        // The type, the granularity of most and the response code of type 9 have values of their own.
        let skipped = 0xe3fu64 | if base == 9 { 0xf000 } else { 0 };
        for bit in (0..256usize).filter(|&bit| bit > 63 || skipped >> bit & 1 == 0) {
            let mut words = [base, 0, 0, 0];
            words[bit / 64] |= 1 << (bit % 64);
            let free = bit < 128 && allowed[bit / 64] >> (bit % 64) & 1 != 0;
            match decode(words) {
                Ok(_) => assert!(free, "{base:#x} bit {bit}"),
                Err(error) => {
                    assert!(!free, "{base:#x} bit {bit}");
                    assert_eq!(error, QueueError::ReservedField);
                }
            }
        }
    }
}

#[test]
fn bits_4_and_5_are_checked_where_they_are_no_granularity() {
    for (word, valid) in [
        (0x13, false), // device TLB
        (0x23, false),
        (0x24, false), // interrupt entry cache, bit 5
        (0x18, true),  // PASID device TLB, MIP
        (0x28, true),
        (0x19, true), // page group response, PP
        (0x29, false),
    ] {
        assert_eq!(decode([word, 0, 0, 0]).is_ok(), valid, "{word:#x}");
    }
}

#[test]
fn reserved_granularities_are_violations() {
    for (kind, valid) in [
        (1, [false, true, true, true]),
        (2, [false, true, true, true]),
        (6, [false, false, true, true]),
        (7, [true, true, false, true]),
        (0xa, [false, true, true, true]),
    ] {
        for (granularity, valid) in (0..4u64).zip(valid) {
            let result = decode([kind | granularity << 4, 0, 0, 0]);
            assert_eq!(result.is_ok(), valid, "type {kind} G {granularity}");
            assert!(valid || result == Err(QueueError::ReservedField));
        }
    }
}

#[test]
fn reserved_response_codes_are_violations() {
    for rc in 0..16 {
        assert_eq!(decode([9 | rc << 12, 0, 0, 0]).is_ok(), matches!(rc, 0 | 1 | 0xf), "{rc}");
    }
}

#[test]
fn types_need_their_capability() {
    let ecap = all().ecap;
    for (word, without) in [
        (0x03, ecap.with_dt(false)),
        (0x08, ecap.with_dt(false)),
        (0x04, ecap.with_ir(false)),
        (0x09, ecap.with_prs(false)),
        (0x1a, ecap.with_hpts(false)),
    ] {
        let caps = Capabilities { ecap: without, ..all() };
        assert_eq!(
            Descriptor::decode([word, 0, 0, 0], Bits256, &caps),
            Err(QueueError::InvalidType),
            "{word:#x}"
        );
        assert!(decode([word, 0, 0, 0]).is_ok(), "{word:#x}");
    }
}

#[test]
fn fields_need_their_capability() {
    let without_dit = Capabilities { ecap: all().ecap.with_dit(false), ..all() };
    let without_pds = Capabilities { ecap: all().ecap.with_pds(false), ..all() };
    for (word, caps) in [
        (0x03 | 1 << 12, without_dit),
        (0x03 | 1 << 63, without_dit),
        (0x08 | 1 << 15, without_dit),
        (0x08 | 1 << 52, without_dit),
        (0x05 | 1 << 7, without_pds),
    ] {
        assert_eq!(
            Descriptor::decode([word, 0, 0, 0], Bits256, &caps),
            Err(QueueError::ReservedField),
            "{word:#x}"
        );
        assert!(decode([word, 0, 0, 0]).is_ok(), "{word:#x}");
    }
}

#[test]
fn page_selective_type_2_needs_psi_and_an_am_within_mamv() {
    let iotlb = |granularity: u64, am: u64, caps: &Capabilities| {
        Descriptor::decode([2 | granularity << 4, am, 0, 0], Bits256, caps)
    };
    let caps = reference();
    assert!(iotlb(3, 18, &caps).is_ok());
    assert_eq!(iotlb(3, 19, &caps), Err(QueueError::ReservedField));
    assert!(iotlb(2, 19, &caps).is_ok(), "AM means nothing for a domain");
    let without_psi = Capabilities { cap: caps.cap.with_psi(false), ..caps };
    assert_eq!(iotlb(3, 0, &without_psi), Err(QueueError::ReservedField));
    let pasid = Descriptor::decode([0x36, 63, 0, 0], Bits256, &without_psi);
    assert!(pasid.is_ok(), "neither limits type 6");
}

#[test]
fn index_mask_is_limited_by_mhmv() {
    let caps = Capabilities { ecap: all().ecap.with_mhmv(3), ..all() };
    let entry_cache = |word: u64| Descriptor::decode([word, 0, 0, 0], Bits256, &caps);
    assert!(entry_cache(0x14 | 3 << 27).is_ok());
    assert_eq!(entry_cache(0x14 | 4 << 27), Err(QueueError::ReservedField));
    assert!(entry_cache(0x04 | 4 << 27).is_ok(), "IM means nothing for a global invalidation");
}

#[test]
fn narrow_queue_has_the_first_five_types_and_no_upper_words() {
    for (base, _) in LAYOUTS {
        let result = Descriptor::decode([base, 0, u64::MAX, u64::MAX], Bits128, &all());
        if base & 0xf <= 5 {
            assert!(result.is_ok(), "{base:#x}");
        } else {
            assert_eq!(result, Err(QueueError::InvalidType), "{base:#x}");
        }
    }
}

#[test]
fn valid_types_of_each_mode_and_width() {
    for (mode, width, last) in [
        (Legacy, Bits128, 5),
        (Legacy, Bits256, 5),
        (Scalable, Bits128, 0),
        (Scalable, Bits256, 0xa),
        (Reserved, Bits128, 0),
        (Reserved, Bits256, 0),
        (AbortDma, Bits128, 0),
        (AbortDma, Bits256, 0xa),
    ] {
        for kind in 1..=0xa {
            let descriptor_type = DescriptorType::from_qword0(kind).unwrap();
            assert_eq!(descriptor_type.is_valid_in(mode, width), kind <= last, "{mode:?} {width:?} {kind}");
        }
    }
    // The type is judged before the reserved fields.
    let words = [7, u64::MAX, 0, 0];
    assert_eq!(Descriptor::decode_in(Legacy, words, Bits256, &all()), Err(QueueError::InvalidType));
    assert_eq!(Descriptor::decode_in(Scalable, words, Bits256, &all()), Err(QueueError::ReservedField));
    assert!(Descriptor::decode_in(Scalable, [7, 0, 0, 0], Bits256, &all()).is_ok());
}

#[test]
fn queue_needs_a_mode_and_a_width_that_fit() {
    let abort_only = Capabilities { ecap: ExtendedCapability::new().with_adms(true), ..none() };
    for (mode, width, caps, expected) in [
        (Legacy, Bits128, none(), Ok(())),
        (Legacy, Bits256, none(), Err(QueueError::InvalidWidth)),
        (Legacy, Bits256, reference(), Ok(())),
        (Legacy, Bits256, abort_only, Ok(())),
        (Scalable, Bits256, reference(), Ok(())),
        (Scalable, Bits128, reference(), Err(QueueError::InvalidWidth)),
        (Scalable, Bits256, none(), Err(QueueError::InvalidTtm)),
        (Reserved, Bits256, all(), Err(QueueError::InvalidTtm)),
        (AbortDma, Bits256, abort_only, Ok(())),
        (AbortDma, Bits128, abort_only, Err(QueueError::InvalidWidth)),
        (AbortDma, Bits256, reference(), Err(QueueError::InvalidTtm)),
    ] {
        assert_eq!(check_queue_mode(mode, width, &caps), expected, "{mode:?} {width:?}");
    }
}

#[test]
fn ignored_bits_are_dropped() {
    let caps = Capabilities { cap: all().cap.with_nd(2).with_mgaw(38).with_psi(true).with_mamv(63), ..all() };
    let address = 0xffff_ffff_ffff_f000;
    let decode = |word, upper| Descriptor::decode([word, upper, 0, 0], Bits256, &caps).unwrap();
    let Descriptor::Iotlb(iotlb) = decode(0xffff_0032, address) else { panic!("type 2") };
    assert_eq!((iotlb.did, iotlb.addr), (DomainId(0xff), 0x7f_ffff_f000));
    let Descriptor::PasidIotlb(iotlb) = decode(0xffff_0036, address) else { panic!("type 6") };
    assert_eq!((iotlb.did, iotlb.addr), (DomainId(0xff), address));
    let Descriptor::PasidCache(cache) = decode(0xffff_0007, 0) else { panic!("type 7") };
    assert_eq!(cache.did, DomainId(0xff));
    let Descriptor::Wait(wait) = decode(0x25, 0xffff_ffff_ffff_fffc) else { panic!("type 5") };
    assert_eq!(wait.status_address, 0x3fff_ffff_fffc);
    let Descriptor::HptCache(hpt) = decode(0xffff_003a, address) else { panic!("type 0xA") };
    assert_eq!((hpt.hptdid, hpt.addr), (DomainId(0xff), 0x3fff_ffff_f000));
}

#[test]
fn index_selective_invalidation_names_aligned_indices() {
    let entry_cache = |im, iidx| InterruptEntryCache { granularity: InterruptGranularity::Index, im, iidx };
    assert_eq!(entry_cache(0, 11).indices(), 11..=11);
    assert_eq!(entry_cache(2, 11).indices(), 8..=11);
    assert_eq!(entry_cache(15, 0xffff).indices(), 0x8000..=0xffff);
    assert_eq!(entry_cache(31, 5).indices(), 0..=0xffff);
}

#[test]
fn function_mask_widens_the_device() {
    let device = |fm| ContextCache {
        granularity: ContextGranularity::Device,
        did: DomainId(0),
        sid: SourceId::new(0, 3, 5),
        fm,
    };
    let named = |fm| (0..8).filter(|&f| device(fm).names(SourceId::new(0, 3, f))).count();
    use FunctionMask::*;
    assert_eq!([None, Bit2, Bits2To1, Bits2To0].map(named), [1, 2, 4, 8]);
    assert!(device(Bit2).names(SourceId::new(0, 3, 1)) && !device(Bit2).names(SourceId::new(0, 3, 4)));
    assert!(!device(Bits2To0).names(SourceId::new(0, 4, 5)));
}

/// The capabilities of the traced unit (without SMPWC and C); its descriptors are those that Linux 6.1, 6.12 and 7.3
/// submitted while they booted.
fn traced() -> Capabilities {
    Capabilities {
        cap: Capability::from_bits(0x81d2_008c_222f_0686),
        ecap: ExtendedCapability::from_bits(0x8d9a_20f0_0f4e),
        haw: 39,
    }
}

#[test]
fn descriptors_of_traced_linux_boots_decode() {
    let device = |sid| {
        Descriptor::ContextCache(ContextCache {
            granularity: ContextGranularity::Device,
            did: DomainId(0),
            sid: SourceId(sid),
            fm: FunctionMask::None,
        })
    };
    let index = |iidx| {
        Descriptor::InterruptEntryCache(InterruptEntryCache {
            granularity: InterruptGranularity::Index,
            im: 0,
            iidx,
        })
    };
    let domain = |did| {
        Descriptor::Iotlb(Iotlb {
            granularity: IotlbGranularity::Domain,
            dw: true,
            dr: true,
            did: DomainId(did),
            am: 0,
            ih: false,
            addr: 0,
        })
    };
    let pasid_iotlb = |did| {
        Descriptor::PasidIotlb(PasidIotlb {
            granularity: PasidIotlbGranularity::Pasid,
            did: DomainId(did),
            pasid: Pasid::ZERO,
            am: 0,
            ih: false,
            addr: 0,
        })
    };
    let pasid_cache = |did| {
        Descriptor::PasidCache(PasidCache {
            granularity: PasidCacheGranularity::Pasid,
            did: DomainId(did),
            pasid: Pasid::ZERO,
        })
    };
    let wait = |status_address| {
        Descriptor::Wait(Wait { sw: true, status_data: 2, status_address, ..Wait::default() })
    };
    let entry_cache_global = Descriptor::InterruptEntryCache(InterruptEntryCache {
        granularity: InterruptGranularity::Global,
        im: 0,
        iidx: 0,
    });
    for (low, high, expected) in [
        (0x31, 0, device(0)),
        (0x18_0000_0031, 0, device(0x18)),
        (0xf8_0000_0031, 0, device(0xf8)),
        (0xfa_0000_0031, 0, device(0xfa)),
        (0xfb_0000_0031, 0, device(0xfb)),
        (0x4, 0, entry_cache_global),
        (0x14, 0, index(0)),
        (0x1_0000_0014, 0, index(1)),
        (0x3_0000_0014, 0, index(3)),
        (0x7_0000_0014, 0, index(7)),
        (0x8_0000_0014, 0, index(8)),
        (0xb_0000_0014, 0, index(11)),
        (0xe2, 0, domain(0)),
        (0x2_00e2, 0, domain(2)),
        (0x3_00e2, 0, domain(3)),
        (0x4_00e2, 0, domain(4)),
        (0x2_0026, 0, pasid_iotlb(2)),
        (0x3_0026, 0, pasid_iotlb(3)),
        (0x4_0026, 0, pasid_iotlb(4)),
        (0x2_0017, 0, pasid_cache(2)),
        (0x3_0017, 0, pasid_cache(3)),
        (0x4_0017, 0, pasid_cache(4)),
        (0x2_0000_0025, 0x122_e404, wait(0x122_e404)),
        (0x2_0000_0025, 0x122_e47c, wait(0x122_e47c)),
    ] {
        let words = [low, high, 0, 0];
        assert_eq!(Descriptor::decode_in(Scalable, words, Bits256, &traced()), Ok(expected), "{low:#x}");
        assert_eq!(expected.encode(), words, "{low:#x}");
    }
}

#[test]
fn queue_runs_in_legacy_mode_before_the_root_table_is_set() {
    // Linux invalidates the interrupt entry cache through a 256-bit queue before SRTP: TTM is still 0.
    let words = [0x4, 0, 0, 0];
    assert!(Descriptor::decode_in(Legacy, words, Bits256, &traced()).is_ok());
}

#[test]
fn device_tlb_descriptors_encode_as_linux_does() {
    // Linux iommu.h:qi_desc_dev_iotlb_pasid for 16 KiB at 0x7f1234564000: address bit 12 one, bit 13 zero, S.
    let descriptor = Descriptor::PasidDeviceTlb(PasidDeviceTlb {
        sid: SourceId(0x18),
        pfsid: SourceId(0),
        mip: 0,
        pasid: Pasid::truncated(0x42),
        gi: false,
        range: AddressRange::new(0x7f12_3456_4000, 2),
    });
    assert_eq!(descriptor.encode(), [0x42_0018_0008, 0x7f12_3456_5800, 0, 0]);
    let descriptor = Descriptor::DeviceTlb(DeviceTlb {
        sid: SourceId(0x18),
        pfsid: SourceId(0x1234),
        mip: 0x1f,
        range: AddressRange::ALL,
    });
    assert_eq!(descriptor.encode(), [0x1230_0018_001f_4003, 0x7fff_ffff_ffff_f001, 0, 0]);
    assert_eq!(descriptor, decode(descriptor.encode()).unwrap());
}

#[test]
fn page_group_response_fields_lie_at_the_specified_bits() {
    let response = Descriptor::PageGroupResponse(PageGroupResponse {
        pasid: Some(Pasid::truncated(0xabcde)),
        rid: SourceId(0x18),
        rc: ResponseCode::InvalidRequest,
        prgi: 0x155,
    });
    assert_eq!(response.encode(), [0x000a_bcde_0018_1019, 0xaa8, 0, 0]);
}

fn pasid() -> impl Strategy<Value = Pasid> {
    (0..=Pasid::MAX.get()).prop_map(Pasid::truncated)
}

fn page() -> impl Strategy<Value = u64> {
    any::<u64>().prop_map(|address| address & !0xfff)
}

fn range() -> impl Strategy<Value = AddressRange> {
    (any::<u64>(), 0..=AddressRange::MAX_ORDER).prop_map(|(address, order)| AddressRange::new(address, order))
}

fn descriptor() -> impl Strategy<Value = Descriptor> {
    use proptest::sample::select;
    let context =
        select(vec_of([ContextGranularity::Global, ContextGranularity::Domain, ContextGranularity::Device]));
    let iotlb = select(vec_of([IotlbGranularity::Global, IotlbGranularity::Domain, IotlbGranularity::Page]));
    let pasid_iotlb = select(vec_of([PasidIotlbGranularity::Pasid, PasidIotlbGranularity::Page]));
    let pasid_cache = select(vec_of([
        PasidCacheGranularity::Domain,
        PasidCacheGranularity::Pasid,
        PasidCacheGranularity::Global,
    ]));
    let hpt = select(vec_of([HptGranularity::Global, HptGranularity::Domain, HptGranularity::Page]));
    let levels = select(vec_of([HptLevels::L1, HptLevels::L1To2, HptLevels::L1To3, HptLevels::All]));
    let interrupt = select(vec_of([InterruptGranularity::Global, InterruptGranularity::Index]));
    let codes =
        select(vec_of([ResponseCode::Success, ResponseCode::InvalidRequest, ResponseCode::ResponseFailure]));
    prop_oneof![
        (context, any::<u16>(), any::<u16>(), 0..4u8).prop_map(|(granularity, did, sid, fm)| {
            Descriptor::ContextCache(ContextCache {
                granularity,
                did: DomainId(did),
                sid: SourceId(sid),
                fm: FunctionMask::from_bits(fm),
            })
        }),
        (iotlb, any::<bool>(), any::<bool>(), any::<u16>(), 0..64u8, any::<bool>(), page()).prop_map(
            |(granularity, dw, dr, did, am, ih, addr)| {
                Descriptor::Iotlb(Iotlb { granularity, dw, dr, did: DomainId(did), am, ih, addr })
            }
        ),
        (any::<u16>(), any::<u16>(), 0..32u8, range()).prop_map(|(sid, pfsid, mip, range)| {
            Descriptor::DeviceTlb(DeviceTlb { sid: SourceId(sid), pfsid: SourceId(pfsid), mip, range })
        }),
        (interrupt, 0..16u8, any::<u16>()).prop_map(|(granularity, im, iidx)| {
            Descriptor::InterruptEntryCache(InterruptEntryCache { granularity, im, iidx })
        }),
        (any::<[bool; 4]>(), any::<u32>(), 0..1u64 << 44).prop_map(|(flags, status_data, dword)| {
            let [interrupt, sw, fn_, pd] = flags;
            Descriptor::Wait(Wait { interrupt, sw, fn_, pd, status_data, status_address: dword << 2 })
        }),
        (pasid_iotlb, any::<u16>(), pasid(), 0..64u8, any::<bool>(), page()).prop_map(
            |(granularity, did, pasid, am, ih, addr)| {
                Descriptor::PasidIotlb(PasidIotlb { granularity, did: DomainId(did), pasid, am, ih, addr })
            }
        ),
        (pasid_cache, any::<u16>(), pasid()).prop_map(|(granularity, did, pasid)| {
            Descriptor::PasidCache(PasidCache { granularity, did: DomainId(did), pasid })
        }),
        (any::<u16>(), any::<u16>(), 0..32u8, pasid(), any::<bool>(), range()).prop_map(
            |(sid, pfsid, mip, pasid, gi, range)| {
                let (sid, pfsid) = (SourceId(sid), SourceId(pfsid));
                Descriptor::PasidDeviceTlb(PasidDeviceTlb { sid, pfsid, mip, pasid, gi, range })
            }
        ),
        (proptest::option::of(pasid()), any::<u16>(), codes, 0..512u16).prop_map(|(pasid, rid, rc, prgi)| {
            Descriptor::PageGroupResponse(PageGroupResponse { pasid, rid: SourceId(rid), rc, prgi })
        }),
        (hpt, any::<u16>(), 0..64u8, levels, 0..1u64 << 34).prop_map(|(granularity, did, am, ih, page)| {
            Descriptor::HptCache(HptCache { granularity, hptdid: DomainId(did), am, ih, addr: page << 12 })
        }),
    ]
}

fn vec_of<T, const N: usize>(values: [T; N]) -> std::vec::Vec<T> {
    values.into()
}

proptest! {
    #[test]
    fn every_descriptor_round_trips(descriptor in descriptor()) {
        let words = descriptor.encode();
        prop_assert_eq!(decode(words), Ok(descriptor));
        prop_assert_eq!(DescriptorType::from_qword0(words[0]), Some(descriptor.descriptor_type()));
    }

    #[test]
    fn what_decodes_encodes_to_the_same_meaning(
        kind in 0..12u64,
        words: [u64; 2],
        cap: u64,
        ecap: u64,
        haw in 12..=64u8,
        narrow: bool,
    ) {
        // Mask most reserved bits, else next to nothing decodes.
        let index = (kind.clamp(1, 10) - 1) as usize;
        let [a, b] = LAYOUTS[index].1;
        let words = [words[0] & a & !0xf | kind, words[1] & b, 0, 0];
        let caps = Capabilities { cap: Capability::from_bits(cap), ecap: ExtendedCapability::from_bits(ecap), haw };
        let width = if narrow { Bits128 } else { Bits256 };
        if let Ok(descriptor) = Descriptor::decode(words, width, &caps) {
            prop_assert_eq!(Descriptor::decode(descriptor.encode(), width, &caps), Ok(descriptor));
        }
    }

    #[test]
    fn decoding_any_words_ends_without_panic(words: [u64; 4], cap: u64, ecap: u64, haw: u8, wide: bool) {
        let caps = Capabilities { cap: Capability::from_bits(cap), ecap: ExtendedCapability::from_bits(ecap), haw };
        let _ = Descriptor::decode(words, DescriptorWidth::from_dw(wide), &caps);
    }
}
