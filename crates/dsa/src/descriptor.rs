// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The 64-byte descriptor: its fields, and the checks that come before anything is executed. \[D 5.5, 8.1, 8.3\]

use crate::status::Status;

/// Size of a descriptor, alignment of a portal's slots and of a descriptor list, in bytes.
pub(crate) const DESCRIPTOR_SIZE: usize = 64;
/// Most bytes that a delta operation compares or patches: its offsets are 16 bits wide, in units of 8 bytes.
const MAX_DELTA_SIZE: u32 = 0x8_0000;
/// The smallest maximum delta record size of create delta.
const MIN_DELTA_RECORD: u32 = 80;
/// Size of one entry of a delta record: 16 bits of offset, 8 bytes of data.
pub(crate) const DELTA_ENTRY: u32 = 10;

/// Operation codes. \[D table 5-1\]
pub(crate) mod opcode {
    pub const NO_OP: u8 = 0x00;
    pub const BATCH: u8 = 0x01;
    pub const DRAIN: u8 = 0x02;
    pub const MEMORY_MOVE: u8 = 0x03;
    pub const FILL: u8 = 0x04;
    pub const COMPARE: u8 = 0x05;
    pub const COMPARE_PATTERN: u8 = 0x06;
    pub const CREATE_DELTA: u8 = 0x07;
    pub const APPLY_DELTA: u8 = 0x08;
    pub const DUALCAST: u8 = 0x09;
    pub const CRC_GENERATION: u8 = 0x10;
    pub const COPY_WITH_CRC: u8 = 0x11;
    pub const CACHE_FLUSH: u8 = 0x20;

    /// All of the above, as OPCAP and a work queue's allowed operations show them: one bit per code.
    pub const SUPPORTED: u64 = 0x1_0003_03ff;
}

/// Descriptor flags. \[D table 5-2\]
pub(crate) mod flag {
    pub const FENCE: u32 = 1 << 0;
    pub const BLOCK_ON_FAULT: u32 = 1 << 1;
    pub const RECORD_ADDRESS_VALID: u32 = 1 << 2;
    pub const REQUEST_RECORD: u32 = 1 << 3;
    pub const REQUEST_INTERRUPT: u32 = 1 << 4;
    pub const CHECK_RESULT: u32 = 1 << 7;
    /// The only cache control that needs no capability beyond GENCAP bit 2.
    pub const CACHE_CONTROL: u32 = 1 << 8;
    pub const TC_ADDRESS_1: u32 = 1 << 9;
    pub const TC_ADDRESS_2: u32 = 1 << 10;
    pub const TC_ADDRESS_3: u32 = 1 << 11;
    pub const TC_RECORD: u32 = 1 << 12;
    pub const STRICT_ORDERING: u32 = 1 << 13;
    /// CRC: the seed is in memory.
    pub const READ_SEED: u32 = 1 << 16;
    /// CRC: seed and result are neither inverted nor reflected.
    pub const BYPASS_INVERSION: u32 = 1 << 17;
    /// CRC: data bits are not reflected.
    pub const BYPASS_DATA_REFLECTION: u32 = 1 << 18;
}

/// A descriptor's bytes, read once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Descriptor(pub [u8; DESCRIPTOR_SIZE]);

impl Descriptor {
    pub const fn opcode(&self) -> u8 {
        self.0[7]
    }

    pub const fn flags(&self) -> u32 {
        u32::from_le_bytes([self.0[4], self.0[5], self.0[6], 0])
    }

    pub const fn has(&self, flag: u32) -> bool {
        self.flags() & flag != 0
    }

    pub fn record_address(&self) -> u64 {
        self.qword(8)
    }

    pub fn interrupt_handle(&self) -> u16 {
        self.dword(36) as u16
    }

    fn dword(&self, at: usize) -> u32 {
        let mut bytes = [0; 4];
        bytes.copy_from_slice(&self.0[at..at + 4]);
        u32::from_le_bytes(bytes)
    }

    fn qword(&self, at: usize) -> u64 {
        u64::from(self.dword(at)) | u64::from(self.dword(at + 4)) << 32
    }

    fn is_zero(&self, from: usize, to_inclusive: usize) -> bool {
        self.0[from..=to_inclusive].iter().all(|byte| *byte == 0)
    }
}

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

/// CRC seed and flags.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct CrcSetup {
    pub seed: u32,
    /// Where the seed is read from instead.
    pub seed_address: Option<u64>,
    pub bypass_inversion: bool,
    pub bypass_data_reflection: bool,
}

/// What a descriptor asks for, checked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Operation {
    NoOp,
    Batch {
        list: u64,
        count: u32,
    },
    Drain,
    Move {
        source: u64,
        destination: u64,
        size: u32,
    },
    Fill {
        pattern: u64,
        destination: u64,
        size: u32,
    },
    Compare {
        first: u64,
        second: u64,
        size: u32,
        expected: Option<u8>,
    },
    ComparePattern {
        source: u64,
        pattern: u64,
        size: u32,
        expected: Option<u8>,
    },
    CreateDelta {
        first: u64,
        second: u64,
        size: u32,
        record: u64,
        max_record: u32,
        /// Bit n: result n is expected.
        expected: Option<u8>,
    },
    ApplyDelta {
        record: u64,
        record_size: u32,
        destination: u64,
        size: u32,
    },
    Dualcast {
        source: u64,
        destinations: [u64; 2],
        size: u32,
    },
    Crc {
        source: u64,
        size: u32,
        setup: CrcSetup,
    },
    CopyCrc {
        source: u64,
        destination: u64,
        size: u32,
        setup: CrcSetup,
    },
    CacheFlush {
        destination: u64,
        size: u32,
    },
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
const fn operation_flags(opcode: u8) -> u32 {
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

const fn needs_record(opcode: u8) -> bool {
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
fn overlaps(a: u64, a_size: u32, b: u64, b_size: u32) -> bool {
    b.wrapping_sub(a) < a_size.into() || a.wrapping_sub(b) < b_size.into()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

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
}
