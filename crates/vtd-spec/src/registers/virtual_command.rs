// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The virtual command registers, in both encodings. \[S 11.4.16\]
//!
//! Revisions 3.0 to 3.2 (Linux 5.8 to 5.14) and revision 3.3 and later (Linux 5.15 to 6.3) put them at different
//! offsets with different layouts; the two overlap, so a unit serves one of them.

/// Command 0: nothing.
pub const COMMAND_NULL: u8 = 0;
/// Command 1: allocate a PASID; the result is the PASID.
pub const COMMAND_ALLOCATE_PASID: u8 = 1;
/// Command 2: free the PASID in the operand.
pub const COMMAND_FREE_PASID: u8 = 2;

/// Status 0: the command succeeded.
pub const STATUS_SUCCESS: u8 = 0;
/// Status 1: undefined command.
pub const STATUS_UNDEFINED_COMMAND: u8 = 1;

/// The encoding of revisions 3.0 to 3.2.
pub mod early {
    use bitfield_struct::bitfield;

    /// Offset of VCCAP.
    pub const VCCAP: u64 = 0xe00;
    /// Offset of VCMD.
    pub const VCMD: u64 = 0xe10;
    /// Offset of VCMD_EO (reserved).
    pub const VCMD_EO: u64 = 0xe18;
    /// Offset of VCRSP.
    pub const VCRSP: u64 = 0xe20;
    /// Status 2: no PASID available, or the PASID to be freed is invalid.
    pub const STATUS_NO_PASID: u8 = 2;
    /// What Linux 5.7 to 5.11 takes for [`STATUS_NO_PASID`]. \[Linux 5.11 drivers/iommu/intel/pasid.h:
    /// VCMD_VRSP_SC_NO_PASID_AVAIL\]
    pub const STATUS_NO_PASID_LINUX_5_11: u8 = 1;

    /// VCCAP, read-only.
    #[bitfield(u64)]
    #[derive(PartialEq, Eq)]
    pub struct VirtualCommandCapability {
        /// PASID commands are supported.
        pub pas: bool,
        #[bits(63)]
        __: u64,
    }

    /// VCMD.
    #[bitfield(u64)]
    #[derive(PartialEq, Eq)]
    pub struct VirtualCommand {
        /// Command.
        pub cmd: u8,
        /// Operand; a PASID is in its low 20 bits (bits 27:8 of the register).
        #[bits(56)]
        pub op: u64,
    }

    /// VCRSP, read-only.
    #[bitfield(u64)]
    #[derive(PartialEq, Eq)]
    pub struct VirtualCommandResponse {
        /// In progress.
        pub ip: bool,
        /// Status code.
        #[bits(2)]
        pub sc: u8,
        #[bits(5)]
        __: u8,
        /// Result; a PASID is in its low 20 bits.
        #[bits(56)]
        pub rslt: u64,
    }
}

/// The encoding of revision 3.3 and later.
pub mod r#final {
    use bitfield_struct::bitfield;

    /// Offset of VCMD.
    pub const VCMD: u64 = 0xe00;
    /// Offset of VCMD_EO: operand B, 63:0.
    pub const VCMD_EO: u64 = 0xe08;
    /// Offset of VCRSP.
    pub const VCRSP: u64 = 0xe10;
    /// Offset of VCCAP.
    pub const VCCAP: u64 = 0xe30;
    /// Status 16: no PASID available, or the PASID to be freed is invalid.
    pub const STATUS_NO_PASID: u8 = 16;

    /// VCCAP, read-only. Linux takes bit 0 for PAS (`DMA_VCS_PAS`), the specification bit 1: set both.
    #[bitfield(u64)]
    #[derive(PartialEq, Eq)]
    pub struct VirtualCommandCapability {
        /// Bit 0: NS in the specification, PAS to Linux.
        pub ns: bool,
        /// PASID commands are supported.
        pub pas: bool,
        /// Bit 2: FPS.
        pub fps: bool,
        #[bits(61)]
        __: u64,
    }

    /// VCMD.
    #[bitfield(u64)]
    #[derive(PartialEq, Eq)]
    pub struct VirtualCommand {
        /// Command.
        pub cmd: u8,
        #[bits(8)]
        __: u8,
        /// Operand A; a PASID is in its low 20 bits (bits 35:16 of the register).
        #[bits(48)]
        pub op: u64,
    }

    /// VCRSP, read-only.
    #[bitfield(u64)]
    #[derive(PartialEq, Eq)]
    pub struct VirtualCommandResponse {
        /// In progress.
        pub ip: bool,
        /// Status code.
        #[bits(7)]
        pub sc: u8,
        #[bits(8)]
        __: u8,
        /// Result; a PASID is in its low 20 bits.
        #[bits(48)]
        pub rslt: u64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pasid_operand_lies_at_bit_8_early_and_at_bit_16_finally() {
        let early = early::VirtualCommand::new().with_cmd(COMMAND_FREE_PASID).with_op(0xabcde);
        assert_eq!(early.into_bits(), 0x0abc_de02);
        let last = r#final::VirtualCommand::new().with_cmd(COMMAND_FREE_PASID).with_op(0xabcde);
        assert_eq!(last.into_bits(), 0xa_bcde_0002);
    }

    #[test]
    fn status_of_a_failed_allocation_encodes() {
        let early = early::VirtualCommandResponse::new().with_sc(early::STATUS_NO_PASID);
        assert_eq!(early.into_bits(), 4);
        let last = r#final::VirtualCommandResponse::new().with_sc(r#final::STATUS_NO_PASID);
        assert_eq!(last.into_bits(), 32);
    }
}
