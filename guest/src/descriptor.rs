// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The 64-byte descriptor, little endian [D 8.1; Linux include/uapi/linux/idxd.h:dsa_hw_desc].

/// Operation codes [D 8.3].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Opcode {
    Noop = 0x00,
    Batch = 0x01,
    Drain = 0x02,
    Move = 0x03,
    Fill = 0x04,
    Compare = 0x05,
    ComparePattern = 0x06,
    CreateDelta = 0x07,
    ApplyDelta = 0x08,
    Dualcast = 0x09,
    Crc = 0x10,
    CopyCrc = 0x11,
    CacheFlush = 0x20,
}

impl Opcode {
    /// Every operation that the checks use, with its name.
    pub const ALL: [(Opcode, &'static str); 13] = [
        (Opcode::Noop, "no-op"),
        (Opcode::Batch, "batch"),
        (Opcode::Drain, "drain"),
        (Opcode::Move, "move"),
        (Opcode::Fill, "fill"),
        (Opcode::Compare, "compare"),
        (Opcode::ComparePattern, "compare pattern"),
        (Opcode::CreateDelta, "create delta"),
        (Opcode::ApplyDelta, "apply delta"),
        (Opcode::Dualcast, "dualcast"),
        (Opcode::Crc, "CRC generation"),
        (Opcode::CopyCrc, "copy with CRC"),
        (Opcode::CacheFlush, "cache flush"),
    ];
}

/// Flag 0: wait for all earlier members of the batch.
pub const FENCE: u32 = 1 << 0;
/// Flag 1: a page fault becomes a page request instead of a partial completion.
pub const BLOCK_ON_FAULT: u32 = 1 << 1;
/// Flag 2: the completion record address is valid.
pub const RECORD_VALID: u32 = 1 << 2;
/// Flag 3: write a completion record also on success.
pub const REQUEST_RECORD: u32 = 1 << 3;
/// Flag 7: compare the result with an expected one.
pub const CHECK_RESULT: u32 = 1 << 7;
/// CRC: read the seed from memory.
pub const CRC_SEED_FROM_MEMORY: u32 = 1 << 16;
/// CRC: neither invert nor reflect seed and result.
pub const CRC_RAW_SEED: u32 = 1 << 17;
/// CRC: do not reflect the bits of the data.
pub const CRC_RAW_DATA: u32 = 1 << 18;

/// One descriptor. Built with the functions named after the operations; the completion record's address is
/// normally set by the queue that submits it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct Descriptor([u8; 64]);

impl Descriptor {
    /// A descriptor with only opcode and flags: a completion record is requested, and pages are faulted in where
    /// the operation has memory to touch.
    pub fn new(opcode: Opcode) -> Descriptor {
        let block = match opcode {
            // Reserved for these [D 8.1.3].
            Opcode::Noop | Opcode::Batch | Opcode::Drain => 0,
            _ => BLOCK_ON_FAULT,
        };
        Descriptor([0; 64]).opcode(opcode as u8).flags(RECORD_VALID | REQUEST_RECORD | block)
    }

    /// Copies `size` bytes.
    pub fn copy(source: u64, destination: u64, size: usize) -> Descriptor {
        Descriptor::new(Opcode::Move).u64_at(16, source).u64_at(24, destination).size(size)
    }

    /// Fills `size` bytes with a repeated pattern.
    pub fn fill(pattern: u64, destination: u64, size: usize) -> Descriptor {
        Descriptor::new(Opcode::Fill).u64_at(16, pattern).u64_at(24, destination).size(size)
    }

    /// Compares two ranges.
    pub fn compare(first: u64, second: u64, size: usize) -> Descriptor {
        Descriptor::new(Opcode::Compare).u64_at(16, first).u64_at(24, second).size(size)
    }

    /// Compares a range with a repeated pattern.
    pub fn compare_pattern(source: u64, pattern: u64, size: usize) -> Descriptor {
        Descriptor::new(Opcode::ComparePattern).u64_at(16, source).u64_at(24, pattern).size(size)
    }

    /// Records the differences between two ranges at `record`, at most `limit` bytes.
    pub fn create_delta(first: u64, second: u64, size: usize, record: u64, limit: u32) -> Descriptor {
        Descriptor::new(Opcode::CreateDelta)
            .u64_at(16, first)
            .u64_at(24, second)
            .size(size)
            .u64_at(40, record)
            .u32_at(48, limit)
    }

    /// Applies the differences in `record` (`record_size` bytes) to a range.
    pub fn apply_delta(record: u64, record_size: u32, destination: u64, size: usize) -> Descriptor {
        Descriptor::new(Opcode::ApplyDelta)
            .u64_at(16, record)
            .u64_at(24, destination)
            .size(size)
            .u32_at(40, record_size)
    }

    /// Copies to two places.
    pub fn dualcast(source: u64, first: u64, second: u64, size: usize) -> Descriptor {
        Descriptor::new(Opcode::Dualcast).u64_at(16, source).u64_at(24, first).size(size).u64_at(40, second)
    }

