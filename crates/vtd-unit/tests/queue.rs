// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The invalidation queue itself: waits, errors and how Linux recovers from them, its registers, and how little of a
//! processor's time it takes.

mod common;

use std::str::FromStr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::descriptors::{device_tlb, iotlb_domain, pasid_cache_entry, pasid_device_tlb, pasid_iotlb, wait};
use common::{Guest, QUEUE, SOURCE_ID, WAIT_STATUS, entry};
use patience::eventually;
use vm_memory::{Bytes, GuestAddress};
use vtd_spec::descriptors::{InterruptEntryCache, InterruptGranularity, Wait};
use vtd_spec::registers::offset;
use vtd_spec::{AddressRange, Descriptor, DomainId, Pasid, SourceId};
use vtd_unit::{
    DeviceTlbInvalidation, EndpointSink, Message, Observer, PageGroupResponse, Requester, UnitConfig,
};

const PASID: Pasid = Pasid::truncated(0x42);
const STATUS: u64 = WAIT_STATUS + 0x100;
const IQE: u32 = 1 << 4;
const ICE: u32 = 1 << 5;
const ITE: u32 = 1 << 6;
const MISSING: SourceId = SourceId(0x4321);

fn status(guest: &Guest) -> u32 {
    guest.memory.read_obj(GuestAddress(STATUS)).unwrap()
}

fn harmless() -> Descriptor {
    pasid_iotlb(DomainId(7), PASID)
}

mod waits {
    use super::*;

    #[test]
    fn status_is_written_as_one_doubleword() {
        let guest = Guest::new();
        guest.store(STATUS - 8, u64::MAX);
        guest.store(STATUS, u64::MAX);
        guest.submit(&wait(STATUS, 0x1234_5678));
        assert_eq!((guest.load(STATUS - 8), guest.load(STATUS)), (u64::MAX, 0xffff_ffff_1234_5678));
        guest.submit(&wait(STATUS + 4, 0x9abc_def0));
        assert_eq!(guest.load(STATUS), 0x9abc_def0_1234_5678);
    }

    #[test]
    fn status_address_bits_above_the_host_address_width_are_ignored() {
        let guest = Guest::new();
        guest.queue_qwords([5 | 1 << 5 | 3 << 32, STATUS | 0xffff << 48, 0, 0]);
        guest.submit(&harmless());
        assert_eq!(status(&guest), 3);
    }

    #[test]
    fn a_status_address_without_memory_is_no_error() {
        let guest = Guest::new();
        for address in [common::MEMORY_BYTES, 0xffff_ffff_fffc, 0xfee0_0000] {
            guest.queue(&wait(address, 1));
        }
        guest.submit(&harmless());
        assert_eq!(guest.read32(offset::FSTS), 0);
    }

    #[test]
    fn interrupt_and_status_come_together() {
        let guest = Guest::new();
        guest.write32(offset::IEDATA, 0x55);
        guest.write32(offset::IEADDR, 0xfee0_1000);
        guest.write32(offset::IECTL, 0);
        let both =
            Wait { interrupt: true, sw: true, status_data: 7, status_address: STATUS, ..Wait::default() };
        guest.submit(&Descriptor::Wait(both));
        assert_eq!((status(&guest), guest.read32(offset::ICS)), (7, 1));
        assert_eq!(guest.messages.take(), [Message { address: 0xfee0_1000, data: 0x55 }]);
    }

    #[test]
    fn a_fence_alone_writes_nothing_and_holds_nothing_up() {
        let guest = Guest::new();
        guest.store(0, 0x77);
        // The first descriptor of a drain (prq.c:intel_iommu_drain_pasid_prq).
        guest.submit_all(&[
            Descriptor::Wait(Wait { fn_: true, ..Wait::default() }),
            pasid_iotlb(DomainId(1), PASID),
            pasid_device_tlb(SOURCE_ID, PASID, AddressRange::ALL),
        ]);
        assert_eq!((guest.load(0), guest.read32(offset::ICS)), (0x77, 0));
        assert!(guest.messages.take().is_empty());
    }

