// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The register page as software meets it: the access rule of every bit, reset values, access sizes, commands and
//! their status, and the three event sources.

mod common;

use std::str::FromStr;

use common::descriptors::{pasid_cache, wait};
use common::{Guest, Memory, SOURCE_ID, entry, pasid};
use vm_memory::{Bytes, GuestAddress};
use vtd_spec::descriptors::{PasidCacheGranularity, Wait};
use vtd_spec::registers::offset;
use vtd_spec::{Capability, Descriptor, DomainId, ExtendedCapability, Pasid};
use vtd_unit::{DmaError, Message, PageRequest, Requester, Unit, UnitConfig};

const PAGE: u64 = Unit::<Memory>::REGISTER_BYTES;

/// How the bits of one doubleword behave. Those that are not `writable` are read-only; what is write-only, or written 1
/// to clear, reads 0 here too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Rule {
    writable: u32,
    reset: u32,
}

/// The upper halves of CCMD and of the IOTLB register: a one in bit 31 is a command, see `register_invalidation.rs`.
const INVALIDATION_COMMANDS: [u64; 2] = [0x2c, 0xf0c];

/// Whether writing anything at all to these bytes starts a command.
fn starts_commands(at: u64, bytes: u64) -> bool {
    INVALIDATION_COMMANDS.into_iter().chain([offset::GCMD]).any(|command| (at..at + bytes).contains(&command))
}

/// The rules of the reference, section A.1, for a unit with interrupt remapping and page requests or without.
fn rule(at: u64, config: &UnitConfig) -> Rule {
    let capabilities = config.capabilities().unwrap();
    let (cap, ecap) = (capabilities.cap.into_bits(), capabilities.ecap.into_bits());
    let rw = |writable| Rule { writable, reset: 0 };
    let ro = |reset| Rule { writable: 0, reset };
    let control = Rule { writable: 1 << 31, reset: 1 << 31 };
    match at {
        0x00 => ro(0x10),
        0x08 => ro(cap as u32),
        0x0c => ro((cap >> 32) as u32),
        0x10 => ro(ecap as u32),
        0x14 => ro((ecap >> 32) as u32),
        // RTADDR: RTA, TTM.
        0x20 => rw(0xffff_fc00),
        0x24 => rw(!0),
        // CCMD: DID; SID is write-only.
        0x28 => rw(0xffff),
        0x38 | 0xa0 => control,
        0x3c | 0xa4 => rw(0xffff),
        0x40 | 0xa8 => rw(!3),
        0x44 | 0xac => rw(!0),
        // IQT, IQA.
        0x88 => rw(0x7_fff0),
        0x90 => rw(0xffff_f807),
        0x94 => rw(!0),
        // IRTA.
        0xb8 if config.ir => rw(0xffff_f00f | if config.eim { 0x800 } else { 0 }),
        0xbc if config.ir => rw(!0),
        // PQH, PQT, PQA and the page request event.
        0xc0 | 0xc8 if config.prs => rw(0x7_ffe0),
        0xd0 if config.prs => rw(0xffff_f007),
        0xd4 if config.prs => rw(!0),
        0xe0 if config.prs => control,
        0xe4 if config.prs => rw(0xffff),
        0xe8 if config.prs => rw(!3),
        0xec if config.prs => rw(!0),
        _ => Rule::default(),
    }
}

fn configs() -> [UnitConfig; 4] {
    ["", "ir=on,eim=on,fault-records=100", "ir=on,fault-records=1", "prs=off,sms=off,cm=off"]
        .map(|options| UnitConfig::from_str(options).unwrap())
}

fn page(guest: &Guest) -> Vec<u32> {
    (0..PAGE / 4).map(|index| guest.read32(index * 4)).collect()
}

#[test]
fn power_up_and_reset_leave_the_reset_values() {
    for config in configs() {
        let guest = Guest::powered_up(&config);
        let expected: Vec<_> = (0..PAGE / 4).map(|index| rule(index * 4, &config).reset).collect();
        assert_eq!(page(&guest), expected);
        drop(guest);
        let guest = Guest::with_config(&config);
        // Leave something in every status register, too.
        guest.endpoint.read(Guest::with_pasid(pasid(9)), 0, &mut [0]).unwrap_err();
        guest.endpoint.unsolicited_invalidation_completion();
        guest.queue_qwords([0xf, 0, 0, 0]);
        guest.ring();
        assert_eq!(guest.read32(offset::FSTS) & 0x33, 0x32);
        guest.unit.reset();
        assert_eq!(page(&guest), expected);
        // Translation is off again: what the device names is a physical address.
        guest.endpoint.write(Requester::default(), 0x8000, &[7]).unwrap();
        assert_eq!(guest.memory.read_obj::<u8>(GuestAddress(0x8000)).unwrap(), 7);
    }
}

