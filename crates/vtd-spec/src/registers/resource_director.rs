// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! RDTC: resource director technology.

use bitfield_struct::bitfield;

/// RDTC: the tags of the unit's own memory accesses; reserved if ECAP.RDTS=0. \[S 11.4\]
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct ResourceDirectorControl {
    /// Resource monitoring id.
    #[bits(12)]
    pub rmid: u16,
    #[bits(20)]
    __: u32,
    /// Class of service.
    #[bits(5)]
    pub clos: u8,
    #[bits(27)]
    __: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_lie_at_the_specified_bits() {
        let control = ResourceDirectorControl::new().with_rmid(0xabc).with_clos(0x15);
        assert_eq!(control.into_bits(), 0x15_0000_0abc);
    }
}
