// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The checks of a descriptor that come before anything is executed. \[D 5.5, 8.1\]

use super::layout::{CrcSetup, DELTA_ENTRY, DESCRIPTOR_SIZE, Descriptor, Operation, flag, opcode};
use crate::status::Status;

/// Most bytes that a delta operation compares or patches: its offsets are 16 bits wide, in units of 8 bytes.
const MAX_DELTA_SIZE: u32 = 0x8_0000;
/// The smallest maximum delta record size of create delta.
const MIN_DELTA_RECORD: u32 = 80;

/// The limits that a descriptor is checked against: those of its work queue.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// WQCFG block on fault enable.
    pub block_on_fault: bool,
    /// Largest transfer size in bytes.
    pub max_transfer: u32,
    /// Largest descriptor count of a batch.
    pub max_batch: u32,
    /// WQCFG allowed operations: a bit per operation code, codes above 63 excluded.
    pub operations: u64,
    /// Completion interrupts may be requested: GENCFG user-mode interrupts enable, or a kernel's work queue.
    pub interrupts: bool,
    /// The descriptor comes from a batch's list.
    pub in_batch: bool,
}

/// Why a descriptor is not executed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Rejection {
    pub status: Status,
    /// The flags at fault, for [`Status::INVALID_FLAGS`].
    pub invalid_flags: u32,
}

impl From<Status> for Rejection {
    fn from(status: Status) -> Self {
        Self { status, invalid_flags: 0 }
    }
}

/// Checks a descriptor in the order opcode, flags, reserved fields, sizes, alignment, overlap. The completion record
/// address and the interrupt handle are the caller's to check.
pub(crate) fn decode(descriptor: &Descriptor, limits: &Limits) -> Result<Operation, Rejection> {
    let opcode = descriptor.opcode();
    check_opcode(opcode, limits)?;
    check_flags(descriptor, limits)?;
    check_reserved(descriptor)?;
    operation(descriptor, limits)
}

fn check_opcode(opcode: u8, limits: &Limits) -> Result<(), Rejection> {
    let bit = 1_u64.checked_shl(opcode.into()).unwrap_or(0);
    let nested = limits.in_batch && matches!(opcode, opcode::BATCH | opcode::DRAIN);
    if bit & opcode::SUPPORTED & limits.operations == 0 || nested {
        return Err(Status::UNSUPPORTED_OPERATION.into());
    }
    Ok(())
}

/// The flags that an operation knows, besides fence, block on fault, completion record and interrupt.
pub(super) const fn operation_flags(opcode: u8) -> u32 {
    const WRITES: u32 = flag::CACHE_CONTROL | flag::STRICT_ORDERING;
    const CRC: u32 = flag::READ_SEED | flag::BYPASS_INVERSION | flag::BYPASS_DATA_REFLECTION;
    const ONE_TWO: u32 = flag::TC_ADDRESS_1 | flag::TC_ADDRESS_2;
    match opcode {
        opcode::BATCH => flag::TC_ADDRESS_1,
        opcode::MEMORY_MOVE | opcode::APPLY_DELTA => ONE_TWO | WRITES,
        opcode::FILL => flag::TC_ADDRESS_2 | WRITES,
        opcode::COMPARE => ONE_TWO | flag::CHECK_RESULT,
        opcode::COMPARE_PATTERN => flag::TC_ADDRESS_1 | flag::CHECK_RESULT,
        opcode::CREATE_DELTA => ONE_TWO | flag::TC_ADDRESS_3 | flag::CHECK_RESULT | WRITES,
        opcode::DUALCAST => ONE_TWO | flag::TC_ADDRESS_3 | WRITES,
        opcode::CRC_GENERATION => flag::TC_ADDRESS_1 | flag::TC_ADDRESS_3 | CRC,
        opcode::COPY_WITH_CRC => ONE_TWO | flag::TC_ADDRESS_3 | WRITES | CRC,
        opcode::CACHE_FLUSH => flag::TC_ADDRESS_2 | flag::CACHE_CONTROL,
        _ => 0,
    }
}

pub(super) const fn needs_record(opcode: u8) -> bool {
    matches!(
        opcode,
        opcode::COMPARE
            | opcode::COMPARE_PATTERN
            | opcode::CREATE_DELTA
            | opcode::CRC_GENERATION
            | opcode::COPY_WITH_CRC
    )
}

