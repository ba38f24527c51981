// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the CPU computes to check the device: CRC32C and delta records as the DSA specification defines them.

use std::sync::OnceLock;

/// The generator polynomial of CRC32C without its highest term, most significant bit first [D 8.3.12].
const POLYNOMIAL: u32 = 0x1edc_6f41;

/// CRC as the DSA computes it: continued from `seed`. `raw_seed` is flag 17 (neither seed nor result is inverted
/// and reflected), `raw_data` is flag 18 (the bits of the data bytes are not reflected) [D 8.3.12].
pub fn crc(data: &[u8], seed: u32, raw_seed: bool, raw_data: bool) -> u32 {
    if !raw_seed && !raw_data {
        return crc32c(data, seed);
    }
    let mut register = if raw_seed { seed } else { (!seed).reverse_bits() };
    for byte in data {
        let byte = if raw_data { *byte } else { byte.reverse_bits() };
        register ^= u32::from(byte) << 24;
        for _ in 0..8 {
            register = (register << 1) ^ if register >> 31 == 1 { POLYNOMIAL } else { 0 };
        }
    }
    if raw_seed { register } else { !register.reverse_bits() }
}

/// The usual, reflected CRC32C, eight bytes at a time: it has to get through 64 MiB under emulation.
pub fn crc32c(data: &[u8], seed: u32) -> u32 {
    static TABLES: OnceLock<Box<[[u32; 256]; 8]>> = OnceLock::new();
    let tables = TABLES.get_or_init(tables);
    let mut register = !seed;
    let mut chunks = data.chunks_exact(8);
    for chunk in &mut chunks {
        let low = register ^ u32::from_le_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]);
        register = tables[7][(low & 0xff) as usize]
            ^ tables[6][(low >> 8 & 0xff) as usize]
            ^ tables[5][(low >> 16 & 0xff) as usize]
            ^ tables[4][(low >> 24) as usize]
            ^ tables[3][chunk[4] as usize]
            ^ tables[2][chunk[5] as usize]
            ^ tables[1][chunk[6] as usize]
            ^ tables[0][chunk[7] as usize];
    }
    for byte in chunks.remainder() {
        register = (register >> 8) ^ tables[0][((register ^ u32::from(*byte)) & 0xff) as usize];
    }
    !register
}

fn tables() -> Box<[[u32; 256]; 8]> {
    let mut tables = Box::new([[0; 256]; 8]);
    for byte in 0..256usize {
        let mut value = byte as u32;
        for _ in 0..8 {
            value = (value >> 1) ^ if value & 1 == 1 { POLYNOMIAL.reverse_bits() } else { 0 };
        }
        tables[0][byte] = value;
    }
    for table in 1..8 {
        for byte in 0..256 {
            let previous: u32 = tables[table - 1][byte];
            tables[table][byte] = (previous >> 8) ^ tables[0][(previous & 0xff) as usize];
        }
    }
    tables
}

/// Bytes of one entry of a delta record: a 16-bit offset in units of 8 bytes, and 8 bytes of data [D 8.3.9].
pub const DELTA_ENTRY: usize = 10;

/// What creating a delta record gives.
#[derive(Debug, PartialEq, Eq)]
pub struct Delta {
    /// The record.
    pub record: Vec<u8>,
    /// The completion record's result: 0 equal, 1 all differences recorded, 2 record too small.
    pub result: u8,
    /// Bytes compared before the record was full; 0 when everything was compared.
    pub bytes_completed: u32,
}

/// The delta record that turns `first` into `second`, at most `limit` bytes of it.
pub fn create_delta(first: &[u8], second: &[u8], limit: usize) -> Delta {
    let mut delta = Delta { record: Vec::new(), result: 0, bytes_completed: 0 };
    for (index, (a, b)) in first.chunks_exact(8).zip(second.chunks_exact(8)).enumerate() {
        if a == b {
            continue;
        }
        if delta.record.len() + DELTA_ENTRY > limit {
            delta.result = 2;
            delta.bytes_completed = (index * 8) as u32;
            return delta;
        }
        delta.result = 1;
        delta.record.extend_from_slice(&(index as u16).to_le_bytes());
        delta.record.extend_from_slice(b);
    }
    delta
}