    #[test]
    fn page_request_drain_needs_its_capability() {
        let drain = Wait { pd: true, sw: true, status_data: 9, status_address: STATUS, ..Wait::default() };
        let guest = Guest::new();
        guest.submit(&Descriptor::Wait(drain));
        assert_eq!(status(&guest), 9);
        let guest = Guest::with_config(&UnitConfig::from_str("prs=off,sms=off,pds=off").unwrap());
        guest.write_context(SOURCE_ID, Guest::context().with_pre(false));
        guest.queue(&Descriptor::Wait(drain));
        guest.ring();
        assert_eq!((guest.read32(offset::FSTS), guest.read64(offset::IQERCD)), (IQE, 4));
        assert_eq!(status(&guest), 0);
    }
}

mod errors {
    use super::*;

    /// Rings with one descriptor and returns IQEI, 0 where nothing was wrong.
    fn error_of(options: &str, qwords: [u64; 4]) -> u64 {
        let guest = Guest::powered_up(&UnitConfig::from_str(options).unwrap());
        guest.write64(offset::RTADDR, common::ROOT_TABLE | 0x400);
        guest.command(1 << 30);
        guest.enable_queue();
        guest.queue_qwords(qwords);
        guest.ring();
        let failed = guest.read32(offset::FSTS) & IQE != 0;
        assert_eq!(guest.read64(offset::IQH), if failed { 0 } else { 32 }, "the head stays at what is wrong");
        let iqei = guest.read64(offset::IQERCD) & 0xf;
        assert_eq!(failed, iqei != 0);
        iqei
    }

    #[test]
    fn undefined_and_unsupported_types_are_invalid() {
        for kind in [0, 0xa, 0xb, 0xc, 0xd, 0xe, 0xf] {
            assert_eq!(error_of("ir=on", [kind, 0, 0, 0]), 3, "type {kind}");
        }
        for high in 1..8 {
            assert_eq!(error_of("", [5 | high << 9, 0, 0, 0]), 3, "bits 11:9 belong to the type");
        }
        assert_eq!(error_of("ir=on", [4, 0, 0, 0]), 0);
        assert_eq!(error_of("", [4, 0, 0, 0]), 3, "interrupt entry cache without IR");
        let without = "prs=off,sms=off";
        let response = [9 | 1 << 4, 0, 0, 0];
        assert_eq!((error_of("", response), error_of(without, response)), (0, 3), "response without PRS");
        let without = "prs=off,sms=off,pds=off,nwfs=off,dt=off";
        for device in
            [[3 | u64::from(SOURCE_ID.0) << 32, 0, 0, 0], [8 | u64::from(SOURCE_ID.0) << 16, 0, 0, 0]]
        {
            assert_eq!((error_of("", device), error_of(without, device)), (0, 3), "device-TLB without DT");
        }
    }

    /// The allowed bits of each type, from the reference's table C.2, and a first word that is valid as it is.
    const LAYOUTS: [(u64, u64, u64); 9] = [
        (1 | 1 << 4, 0x0003_ffff_ffff_003f, 0),
        (2 | 1 << 4, 0xffff_00ff, 0xffff_ffff_ffff_f07f),
        (3, 0x0000_ffff_001f_000f, 0xffff_ffff_ffff_f001),
        (4, 0x0000_ffff_f800_001f, 0),
        (5, 0xffff_ffff_0000_00ff, 0xffff_ffff_ffff_fffc),
        (6 | 2 << 4, 0x000f_ffff_ffff_003f, 0xffff_ffff_ffff_f07f),
        (7 | 3 << 4, 0x000f_ffff_ffff_003f, 0),
        (8, 0x000f_ffff_ffff_01ff, 0xffff_ffff_ffff_f801),
        (9 | 1 << 4, 0x000f_ffff_ffff_f01f, 0xffc),
    ];

    #[test]
    fn every_reserved_bit_of_every_type_is_an_error() {
        for (word, low, high) in LAYOUTS {
            assert_eq!(word & !low, 0);
            // A function that exists, so that type 3 and 8 do not time out.
            let word = match word & 0xf {
                3 => word | u64::from(SOURCE_ID.0) << 32,
                8 => word | u64::from(SOURCE_ID.0) << 16,
                _ => word,
            };
            assert_eq!(error_of("ir=on", [word, 0, 0, 0]), 0, "{word:#x}");
            for bit in (0..64).filter(|bit| low >> bit & 1 == 0 && !(9..12).contains(bit)) {
                assert_eq!(error_of("ir=on", [word | 1 << bit, 0, 0, 0]), 4, "{word:#x} bit {bit}");
            }
            for bit in (0..64).filter(|bit| high >> bit & 1 == 0) {
                assert_eq!(error_of("ir=on", [word, 1 << bit, 0, 0]), 4, "{word:#x} bit {}", 64 + bit);
            }
            for bit in [0, 31, 63] {
                assert_eq!(error_of("ir=on", [word, 0, 1 << bit, 0]), 4);
                assert_eq!(error_of("ir=on", [word, 0, 0, 1 << bit]), 4);
            }
        }
    }