/// The page as software reads it after writing `value` everywhere, from the rules alone.
fn after_writing(value: u32, config: &UnitConfig) -> Vec<u32> {
    let dword = |index: u64| {
        let Rule { writable, reset } = rule(index * 4, config);
        reset & !writable | value & writable
    };
    (0..PAGE / 4).map(dword).collect()
}

#[test]
fn each_doubleword_takes_exactly_its_writable_bits_and_nothing_leaks() {
    for config in configs() {
        let guest = Guest::powered_up(&config);
        for at in (0..PAGE).step_by(4).filter(|at| !starts_commands(*at, 4)) {
            let before = page(&guest);
            for value in [!0, 0x5555_5555, 0xaaaa_aaaa, 0] {
                guest.write32(at, value);
                let mut expected = before.clone();
                let Rule { writable, reset } = rule(at, &config);
                expected[at as usize / 4] = reset & !writable | value & writable;
                assert_eq!(page(&guest), expected, "{value:#x} at {at:#x}");
            }
        }
    }
}

#[test]
fn quadwords_are_their_two_halves_everywhere() {
    for config in configs() {
        for value in [!0u64, 0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210] {
            let guest = Guest::powered_up(&config);
            // Offsets that are only doubleword aligned too: QEMU once aborted on the upper half of a register.
            for at in (0..=PAGE - 8).step_by(4).filter(|at| !starts_commands(*at, 8)) {
                let before = page(&guest);
                guest.write64(at, value);
                let mut expected = before.clone();
                for (at, value) in [(at, value as u32), (at + 4, (value >> 32) as u32)] {
                    let Rule { writable, reset } = rule(at, &config);
                    expected[at as usize / 4] = reset & !writable | value & writable;
                }
                assert_eq!(page(&guest), expected, "{value:#x} at {at:#x}");
                let read = guest.read64(at);
                assert_eq!([read as u32, (read >> 32) as u32], expected[at as usize / 4..][..2]);
            }
        }
    }
}

#[test]
fn a_64_bit_register_may_be_written_by_halves() {
    let guest = Guest::powered_up(&UnitConfig::default());
    for at in [offset::RTADDR, offset::IQA, offset::PQA] {
        guest.write32(at, 0x1234_5000);
        guest.write32(at + 4, 0x9abc);
        assert_eq!(guest.read64(at), 0x9abc_1234_5000);
    }
}

#[test]
fn other_sizes_and_alignments_change_nothing() {
    let guest = Guest::powered_up(&UnitConfig::from_str("ir=on").unwrap());
    for at in (0..PAGE).step_by(4) {
        guest.write32(at, if at == offset::GCMD { 0 } else { 0x1_0010 });
    }
    let before = page(&guest);
    let ones = [0xff; 64];
    for size in (0..=64).filter(|size| ![4, 8].contains(size)) {
        for at in (0..PAGE).chain([PAGE, PAGE + 4, u64::MAX - 64, u64::MAX - 3, u64::MAX]) {
            guest.unit.write(at, &ones[..size]);
        }
    }
    for size in [4, 8] {
        for at in (0..PAGE).filter(|at| at % 4 != 0).chain([PAGE, u64::MAX - 3, u64::MAX - 7, u64::MAX]) {
            guest.unit.write(at, &ones[..size]);
        }
    }
    guest.unit.write(PAGE - 4, &ones[..8]);
    assert_eq!(page(&guest), before);
}

