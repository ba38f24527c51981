// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Each check, on a descriptor of each operation.

use proptest::prelude::*;

use super::check::{needs_record, operation_flags, overlaps};
use super::*;
use crate::status::Status;

pub(crate) const LIMITS: Limits = Limits {
    block_on_fault: true,
    max_transfer: 1 << 21,
    max_batch: 32,
    operations: opcode::SUPPORTED,
    interrupts: false,
    in_batch: false,
};

const RECORD: u32 = flag::RECORD_ADDRESS_VALID | flag::REQUEST_RECORD;

/// A descriptor with the usual fields; `size` at 32, a record at 0x1000.
pub(crate) fn descriptor(opcode: u8, flags: u32, first: u64, second: u64, size: u32) -> Descriptor {
    let mut bytes = [0; DESCRIPTOR_SIZE];
    bytes[4..8].copy_from_slice(&(flags | u32::from(opcode) << 24).to_le_bytes());
    if flags & flag::RECORD_ADDRESS_VALID != 0 {
        bytes[8..16].copy_from_slice(&0x1000_u64.to_le_bytes());
    }
    bytes[16..24].copy_from_slice(&first.to_le_bytes());
    bytes[24..32].copy_from_slice(&second.to_le_bytes());
    bytes[32..36].copy_from_slice(&size.to_le_bytes());
    Descriptor(bytes)
}

fn set(mut descriptor: Descriptor, at: usize, bytes: &[u8]) -> Descriptor {
    descriptor.0[at..at + bytes.len()].copy_from_slice(bytes);
    descriptor
}

fn rejection(descriptor: &Descriptor) -> Status {
    decode(descriptor, &LIMITS).unwrap_err().status
}

/// A descriptor of each operation that passes all checks.
fn good() -> Vec<Descriptor> {
    let delta = descriptor(opcode::CREATE_DELTA, RECORD, 0x2000, 0x3000, 64);
    let delta = set(set(delta, 40, &0x8000_u64.to_le_bytes()), 48, &80_u32.to_le_bytes());
    let apply = descriptor(opcode::APPLY_DELTA, RECORD, 0x2001, 0x3000, 64);
    vec![
        descriptor(opcode::NO_OP, RECORD, 0, 0, 0),
        descriptor(opcode::BATCH, RECORD, 0x2000, 0, 2),
        descriptor(opcode::DRAIN, RECORD, 0, 0, 0),
        descriptor(opcode::MEMORY_MOVE, RECORD, 1, 2, 3),
        descriptor(opcode::FILL, RECORD, 1, 2, 3),
        descriptor(opcode::COMPARE, RECORD, 1, 2, 3),
        descriptor(opcode::COMPARE_PATTERN, RECORD, 1, 2, 3),
        delta,
        set(apply, 40, &20_u32.to_le_bytes()),
        set(descriptor(opcode::DUALCAST, RECORD, 0x2000, 0x3000, 64), 40, &0x4000_u64.to_le_bytes()),
        descriptor(opcode::CRC_GENERATION, RECORD, 1, 0, 3),
        descriptor(opcode::COPY_WITH_CRC, RECORD, 1, 0x3000, 3),
        descriptor(opcode::CACHE_FLUSH, RECORD, 0, 2, 3),
    ]
}

#[test]
fn each_supported_operation_is_decoded() {
    let good = good();
    let all = good.iter().fold(0, |all, descriptor| all | 1_u64 << descriptor.opcode());
    assert_eq!(all, opcode::SUPPORTED);
    for descriptor in good {
        decode(&descriptor, &LIMITS).unwrap();
    }
}

#[test]
fn unsupported_disallowed_and_nested_operations_are_refused() {
    for code in (0..=255).filter(|code| *code > 63 || opcode::SUPPORTED >> code & 1 == 0) {
        assert_eq!(rejection(&descriptor(code, RECORD, 0, 0, 0)), Status::UNSUPPORTED_OPERATION);
    }
    let limits = Limits { operations: opcode::SUPPORTED & !(1 << opcode::FILL), ..LIMITS };
    let fill = descriptor(opcode::FILL, RECORD, 1, 2, 3);
    assert_eq!(decode(&fill, &limits).unwrap_err().status, Status::UNSUPPORTED_OPERATION);
    let limits = Limits { in_batch: true, ..LIMITS };
    for descriptor in good() {
        let nested = matches!(descriptor.opcode(), opcode::BATCH | opcode::DRAIN);
        assert_eq!(decode(&descriptor, &limits).is_err(), nested);
    }
}