    #[test]
    fn reserved_granularities_codes_and_masks_are_errors() {
        for qwords in [
            [1, 0, 0, 0],
            [2, 0, 0, 0],
            [6, 0, 0, 0],
            [6 | 1 << 4, 0, 0, 0],
            [7 | 2 << 4, 0, 0, 0],
            [9 | 1 << 4 | 2 << 12, 0, 0, 0],
            [9 | 1 << 4 | 14 << 12, 0, 0, 0],
            // Type 2 is limited by MAMV (QEMU did not check, and shifted by up to 63).
            [2 | 3 << 4, 19, 0, 0],
            [2 | 3 << 4, 63, 0, 0],
            // Index mask beyond MHMV.
            [4 | 1 << 4 | 16 << 27, 0, 0, 0],
        ] {
            assert_eq!(error_of("ir=on", qwords), 4, "{qwords:x?}");
        }
        assert_eq!(error_of("", [2 | 3 << 4, 18, 0, 0]), 0);
        assert_eq!(error_of("psi=off", [2 | 3 << 4, 0, 0, 0]), 4);
        assert_eq!(error_of("", [6 | 3 << 4, 63, 0, 0]), 0, "the PASID-based one has no such limit");
    }

    /// What Linux does (dmar.c:qi_check_fault): its wait descriptor over the bad one, then IQE off.
    #[test]
    fn linux_recovers_by_overwriting_the_bad_descriptor() {
        let guest = Guest::new();
        guest.submit(&harmless());
        guest.queue_qwords([0xc, 0, 0, 0]);
        guest.queue(&wait(STATUS, 2));
        guest.ring();
        assert_eq!(guest.read32(offset::FSTS), IQE);
        assert_eq!(guest.read64(offset::IQERCD) & 0xf, 3);
        assert_eq!(guest.read64(offset::IQH), 64);
        assert_eq!(guest.messages.take().len(), 1, "a fault event");
        assert_eq!(status(&guest), 0);
        // Nothing is fetched until software has cleared the error, however often it rings.
        guest.ring();
        assert_eq!((guest.read64(offset::IQH), status(&guest)), (64, 0));
        for (index, qword) in wait(STATUS, 2).encode().into_iter().enumerate() {
            guest.store(QUEUE + 64 + 8 * index as u64, qword);
        }
        guest.write32(offset::FSTS, IQE);
        eventually("the wait", || status(&guest) == 2);
        assert_eq!(guest.read64(offset::IQH), 128);
        assert_eq!(guest.read32(offset::FSTS), 0);
        guest.submit(&harmless());
    }

    #[test]
    fn clearing_the_error_without_mending_it_raises_it_again() {
        let guest = Guest::new();
        guest.queue_qwords([0xc, 0, 0, 0]);
        guest.ring();
        for _ in 0..5 {
            assert_eq!(guest.messages.take().len(), 1);
            assert_eq!(guest.read32(offset::FSTS), IQE);
            guest.write32(offset::FSTS, IQE);
        }
    }

    #[test]
    fn a_tail_outside_the_queue_or_between_descriptors_is_an_error() {
        for (tail, iqei) in [(4096 << 2, 1), (0x7_ffe0, 1), (0x10, 6), (0x30, 6), (0x7_fff0, 6)] {
            let guest = Guest::new();
            guest.queue(&wait(STATUS, 2));
            guest.write64(offset::IQT, tail);
            assert_eq!((guest.read32(offset::FSTS), guest.read64(offset::IQERCD)), (IQE, iqei), "{tail:#x}");
            assert_eq!((guest.read64(offset::IQH), status(&guest)), (0, 0));
            guest.ring();
            guest.write32(offset::FSTS, IQE);
            eventually("the wait", || status(&guest) == 2);
        }
    }