#[test]
fn reads_of_any_size_see_the_bytes_of_the_page_and_zeros_behind_it() {
    let guest = Guest::powered_up(&UnitConfig::default());
    let bytes: Vec<u8> = page(&guest).into_iter().flat_map(u32::to_le_bytes).collect();
    for size in 0..=16 {
        for at in 0..PAGE {
            let mut data = vec![0xee; size];
            guest.unit.read(at, &mut data);
            let expected: Vec<u8> =
                (at as usize..at as usize + size).map(|at| bytes.get(at).copied().unwrap_or(0)).collect();
            assert_eq!(data, expected);
        }
        for at in [PAGE, u64::MAX - 8, u64::MAX - 3, u64::MAX] {
            let mut data = vec![0xee; size];
            guest.unit.read(at, &mut data);
            assert_eq!(data, vec![0; size]);
        }
    }
}

#[test]
fn written_registers_survive_writes_of_the_others() {
    let config = UnitConfig::from_str("ir=on").unwrap();
    let guest = Guest::powered_up(&config);
    for at in (0..PAGE).step_by(4).filter(|at| !starts_commands(*at, 4)) {
        guest.write32(at, 0xa5a5_a5a5);
    }
    assert_eq!(page(&guest), after_writing(0xa5a5_a5a5, &config));
}

/// (GCMD, GSTS) in one line each; the bits are those of A.4.
#[test]
fn commands_are_persistent_or_one_shot_as_specified() {
    const TE: u32 = 1 << 31;
    const SRTP: u32 = 1 << 30;
    const WBF: u32 = 1 << 27;
    const QIE: u32 = 1 << 26;
    const IRE: u32 = 1 << 25;
    const SIRTP: u32 = 1 << 24;
    const CFI: u32 = 1 << 23;
    let with_interrupts = [
        (QIE, QIE),
        (QIE | SIRTP, QIE | SIRTP),
        (QIE | IRE, QIE | SIRTP | IRE),
        (QIE | IRE | SRTP, QIE | SIRTP | IRE | SRTP),
        (QIE | IRE | TE, QIE | SIRTP | IRE | SRTP | TE),
        (QIE | IRE | TE | CFI, QIE | SIRTP | IRE | SRTP | TE | CFI),
        // RWBF is 0: nothing to flush, and no status that software could wait for.
        (QIE | IRE | TE | WBF, QIE | SIRTP | IRE | SRTP | TE),
        // Bits that stand for nothing.
        (QIE | IRE | TE | 0x307f_ffff, QIE | SIRTP | IRE | SRTP | TE),
        (QIE | IRE, QIE | SIRTP | IRE | SRTP),
        (0, SIRTP | SRTP),
        // Everything in one write.
        (!0, QIE | SIRTP | IRE | SRTP | TE | CFI),
        (0, SIRTP | SRTP),
    ];
    let without = [
        (QIE, QIE),
        (QIE | SIRTP | IRE | CFI, QIE),
        (QIE | SRTP | TE, QIE | SRTP | TE),
        (0, SRTP),
        (!0, QIE | SRTP | TE),
    ];
    for (options, steps) in [("ir=on", &with_interrupts[..]), ("", &without[..])] {
        let guest = Guest::powered_up(&UnitConfig::from_str(options).unwrap());
        guest.write64(offset::RTADDR, common::ROOT_TABLE | 0x400);
        guest.write64(offset::IQA, common::QUEUE | 0x800);
        for (command, status) in steps {
            guest.write32(offset::GCMD, *command);
            assert_eq!(guest.read32(offset::GSTS), *status, "after GCMD {command:#x} ({options})");
            assert_eq!(guest.read32(offset::GCMD), 0, "GCMD is write-only");
        }
    }
}