    /// Computes the CRC32C, continued from `seed`.
    pub fn crc(source: u64, size: usize, seed: u32) -> Descriptor {
        Descriptor::new(Opcode::Crc).u64_at(16, source).size(size).u32_at(40, seed)
    }

    /// Copies and computes the CRC32C.
    pub fn copy_crc(source: u64, destination: u64, size: usize, seed: u32) -> Descriptor {
        Descriptor::new(Opcode::CopyCrc)
            .u64_at(16, source)
            .u64_at(24, destination)
            .size(size)
            .u32_at(40, seed)
    }

    /// Flushes a range from the caches.
    pub fn cache_flush(destination: u64, size: usize) -> Descriptor {
        Descriptor::new(Opcode::CacheFlush).u64_at(24, destination).size(size)
    }

    /// Runs the `count` descriptors at `list`.
    pub fn batch(list: u64, count: usize) -> Descriptor {
        Descriptor::new(Opcode::Batch).u64_at(16, list).size(count)
    }

    /// Sets byte 7.
    pub fn opcode(mut self, opcode: u8) -> Descriptor {
        self.0[7] = opcode;
        self
    }

    /// Adds flags (24 bits, bytes 4 to 6).
    pub fn flags(mut self, flags: u32) -> Descriptor {
        for (byte, value) in self.0[4..7].iter_mut().zip(flags.to_le_bytes()) {
            *byte |= value;
        }
        self
    }

    /// Takes flags away.
    pub fn without(mut self, flags: u32) -> Descriptor {
        for (byte, value) in self.0[4..7].iter_mut().zip(flags.to_le_bytes()) {
            *byte &= !value;
        }
        self
    }

    /// Sets the completion record's address.
    pub fn record(self, address: u64) -> Descriptor {
        self.u64_at(8, address)
    }

    /// Sets the transfer size or descriptor count.
    fn size(self, size: usize) -> Descriptor {
        // The device refuses what does not fit: all ones is above every device's limit.
        self.u32_at(32, u32::try_from(size).unwrap_or(u32::MAX))
    }

    /// Sets one byte.
    pub fn u8_at(mut self, offset: usize, value: u8) -> Descriptor {
        self.0[offset] = value;
        self
    }

    /// Sets four bytes.
    pub fn u32_at(mut self, offset: usize, value: u32) -> Descriptor {
        self.0[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
        self
    }

    /// Sets eight bytes.
    pub fn u64_at(mut self, offset: usize, value: u64) -> Descriptor {
        self.0[offset..offset + 8].copy_from_slice(&value.to_le_bytes());
        self
    }

    /// The bytes, as they lie in a batch's list.
    pub fn bytes(&self) -> &[u8; 64] {
        &self.0
    }

    /// The eight words that are stored to the portal, in order.
    pub fn words(&self) -> [u64; 8] {
        std::array::from_fn(|n| u64::from_ne_bytes(self.0[n * 8..n * 8 + 8].try_into().unwrap_or_default()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_move_has_its_fields_where_the_specification_puts_them() {
        let d = Descriptor::copy(0x1122_3344_5566_7788, 0x99aa_bbcc_ddee_ff00, 0x1234).record(0x7000_0020);
        let words = d.words();
        assert_eq!(words[0], 0x0300_000e_0000_0000);
        assert_eq!(words[1], 0x7000_0020);
        assert_eq!(words[2], 0x1122_3344_5566_7788);
        assert_eq!(words[3], 0x99aa_bbcc_ddee_ff00);
        assert_eq!(words[4], 0x1234);
        assert_eq!(words[5..], [0; 3]);
    }

    #[test]
    fn operations_that_touch_no_memory_do_not_block_on_fault() {
        for opcode in [Opcode::Noop, Opcode::Batch, Opcode::Drain] {
            assert_eq!(Descriptor::new(opcode).bytes()[4], 0x0c);
        }
        assert_eq!(Descriptor::crc(0, 1, 0).bytes()[4], 0x0e);
        assert_eq!(Descriptor::crc(0, 1, 0).without(BLOCK_ON_FAULT).bytes()[4], 0x0c);
    }

    #[test]
    fn operation_specific_fields_are_in_place() {
        let d = Descriptor::create_delta(1, 2, 8, 0xabcd, 80);
        assert_eq!((d.words()[5], d.words()[6]), (0xabcd, 80));
        let d = Descriptor::apply_delta(0x10, 20, 0x30, 64);
        assert_eq!((d.words()[2], d.words()[3], d.words()[5]), (0x10, 0x30, 20));
        let d = Descriptor::crc(0, 1, 0xdead_beef).flags(CRC_RAW_SEED | CRC_SEED_FROM_MEMORY);
        assert_eq!((d.words()[5], d.bytes()[6]), (0xdead_beef, 3));
    }

    #[test]
    fn descriptors_lie_on_64_bytes() {
        assert_eq!((align_of::<Descriptor>(), size_of::<Descriptor>()), (64, 64));
    }
}
