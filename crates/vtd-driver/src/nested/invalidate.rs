// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Invalidations for a guest (V9 patch 06): which kind goes with which granularity, and what each becomes.

use alloc::vec::Vec;

use ioasid::SetId;
use vtd_spec::{AddressRange, DomainId, Pasid, SourceId};

use super::VERSION;
use crate::address_space::{Pasids, bindable};
use crate::cache;
use crate::error::Error;
use crate::iommu::Iommu;
use crate::memory::Memory;
use crate::registers::Registers;
use crate::state::Attachment;
use crate::state::DomainHandle;

/// Bits of [`Invalidate::cache`] (`IOMMU_CACHE_INV_TYPE_*`).
pub mod cache_type {
    /// IOTLB.
    pub const IOTLB: u8 = 1 << 0;
    /// Device-TLB.
    pub const DEV_IOTLB: u8 = 1 << 1;
    /// PASID cache.
    pub const PASID: u8 = 1 << 2;
}

/// Values of [`Invalidate::granularity`] (`IOMMU_INV_GRANU_*`).
pub mod granularity {
    /// Everything of the domain.
    pub const DOMAIN: u8 = 0;
    /// Everything of the PASID.
    pub const PASID: u8 = 1;
    /// A range of addresses of the PASID.
    pub const ADDR: u8 = 2;
}

/// Flags of [`Invalidate::flags`].
pub mod invalidate_flag {
    /// `pasid` is valid.
    pub const PASID: u32 = 1 << 0;
    /// `archid` of the uAPI is valid; VT-d has none.
    pub const ARCHID: u32 = 1 << 1;
    /// Only leaf entries changed.
    pub const LEAF: u32 = 1 << 2;
}

/// What is to be invalidated (`iommu_cache_invalidate_info`). Domain-id and source-id are the host's, and not in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Invalidate {
    /// Version of the structure: 1.
    pub version: u32,
    /// Bitmap of [`cache_type`]s.
    pub cache: u8,
    /// One of [`granularity`].
    pub granularity: u8,
    /// Flags of [`invalidate_flag`].
    pub flags: u32,
    /// Host PASID, with PASID and ADDR granularity.
    pub pasid: u64,
    /// First address, with ADDR granularity.
    pub addr: u64,
    /// Bytes per granule, with ADDR granularity.
    pub granule_size: u64,
    /// Number of granules, with ADDR granularity.
    pub nb_granules: u64,
}

impl Invalidate {
    /// Everything of a PASID in some caches.
    pub const fn of_pasid(cache: u8, pasid: Pasid) -> Self {
        Self {
            version: VERSION,
            cache,
            granularity: granularity::PASID,
            flags: invalidate_flag::PASID,
            pasid: pasid.get() as u64,
            addr: 0,
            granule_size: 0,
            nb_granules: 0,
        }
    }

    /// 4 KiB pages of a PASID in some caches.
    pub const fn of_pages(cache: u8, pasid: Pasid, addr: u64, pages: u64, leaf: bool) -> Self {
        Self {
            granularity: granularity::ADDR,
            flags: invalidate_flag::PASID | if leaf { invalidate_flag::LEAF } else { 0 },
            addr,
            granule_size: 4096,
            nb_granules: pages,
            ..Self::of_pasid(cache, pasid)
        }
    }
}

/// What one invalidation covers, checked.
#[derive(Clone, Copy)]
enum Scope {
    Domain,
    Pasid(DomainId, Pasid),
    Pages(DomainId, Pasid, AddressRange),
}

/// Whether a cache can be invalidated with a granularity: V9's table, and DEV_IOTLB by address, which the uAPI's comment and
/// Linux 5.8 allow.
const fn is_valid(cache: u8, granularity: u8) -> bool {
    matches!(
        (cache, granularity),
        (cache_type::IOTLB, granularity::PASID | granularity::ADDR)
            | (cache_type::DEV_IOTLB, granularity::DOMAIN | granularity::PASID | granularity::ADDR)
            | (cache_type::PASID, granularity::DOMAIN | granularity::PASID)
    )
}

