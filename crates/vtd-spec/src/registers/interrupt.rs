// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! IRTA: the interrupt remapping table.

use bitfield_struct::bitfield;

use crate::bits::{from_page, to_page};

/// IRTA. It takes effect only by GCMD.SIRTP. \[S 11.4.10\]
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct InterruptRemapTableAddress {
    /// Size: the table has 2^(S+1) entries; see [`entries`](Self::entries).
    #[bits(4)]
    pub s: u8,
    #[bits(7)]
    __: u8,
    /// Extended interrupt mode enable: destinations are 32-bit APIC ids; reserved if ECAP.EIM=0.
    pub eime: bool,
    /// Host physical address of the table, 4 KiB aligned.
    #[bits(52, from = from_page, into = to_page)]
    pub irta: u64,
}

impl InterruptRemapTableAddress {
    /// Number of entries in the table, 2 to 65536.
    pub const fn entries(self) -> u32 {
        2 << self.s()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_of_a_linux_boot_has_65536_entries() {
        let irta = InterruptRemapTableAddress::from_bits(0x130_000f);
        assert_eq!((irta.irta(), irta.entries(), irta.eime()), (0x130_0000, 65536, false));
        assert!(InterruptRemapTableAddress::from_bits(0x800).eime());
    }
}
