// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! CAP and ECAP: what the unit can do.

use bitfield_struct::bitfield;

/// CAP, read-only. \[S 11.4.2\]
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct Capability {
    /// Number of domains: domain-ids have 2 x ND + 4 bits (6 = 16 bits, 7 reserved).
    #[bits(3)]
    pub nd: u8,
    #[bits(1)]
    __: u8,
    /// Required write-buffer flushing; 0 with SMTS.
    pub rwbf: bool,
    /// Protected low memory region.
    pub plmr: bool,
    /// Protected high memory region.
    pub phmr: bool,
    /// Caching mode: not-present entries may be cached, so software invalidates when an entry becomes present.
    pub cm: bool,
    /// Supported adjusted guest address widths of the second stage: bit 1 39 bits, bit 2 48, bit 3 57.
    #[bits(5)]
    pub sagaw: u8,
    #[bits(3)]
    __: u8,
    /// Maximum guest address width, in bits minus 1.
    #[bits(6)]
    pub mgaw: u8,
    /// Zero-length reads of write-only second-stage pages succeed.
    pub zlr: bool,
    #[bits(1)]
    __: u8,
    /// Fault recording register offset, in units of 16 bytes.
    #[bits(10)]
    pub fro: u16,
    /// Second-stage large pages: bit 0 2 MiB, bit 1 1 GiB (0, 1 and 3 are legal).
    #[bits(4)]
    pub sslps: u8,
    #[bits(1)]
    __: u8,
    /// Page-selective IOTLB invalidation (descriptor type 2).
    pub psi: bool,
    /// Number of fault recording registers, minus 1.
    pub nfr: u8,
    /// Maximum address mask of page-selective invalidation by type 2 descriptors and IVA.
    #[bits(6)]
    pub mamv: u8,
    /// Write draining (reported 1).
    pub dwd: bool,
    /// Read draining (reported 1).
    pub drd: bool,
    /// First-stage 1 GiB pages.
    pub fs1gp: bool,
    #[bits(2)]
    __: u8,
    /// Posted interrupts.
    pub pi: bool,
    /// First-stage 5-level paging.
    pub fs5lp: bool,
    /// Enhanced commands.
    pub ecmds: bool,
    /// Enhanced set interrupt remap table pointer: SIRTP invalidates the interrupt entry cache.
    pub esirtps: bool,
    /// Enhanced set root table pointer: SRTP invalidates all DMA translation caches.
    pub esrtps: bool,
}

impl Capability {
    /// Byte offset of the first fault recording register: FRO x 16. They are 16 bytes each.
    pub const fn fault_record_offset(self) -> u64 {
        self.fro() as u64 * 16
    }

    /// Number of fault recording registers: NFR + 1, 1 to 256.
    pub const fn fault_records(self) -> u16 {
        self.nfr() as u16 + 1
    }
}

/// ECAP, read-only. \[S 11.4.3\]
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub struct ExtendedCapability {
    /// Coherency: root, context, PASID and interrupt tables and legacy second-stage tables are snooped.
    pub c: bool,
    /// Queued invalidation.
    pub qi: bool,
    /// Device-TLBs; needs QI.
    pub dt: bool,
    /// Interrupt remapping; needs QI.
    pub ir: bool,
    /// Extended interrupt mode: 32-bit APIC ids; needs IR.
    pub eim: bool,
    #[bits(1)]
    __: u8,
    /// Pass-through.
    pub pt: bool,
    /// Snoop control: SNP and PGSNP may be set.
    pub sc: bool,
    /// IOTLB register offset, in units of 16 bytes.
    #[bits(10)]
    pub iro: u16,
    #[bits(2)]
    __: u8,
    /// Maximum handle mask of an index-selective interrupt entry cache invalidation.
    #[bits(4)]
    pub mhmv: u8,
    #[bits(1)]
    __: u8,
    /// Memory types; needs SMTS.
    pub mts: bool,
    /// Nested translation; needs SMTS, FSTS and SSTS.
    pub nest: bool,
    #[bits(2)]
    __: u8,
    /// Page requests; needs DT and SMTS.
    pub prs: bool,
    /// Execute requests (withdrawn from the architecture, 0).
    pub ers: bool,
    /// Supervisor requests; needs SMTS.
    pub srs: bool,
    #[bits(1)]
    __: u8,
    /// The no-write flag of translation requests is honoured; needs DT.
    pub nwfs: bool,
    /// Extended-accessed flags; needs FSTS and SMPWC.
    pub eafs: bool,
    /// PASID size: number of PASID bits, minus 1.
    #[bits(5)]
    pub pss: u8,
    /// Requests with PASID; needs SMTS.
    pub pasid: bool,
    /// Device-TLB invalidation throttle (PFSID fields); needs DT.
    pub dit: bool,
    /// Page request drain (PD flag of the wait descriptor); needs DT.
    pub pds: bool,
    /// Scalable mode; needs QI.
    pub smts: bool,
    /// Virtual commands.
    pub vcs: bool,
    /// Second-stage accessed and dirty flags; needs SMPWC.
    pub ssads: bool,
    /// Second-stage translation in scalable mode.
    pub ssts: bool,
    /// First-stage translation; needs SMTS.
    pub fsts: bool,
    /// Scalable-mode page walks can snoop (PWSNP); needs SMTS.
    pub smpwc: bool,
    /// The RID_PASID field is used; needs SMTS.
    pub rps: bool,
    /// TDX connect.
    pub tdxcs: bool,
    /// Performance monitoring; needs ECMDS.
    pub pms: bool,
    /// Abort-DMA mode.
    pub adms: bool,
    /// The RID_PRIV field is used; needs SRS.
    pub rprivs: bool,
    #[bits(1)]
    __: u8,
    /// Host permission tables; needs SMTS and DT.
    pub hpts: bool,
    /// PASID in translated requests; needs DT and PASID.
    pub ptrs: bool,
    /// Second-stage IR and IW bits (RTADDR.SSIRWE).
    pub ssirws: bool,
    /// Stop markers that cannot be queued are dropped silently; needs PRS.
    pub sms: bool,
    /// Host permission tables of 1 GiB granularity; needs HPTS.
    pub hpt1gps: bool,
    /// Resource director technology.
    pub rdts: bool,
    /// Extended interrupt mode required; needs EIM.
    pub eimer: bool,
    /// Interrupt remapping required; needs IR.
    pub irreq: bool,
    #[bits(1)]
    __: u8,
}