fn check_flags(descriptor: &Descriptor, limits: &Limits) -> Result<(), Rejection> {
    const RECORD: u32 = flag::RECORD_ADDRESS_VALID | flag::REQUEST_RECORD;
    let opcode = descriptor.opcode();
    let flags = descriptor.flags();
    let mut allowed = operation_flags(opcode) | flag::RECORD_ADDRESS_VALID;
    if limits.in_batch {
        allowed |= flag::FENCE;
    }
    if limits.block_on_fault && !matches!(opcode, opcode::NO_OP | opcode::BATCH | opcode::DRAIN) {
        allowed |= flag::BLOCK_ON_FAULT;
    }
    if flags & flag::RECORD_ADDRESS_VALID != 0 {
        allowed |= flag::REQUEST_RECORD | flag::TC_RECORD;
    }
    if limits.interrupts {
        allowed |= flag::REQUEST_INTERRUPT;
    }
    let mut invalid = flags & !allowed;
    if needs_record(opcode) {
        invalid |= !flags & RECORD;
    }
    if opcode == opcode::DRAIN && flags & (flag::REQUEST_RECORD | flag::REQUEST_INTERRUPT) == 0 {
        invalid |= flag::REQUEST_RECORD;
    }
    if invalid != 0 {
        return Err(Rejection { status: Status::INVALID_FLAGS, invalid_flags: invalid });
    }
    Ok(())
}

fn check_reserved(descriptor: &Descriptor) -> Result<(), Rejection> {
    let opcode = descriptor.opcode();
    let ranges: &[(usize, usize)] = match opcode {
        opcode::NO_OP => &[(16, 35), (38, 63)],
        opcode::BATCH => &[(24, 31), (38, 63)],
        // Without readback (GENCAP bit 9) the readback addresses are reserved, too.
        opcode::DRAIN => &[(16, 35), (38, 63)],
        opcode::MEMORY_MOVE | opcode::FILL => &[(38, 63)],
        opcode::COMPARE | opcode::COMPARE_PATTERN => &[(38, 39), (41, 63)],
        opcode::CREATE_DELTA => &[(38, 39), (52, 55), (57, 63)],
        opcode::APPLY_DELTA => &[(38, 39), (44, 63)],
        opcode::DUALCAST => &[(38, 39), (48, 63)],
        opcode::CRC_GENERATION if descriptor.has(flag::READ_SEED) => {
            &[(24, 31), (38, 39), (44, 47), (56, 63)]
        }
        opcode::CRC_GENERATION => &[(24, 31), (38, 39), (44, 63)],
        opcode::COPY_WITH_CRC if descriptor.has(flag::READ_SEED) => &[(38, 39), (44, 47), (56, 63)],
        opcode::COPY_WITH_CRC => &[(38, 39), (44, 63)],
        opcode::CACHE_FLUSH => &[(16, 23), (38, 63)],
        _ => &[],
    };
    let unused_record = !descriptor.has(flag::RECORD_ADDRESS_VALID) && descriptor.record_address() != 0;
    let unused_handle = !descriptor.has(flag::REQUEST_INTERRUPT) && descriptor.interrupt_handle() != 0;
    if unused_record || unused_handle || ranges.iter().any(|(from, to)| !descriptor.is_zero(*from, *to)) {
        return Err(Status::RESERVED_FIELD.into());
    }
    Ok(())
}