/// RW1CS and ROS bits are lost with the power only. [S 11.2]
#[test]
fn sticky_bits_survive_a_reset_that_keeps_the_power() {
    let guest = Guest::new();
    let (other, _) = guest.endpoint_at(vtd_spec::SourceId::new(0, 9, 0));
    guest.bind(Pasid::ZERO);
    other.read(Guest::with_pasid(pasid(9)), 0x1000, &mut [0]).unwrap_err();
    guest.endpoint.unsolicited_invalidation_completion();
    guest.submit(&Descriptor::Wait(Wait { interrupt: true, ..Wait::default() }));
    let request = PageRequest {
        requester: Requester::default(),
        address: 0x1000,
        read: true,
        write: false,
        last: true,
        group: 0,
    };
    guest.endpoint.page_request(request);
    guest.write64(offset::PQH, guest.read64(offset::PQT) + 32);
    guest.endpoint.page_request(request);
    guest.queue_qwords([0xf, 0, 0, 0]);
    guest.ring();
    let sticky = || {
        let record = 0x220;
        [offset::FSTS, offset::ICS, offset::PRS, record, record + 4, record + 8, record + 12]
            .map(|at| u64::from(guest.read32(at)))
            .into_iter()
            .chain([guest.read64(offset::IQERCD)])
            .collect::<Vec<_>>()
    };
    let before = sticky();
    assert_eq!(before[..3], [0x32, 1, 3], "PPF, IQE and ICE; IWC; PPR and PRO");
    assert_ne!((before[6] >> 31, before[7]), (0, 0));
    guest.unit.warm_reset();
    assert_eq!(sticky(), before);
    // All else is as after power-up, and the bits are cleared as ever.
    let config = UnitConfig::default();
    for (index, value) in page(&guest).into_iter().enumerate() {
        let at = index as u64 * 4;
        let is_sticky = [offset::FSTS, offset::ICS, offset::PRS, offset::IQERCD, offset::IQERCD + 4]
            .contains(&at)
            || (0x220..0x230).contains(&at);
        assert!(is_sticky || value == rule(at, &config).reset, "{at:#x}: {value:#x}");
    }
    assert_eq!(guest.take_faults().len(), 1);
    guest.write32(offset::FSTS, 0x71);
    guest.write32(offset::ICS, 1);
    guest.write32(offset::PRS, 3);
    assert_eq!(sticky()[..3], [0, 0, 0]);
    other.read(Guest::with_pasid(pasid(9)), 0x1000, &mut [0]).unwrap();
    guest.unit.reset();
    assert_eq!(sticky(), [0; 8]);
}

#[test]
fn status_is_not_written_by_software() {
    let guest = Guest::new();
    let status = guest.read32(offset::GSTS);
    guest.write32(offset::GSTS, !status);
    assert_eq!(guest.read32(offset::GSTS), status);
    // An 8-byte write that covers GCMD is the command alone.
    guest.write64(offset::GCMD, u64::from(status & 0x96ff_ffff) | (u64::from(!status) << 32));
    assert_eq!(guest.read32(offset::GSTS), status);
}

#[test]
fn the_root_pointer_takes_effect_by_its_command_only() {
    let guest = Guest::new();
    guest.bind(Pasid::ZERO);
    guest.map(Pasid::ZERO, 0x5000, guest.page(), entry::USER);
    let read = || guest.endpoint.read(Requester::default(), 0x5000, &mut [0]);
    read().unwrap();
    let elsewhere = guest.page();
    guest.write64(offset::RTADDR, elsewhere | 0x400);
    // Neither the write nor a new look at the tables uses the new pointer.
    guest.submit(&common::descriptors::context_device(SOURCE_ID));
    read().unwrap();
    guest.write32(offset::GCMD, guest.read32(offset::GSTS) & 0x96ff_ffff);
    read().unwrap();
    guest.command(1 << 30);
    assert_eq!(read(), Err(DmaError::Refused { address: 0x5000 }));
    assert_eq!(guest.take_fault_reason(), Some(0x39), "SRT.2: the new root table is empty");
    guest.write64(offset::RTADDR, common::ROOT_TABLE | 0x400);
    guest.command(1 << 30);
    read().unwrap();
}

#[test]
fn head_pointer_is_cleared_by_disabling_the_queue() {
    let guest = Guest::new();
    guest.submit(&pasid_cache(PasidCacheGranularity::Global, DomainId(0), Pasid::ZERO));
    assert_eq!(guest.read64(offset::IQH), 64);
    guest.write64(offset::IQH, 0);
    assert_eq!(guest.read64(offset::IQH), 64, "read-only");
    guest.command_off(1 << 26);
    assert_eq!(guest.read64(offset::IQH), 0);
    assert_eq!(guest.read64(offset::IQT), 64, "the tail is software's");
}

/// One of the three event sources: where its registers are, what raises it and what clears it.
struct Source {
    control: u64,
    raise: fn(&Guest),
    clear: fn(&Guest),
}