impl ExtendedCapability {
    /// Byte offset of IVA: IRO x 16.
    pub const fn iva_offset(self) -> u64 {
        self.iro() as u64 * 16
    }

    /// Byte offset of the IOTLB invalidate register: IRO x 16 + 8.
    pub const fn iotlb_offset(self) -> u64 {
        self.iva_offset() + 8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The unit that Linux 6.1, 6.12 and 7.3 were seen to boot on.
    #[test]
    fn reference_cap_decodes_to_its_fields() {
        let cap = Capability::from_bits(0x81d2_008c_222f_0686);
        assert_eq!((cap.nd(), cap.cm(), cap.sagaw(), cap.mgaw(), cap.sslps()), (6, true, 0b110, 47, 3));
        assert_eq!((cap.fault_record_offset(), cap.fault_records(), cap.mamv()), (0x220, 1, 18));
        assert!(cap.psi() && cap.dwd() && cap.drd() && cap.fs1gp() && cap.esrtps());
        assert!(!cap.zlr() && !cap.rwbf() && !cap.plmr() && !cap.phmr() && !cap.pi() && !cap.fs5lp());
        assert!(!cap.ecmds() && !cap.esirtps());
        let built = Capability::new()
            .with_nd(6)
            .with_cm(true)
            .with_sagaw(0b110)
            .with_mgaw(47)
            .with_sslps(3)
            .with_fro(0x22)
            .with_psi(true)
            .with_mamv(18)
            .with_dwd(true)
            .with_drd(true)
            .with_fs1gp(true)
            .with_esrtps(true);
        assert_eq!(built, cap);
    }

    #[test]
    fn reference_ecap_decodes_to_its_fields() {
        let ecap = ExtendedCapability::from_bits(0x1_8d9a_20f0_0f4f);
        assert_eq!((ecap.iotlb_offset(), ecap.mhmv(), ecap.pss()), (0xf8, 15, 19));
        let built = ExtendedCapability::new()
            .with_c(true)
            .with_qi(true)
            .with_dt(true)
            .with_ir(true)
            .with_pt(true)
            .with_iro(0xf)
            .with_mhmv(15)
            .with_prs(true)
            .with_nwfs(true)
            .with_pss(19)
            .with_pasid(true)
            .with_pds(true)
            .with_smts(true)
            .with_fsts(true)
            .with_smpwc(true);
        assert_eq!(built, ecap);
    }

    #[test]
    fn high_capability_bits_are_where_the_specification_has_them() {
        let bit = |ecap: ExtendedCapability| ecap.into_bits().trailing_zeros();
        let new = ExtendedCapability::new;
        assert_eq!(bit(new().with_ers(true)), 30);
        assert_eq!(bit(new().with_vcs(true)), 44);
        assert_eq!(bit(new().with_rps(true)), 49);
        assert_eq!(bit(new().with_adms(true)), 52);
        assert_eq!(bit(new().with_rprivs(true)), 53);
        assert_eq!(bit(new().with_hpts(true)), 55);
        assert_eq!(bit(new().with_irreq(true)), 62);
        assert_eq!(Capability::new().with_pi(true).into_bits(), 1 << 59);
    }
}
