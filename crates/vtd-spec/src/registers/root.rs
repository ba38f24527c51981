// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! RTADDR: the root table and the translation table mode.

use bitfield_struct::bitfield;

use crate::bits::{from_page, to_page};

/// RTADDR.TTM: which tables the unit walks. \[S 11.4.5\]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum TranslationTableMode {
    /// Legacy mode: root and context tables.
    #[default]
    Legacy = 0,
    /// Scalable mode: root, context, PASID directory and PASID tables; needs ECAP.SMTS.
    Scalable = 1,
    /// Reserved (extended mode of older revisions).
    Reserved = 2,
    /// Abort-DMA mode: every DMA request is blocked; needs ECAP.ADMS.
    AbortDma = 3,
}

impl TranslationTableMode {
    /// From the 2-bit field; higher bits are ignored.
    pub const fn from_bits(ttm: u8) -> Self {
        match ttm & 3 {
            0 => Self::Legacy,
            1 => Self::Scalable,
            2 => Self::Reserved,
            _ => Self::AbortDma,
        }
    }

    /// The field's encoding.
    pub const fn into_bits(self) -> u8 {
        self as u8
    }
}

/// RTADDR. It takes effect only by GCMD.SRTP. \[S 11.4.5\]
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct RootTableAddress {
    #[bits(7)]
    __: u8,
    /// Second-stage entries use bits IR and IW instead of R and W; reserved if ECAP.SSIRWS=0.
    pub ssirwe: bool,
    #[bits(2)]
    __: u8,
    /// Translation table mode.
    #[bits(2)]
    pub ttm: TranslationTableMode,
    /// Host physical address of the root table, 4 KiB aligned.
    #[bits(52, from = from_page, into = to_page)]
    pub rta: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scalable_root_of_a_linux_boot_decodes() {
        let rtaddr = RootTableAddress::from_bits(0x249_8400);
        assert_eq!((rtaddr.rta(), rtaddr.ttm()), (0x249_8000, TranslationTableMode::Scalable));
        let built = RootTableAddress::new().with_rta(0x249_8fff).with_ttm(TranslationTableMode::Scalable);
        assert_eq!(built, rtaddr);
        assert_eq!(RootTableAddress::new().with_ssirwe(true).into_bits(), 1 << 7);
    }

    #[test]
    fn every_mode_encoding_round_trips() {
        for bits in 0..4 {
            assert_eq!(TranslationTableMode::from_bits(bits).into_bits(), bits);
        }
    }
}
