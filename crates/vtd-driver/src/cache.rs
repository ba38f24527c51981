// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The invalidation descriptors, in one line each (Linux iommu.h: `qi_desc_*`; V9 patch 05 brought the PASID cache and
//! the PASID-based device-TLB).
//!
//! Ranges are encoded by [`vtd_spec::descriptors`]: the address of a device-TLB invalidation goes into the second word,
//! with all bits below the one that gives the size set.

use vtd_spec::descriptors::{
    ContextCache, ContextGranularity, DeviceTlb, FunctionMask, InterruptEntryCache, InterruptGranularity,
    Iotlb, IotlbGranularity, PageGroupResponse, PasidCache, PasidCacheGranularity, PasidDeviceTlb,
    PasidIotlb, PasidIotlbGranularity, Wait,
};
use vtd_spec::{AddressRange, Capabilities, Descriptor, DomainId, Pasid, ResponseCode, SourceId};

use crate::state::device_config::Ats;

/// Context cache: all of it.
pub const fn context_global() -> Descriptor {
    context(ContextGranularity::Global, SourceId(0))
}

/// Context cache: one function. Linux names domain-id 0 in scalable mode.
pub const fn context_device(sid: SourceId) -> Descriptor {
    context(ContextGranularity::Device, sid)
}

const fn context(granularity: ContextGranularity, sid: SourceId) -> Descriptor {
    Descriptor::ContextCache(ContextCache { granularity, did: DomainId(0), sid, fm: FunctionMask::None })
}

/// PASID cache: all of it.
pub const fn pasid_cache_global() -> Descriptor {
    pasid_cache(PasidCacheGranularity::Global, DomainId(0), Pasid::ZERO)
}

/// PASID cache: all PASIDs of a domain.
pub const fn pasid_cache_domain(did: DomainId) -> Descriptor {
    pasid_cache(PasidCacheGranularity::Domain, did, Pasid::ZERO)
}

/// PASID cache: one PASID within a domain.
pub const fn pasid_cache_pasid(did: DomainId, pasid: Pasid) -> Descriptor {
    pasid_cache(PasidCacheGranularity::Pasid, did, pasid)
}

const fn pasid_cache(granularity: PasidCacheGranularity, did: DomainId, pasid: Pasid) -> Descriptor {
    Descriptor::PasidCache(PasidCache { granularity, did, pasid })
}

/// IOTLB: all of it, reads and writes drained.
pub const fn iotlb_global() -> Descriptor {
    iotlb(IotlbGranularity::Global, DomainId(0), AddressRange::new(0, 0), false)
}

/// IOTLB: a domain, reads and writes drained.
pub const fn iotlb_domain(did: DomainId) -> Descriptor {
    iotlb(IotlbGranularity::Domain, did, AddressRange::new(0, 0), false)
}

/// IOTLB: second-stage input addresses of a domain, by page where the unit can (CAP.PSI, CAP.MAMV), or else all of the
/// domain. `leaf`: only leaf entries changed, paging-structure caches may stay.
pub fn iotlb_pages(
    did: DomainId,
    range: AddressRange,
    leaf: bool,
    capabilities: &Capabilities,
) -> Descriptor {
    if !capabilities.cap.psi() || range.order() > capabilities.cap.mamv() {
        return iotlb_domain(did);
    }
    iotlb(IotlbGranularity::Page, did, range, leaf)
}

const fn iotlb(granularity: IotlbGranularity, did: DomainId, range: AddressRange, leaf: bool) -> Descriptor {
    let (am, addr) = (range.order(), range.base());
    Descriptor::Iotlb(Iotlb { granularity, dw: true, dr: true, did, am, ih: leaf, addr })
}

/// PASID-based IOTLB: everything of a PASID within a domain.
pub const fn pasid_iotlb(did: DomainId, pasid: Pasid) -> Descriptor {
    let granularity = PasidIotlbGranularity::Pasid;
    Descriptor::PasidIotlb(PasidIotlb { granularity, did, pasid, am: 0, ih: false, addr: 0 })
}

/// PASID-based IOTLB: first-stage input addresses of a PASID within a domain. The whole space is a PASID-selective
/// invalidation.
pub const fn pasid_iotlb_pages(did: DomainId, pasid: Pasid, range: AddressRange, leaf: bool) -> Descriptor {
    if range.order() == AddressRange::MAX_ORDER {
        return pasid_iotlb(did, pasid);
    }
    let granularity = PasidIotlbGranularity::Page;
    let (am, addr) = (range.order(), range.base());
    Descriptor::PasidIotlb(PasidIotlb { granularity, did, pasid, am, ih: leaf, addr })
}

/// Device-TLB: translations of requests without PASID.
pub const fn device_tlb(sid: SourceId, ats: Ats, range: AddressRange) -> Descriptor {
    Descriptor::DeviceTlb(DeviceTlb { sid, pfsid: ats.pfsid, mip: ats.invalidate_queue_depth, range })
}

/// PASID-based device-TLB: translations of requests with this PASID.
pub const fn pasid_device_tlb(sid: SourceId, ats: Ats, pasid: Pasid, range: AddressRange) -> Descriptor {
    let (pfsid, mip) = (ats.pfsid, ats.invalidate_queue_depth);
    Descriptor::PasidDeviceTlb(PasidDeviceTlb { sid, pfsid, mip, pasid, gi: false, range })
}