    #[test]
    fn a_queue_without_memory_cannot_be_fetched_from() {
        for address in [common::MEMORY_BYTES, 0xffff_ffff_f000, 0xffff_ffff_ffff_f000] {
            let guest = Guest::new();
            guest.command_off(1 << 26);
            guest.write64(offset::IQA, address | 0x800);
            guest.command(1 << 26);
            guest.write64(offset::IQT, 32);
            assert_eq!((guest.read32(offset::FSTS), guest.read64(offset::IQERCD)), (IQE, 2), "{address:#x}");
            guest.command_off(1 << 26);
            guest.write32(offset::FSTS, IQE);
            guest.write64(offset::IQT, 0);
            guest.enable_queue();
            guest.queue(&wait(STATUS, 2));
            guest.ring();
            eventually("the wait", || status(&guest) == 2);
        }
    }

    #[test]
    fn a_queue_that_ends_in_memory_but_is_longer_fails_where_memory_does() {
        let guest = Guest::new();
        guest.command_off(1 << 26);
        let base = common::MEMORY_BYTES - 4096;
        for at in (0..4096).step_by(32) {
            guest.store(base + at, 7 | 3 << 4);
        }
        guest.write64(offset::IQT, 0);
        guest.write64(offset::IQA, base | 0x801);
        guest.command(1 << 26);
        guest.write64(offset::IQT, 4096 + 64);
        eventually("the error", || guest.read32(offset::FSTS) == IQE);
        assert_eq!((guest.read64(offset::IQERCD), guest.read64(offset::IQH)), (2, 4096));
    }

    #[test]
    fn width_and_mode_must_fit() {
        for (options, root, queue, iqei) in [
            ("", 0x400, 0, 5),
            ("", 0x800, 0x800, 7),
            ("", 0x800, 0, 7),
            ("", 0xc00, 0x800, 7),
            ("smts=off,fsts=off,fs1gp=off,fs5lp=off,pasid=off,prs=off,sms=off,smpwc=off", 0, 0x800, 5),
            ("smts=off,fsts=off,fs1gp=off,fs5lp=off,pasid=off,prs=off,sms=off,smpwc=off", 0x400, 0x800, 7),
        ] {
            let guest = Guest::powered_up(&UnitConfig::from_str(options).unwrap());
            guest.write64(offset::RTADDR, common::ROOT_TABLE | root);
            guest.command(1 << 30);
            guest.write64(offset::IQA, QUEUE | queue);
            guest.command(1 << 26);
            guest.write64(offset::IQT, 32);
            assert_eq!(
                (guest.read32(offset::FSTS), guest.read64(offset::IQERCD)),
                (IQE, iqei),
                "RTADDR {root:#x} IQA {queue:#x}"
            );
        }
    }

    #[test]
    fn before_scalable_mode_is_set_only_the_old_types_exist() {
        for wide in [true, false] {
            let guest = Guest::powered_up(&UnitConfig::from_str("ir=on").unwrap());
            guest.write64(offset::IQA, QUEUE | if wide { 0x800 } else { 0 });
            guest.command(1 << 26);
            let step = if wide { 32 } else { 16 };
            let mut tail = 0;
            let mut put = |qwords: &[u64]| {
                for (index, qword) in qwords.iter().take(step / 8).enumerate() {
                    guest.store(QUEUE + tail + 8 * index as u64, *qword);
                }
                tail += step as u64;
                guest.write64(offset::IQT, tail);
            };
            put(&[1 | 1 << 4, 0, 0, 0]);
            put(&[2 | 1 << 4, 0, 0, 0]);
            put(&[4, 0, 0, 0]);
            put(&wait(STATUS, 2).encode());
            assert_eq!((status(&guest), guest.read32(offset::FSTS)), (2, 0));
            put(&pasid_iotlb(DomainId(1), PASID).encode());
            assert_eq!((guest.read32(offset::FSTS), guest.read64(offset::IQERCD)), (IQE, 3), "wide: {wide}");
        }
    }

