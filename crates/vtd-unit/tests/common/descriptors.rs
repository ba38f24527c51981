// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Invalidation queue descriptors in one line each.

use vtd_spec::descriptors::{
    ContextCache, ContextGranularity, DeviceTlb, FunctionMask, Iotlb, IotlbGranularity, PageGroupResponse,
    PasidCache, PasidCacheGranularity, PasidDeviceTlb, PasidIotlb, PasidIotlbGranularity, Wait,
};
use vtd_spec::{AddressRange, Descriptor, DomainId, Pasid, ResponseCode, SourceId};

pub fn context(granularity: ContextGranularity, sid: SourceId, fm: FunctionMask) -> Descriptor {
    Descriptor::ContextCache(ContextCache { granularity, did: DomainId(0), sid, fm })
}

pub fn context_device(sid: SourceId) -> Descriptor {
    context(ContextGranularity::Device, sid, FunctionMask::None)
}

pub fn pasid_cache(granularity: PasidCacheGranularity, did: DomainId, pasid: Pasid) -> Descriptor {
    Descriptor::PasidCache(PasidCache { granularity, did, pasid })
}

pub fn pasid_cache_entry(did: DomainId, pasid: Pasid) -> Descriptor {
    pasid_cache(PasidCacheGranularity::Pasid, did, pasid)
}

pub fn iotlb(granularity: IotlbGranularity, did: DomainId, range: AddressRange) -> Descriptor {
    let (am, addr) = (range.order(), range.base());
    Descriptor::Iotlb(Iotlb { granularity, dw: true, dr: true, did, am, ih: false, addr })
}

pub fn iotlb_domain(did: DomainId) -> Descriptor {
    iotlb(IotlbGranularity::Domain, did, AddressRange::new(0, 0))
}

pub fn pasid_iotlb(did: DomainId, pasid: Pasid) -> Descriptor {
    let granularity = PasidIotlbGranularity::Pasid;
    Descriptor::PasidIotlb(PasidIotlb { granularity, did, pasid, am: 0, ih: false, addr: 0 })
}

pub fn pasid_iotlb_pages(did: DomainId, pasid: Pasid, range: AddressRange) -> Descriptor {
    let granularity = PasidIotlbGranularity::Page;
    let (am, addr) = (range.order(), range.base());
    Descriptor::PasidIotlb(PasidIotlb { granularity, did, pasid, am, ih: false, addr })
}

pub fn device_tlb(sid: SourceId, range: AddressRange) -> Descriptor {
    Descriptor::DeviceTlb(DeviceTlb { sid, pfsid: SourceId(0), mip: 0, range })
}

pub fn pasid_device_tlb(sid: SourceId, pasid: Pasid, range: AddressRange) -> Descriptor {
    Descriptor::PasidDeviceTlb(PasidDeviceTlb { sid, pfsid: SourceId(0), mip: 0, pasid, gi: false, range })
}

/// For all PASIDs of the function.
pub fn global_device_tlb(sid: SourceId, range: AddressRange) -> Descriptor {
    let pasid = Pasid::ZERO;
    Descriptor::PasidDeviceTlb(PasidDeviceTlb { sid, pfsid: SourceId(0), mip: 0, pasid, gi: true, range })
}

pub fn response(rid: SourceId, pasid: Option<Pasid>, prgi: u16, rc: ResponseCode) -> Descriptor {
    Descriptor::PageGroupResponse(PageGroupResponse { pasid, rid, rc, prgi })
}

/// A wait that writes `data` to `address`.
pub fn wait(address: u64, data: u32) -> Descriptor {
    Descriptor::Wait(Wait { sw: true, status_data: data, status_address: address, ..Wait::default() })
}
