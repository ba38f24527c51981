// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Pseudo-random contents and numbers: cheap enough for a doubly emulated CPU, and different at every offset, so
//! that data that lands in a wrong place is noticed.

/// An odd constant near 2^64 / golden ratio: multiples of it are spread evenly.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// Fills `buffer` with the contents that belong to `seed`.
pub fn fill(buffer: &mut [u8], seed: u64) {
    let mut state = mix(seed);
    let mut words = buffer.chunks_exact_mut(8);
    for word in &mut words {
        state = state.wrapping_add(STEP);
        word.copy_from_slice(&(state ^ (state >> 29)).to_le_bytes());
    }
    let last = state.wrapping_add(STEP);
    for (byte, value) in words.into_remainder().iter_mut().zip((last ^ (last >> 29)).to_le_bytes()) {
        *byte = value;
    }
}

/// `length` bytes of the contents that belong to `seed`.
pub fn bytes(length: usize, seed: u64) -> Vec<u8> {
    let mut buffer = vec![0; length];
    fill(&mut buffer, seed);
    buffer
}

/// The finalizer of SplitMix64: every input bit changes every output bit.
pub fn mix(value: u64) -> u64 {
    let mut x = value.wrapping_add(STEP);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// SplitMix64.
pub struct Random(u64);

impl Random {
    /// A sequence that belongs to `seed`.
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// The next number.
    pub fn next(&mut self) -> u64 {
        let value = mix(self.0);
        self.0 = self.0.wrapping_add(STEP);
        value
    }

    /// A number below `bound` (which must not be 0).
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contents_depend_on_seed_and_place_and_not_on_length() {
        let long = bytes(4099, 5);
        assert_eq!(bytes(17, 5), long[..17]);
        assert_ne!(bytes(64, 6), long[..64]);
        assert!(long.chunks_exact(8).collect::<std::collections::HashSet<_>>().len() == 512);
    }

    #[test]
    fn random_numbers_stay_below_their_bound() {
        let mut random = Random::new(1);
        assert!((0..1000).all(|_| random.below(7) < 7));
    }
}