    #[test]
    fn an_unsolicited_completion_is_reported_and_stops_nothing() {
        let guest = Guest::new();
        let (second, _) = guest.endpoint_at(SourceId::new(0, 9, 1));
        guest.endpoint.unsolicited_invalidation_completion();
        second.unsolicited_invalidation_completion();
        assert_eq!(guest.read32(offset::FSTS), ICE);
        assert_eq!(guest.read64(offset::IQERCD), u64::from(SOURCE_ID.0) << 48, "the first is kept");
        assert_eq!(guest.messages.take().len(), 1);
        guest.submit(&harmless());
        guest.write32(offset::FSTS, ICE);
        second.unsolicited_invalidation_completion();
        assert_eq!(guest.read64(offset::IQERCD), u64::from(SourceId::new(0, 9, 1).0) << 48);
    }
}

mod time_outs {
    use super::*;

    #[test]
    fn the_next_wait_is_aborted_and_linux_tries_again() {
        let guest = Guest::new();
        for descriptor in [
            device_tlb(MISSING, AddressRange::ALL),
            pasid_device_tlb(MISSING, PASID, AddressRange::new(0x1000, 0)),
        ] {
            guest.memory.write_obj(1u32, GuestAddress(STATUS)).unwrap();
            guest.queue(&descriptor);
            guest.queue(&harmless());
            guest.queue(&wait(STATUS, 2));
            guest.queue(&wait(STATUS, 3));
            guest.ring();
            assert_eq!((guest.read32(offset::FSTS), status(&guest)), (ITE, 1), "{descriptor:?}");
            assert_eq!(guest.read64(offset::IQERCD), u64::from(MISSING.0) << 32);
            assert_eq!(guest.messages.take().len(), 1);
            let head = guest.read64(offset::IQH);
            assert!(head < guest.read64(offset::IQT), "what follows is not fetched");
            guest.ring();
            assert_eq!((guest.read64(offset::IQH), status(&guest)), (head, 1));
            guest.write32(offset::FSTS, ITE);
            eventually("the second wait", || status(&guest) == 3);
            // Submitted again, now for a function that exists: nothing is left of the time-out.
            guest.submit(&device_tlb(SOURCE_ID, AddressRange::ALL));
            assert_eq!(guest.read32(offset::FSTS), 0);
        }
    }

    #[test]
    fn the_head_lies_where_linux_looks_for_the_aborted_wait() {
        let guest = Guest::new();
        guest.submit(&harmless());
        guest.queue(&device_tlb(MISSING, AddressRange::ALL));
        guest.queue(&wait(STATUS, 2));
        guest.ring();
        // dmar.c:qi_check_fault marks the wait at ((head / 32) - 1) | 1 as aborted.
        let head = guest.read64(offset::IQH) / 32;
        assert_eq!((head - 1) | 1, 3);
    }

    #[test]
    fn the_first_function_of_several_is_named_and_one_abort_answers_all() {
        let guest = Guest::new();
        guest.queue(&device_tlb(MISSING, AddressRange::ALL));
        guest.queue(&device_tlb(SourceId(0x1111), AddressRange::ALL));
        guest.queue(&wait(STATUS, 2));
        guest.queue(&wait(STATUS, 3));
        guest.ring();
        assert_eq!(guest.read64(offset::IQERCD), u64::from(MISSING.0) << 32);
        guest.write32(offset::FSTS, ITE);
        eventually("the second wait", || status(&guest) == 3);
        assert_eq!(guest.read32(offset::FSTS), 0);
    }

    #[test]
    fn a_time_out_that_no_wait_follows_is_seen_all_the_same() {
        let guest = Guest::new();
        guest.queue(&device_tlb(MISSING, AddressRange::ALL));
        guest.ring();
        eventually("ITE", || guest.read32(offset::FSTS) == ITE);
        assert_eq!(guest.read64(offset::IQH), guest.read64(offset::IQT));
        guest.write32(offset::FSTS, ITE);
        guest.submit(&harmless());
    }

    #[test]
    fn a_function_that_was_plugged_in_answers() {
        let guest = Guest::new();
        let _endpoint = guest.endpoint_at(MISSING);
        guest.submit(&device_tlb(MISSING, AddressRange::ALL));
        assert_eq!(guest.read32(offset::FSTS), 0);
    }
}

mod ring {
    use super::*;

    #[test]
    fn it_wraps() {
        let guest = Guest::new();
        for round in 0..2000u32 {
            guest.queue(&harmless());
            guest.queue(&wait(STATUS, round));
            guest.submit(&harmless());
            assert_eq!(status(&guest), round);
        }
        assert_eq!(guest.read64(offset::IQH), guest.read64(offset::IQT));
    }