/// Applies a delta record: the inverse of [`create_delta`]. Entries beyond `target` are left out.
#[cfg(test)]
pub fn apply_delta(target: &mut [u8], record: &[u8]) {
    for entry in record.chunks_exact(DELTA_ENTRY) {
        let offset = usize::from(u16::from_le_bytes([entry[0], entry[1]])) * 8;
        if let Some(place) = target.get_mut(offset..offset + 8) {
            place.copy_from_slice(&entry[2..]);
        }
    }
}

/// Contents of `length` bytes filled with a repeated 8-byte pattern, low byte first.
pub fn filled(length: usize, pattern: u64) -> Vec<u8> {
    pattern.to_le_bytes().iter().copied().cycle().take(length).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pattern;

    /// The check value of CRC-32/ISCSI, and the test pattern of RFC 3720 B.4 (32 bytes of 0).
    #[test]
    fn crc32c_gives_the_published_check_values() {
        assert_eq!(crc32c(b"123456789", 0), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32], 0), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32], 0), 0x62a8_ab43);
        assert_eq!(crc32c(&(0..32).collect::<Vec<u8>>(), 0), 0x46dd_794e);
    }

    /// The bit-by-bit, most-significant-first form, as the specification draws it.
    fn slow(data: &[u8], seed: u32, raw_seed: bool, raw_data: bool) -> u32 {
        let reflected: Vec<u8> = data.iter().map(|b| if raw_data { *b } else { b.reverse_bits() }).collect();
        let mut register = if raw_seed { seed } else { (!seed).reverse_bits() };
        for bit in reflected.iter().flat_map(|byte| (0..8).rev().map(move |n| byte >> n & 1)) {
            let top = register >> 31 ^ u32::from(bit);
            register = (register << 1) ^ (top * POLYNOMIAL);
        }
        if raw_seed { register } else { !(register.reverse_bits()) }
    }

    #[test]
    fn crc_agrees_with_the_bitwise_form_for_all_flags_and_lengths() {
        let data = pattern::bytes(77, 3);
        for length in 0..data.len() {
            for (raw_seed, raw_data) in [(false, false), (true, false), (false, true), (true, true)] {
                for seed in [0, 0xffff_ffff, 0x1234_5678] {
                    let part = &data[..length];
                    assert_eq!(crc(part, seed, raw_seed, raw_data), slow(part, seed, raw_seed, raw_data));
                }
            }
        }
    }

    #[test]
    fn crc_can_be_continued_from_a_partial_result() {
        let data = pattern::bytes(1000, 9);
        for (raw_seed, raw_data) in [(false, false), (true, false), (false, true), (true, true)] {
            let partial = crc(&data[..333], 7, raw_seed, raw_data);
            assert_eq!(crc(&data[333..], partial, raw_seed, raw_data), crc(&data, 7, raw_seed, raw_data));
        }
    }

    #[test]
    fn delta_turns_the_first_into_the_second() {
        let mut first = pattern::bytes(1024, 1);
        let mut second = first.clone();
        for offset in [0, 9, 16, 511, 1023] {
            second[offset] ^= 0x40;
        }
        let delta = create_delta(&first, &second, 1000);
        assert_eq!((delta.result, delta.bytes_completed, delta.record.len()), (1, 0, 50));
        assert_eq!(&delta.record[..2], [0, 0]);
        assert_eq!(&delta.record[10..12], [1, 0]);
        apply_delta(&mut first, &delta.record);
        assert_eq!(first, second);
    }

    #[test]
    fn delta_of_equal_data_is_empty_and_a_full_record_says_where_it_stopped() {
        let first = pattern::bytes(256, 1);
        assert_eq!(create_delta(&first, &first, 80), Delta { record: vec![], result: 0, bytes_completed: 0 });
        let second: Vec<u8> = first.iter().map(|b| !b).collect();
        let delta = create_delta(&first, &second, 80);
        assert_eq!((delta.result, delta.bytes_completed, delta.record.len()), (2, 64, 80));
    }

    #[test]
    fn fill_starts_with_the_low_byte() {
        assert_eq!(filled(10, 0x0807_0605_0403_0201), [1, 2, 3, 4, 5, 6, 7, 8, 1, 2]);
    }
}