const SOURCES: [Source; 3] = [
    Source {
        control: offset::FECTL,
        raise: |guest| {
            guest.endpoint.read(Guest::with_pasid(pasid(7)), 0x1000, &mut [0]).unwrap_err();
        },
        clear: |guest| {
            guest.take_faults();
        },
    },
    Source {
        control: offset::IECTL,
        raise: |guest| guest.submit(&Descriptor::Wait(Wait { interrupt: true, ..Wait::default() })),
        clear: |guest| guest.write32(offset::ICS, 1),
    },
    Source {
        control: offset::PECTL,
        raise: |guest| {
            guest.endpoint.page_request(PageRequest {
                requester: Requester::default(),
                address: 0x1000,
                read: true,
                write: false,
                last: true,
                group: 0,
            });
        },
        clear: |guest| guest.write32(offset::PRS, 1),
    },
];

#[test]
fn events_are_sent_held_back_and_withdrawn_by_the_rule() {
    const IM: u32 = 1 << 31;
    const IP: u32 = 1 << 30;
    for Source { control, raise, clear } in SOURCES {
        let guest = Guest::new();
        guest.bind(Pasid::ZERO);
        guest.write32(control, IM);
        guest.write32(control + 4, 0xffff_4321);
        // Xen writes both halves of the address at once.
        guest.write64(control + 8, 0x12_fee0_1007);
        let message = Message { address: 0x12_fee0_1004, data: 0x4321 };
        let state = || (guest.read32(control), guest.messages.take());

        // Masked: pending until it is unmasked.
        raise(&guest);
        assert_eq!(state(), (IM | IP, vec![]));
        guest.write32(control, IM);
        assert_eq!(state(), (IM | IP, vec![]));
        guest.write32(control, 0);
        assert_eq!(state(), (0, vec![message]));
        guest.write32(control, 0);
        assert_eq!(state(), (0, vec![]));
        // The condition stands: nothing new is raised, masked or not.
        raise(&guest);
        assert_eq!(state(), (0, vec![]));
        guest.write32(control, IM);
        raise(&guest);
        assert_eq!(state(), (IM, vec![]));
        // Cleared and raised again, while masked; cleared once more: withdrawn.
        clear(&guest);
        raise(&guest);
        assert_eq!(state(), (IM | IP, vec![]));
        clear(&guest);
        assert_eq!(state(), (IM, vec![]));
        guest.write32(control, 0);
        assert_eq!(state(), (0, vec![]));
        // Not masked: sent at once.
        raise(&guest);
        assert_eq!(state(), (0, vec![message]));
        clear(&guest);
        raise(&guest);
        assert_eq!(state(), (0, vec![message]));
        clear(&guest);
        // IP is the unit's.
        guest.write32(control, IM | IP);
        assert_eq!(state(), (IM, vec![]));
        guest.write32(control, 0);
        assert_eq!(state(), (0, vec![]));
    }
}

#[test]
fn unmasking_and_new_data_in_one_quadword_send_the_new_data() {
    for Source { control, raise, .. } in SOURCES {
        let guest = Guest::new();
        guest.bind(Pasid::ZERO);
        guest.write64(control, 0x11 << 32 | 1 << 31);
        guest.write64(control + 8, 0xfee0_0000);
        raise(&guest);
        guest.write64(control, 0x22 << 32);
        assert_eq!(guest.messages.take(), [Message { address: 0xfee0_0000, data: 0x22 }]);
    }
}

#[test]
fn an_unclear_completion_status_stays_until_it_is_written_with_one() {
    let guest = Guest::new();
    guest.submit(&Descriptor::Wait(Wait { interrupt: true, ..Wait::default() }));
    assert_eq!(guest.read32(offset::ICS), 1);
    guest.write32(offset::ICS, 0xffff_fffe);
    assert_eq!(guest.read32(offset::ICS), 1);
    guest.write32(offset::ICS, 1);
    assert_eq!(guest.read32(offset::ICS), 0);
    // A wait without IF leaves it alone.
    guest.submit(&wait(common::WAIT_STATUS + 8, 1));
    assert_eq!(guest.read32(offset::ICS), 0);
}

