// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The posted interrupt descriptor. \[S 9.11\]

use crate::bits::{mask, wide};

wide! {
    /// Posted interrupt descriptor (PID), 512 bit, 64-byte aligned. \[S 9.11\]
    pub struct PostedInterruptDescriptor: 8 {
        /// Outstanding notification.
        flag on, with_on: 4 : 0;
        /// Suppress notification.
        flag sn, with_sn: 4 : 1;
        /// Notification vector.
        uint(u8) nv, with_nv: 4 : 16, 8;
        /// Notification destination, raw: see [`destination`](Self::destination).
        uint(u32) ndst, with_ndst: 4 : 32, 32;
    }
}

impl PostedInterruptDescriptor {
    /// Whether a vector is posted in PIR.
    pub const fn is_posted(&self, vector: u8) -> bool {
        self.0[vector as usize / 64] & 1 << (vector % 64) != 0
    }

    /// This descriptor with a vector posted in PIR.
    #[must_use]
    pub const fn with_posted(mut self, vector: u8) -> Self {
        self.0[vector as usize / 64] |= 1 << (vector % 64);
        self
    }

    /// The APIC id to notify: NDST, or with `eime` = false its bits 15:8 (xAPIC mode).
    pub const fn destination(&self, eime: bool) -> u32 {
        if eime { self.ndst() } else { self.ndst() >> 8 & 0xff }
    }

    /// Whether a reserved bit is set. `eime` is IRTA.EIME as latched by SIRTP.
    pub const fn reserved(&self, eime: bool) -> bool {
        let destination = if eime { 0 } else { mask(39, 32) | mask(63, 48) };
        self.0[4] & (mask(15, 2) | mask(31, 24) | destination) | self.0[5] | self.0[6] | self.0[7] != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserved_bits() {
        for bit in 0..512 {
            let mut qwords = [0u64; 8];
            qwords[bit / 64] = 1 << (bit % 64);
            let pid = PostedInterruptDescriptor::from_qwords(qwords);
            let always = matches!(bit, 258..=271 | 280..=287 | 320..=511);
            assert_eq!(pid.reserved(true), always, "bit {bit}");
            assert_eq!(pid.reserved(false), always || matches!(bit, 288..=295 | 304..=319), "bit {bit}");
        }
    }

    #[test]
    fn vectors_occupy_the_first_256_bits() {
        let pid =
            PostedInterruptDescriptor::new().with_posted(0).with_posted(255).with_nv(0xf2).with_on(true);
        assert_eq!(pid.to_qwords(), [1, 0, 0, 1 << 63, 0x00f2_0001, 0, 0, 0]);
        assert!(pid.is_posted(255) && !pid.is_posted(254));
        assert_eq!(pid.with_ndst(0x300).destination(false), 3);
    }
}
