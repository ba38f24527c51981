// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Byte offsets from the register base. \[S 11.4\]
//!
//! IVA and IOTLB lie at ECAP.IRO x 16, the fault records at CAP.FRO x 16: see
//! [`Capability::fault_record_offset`](crate::Capability::fault_record_offset) and
//! [`ExtendedCapability::iotlb_offset`](crate::ExtendedCapability::iotlb_offset).

/// Version, 32 bit.
pub const VER: u64 = 0x00;
/// Capability, 64 bit.
pub const CAP: u64 = 0x08;
/// Extended capability, 64 bit.
pub const ECAP: u64 = 0x10;
/// Global command, 32 bit, write-only.
pub const GCMD: u64 = 0x18;
/// Global status, 32 bit, read-only.
pub const GSTS: u64 = 0x1c;
/// Root table address, 64 bit.
pub const RTADDR: u64 = 0x20;
/// Context command, 64 bit.
pub const CCMD: u64 = 0x28;
/// Fault status, 32 bit.
pub const FSTS: u64 = 0x34;
/// Fault event control, 32 bit.
pub const FECTL: u64 = 0x38;
/// Fault event data, 32 bit.
pub const FEDATA: u64 = 0x3c;
/// Fault event address, 32 bit.
pub const FEADDR: u64 = 0x40;
/// Fault event upper address, 32 bit.
pub const FEUADDR: u64 = 0x44;
/// Advanced fault log, 64 bit; removed from the architecture, reads 0.
pub const AFLOG: u64 = 0x58;
/// Protected memory enable, 32 bit.
pub const PMEN: u64 = 0x64;
/// Protected low memory base, 32 bit.
pub const PLMBASE: u64 = 0x68;
/// Protected low memory limit, 32 bit.
pub const PLMLIMIT: u64 = 0x6c;
/// Protected high memory base, 64 bit.
pub const PHMBASE: u64 = 0x70;
/// Protected high memory limit, 64 bit.
pub const PHMLIMIT: u64 = 0x78;
/// Invalidation queue head, 64 bit, read-only.
pub const IQH: u64 = 0x80;
/// Invalidation queue tail, 64 bit.
pub const IQT: u64 = 0x88;
/// Invalidation queue address, 64 bit.
pub const IQA: u64 = 0x90;
/// Invalidation completion status, 32 bit.
pub const ICS: u64 = 0x9c;
/// Invalidation event control, 32 bit.
pub const IECTL: u64 = 0xa0;
/// Invalidation event data, 32 bit.
pub const IEDATA: u64 = 0xa4;
/// Invalidation event address, 32 bit.
pub const IEADDR: u64 = 0xa8;
/// Invalidation event upper address, 32 bit.
pub const IEUADDR: u64 = 0xac;
/// Invalidation queue error record, 64 bit, read-only.
pub const IQERCD: u64 = 0xb0;
/// Interrupt remapping table address, 64 bit.
pub const IRTA: u64 = 0xb8;
/// Page request queue head, 64 bit.
pub const PQH: u64 = 0xc0;
/// Page request queue tail, 64 bit.
pub const PQT: u64 = 0xc8;
/// Page request queue address, 64 bit.
pub const PQA: u64 = 0xd0;
/// Page request status, 32 bit.
pub const PRS: u64 = 0xdc;
/// Page request event control, 32 bit.
pub const PECTL: u64 = 0xe0;
/// Page request event data, 32 bit.
pub const PEDATA: u64 = 0xe4;
/// Page request event address, 32 bit.
pub const PEADDR: u64 = 0xe8;
/// Page request event upper address, 32 bit.
pub const PEUADDR: u64 = 0xec;
/// MTRR capability, 64 bit, read-only.
pub const MTRRCAP: u64 = 0x100;
/// MTRR default type, 64 bit.
pub const MTRRDEF: u64 = 0x108;
/// Fixed-range MTRR 64K_00000, 64 bit.
pub const MTRR_FIX64K_00000: u64 = 0x120;
/// Fixed-range MTRR 16K_80000, 64 bit.
pub const MTRR_FIX16K_80000: u64 = 0x128;
/// Fixed-range MTRR 16K_A0000, 64 bit.
pub const MTRR_FIX16K_A0000: u64 = 0x130;
/// The first of eight fixed-range MTRRs of 4 KiB granularity, from C0000 upwards, 64 bit each.
pub const MTRR_FIX4K_C0000: u64 = 0x138;
/// Variable-range MTRR base 0; base n lies at + 16 n and its mask 8 bytes behind it, n = 0 to 9, 64 bit each.
pub const MTRR_PHYSBASE0: u64 = 0x180;
/// Variable-range MTRR mask 0.
pub const MTRR_PHYSMASK0: u64 = 0x188;
/// Performance monitoring capability, 64 bit, read-only.
pub const PERFCAP: u64 = 0x300;
/// Performance monitoring configuration offset, 32 bit, read-only.
pub const PERFCFGOFF: u64 = 0x310;
/// Performance monitoring freeze offset, 32 bit, read-only.
pub const PERFFRZOFF: u64 = 0x314;
/// Performance monitoring overflow offset, 32 bit, read-only.
pub const PERFOVFOFF: u64 = 0x318;
/// Performance monitoring counter offset, 32 bit, read-only.
pub const PERFCNTROFF: u64 = 0x31c;
/// Performance monitoring interrupt status, 32 bit.
pub const PERFINTRSTS: u64 = 0x324;
/// Performance monitoring interrupt control, 32 bit.
pub const PERFINTRCTL: u64 = 0x328;
/// Performance monitoring interrupt data, 32 bit.
pub const PERFINTRDATA: u64 = 0x32c;
/// Performance monitoring interrupt address, 32 bit.
pub const PERFINTRADDR: u64 = 0x330;
/// Performance monitoring interrupt upper address, 32 bit.
pub const PERFINTRUADDR: u64 = 0x334;
/// The first of the performance event capabilities (to 0x3f8), 64 bit each, read-only.
pub const PERFEVNTCAP: u64 = 0x380;
/// Enhanced command, 64 bit, write-only.
pub const ECMD: u64 = 0x400;
/// Enhanced command extended operand, 64 bit, write-only.
pub const ECEO: u64 = 0x408;
/// Enhanced command response, 64 bit, read-only.
pub const ECRSP: u64 = 0x410;
/// Enhanced command status 0, 64 bit, read-only; status 1 follows.
pub const ECSTS0: u64 = 0x420;
/// Enhanced command capability 0, 64 bit, read-only; 1 to 3 follow.
pub const ECCAP0: u64 = 0x430;
/// Enhanced command capability 3, 64 bit, read-only.
pub const ECCAP3: u64 = 0x448;
/// Resource director technology control, 64 bit.
pub const RDTC: u64 = 0xdc0;