    #[test]
    fn every_size_wraps_at_its_own_end() {
        for shift in 0..8 {
            let guest = Guest::new();
            guest.command_off(1 << 26);
            let size = 4096u64 << shift;
            let base = guest.pages(1 << shift, 1);
            for at in (0..size).step_by(32) {
                for (index, qword) in wait(STATUS, at as u32).encode().into_iter().enumerate() {
                    guest.store(base + at + 8 * index as u64, qword);
                }
            }
            guest.write64(offset::IQT, 0);
            guest.write64(offset::IQA, base | 0x800 | shift);
            guest.command(1 << 26);
            guest.write64(offset::IQT, size - 32);
            eventually("the end", || {
                guest.read64(offset::IQH) == size - 32 && status(&guest) as u64 == size - 64
            });
            guest.write64(offset::IQT, 32);
            eventually("the beginning", || guest.read64(offset::IQH) == 32 && status(&guest) == 0);
            guest.write64(offset::IQT, size);
            let expected = if shift == 7 { 0 } else { IQE };
            eventually("the answer", || guest.read32(offset::FSTS) == expected);
        }
    }

    #[test]
    fn nothing_runs_while_it_is_disabled_and_what_is_there_runs_when_it_is_enabled() {
        let guest = Guest::new();
        guest.command_off(1 << 26);
        guest.write64(offset::IQT, 0);
        for (index, qword) in wait(STATUS, 2).encode().into_iter().enumerate() {
            guest.store(QUEUE + 8 * index as u64, qword);
        }
        // Windows sets the tail before it enables the queue.
        guest.write64(offset::IQT, 32);
        assert_eq!((guest.read64(offset::IQH), status(&guest)), (0, 0));
        guest.command(1 << 26);
        eventually("the wait", || status(&guest) == 2);
        assert_eq!(guest.read64(offset::IQH), 32);
    }

    #[test]
    fn it_runs_whether_or_not_translation_is_on() {
        let guest = Guest::new();
        guest.command_off(1 << 31);
        guest.submit(&iotlb_domain(DomainId(1)));
        guest.submit(&pasid_cache_entry(DomainId(1), PASID));
    }

    /// A hostile guest changes the queue's width while it runs, so that the head lies between descriptors, in a ring full
    /// of valid ones: the unit must come to rest.
    #[test]
    fn a_head_between_descriptors_does_not_run_around_for_ever() {
        let guest = Guest::powered_up(&UnitConfig::default());
        // A fence in each place between two descriptors of 32 bytes; fetched from there, all are valid.
        for at in (16..4096).step_by(32) {
            guest.store(QUEUE + at, 5 | 1 << 6);
        }
        guest.store(QUEUE, 5 | 1 << 6);
        guest.write64(offset::IQA, QUEUE);
        guest.command(1 << 26);
        guest.write64(offset::IQT, 16);
        assert_eq!(guest.read64(offset::IQH), 16);
        guest.write64(offset::IQA, QUEUE | 0x800);
        guest.write64(offset::IQT, 64);
        let at_rest = || {
            let before = guest.read64(offset::IQH);
            std::thread::sleep(Duration::from_millis(20));
            guest.read64(offset::IQH) == before
        };
        eventually("rest", || (0..5).all(|_| at_rest()));
    }

    #[test]
    fn a_queue_made_smaller_under_the_head_comes_to_rest() {
        let guest = Guest::new();
        for _ in 0..300 {
            guest.queue(&harmless());
        }
        guest.submit(&harmless());
        assert!(guest.read64(offset::IQH) > 4096);
        guest.write64(offset::IQA, QUEUE | 0x800);
        guest.write64(offset::IQT, 64);
        eventually("rest", || {
            let head = guest.read64(offset::IQH);
            head == 64 || guest.read32(offset::FSTS) & IQE != 0
        });
    }