/// PASID-based device-TLB: translations of requests with any PASID (Global Invalidate).
pub const fn global_device_tlb(sid: SourceId, ats: Ats, range: AddressRange) -> Descriptor {
    let (pfsid, mip) = (ats.pfsid, ats.invalidate_queue_depth);
    Descriptor::PasidDeviceTlb(PasidDeviceTlb { sid, pfsid, mip, pasid: Pasid::ZERO, gi: true, range })
}

/// Interrupt entry cache: all of it.
pub const fn interrupt_global() -> Descriptor {
    let granularity = InterruptGranularity::Global;
    Descriptor::InterruptEntryCache(InterruptEntryCache { granularity, im: 0, iidx: 0 })
}

/// Interrupt entry cache: one entry.
pub const fn interrupt_index(iidx: u16) -> Descriptor {
    let granularity = InterruptGranularity::Index;
    Descriptor::InterruptEntryCache(InterruptEntryCache { granularity, im: 0, iidx })
}

/// Page group response.
pub const fn response(rid: SourceId, pasid: Option<Pasid>, prgi: u16, rc: ResponseCode) -> Descriptor {
    Descriptor::PageGroupResponse(PageGroupResponse { pasid, rid, rc, prgi })
}

/// A wait that only keeps what follows behind what precedes (FN).
pub fn barrier() -> Descriptor {
    Descriptor::Wait(Wait { fn_: true, ..Wait::default() })
}

/// Everything a device may have translated by a PASID; PASID 0 stands for requests without PASID.
pub const fn device_tlb_of_pasid(sid: SourceId, ats: Ats, pasid: Pasid, range: AddressRange) -> Descriptor {
    if pasid.get() == 0 { device_tlb(sid, ats, range) } else { pasid_device_tlb(sid, ats, pasid, range) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ATS: Ats = Ats { invalidate_queue_depth: 0x1f, pfsid: SourceId(0), global_invalidate: false };
    const SID: SourceId = SourceId(0x18);
    const PASID: Pasid = Pasid::truncated(0x42);

    /// Expected words from Linux 7.3's iommu.h and the traced boots.
    #[test]
    fn descriptors_are_linuxs() {
        let pages = AddressRange::new(0x7f12_3456_7000, 0);
        let many = AddressRange::new(0x7f12_3455_0000, 4);
        for (descriptor, words) in [
            (context_device(SID), [0x18_0000_0031, 0]),
            (context_global(), [0x11, 0]),
            (iotlb_domain(DomainId(0)), [0xe2, 0]),
            (iotlb_global(), [0xd2, 0]),
            (pasid_cache_pasid(DomainId(2), Pasid::ZERO), [0x2_0017, 0]),
            (pasid_cache_global(), [0x37, 0]),
            (pasid_cache_domain(DomainId(3)), [0x3_0007, 0]),
            (pasid_iotlb(DomainId(2), Pasid::ZERO), [0x2_0026, 0]),
            (pasid_iotlb_pages(DomainId(1), PASID, many, true), [0x42_0001_0036, 0x7f12_3455_0044]),
            (pasid_iotlb_pages(DomainId(1), PASID, AddressRange::ALL, false), [0x42_0001_0026, 0]),
            (interrupt_global(), [0x4, 0]),
            (interrupt_index(8), [0x8_0000_0014, 0]),
            (pasid_device_tlb(SID, ATS, PASID, pages), [0x42_0018_01f8, 0x7f12_3456_7000]),
            // Sixteen pages: bits 14:12 ones, bit 15 zero, S set.
            (pasid_device_tlb(SID, ATS, PASID, many), [0x42_0018_01f8, 0x7f12_3455_7800]),
            (pasid_device_tlb(SID, ATS, PASID, AddressRange::ALL), [0x42_0018_01f8, 0x7fff_ffff_ffff_f800]),
            (global_device_tlb(SID, ATS, AddressRange::ALL), [0x18_01f8, 0x7fff_ffff_ffff_f801]),
            (device_tlb(SID, ATS, AddressRange::ALL), [0x18_001f_0003, 0x7fff_ffff_ffff_f001]),
            (barrier(), [0x45, 0]),
            (response(SID, Some(PASID), 5, ResponseCode::InvalidRequest), [0x42_0018_1019, 0x28]),
        ] {
            assert_eq!(descriptor.encode(), [words[0], words[1], 0, 0], "{descriptor:?}");
        }
    }

    #[test]
    fn page_selective_iotlb_invalidation_gives_way_where_the_unit_cannot() {
        let range = AddressRange::new(0x20_0000, 9);
        let with = |psi, mamv| Capabilities {
            cap: vtd_spec::Capability::new().with_psi(psi).with_mamv(mamv),
            ecap: vtd_spec::ExtendedCapability::new(),
            haw: 46,
        };
        let did = DomainId(7);
        assert_eq!(iotlb_pages(did, range, true, &with(true, 9)).encode()[..2], [0x7_00f2, 0x20_0049]);
        assert_eq!(iotlb_pages(did, range, true, &with(true, 8)), iotlb_domain(did));
        assert_eq!(iotlb_pages(did, range, true, &with(false, 9)), iotlb_domain(did));
    }
}