#[test]
fn each_error_status_is_cleared_alone() {
    const IQE: u32 = 1 << 4;
    const ICE: u32 = 1 << 5;
    const ITE: u32 = 1 << 6;
    let guest = Guest::new();
    guest.endpoint.unsolicited_invalidation_completion();
    guest.queue(&common::descriptors::device_tlb(vtd_spec::SourceId(0x4321), vtd_spec::AddressRange::ALL));
    guest.ring();
    assert_eq!(guest.read32(offset::FSTS), ICE | ITE);
    assert_eq!(guest.read64(offset::IQERCD), 0x18 << 48 | 0x4321 << 32);
    guest.write32(offset::FSTS, ITE);
    assert_eq!(guest.read32(offset::FSTS), ICE);
    guest.queue_qwords([0xf, 0, 0, 0]);
    guest.ring();
    assert_eq!(guest.read32(offset::FSTS), IQE | ICE);
    guest.write32(offset::FSTS, !(IQE | ICE));
    assert_eq!(guest.read32(offset::FSTS), IQE | ICE);
    guest.write32(offset::FSTS, ICE);
    assert_eq!(guest.read32(offset::FSTS), IQE);
    guest.write64(offset::IQERCD, !0);
    assert_eq!(guest.read64(offset::IQERCD) & 0xf, 3, "read-only");
}

/// QEMU lost ECAP.PT to a bit of CAP once: each option is the bit of its name and no other.
#[test]
fn each_option_is_its_own_capability_bit() {
    let base = "cm=off,fs1gp=off,fs5lp=off,pasid=off,dt=off,prs=off,pds=off,sms=off,nwfs=off,smpwc=off,pt=off,\
                c=off,srs=off,eafs=off,rps=off,ir=off,eim=off,esrtps=off,psi=off,mamv=0";
    let words = |options: &str| {
        let guest = Guest::powered_up(&UnitConfig::from_str(&format!("{base},{options}")).unwrap());
        (guest.read64(offset::CAP), guest.read64(offset::ECAP))
    };
    let none = words("");
    for (option, needed, cap, ecap) in [
        ("cm", "", 7, 64),
        ("fs1gp", "", 56, 64),
        ("psi", "", 39, 64),
        ("esrtps", "", 63, 64),
        ("c", "", 64, 0),
        ("dt", "", 64, 2),
        ("eim", "ir=on", 64, 4),
        ("pt", "", 64, 6),
        ("prs", "dt=on,pds=on", 64, 29),
        ("srs", "", 64, 31),
        ("nwfs", "dt=on", 64, 33),
        ("eafs", "smpwc=on", 64, 34),
        ("pds", "dt=on", 64, 42),
        ("smpwc", "", 64, 48),
        ("rps", "", 64, 49),
        ("sms", "dt=on,pds=on,prs=on", 64, 58),
    ] {
        let (off, on) = (words(needed), words(&format!("{needed},{option}=on")));
        let bit = |bit: u32| 1u64.checked_shl(bit).unwrap_or(0);
        assert_eq!((off.0 ^ on.0, off.1 ^ on.1), (bit(cap), bit(ecap)), "{option}");
    }
    let (cap, ecap) = none;
    let (cap, ecap) = (Capability::from_bits(cap), ExtendedCapability::from_bits(ecap));
    assert!(ecap.qi() && ecap.smts() && ecap.fsts());
    assert!(!cap.rwbf() && !cap.plmr() && !cap.phmr() && cap.dwd() && cap.drd() && cap.zlr());
    assert_eq!((cap.nd(), cap.nfr()), (6, 7));
}

/// What Linux checks before it accepts the unit and offers SVA (reference A.6).
#[test]
fn the_defaults_are_those_with_which_linux_offers_shared_virtual_addressing() {
    let guest = Guest::powered_up(&UnitConfig::default());
    let cap = Capability::from_bits(guest.read64(offset::CAP));
    let ecap = ExtendedCapability::from_bits(guest.read64(offset::ECAP));
    assert!(u64::from(cap.fro()) * 16 + (u64::from(cap.nfr()) + 1) * 16 <= PAGE);
    assert!(u64::from(ecap.iro()) * 16 + 16 <= PAGE);
    assert!(cap.cm() && cap.fs1gp() && cap.fs5lp() && cap.psi() && cap.mamv() >= 18 && cap.nfr() > 0);
    assert!(ecap.qi() && ecap.dt() && ecap.smts() && ecap.fsts() && ecap.pasid() && ecap.prs() && ecap.pds());
    assert!(ecap.smpwc() && ecap.pt());
    assert_eq!(ecap.pss(), 19);
    // 39, 48 and 57 bits at the most, each with a number of table levels that exists.
    assert_eq!(cap.sagaw() & !0b1110, 0);
    assert!(u32::from(cap.mgaw()) + 1 >= 48);
}