fn operation(descriptor: &Descriptor, limits: &Limits) -> Result<Operation, Rejection> {
    let (first, second) = (descriptor.qword(16), descriptor.qword(24));
    let size = descriptor.dword(32);
    let checked = descriptor.has(flag::CHECK_RESULT);
    match descriptor.opcode() {
        opcode::NO_OP => Ok(Operation::NoOp),
        opcode::DRAIN => Ok(Operation::Drain),
        opcode::BATCH => {
            if size < 2 || size > limits.max_batch {
                return Err(Status::DESCRIPTOR_COUNT.into());
            }
            if !first.is_multiple_of(DESCRIPTOR_SIZE as u64) {
                return Err(Status::LIST_ALIGNMENT.into());
            }
            Ok(Operation::Batch { list: first, count: size })
        }
        opcode::MEMORY_MOVE => {
            check_size(size, limits)?;
            Ok(Operation::Move { source: first, destination: second, size })
        }
        opcode::FILL => {
            check_size(size, limits)?;
            Ok(Operation::Fill { pattern: first, destination: second, size })
        }
        opcode::COMPARE => {
            check_size(size, limits)?;
            let expected = checked.then_some(descriptor.0[40] & 1);
            Ok(Operation::Compare { first, second, size, expected })
        }
        opcode::COMPARE_PATTERN => {
            check_size(size, limits)?;
            let expected = checked.then_some(descriptor.0[40] & 1);
            Ok(Operation::ComparePattern { source: first, pattern: second, size, expected })
        }
        opcode::CREATE_DELTA => {
            check_delta_size(size, limits)?;
            let (record, max_record) = (descriptor.qword(40), descriptor.dword(48));
            if max_record < MIN_DELTA_RECORD || max_record > limits.max_transfer {
                return Err(Status::DELTA_RECORD_SIZE.into());
            }
            check_aligned(&[first, second, record, size.into()])?;
            if overlaps(record, max_record, first, size) || overlaps(record, max_record, second, size) {
                return Err(Status::OVERLAP.into());
            }
            let expected = checked.then_some(descriptor.0[56]);
            Ok(Operation::CreateDelta { first, second, size, record, max_record, expected })
        }
        opcode::APPLY_DELTA => {
            check_delta_size(size, limits)?;
            let record_size = descriptor.dword(40);
            // A piece of an entry cannot be applied.
            if record_size < DELTA_ENTRY
                || !record_size.is_multiple_of(DELTA_ENTRY)
                || record_size > limits.max_transfer
            {
                return Err(Status::DELTA_RECORD_SIZE.into());
            }
            check_aligned(&[second, size.into()])?;
            if overlaps(first, record_size, second, size) {
                return Err(Status::OVERLAP.into());
            }
            Ok(Operation::ApplyDelta { record: first, record_size, destination: second, size })
        }
        opcode::DUALCAST => {
            check_size(size, limits)?;
            let third = descriptor.qword(40);
            if (second ^ third) & 0xfff != 0 {
                return Err(Status::DUALCAST_ALIGNMENT.into());
            }
            if overlaps(first, size, second, size)
                || overlaps(first, size, third, size)
                || overlaps(second, size, third, size)
            {
                return Err(Status::OVERLAP.into());
            }
            Ok(Operation::Dualcast { source: first, destinations: [second, third], size })
        }
        opcode::CRC_GENERATION => {
            check_size(size, limits)?;
            Ok(Operation::Crc { source: first, size, setup: crc_setup(descriptor)? })
        }
        opcode::COPY_WITH_CRC => {
            check_size(size, limits)?;
            let setup = crc_setup(descriptor)?;
            if overlaps(first, size, second, size) {
                return Err(Status::OVERLAP.into());
            }
            Ok(Operation::CopyCrc { source: first, destination: second, size, setup })
        }
        opcode::CACHE_FLUSH => {
            check_size(size, limits)?;
            Ok(Operation::CacheFlush { destination: second, size })
        }
        _ => Err(Status::UNSUPPORTED_OPERATION.into()),
    }
}

fn crc_setup(descriptor: &Descriptor) -> Result<CrcSetup, Rejection> {
    let seed_address = descriptor.has(flag::READ_SEED).then(|| descriptor.qword(48));
    if seed_address.is_some_and(|address| !address.is_multiple_of(4)) {
        return Err(Status::ALIGNMENT.into());
    }
    Ok(CrcSetup {
        seed: descriptor.dword(40),
        seed_address,
        bypass_inversion: descriptor.has(flag::BYPASS_INVERSION),
        bypass_data_reflection: descriptor.has(flag::BYPASS_DATA_REFLECTION),
    })
}

fn check_size(size: u32, limits: &Limits) -> Result<(), Rejection> {
    if size == 0 || size > limits.max_transfer {
        return Err(Status::TRANSFER_SIZE.into());
    }
    Ok(())
}

fn check_delta_size(size: u32, limits: &Limits) -> Result<(), Rejection> {
    check_size(size, limits)?;
    if size > MAX_DELTA_SIZE {
        return Err(Status::TRANSFER_SIZE.into());
    }
    Ok(())
}

fn check_aligned(values: &[u64]) -> Result<(), Rejection> {
    if values.iter().any(|value| !value.is_multiple_of(8)) { Err(Status::ALIGNMENT.into()) } else { Ok(()) }
}

/// Whether two ranges share a byte; both may run over the end of the address space.
pub(super) fn overlaps(a: u64, a_size: u32, b: u64, b_size: u32) -> bool {
    b.wrapping_sub(a) < a_size.into() || a.wrapping_sub(b) < b_size.into()
}
