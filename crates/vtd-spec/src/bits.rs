// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Bit arithmetic shared by the layouts, and the macro that declares a structure of several 64-bit words.

/// The page number of an address: what a field at bits 63:12 holds.
pub(crate) const fn to_page(address: u64) -> u64 {
    address >> 12
}

/// The address of a page number.
pub(crate) const fn from_page(page: u64) -> u64 {
    page << 12
}

/// Ones in bits `high:low`, both included; nothing where `low > high` or `low > 63`.
pub(crate) const fn mask(high: u32, low: u32) -> u64 {
    if low > high || low > 63 {
        return 0;
    }
    let high = if high > 63 { 63 } else { high };
    (u64::MAX >> (63 - high)) & (u64::MAX << low)
}

/// The `width` bits from bit `shift` of `word`, moved down to bit 0.
pub(crate) const fn get(word: u64, shift: u32, width: u32) -> u64 {
    (word & mask(shift + width - 1, shift)) >> shift
}

/// `word` with the `width` bits from bit `shift` replaced by the low bits of `value`.
pub(crate) const fn put(word: u64, shift: u32, width: u32, value: u64) -> u64 {
    let mask = mask(shift + width - 1, shift);
    (word & !mask) | ((value << shift) & mask)
}

/// Declares a structure of N 64-bit words, little-endian in memory, with `from_qwords`, `to_qwords`, byte
/// conversions, and for each field a getter and a `with_` setter that keeps only the bits that fit.
///
/// Field kinds: `flag` (bool), `uint(T)` (moved down to bit 0), `addr` (left in place, for pointers).
/// The place is written `word : lowest bit [, width]`.
macro_rules! wide {
    (
        $(#[$meta:meta])*
        pub struct $name:ident: $words:literal {
            $($fields:tt)*
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
        pub struct $name([u64; $words]);

        impl $name {
            /// Size in memory, in bytes.
            pub const SIZE: usize = 8 * $words;

            /// All fields zero.
            pub const fn new() -> Self {
                Self([0; $words])
            }

            /// From 64-bit words, lowest first, reserved bits included.
            pub const fn from_qwords(qwords: [u64; $words]) -> Self {
                Self(qwords)
            }

            /// As 64-bit words, lowest first.
            pub const fn to_qwords(self) -> [u64; $words] {
                self.0
            }

            /// From the bytes in memory (little-endian).
            pub fn from_bytes(bytes: &[u8; 8 * $words]) -> Self {
                let mut qwords = [0; $words];
                for (qword, chunk) in qwords.iter_mut().zip(bytes.as_chunks::<8>().0) {
                    *qword = u64::from_le_bytes(*chunk);
                }
                Self(qwords)
            }

            /// The bytes in memory (little-endian).
            pub fn to_bytes(self) -> [u8; 8 * $words] {
                let mut bytes = [0; 8 * $words];
                for (qword, chunk) in self.0.iter().zip(bytes.as_chunks_mut::<8>().0) {
                    *chunk = qword.to_le_bytes();
                }
                bytes
            }

            $crate::bits::wide!(@fields $($fields)*);
        }

        impl core::fmt::Debug for $name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                f.write_str(concat!(stringify!($name), "("))?;
                for (i, qword) in self.0.iter().enumerate() {
                    write!(f, "{}{qword:#018x}", if i == 0 { "" } else { ", " })?;
                }
                f.write_str(")")
            }
        }
    };
    (@fields) => {};
    (@fields $(#[$meta:meta])* flag $get:ident, $with:ident: $word:literal : $bit:literal; $($rest:tt)*) => {
        $(#[$meta])*
        pub const fn $get(&self) -> bool {
            self.0[$word] & 1 << $bit != 0
        }

        #[doc = concat!("This structure with [`", stringify!($get), "`](Self::", stringify!($get), ") replaced.")]
        #[must_use]
        pub const fn $with(mut self, value: bool) -> Self {
            self.0[$word] = $crate::bits::put(self.0[$word], $bit, 1, value as u64);
            self
        }

        $crate::bits::wide!(@fields $($rest)*);
    };
    (@fields $(#[$meta:meta])* uint($type:ty) $get:ident, $with:ident: $word:literal : $bit:literal, $width:literal;
     $($rest:tt)*) => {
        $(#[$meta])*
        pub const fn $get(&self) -> $type {
            $crate::bits::get(self.0[$word], $bit, $width) as $type
        }

        #[doc = concat!("This structure with [`", stringify!($get), "`](Self::", stringify!($get),
            ") replaced; bits that do not fit the field are dropped.")]
        #[must_use]
        pub const fn $with(mut self, value: $type) -> Self {
            self.0[$word] = $crate::bits::put(self.0[$word], $bit, $width, value as u64);
            self
        }

        $crate::bits::wide!(@fields $($rest)*);
    };
    (@fields $(#[$meta:meta])* addr $get:ident, $with:ident: $word:literal : $bit:literal, $width:literal;
     $($rest:tt)*) => {
        $(#[$meta])*
        pub const fn $get(&self) -> u64 {
            self.0[$word] & $crate::bits::mask($bit + $width - 1, $bit)
        }

        #[doc = concat!("This structure with [`", stringify!($get), "`](Self::", stringify!($get),
            ") replaced; address bits outside the field are dropped.")]
        #[must_use]
        pub const fn $with(mut self, address: u64) -> Self {
            let mask = $crate::bits::mask($bit + $width - 1, $bit);
            self.0[$word] = (self.0[$word] & !mask) | (address & mask);
            self
        }

        $crate::bits::wide!(@fields $($rest)*);
    };
    (@fields $(#[$meta:meta])* did $get:ident, $with:ident: $word:literal : $bit:literal; $($rest:tt)*) => {
        $(#[$meta])*
        pub const fn $get(&self) -> $crate::DomainId {
            $crate::DomainId($crate::bits::get(self.0[$word], $bit, 16) as u16)
        }

        #[doc = concat!("This structure with [`", stringify!($get), "`](Self::", stringify!($get), ") replaced.")]
        #[must_use]
        pub const fn $with(mut self, value: $crate::DomainId) -> Self {
            self.0[$word] = $crate::bits::put(self.0[$word], $bit, 16, value.0 as u64);
            self
        }

        $crate::bits::wide!(@fields $($rest)*);
    };
    (@fields $(#[$meta:meta])* sid $get:ident, $with:ident: $word:literal : $bit:literal; $($rest:tt)*) => {
        $(#[$meta])*
        pub const fn $get(&self) -> $crate::SourceId {
            $crate::SourceId($crate::bits::get(self.0[$word], $bit, 16) as u16)
        }

        #[doc = concat!("This structure with [`", stringify!($get), "`](Self::", stringify!($get), ") replaced.")]
        #[must_use]
        pub const fn $with(mut self, value: $crate::SourceId) -> Self {
            self.0[$word] = $crate::bits::put(self.0[$word], $bit, 16, value.0 as u64);
            self
        }

        $crate::bits::wide!(@fields $($rest)*);
    };
    (@fields $(#[$meta:meta])* pasid $get:ident, $with:ident: $word:literal : $bit:literal; $($rest:tt)*) => {
        $(#[$meta])*
        pub const fn $get(&self) -> $crate::Pasid {
            $crate::Pasid::truncated($crate::bits::get(self.0[$word], $bit, 20) as u32)
        }

        #[doc = concat!("This structure with [`", stringify!($get), "`](Self::", stringify!($get), ") replaced.")]
        #[must_use]
        pub const fn $with(mut self, value: $crate::Pasid) -> Self {
            self.0[$word] = $crate::bits::put(self.0[$word], $bit, 20, value.get() as u64);
            self
        }

        $crate::bits::wide!(@fields $($rest)*);
    };
}
pub(crate) use wide;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mask_covers_exactly_the_named_bits() {
        assert_eq!(mask(63, 0), u64::MAX);
        assert_eq!(mask(63, 12), 0xffff_ffff_ffff_f000);
        assert_eq!(mask(11, 10), 0xc00);
        assert_eq!(mask(51, 52), 0);
        assert_eq!(mask(63, 64), 0);
    }

    #[test]
    fn put_replaces_the_field_and_drops_what_does_not_fit() {
        assert_eq!(put(u64::MAX, 4, 8, 0), 0xffff_ffff_ffff_f00f);
        assert_eq!(put(0, 4, 8, 0x1ff), 0xff0);
        assert_eq!(get(put(0, 44, 20, 0xabcde), 44, 20), 0xabcde);
    }
}