#[test]
fn each_reserved_flag_is_reported_by_its_bit() {
    for descriptor in good() {
        let extra = operation_flags(descriptor.opcode());
        for bit in 0..24 {
            let mut changed = descriptor;
            let flags = descriptor.flags() | 1 << bit;
            changed.0[4..7].copy_from_slice(&flags.to_le_bytes()[..3]);
            let bof =
                bit == 1 && !matches!(descriptor.opcode(), opcode::NO_OP | opcode::BATCH | opcode::DRAIN);
            let fine = matches!(bit, 2 | 3 | 12) || bof || extra >> bit & 1 == 1;
            match decode(&changed, &LIMITS) {
                Err(Rejection { status: Status::INVALID_FLAGS, invalid_flags }) => {
                    assert!(!fine, "{bit} of {:#x}", descriptor.opcode());
                    assert_eq!(invalid_flags, 1 << bit);
                }
                // The seed address of CRC flag 16 is 0, which is aligned.
                result => {
                    assert!(fine, "{bit} of {:#x}", descriptor.opcode());
                    result.unwrap();
                }
            }
        }
    }
}

#[test]
fn block_on_fault_and_interrupt_flags_depend_on_the_work_queue() {
    let blocking = descriptor(opcode::MEMORY_MOVE, RECORD | flag::BLOCK_ON_FAULT, 1, 2, 3);
    let limits = Limits { block_on_fault: false, ..LIMITS };
    assert_eq!(decode(&blocking, &limits).unwrap_err().invalid_flags, flag::BLOCK_ON_FAULT);
    let interrupting = descriptor(opcode::MEMORY_MOVE, RECORD | flag::REQUEST_INTERRUPT, 1, 2, 3);
    let interrupting = set(interrupting, 36, &[1]);
    assert_eq!(rejection(&interrupting), Status::INVALID_FLAGS);
    decode(&interrupting, &Limits { interrupts: true, ..LIMITS }).unwrap();
    let fenced = descriptor(opcode::NO_OP, RECORD | flag::FENCE, 0, 0, 0);
    assert_eq!(rejection(&fenced), Status::INVALID_FLAGS);
    decode(&fenced, &Limits { in_batch: true, ..LIMITS }).unwrap();
}

#[test]
fn results_need_a_completion_record() {
    for mut descriptor in good() {
        descriptor.0[4] = 0;
        descriptor.0[8..16].fill(0);
        let code = descriptor.opcode();
        let result = decode(&descriptor, &LIMITS);
        if needs_record(code) {
            assert_eq!(result.unwrap_err().invalid_flags, RECORD);
        } else if code == opcode::DRAIN {
            assert_eq!(result.unwrap_err().invalid_flags, flag::REQUEST_RECORD);
        } else {
            result.unwrap();
        }
    }
    // A record cannot be requested, nor an address be given, without a valid address.
    let requested = descriptor(opcode::NO_OP, flag::REQUEST_RECORD, 0, 0, 0);
    assert_eq!(rejection(&requested), Status::INVALID_FLAGS);
    let addressed = set(descriptor(opcode::NO_OP, 0, 0, 0, 0), 8, &[0x20]);
    assert_eq!(rejection(&addressed), Status::RESERVED_FIELD);
}

#[test]
fn each_reserved_byte_is_checked() {
    let reserved: [&[usize]; 13] = [
        &[16, 24, 35, 36, 38, 39, 40, 63],
        &[24, 31, 37, 38, 40, 63],
        &[16, 24, 32, 38, 63],
        &[38, 39, 40, 63],
        &[38, 39, 40, 63],
        &[38, 41, 63],
        &[38, 41, 63],
        &[38, 52, 55, 57, 63],
        &[38, 44, 63],
        &[38, 48, 63],
        &[24, 31, 38, 44, 48, 63],
        &[38, 44, 48, 63],
        &[16, 23, 38, 40, 63],
    ];
    for (descriptor, bytes) in good().into_iter().zip(reserved) {
        for at in bytes {
            let changed = set(descriptor, *at, &[1]);
            assert_eq!(rejection(&changed), Status::RESERVED_FIELD, "{:#x} {at}", descriptor.opcode());
        }
    }
}