/// Invalidates caches for a guest, for one device (V9 patch 06: `intel_iommu_sva_invalidate`).
///
/// All is checked before anything is done: once it is accepted it is carried out. An IOTLB invalidation implies the
/// device-TLB's, since a guest that runs with caching mode omits the latter; a device without ATS has none. The PASID cache
/// is the host's: a guest's own invalidations of it are bindings and unbindings, not this.
///
/// # Errors
///
/// [`Error::Version`]; [`Error::NoSuchDomain`]; [`Error::NotNestParent`]; [`Error::CacheType`]; [`Error::Granularity`];
/// [`Error::PasidMissing`], [`Error::InvalidPasid`]; [`Error::Pasid`] and [`Error::NotBound`] for a PASID that is not the
/// set's or not nested on this domain; [`Error::Flags`]; [`Error::OutOfRange`] for an empty range or one beyond 64 bits;
/// [`Error::Unaligned`]; [`Error::NoSuchDevice`]. The queue's.
pub fn invalidate<R: Registers, M: Memory>(
    iommu: &mut Iommu<R, M>,
    pasids: &Pasids,
    set: SetId,
    domain: DomainHandle,
    source_id: SourceId,
    info: &Invalidate,
) -> Result<(), Error> {
    let scope = check_invalidate(iommu, pasids, set, domain, source_id, info)?;
    let parent = iommu.domain(domain)?;
    let leaf = info.flags & invalidate_flag::LEAF != 0;
    let ats = iommu.device(source_id)?.config.ats;
    let has = |cache| info.cache & cache != 0;

    let mut descriptors = Vec::with_capacity(3);
    // The order the unit needs: PASID cache, IOTLB, device-TLB. [S 6.5.2.12]
    if has(cache_type::PASID) {
        match scope {
            Scope::Domain => descriptors.extend(parent.nested_pasid_cache(source_id)),
            Scope::Pasid(did, pasid) | Scope::Pages(did, pasid, _) => {
                descriptors.push(cache::pasid_cache_pasid(did, pasid));
            }
        }
    }
    if has(cache_type::IOTLB) {
        match scope {
            // The uAPI has no such granularity for the IOTLB.
            Scope::Domain => {}
            Scope::Pasid(did, pasid) => descriptors.push(cache::pasid_iotlb(did, pasid)),
            Scope::Pages(did, pasid, range) => {
                descriptors.push(cache::pasid_iotlb_pages(did, pasid, range, leaf));
            }
        }
    }
    if let Some(ats) = ats
        && has(cache_type::IOTLB | cache_type::DEV_IOTLB)
    {
        match scope {
            Scope::Domain => descriptors.extend(parent.nested_device_tlb(source_id, ats)),
            Scope::Pasid(_, pasid) => {
                descriptors.push(cache::device_tlb_of_pasid(source_id, ats, pasid, AddressRange::ALL));
            }
            Scope::Pages(_, pasid, range) => {
                descriptors.push(cache::device_tlb_of_pasid(source_id, ats, pasid, range));
            }
        }
    }
    iommu.submit(&descriptors)
}

fn check_invalidate<R: Registers, M: Memory>(
    iommu: &Iommu<R, M>,
    pasids: &Pasids,
    set: SetId,
    domain: DomainHandle,
    source_id: SourceId,
    info: &Invalidate,
) -> Result<Scope, Error> {
    let &Invalidate { version, cache: caches, granularity, flags, .. } = info;
    if version != VERSION {
        return Err(Error::Version { version });
    }
    let device = iommu.device(source_id)?;
    let parent = iommu.domain(domain)?;
    if !parent.is_nest_parent() {
        return Err(Error::NotNestParent);
    }
    let all = cache_type::IOTLB | cache_type::DEV_IOTLB | cache_type::PASID;
    if caches == 0 || caches & !all != 0 {
        return Err(Error::CacheType { caches });
    }
    for cache in [cache_type::IOTLB, cache_type::DEV_IOTLB, cache_type::PASID] {
        if caches & cache != 0 && !is_valid(cache, granularity) {
            return Err(Error::Granularity { cache, granularity });
        }
    }
    let known = match granularity {
        granularity::DOMAIN => 0,
        granularity::PASID => invalidate_flag::PASID,
        _ => invalidate_flag::PASID | invalidate_flag::LEAF,
    };
    if flags & !known != 0 {
        return Err(Error::Flags { flags: flags.into() });
    }
    if granularity == granularity::DOMAIN {
        return Ok(Scope::Domain);
    }
    if flags & invalidate_flag::PASID == 0 {
        return Err(Error::PasidMissing);
    }
    let pasid = bindable(info.pasid)?;
    pasids.find(Some(set), pasid.get())?;
    let did = match device.attachments.get(&pasid) {
        Some(Attachment::Nested(on)) if *on == domain => parent.nested_id(source_id, pasid),
        _ => None,
    };
    let did = did.ok_or(Error::NotBound { source_id, pasid })?;
    if granularity == granularity::PASID {
        return Ok(Scope::Pasid(did, pasid));
    }
    Ok(Scope::Pages(did, pasid, checked_range(info)?))
}

/// The range of an address-selective invalidation: 2^n pages that cover what is asked for, aligned to that size.
fn checked_range(info: &Invalidate) -> Result<AddressRange, Error> {
    let address = info.addr;
    let out_of_range =
        Error::OutOfRange { address, length: info.granule_size.saturating_mul(info.nb_granules) };
    let pages = match info.granule_size.checked_mul(info.nb_granules) {
        Some(length) if length != 0 => length.div_ceil(4096),
        _ => return Err(out_of_range),
    };
    let order = pages.checked_next_power_of_two().ok_or(out_of_range)?.trailing_zeros() as u8;
    let range = AddressRange::new(address, order);
    if range.base() != address {
        return Err(Error::Unaligned { address, order });
    }
    Ok(range)
}
