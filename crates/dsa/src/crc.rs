// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The CRC of the CRC generation operations: polynomial 0x11EDC6F41 (CRC32C). \[D appendix A\]

/// The polynomial without its highest term, lowest term in the highest bit.
const REFLECTED_POLYNOMIAL: u32 = 0x1edc_6f41_u32.reverse_bits();

/// `TABLES[n][b]`: the contribution of byte `b` that `n` more bytes follow.
static TABLES: [[u32; 256]; 8] = tables();

const fn tables() -> [[u32; 256]; 8] {
    let mut tables = [[0; 256]; 8];
    let mut byte = 0;
    while byte < 256 {
        let mut value = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            value = if value & 1 == 1 { (value >> 1) ^ REFLECTED_POLYNOMIAL } else { value >> 1 };
            bit += 1;
        }
        tables[0][byte] = value;
        byte += 1;
    }
    let mut n = 1;
    while n < 8 {
        let mut byte = 0;
        while byte < 256 {
            let value = tables[n - 1][byte];
            tables[n][byte] = (value >> 8) ^ tables[0][(value & 0xff) as usize];
            byte += 1;
        }
        n += 1;
    }
    tables
}

/// A CRC under way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Crc {
    /// The shift register, lowest term in the highest bit.
    register: u32,
    bypass_inversion: bool,
    bypass_data_reflection: bool,
}

impl Crc {
    /// Continues from `seed`, which is a result of [`Self::value`] with the same flags. `bypass_inversion` takes seed
    /// and result neither inverted nor reflected, `bypass_data_reflection` takes each byte's highest bit first.
    pub fn new(seed: u32, bypass_inversion: bool, bypass_data_reflection: bool) -> Self {
        let register = if bypass_inversion { seed.reverse_bits() } else { !seed };
        Self { register, bypass_inversion, bypass_data_reflection }
    }

    /// Takes in `data`, and nothing but `data`: no padding.
    pub fn update(&mut self, data: &[u8]) {
        if self.bypass_data_reflection {
            for byte in data {
                self.byte(byte.reverse_bits());
            }
            return;
        }
        let (chunks, rest) = data.as_chunks::<8>();
        let mut register = self.register;
        for [a, b, c, d, e, f, g, h] in chunks {
            // Spelled out: this loop is the speed of the operation.
            let [i, j, k, l] = (register ^ u32::from_le_bytes([*a, *b, *c, *d])).to_le_bytes();
            register = TABLES[7][usize::from(i)]
                ^ TABLES[6][usize::from(j)]
                ^ TABLES[5][usize::from(k)]
                ^ TABLES[4][usize::from(l)]
                ^ TABLES[3][usize::from(*e)]
                ^ TABLES[2][usize::from(*f)]
                ^ TABLES[1][usize::from(*g)]
                ^ TABLES[0][usize::from(*h)];
        }
        self.register = register;
        for byte in rest {
            self.byte(*byte);
        }
    }

    /// The CRC of all data so far.
    pub const fn value(&self) -> u32 {
        if self.bypass_inversion { self.register.reverse_bits() } else { !self.register }
    }

    fn byte(&mut self, byte: u8) {
        let index = (self.register as u8) ^ byte;
        self.register = (self.register >> 8) ^ TABLES[0][usize::from(index)];
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Bit by bit, highest term first: the textbook form.
    pub(crate) fn reference(seed: u32, data: &[u8], bypass_inversion: bool, bypass_reflection: bool) -> u32 {
        let mut register = if bypass_inversion { seed } else { (!seed).reverse_bits() };
        for byte in data {
            let byte = if bypass_reflection { *byte } else { byte.reverse_bits() };
            register ^= u32::from(byte) << 24;
            for _ in 0..8 {
                register = if register >> 31 == 1 { (register << 1) ^ 0x1edc_6f41 } else { register << 1 };
            }
        }
        if bypass_inversion { register } else { !register.reverse_bits() }
    }

    #[test]
    fn the_check_value_of_crc32c_comes_out() {
        let mut crc = Crc::new(0, false, false);
        crc.update(b"123456789");
        assert_eq!(crc.value(), 0xe306_9283);
    }

    #[test]
    fn all_lengths_and_flags_agree_with_the_textbook_form_and_continue_from_their_results() {
        let data: Vec<u8> = (0..100_u32).map(|n| (n * 37 + 11) as u8).collect();
        for flags in 0..4 {
            let (inversion, reflection) = (flags & 1 != 0, flags & 2 != 0);
            for length in 0..data.len() {
                let mut crc = Crc::new(0x1234_5678, inversion, reflection);
                crc.update(&data[..length]);
                let expected = reference(0x1234_5678, &data[..length], inversion, reflection);
                assert_eq!(crc.value(), expected, "{flags} {length}");
                let mut rest = Crc::new(crc.value(), inversion, reflection);
                rest.update(&data[length..]);
                assert_eq!(rest.value(), reference(0x1234_5678, &data, inversion, reflection));
            }
        }
    }
}