#[test]
fn sizes_and_counts_are_checked() {
    let limit = LIMITS.max_transfer;
    for descriptor in good().into_iter().filter(|descriptor| descriptor.opcode() >= opcode::MEMORY_MOVE) {
        for size in [0, limit + 1, u32::MAX] {
            let changed = set(descriptor, 32, &size.to_le_bytes());
            assert_eq!(rejection(&changed), Status::TRANSFER_SIZE, "{:#x}", descriptor.opcode());
        }
    }
    decode(&descriptor(opcode::FILL, RECORD, 0, 0, limit), &LIMITS).unwrap();
    let largest = Limits { max_transfer: 1 << 31, ..LIMITS };
    decode(&descriptor(opcode::FILL, RECORD, 0, 0, 1 << 31), &largest).unwrap();
    let larger = decode(&descriptor(opcode::FILL, RECORD, 0, 0, 1 << 31 | 1), &largest);
    assert_eq!(larger.unwrap_err().status, Status::TRANSFER_SIZE);
    for count in [0, 1, 33, u32::MAX] {
        assert_eq!(rejection(&descriptor(opcode::BATCH, RECORD, 0, 0, count)), Status::DESCRIPTOR_COUNT);
    }
    let [create, apply] = [&good()[7], &good()[8]].map(|descriptor| *descriptor);
    for size in [0x8_0008_u32, 1 << 21] {
        assert_eq!(rejection(&set(create, 32, &size.to_le_bytes())), Status::TRANSFER_SIZE);
        assert_eq!(rejection(&set(apply, 32, &size.to_le_bytes())), Status::TRANSFER_SIZE);
    }
    for size in [0_u32, 79, limit + 1] {
        assert_eq!(rejection(&set(create, 48, &size.to_le_bytes())), Status::DELTA_RECORD_SIZE);
    }
    for size in [0_u32, 9, 15, limit + 10] {
        assert_eq!(rejection(&set(apply, 40, &size.to_le_bytes())), Status::DELTA_RECORD_SIZE);
    }
}

#[test]
fn alignment_is_checked() {
    let all = good();
    assert_eq!(rejection(&set(all[1], 16, &[0x20])), Status::LIST_ALIGNMENT);
    for at in [16, 24, 32, 40] {
        assert_eq!(rejection(&set(all[7], at, &[4])), Status::ALIGNMENT);
    }
    for at in [24, 32] {
        assert_eq!(rejection(&set(all[8], at, &[4])), Status::ALIGNMENT);
    }
    assert_eq!(rejection(&set(all[9], 40, &[8])), Status::DUALCAST_ALIGNMENT);
    for crc in [all[10], all[11]] {
        let seeded = set(set(crc, 6, &[1]), 48, &[2]);
        assert_eq!(rejection(&seeded), Status::ALIGNMENT);
    }
}

#[test]
fn overlaps_are_refused_except_for_memory_move() {
    let overlapping = |opcode, first: u64, second: u64| descriptor(opcode, RECORD, first, second, 0x100);
    decode(&overlapping(opcode::MEMORY_MOVE, 0x1000, 0x1001), &LIMITS).unwrap();
    for (first, second) in [(0x1000, 0x1000), (0x1000, 0x10ff), (0x10ff, 0x1000), (u64::MAX, 0)] {
        assert_eq!(rejection(&overlapping(opcode::COPY_WITH_CRC, first, second)), Status::OVERLAP);
        let dualcast = overlapping(opcode::DUALCAST, first, second);
        let same_low_bits = (second & 0xfff) | 0x10_0000;
        let dualcast = set(dualcast, 40, &same_low_bits.to_le_bytes());
        assert_eq!(rejection(&dualcast), Status::OVERLAP);
    }
    decode(&overlapping(opcode::COPY_WITH_CRC, 0x1000, 0x1100), &LIMITS).unwrap();
    let [create, apply] = [&good()[7], &good()[8]].map(|descriptor| *descriptor);
    assert_eq!(rejection(&set(create, 40, &0x2038_u64.to_le_bytes())), Status::OVERLAP);
    assert_eq!(rejection(&set(create, 40, &0x2fb8_u64.to_le_bytes())), Status::OVERLAP);
    assert_eq!(rejection(&set(apply, 16, &0x303f_u64.to_le_bytes())), Status::OVERLAP);
}

proptest! {
    #[test]
    fn ranges_overlap_if_they_share_a_byte(
        (a, b) in (0_u64..40, 0_u64..40),
        (a_size, b_size) in (1_u32..20, 1_u32..20),
    ) {
        // Around the end of the address space.
        let (a, b) = (a.wrapping_sub(20), b.wrapping_sub(20));
        let bytes = |at: u64, size: u32| (0..u64::from(size)).map(move |n| at.wrapping_add(n));
        let shared = bytes(a, a_size).any(|byte| bytes(b, b_size).any(|other| other == byte));
        prop_assert_eq!(overlaps(a, a_size, b, b_size), shared);
    }
}
