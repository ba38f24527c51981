// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The fields of a descriptor, and the operations that it can ask for. \[D 5.5, 8.1, 8.3\]

/// Size of a descriptor, alignment of a portal's slots and of a descriptor list, in bytes.
pub(crate) const DESCRIPTOR_SIZE: usize = 64;
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

    pub(super) fn dword(&self, at: usize) -> u32 {
        let mut bytes = [0; 4];
        bytes.copy_from_slice(&self.0[at..at + 4]);
        u32::from_le_bytes(bytes)
    }

    pub(super) fn qword(&self, at: usize) -> u64 {
        u64::from(self.dword(at)) | u64::from(self.dword(at + 4)) << 32
    }

    pub(super) fn is_zero(&self, from: usize, to_inclusive: usize) -> bool {
        self.0[from..=to_inclusive].iter().all(|byte| *byte == 0)
    }
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