/// Virtual command capability, 64 bit, read-only, where revision 3.3 and later have it. Revisions 3.0 to 3.2 have
/// it at [`early::VCCAP`](crate::registers::virtual_command::early::VCCAP). \[S 11.4.16\]
pub const VCCAP: u64 = crate::registers::virtual_command::r#final::VCCAP;
/// Virtual command, 64 bit (final place).
pub const VCMD: u64 = crate::registers::virtual_command::r#final::VCMD;
/// Virtual command extended operand, 64 bit (final place).
pub const VCMD_EO: u64 = crate::registers::virtual_command::r#final::VCMD_EO;
/// Virtual command response, 64 bit, read-only (final place).
pub const VCRSP: u64 = crate::registers::virtual_command::r#final::VCRSP;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_of_the_event_blocks_lie_in_the_same_order() {
        for (control, data, address, upper) in [
            (FECTL, FEDATA, FEADDR, FEUADDR),
            (IECTL, IEDATA, IEADDR, IEUADDR),
            (PECTL, PEDATA, PEADDR, PEUADDR),
            (PERFINTRCTL, PERFINTRDATA, PERFINTRADDR, PERFINTRUADDR),
        ] {
            assert_eq!([data - control, address - control, upper - control], [4, 8, 12]);
        }
    }
}