    #[test]
    fn processors_that_ring_at_the_same_time_lose_nothing() {
        let guest = Guest::new();
        let tail = Mutex::new(0u64);
        std::thread::scope(|scope| {
            for thread in 0..4u64 {
                let (guest, tail) = (&guest, &tail);
                scope.spawn(move || {
                    for round in 0..500u32 {
                        let address = STATUS + 64 * (1 + thread);
                        {
                            // As Linux: a lock around the descriptors and the tail.
                            let mut tail = tail.lock().unwrap();
                            for descriptor in [harmless(), wait(address, round + 1)] {
                                for (index, qword) in descriptor.encode().into_iter().enumerate() {
                                    guest.store(QUEUE + *tail + 8 * index as u64, qword);
                                }
                                *tail = (*tail + 32) % (4096 << common::QUEUE_SIZE_SHIFT);
                            }
                            guest.write64(offset::IQT, *tail);
                        }
                        eventually("the wait", || {
                            guest.memory.read_obj::<u32>(GuestAddress(address)).unwrap() == round + 1
                        });
                    }
                });
            }
        });
        assert_eq!(guest.read32(offset::FSTS), 0);
    }

    #[test]
    fn interrupt_entry_invalidations_complete() {
        let guest = Guest::with_config(&UnitConfig::from_str("ir=on").unwrap());
        for (granularity, im, iidx) in [
            (InterruptGranularity::Global, 0, 0),
            (InterruptGranularity::Index, 0, 11),
            (InterruptGranularity::Index, 15, 0),
        ] {
            guest.submit(&Descriptor::InterruptEntryCache(InterruptEntryCache { granularity, im, iidx }));
        }
    }
}

mod doorbell {
    use super::*;

    /// A sink that lets some invalidations pass and then holds the queue's worker until it is opened.
    #[derive(Default)]
    struct Gate {
        heard: Mutex<usize>,
        open: Mutex<bool>,
    }

    /// How many pass: more than a doorbell should work off.
    const PASS: usize = 300;
    /// How many there are: as many as fit.
    const ALL: usize = 500;

    impl EndpointSink for Gate {
        fn page_group_response(&self, _: PageGroupResponse) {}

        fn device_tlb_invalidation(&self, _: DeviceTlbInvalidation) {
            let heard = {
                let mut heard = self.heard.lock().unwrap();
                *heard += 1;
                *heard
            };
            if heard > PASS {
                // A processor that is held here never opens it: then the test fails here.
                eventually("the gate to be opened", || *self.open.lock().unwrap());
            }
        }
    }

    impl Gate {
        fn heard(&self) -> usize {
            *self.heard.lock().unwrap()
        }

        fn open(&self) {
            *self.open.lock().unwrap() = true;
        }
    }

    /// A queue full of invalidations whose sink does not return in time.
    fn full_queue() -> (Guest, Arc<Gate>) {
        const GATED: SourceId = SourceId::new(0, 0x10, 0);
        let guest = Guest::new();
        let gate = Arc::new(Gate::default());
        guest.unit.endpoint(GATED, Arc::clone(&gate) as Arc<dyn EndpointSink>).unwrap();
        for _ in 0..ALL {
            guest.queue(&device_tlb(GATED, AddressRange::ALL));
        }
        guest.queue(&wait(STATUS, 2));
        (guest, gate)
    }

    /// None of this returns if the processor works the queue off itself.
    fn goes_on(guest: &Guest, gate: &Gate) {
        eventually("the gate", || gate.heard() == PASS + 1);
        assert_eq!(status(guest), 0);
        // The processor goes on, and so do other functions.
        assert_eq!(guest.read32(offset::FSTS), 0);
        guest.bind(Pasid::ZERO);
        guest.map(Pasid::ZERO, 0x5000, guest.page(), entry::USER);
        guest.endpoint.read(Requester::default(), 0x5000, &mut [0]).unwrap();
        guest.ring();
        assert_eq!((gate.heard(), status(guest)), (PASS + 1, 0), "still one worker");
        gate.open();
        eventually("the wait", || status(guest) == 2);
        assert_eq!(gate.heard(), ALL);
        guest.submit(&harmless());
    }

    #[test]
    fn a_full_queue_does_not_hold_the_processor_that_rings() {
        let (guest, gate) = full_queue();
        guest.ring();
        goes_on(&guest, &gate);
    }

    #[test]
    fn nor_the_one_that_enables_the_queue() {
        let (guest, gate) = full_queue();
        guest.command_off(1 << 26);
        guest.ring();
        guest.command(1 << 26);
        goes_on(&guest, &gate);
    }

    #[test]
    fn nor_the_one_that_clears_an_error() {
        let (guest, gate) = full_queue();
        let first = guest.load(QUEUE);
        guest.store(QUEUE, 0xc);
        guest.ring();
        assert_eq!(guest.read32(offset::FSTS), IQE);
        guest.store(QUEUE, first);
        guest.write32(offset::FSTS, IQE);
        goes_on(&guest, &gate);
    }

    #[test]
    fn a_queue_disabled_under_its_worker_starts_afresh() {
        let (guest, gate) = full_queue();
        guest.ring();
        eventually("the gate", || gate.heard() == PASS + 1);
        guest.write32(offset::GCMD, 1 << 31);
        assert_eq!(guest.read64(offset::IQH), 0);
        assert_ne!(guest.read32(offset::GSTS) & 1 << 26, 0, "a descriptor is under way");
        // A new queue in another place, enabled while the old worker is still held.
        let base = guest.page();
        for (index, qword) in wait(STATUS, 7).encode().into_iter().enumerate() {
            guest.store(base + 8 * index as u64, qword);
        }
        guest.write64(offset::IQT, 0);
        guest.write64(offset::IQA, base | 0x800);
        guest.command(1 << 26);
        guest.write64(offset::IQT, 32);
        gate.open();
        eventually("the new queue's wait", || status(&guest) == 7);
        assert_eq!(guest.read64(offset::IQH), 32);
        assert_eq!(gate.heard(), PASS + 1, "nothing more of the old queue");
    }

    /// What a queue owed when it was disabled is owed no more: neither the status nor the abort of a time-out.
    #[test]
    fn a_time_out_of_a_disabled_queue_does_not_stop_the_next_one() {
        const GATED: SourceId = SourceId::new(0, 0x10, 0);
        let guest = Guest::new();
        let gate = Arc::new(Gate::default());
        *gate.heard.lock().unwrap() = PASS;
        guest.unit.endpoint(GATED, Arc::clone(&gate) as Arc<dyn EndpointSink>).unwrap();
        guest.queue(&device_tlb(MISSING, AddressRange::ALL));
        guest.queue(&device_tlb(GATED, AddressRange::ALL));
        std::thread::scope(|scope| {
            scope.spawn(|| guest.ring());
            eventually("the gate", || gate.heard() == PASS + 1);
            guest.write32(offset::GCMD, 1 << 31);
            guest.restart_queue();
            guest.queue(&wait(STATUS, 7));
            guest.ring();
            gate.open();
            eventually("the new queue's wait", || status(&guest) == 7);
        });
        assert_eq!((guest.read32(offset::FSTS), guest.read64(offset::IQERCD)), (0, 0));
    }

    /// Holds each wait descriptor just before it completes.
    struct Hold(Arc<Gate>);

    impl Observer for Hold {
        fn invalidated(&self, _: &Descriptor) {}

        fn complete(&self, _: bool) {
            self.0.device_tlb_invalidation(DeviceTlbInvalidation {
                pasid: None,
                global: false,
                range: AddressRange::ALL,
            });
        }

        fn remapping_changed(&self) {}
    }

    #[test]
    fn a_wait_of_a_disabled_queue_writes_nothing() {
        for reset in [false, true] {
            let guest = Guest::new();
            let gate = Arc::new(Gate::default());
            *gate.heard.lock().unwrap() = PASS;
            let observer: Arc<dyn Observer> = Arc::new(Hold(Arc::clone(&gate)));
            guest.unit.add_observer(&observer);
            let both =
                Wait { interrupt: true, sw: true, status_data: 7, status_address: STATUS, ..Wait::default() };
            guest.queue(&Descriptor::Wait(both));
            std::thread::scope(|scope| {
                scope.spawn(|| guest.ring());
                eventually("the gate", || gate.heard() == PASS + 1);
                if reset {
                    guest.unit.reset();
                    assert_eq!(guest.read32(offset::GSTS), 0);
                } else {
                    guest.write32(offset::GCMD, 1 << 31);
                    assert_ne!(guest.read32(offset::GSTS) & 1 << 26, 0, "the descriptor is under way");
                }
                gate.open();
            });
            assert_eq!(guest.read32(offset::GSTS) & 1 << 26, 0);
            assert_eq!((status(&guest), guest.read32(offset::ICS)), (0, 0), "reset: {reset}");
        }
    }
}
