// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Guests' PASIDs: the uAPI of the series "Nested Shared Virtual Address (SVA) VT-d support" (V9 patches 03, 04, 06, 10)
//! and of the VFIO set on top of it.
//!
//! A guest's first stage (GVA to GPA) is bound to a host PASID of a device, nested on the second-stage domain (GPA to HPA)
//! of the machine. Everything that comes from the user is checked here, each mistake with an error of its own. A PASID
//! is found only in the set it belongs to, which is what keeps machines apart.

use alloc::vec::Vec;

use ioasid::SetId;
use vtd_spec::{AddressRange, Capability, ExtendedCapability, Pasid, ResponseCode, SourceId};

use crate::address_space::{BoundDevice, Pasids, SpaceKind, bindable};
use crate::cache;
use crate::context::Attachment;
use crate::domain::DomainHandle;
use crate::error::Error;
use crate::iommu::Iommu;
use crate::memory::Memory;
use crate::page_request::PageRequest;
use crate::pasid::NestedTable;
use crate::registers::Registers;
use crate::sva;

/// The version of all structures here (`IOMMU_GPASID_BIND_VERSION_1` and its siblings).
pub const VERSION: u32 = 1;
/// The PASID table format: Intel VT-d (`IOMMU_PASID_FORMAT_INTEL_VTD`).
pub const FORMAT_INTEL_VTD: u32 = 1;
/// The guest PASID of the structure is valid (`IOMMU_SVA_GPASID_VAL`).
pub const FLAG_GUEST_PASID: u64 = 1 << 0;

/// Flags of [`BindData::vtd_flags`].
pub mod vtd_flag {
    /// Supervisor requests.
    pub const SRE: u64 = 1 << 0;
    /// Extended-accessed flags.
    pub const EAFE: u64 = 1 << 1;
    /// Page-level cache disable.
    pub const PCD: u64 = 1 << 2;
    /// Page-level write-through.
    pub const PWT: u64 = 1 << 3;
    /// Extended memory type enable.
    pub const EMTE: u64 = 1 << 4;
    /// Cache disable.
    pub const CD: u64 = 1 << 5;
    /// One beyond the last.
    pub const LAST: u64 = 1 << 6;
    /// Those that are about memory types (V9 patch 02: `IOMMU_SVA_VTD_GPASID_EMT_MASK`).
    pub const MEMORY_TYPES: u64 = CD | EMTE | PCD | PWT;
}

/// What is to be bound (`iommu_gpasid_bind_data`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BindData {
    /// Version of the structure: 1.
    pub version: u32,
    /// Format of the PASID table: 1, Intel VT-d.
    pub format: u32,
    /// Width of the guest's virtual addresses in bits: 48 or 57.
    pub addr_width: u32,
    /// [`FLAG_GUEST_PASID`].
    pub flags: u64,
    /// Guest physical address of the guest's top table.
    pub gpgd: u64,
    /// Host PASID: the one the device uses.
    pub hpasid: u64,
    /// Guest PASID, for reports to the guest. Whether the guest may use it is not checked: its range is unknown here.
    pub gpasid: u64,
    /// Flags of [`vtd_flag`].
    pub vtd_flags: u64,
    /// Supervisor writes honour R/W (WPE). The uAPI of the series came before it and has no flag for it.
    pub wpe: bool,
}

impl BindData {
    /// Size of the structure in bytes.
    pub const SIZE: usize = 72;

    /// A binding of `gpgd` to `hpasid` without options; the guest's PASID is the same.
    pub const fn new(gpgd: u64, hpasid: Pasid) -> Self {
        Self {
            version: VERSION,
            format: FORMAT_INTEL_VTD,
            addr_width: 48,
            flags: 0,
            gpgd,
            hpasid: hpasid.get() as u64,
            gpasid: 0,
            vtd_flags: 0,
            wpe: false,
        }
    }

    /// Reads the structure as of Linux 5.10: argsz 0, version 4, format 8, addr_width 12, flags 16, gpgd 24, hpasid 32,
    /// gpasid 40, padding 48, then of VT-d flags 56, pat 64, emt 68.
    ///
    /// # Errors
    ///
    /// [`Error::Size`] where fewer bytes are there than `argsz` says or the structure has; [`Error::Padding`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Error> {
        let needed = Self::SIZE as u32;
        let Some(fields) = bytes.first_chunk::<{ Self::SIZE }>() else {
            return Err(Error::Size { size: bytes.len() as u32, needed });
        };
        let (words, _) = fields.as_chunks::<4>();
        let u32_at = |offset: usize| u32::from_le_bytes(words[offset / 4]);
        let u64_at = |offset: usize| u64::from(u32_at(offset)) | u64::from(u32_at(offset + 4)) << 32;
        let argsz = u32_at(0);
        if argsz < needed {
            return Err(Error::Size { size: argsz, needed });
        }
        if u64_at(48) != 0 {
            return Err(Error::Padding);
        }
        Ok(Self {
            version: u32_at(4),
            format: u32_at(8),
            addr_width: u32_at(12),
            flags: u64_at(16),
            gpgd: u64_at(24),
            hpasid: u64_at(32),
            gpasid: u64_at(40),
            vtd_flags: u64_at(56),
            wpe: false,
        })
    }

    fn table(&self) -> NestedTable {
        NestedTable {
            root: self.gpgd,
            address_width: self.addr_width,
            sre: self.vtd_flags & vtd_flag::SRE != 0,
            eafe: self.vtd_flags & vtd_flag::EAFE != 0,
            wpe: self.wpe,
            memory_types: self.vtd_flags & vtd_flag::MEMORY_TYPES != 0,
        }
    }

    /// The checks that need nothing but the structure (iommu.c:iommu_uapi_sva_bind_gpasid). Returns the host PASID, and
    /// what it stands for.
    fn check(&self) -> Result<(Pasid, SpaceKind), Error> {
        let Self { version, format, flags, .. } = *self;
        if version != VERSION {
            return Err(Error::Version { version });
        }
        if format != FORMAT_INTEL_VTD {
            return Err(Error::Format { format });
        }
        if flags & !FLAG_GUEST_PASID != 0 {
            return Err(Error::Flags { flags });
        }
        if self.vtd_flags & !(vtd_flag::LAST - 1) != 0 {
            return Err(Error::Flags { flags: self.vtd_flags });
        }
        let guest_pasid = self.guest_pasid()?;
        Ok((bindable(self.hpasid)?, SpaceKind::Guest { guest_pasid }))
    }

    fn guest_pasid(&self) -> Result<Option<Pasid>, Error> {
        if self.flags & FLAG_GUEST_PASID == 0 {
            return Ok(None);
        }
        let pasid = u32::try_from(self.gpasid).ok().and_then(Pasid::new);
        pasid.map(Some).ok_or(Error::InvalidPasid { pasid: self.gpasid })
    }
}

/// Binds a guest's table to a host PASID of a device, nested on `domain` (V9 patch 04: `intel_svm_bind_gpasid`).
///
/// The PASID belongs to `set`. It may be bound to several devices, always for the same guest PASID. A device that is bound
/// already is refused, unless it is a shared one ([`DeviceConfig::shared`](crate::DeviceConfig::shared)) and everything is
/// the same: then its users are counted.
///
/// # Errors
///
/// [`Error::Version`], [`Error::Format`], [`Error::Flags`], [`Error::InvalidPasid`]; [`Error::NoSuchDevice`];
/// [`Error::PasidWidth`] for a device without all 2^20 PASIDs; [`Error::Pasid`] for a PASID that is not allocated or not the
/// set's; [`Error::OtherAddressSpace`]; [`Error::PasidBusy`]; those of [`Iommu::setup_nested`]. Nothing of this binding is
/// left then, and the PASID's other devices stay as they are.
pub fn bind_gpasid<R: Registers, M: Memory>(
    iommu: &mut Iommu<R, M>,
    pasids: &mut Pasids,
    set: SetId,
    domain: DomainHandle,
    source_id: SourceId,
    data: &BindData,
) -> Result<(), Error> {
    let (pasid, kind) = data.check()?;
    let config = iommu.device(source_id)?.config;
    if config.pasid_bits != 20 {
        return Err(Error::PasidWidth { source_id, bits: config.pasid_bits });
    }
    let nested = Some((domain, data.table()));
    if let Some(space) = pasids.find_mut(Some(set), pasid.get())? {
        if space.kind != kind {
            return Err(Error::OtherAddressSpace { pasid });
        }
        if let Some(device) = space.device_mut(source_id) {
            if !config.shared || device.nested != nested {
                return Err(Error::PasidBusy { source_id, pasid });
            }
            device.users += 1;
            return Ok(());
        }
    }
    iommu.setup_nested(source_id, pasid, domain, data.table())?;
    sva::add_device(pasids, set, pasid, kind, BoundDevice { source_id, users: 1, nested })
}

/// Binds a guest's table to a PASID on every device of a group, or on none (VFIO: `VFIO_IOMMU_BIND` for a container).
///
/// # Errors
///
/// Those of [`bind_gpasid`], for the first device that refuses; the ones before it are unbound again.
pub fn bind_gpasid_group<R: Registers, M: Memory>(
    iommu: &mut Iommu<R, M>,
    pasids: &mut Pasids,
    set: SetId,
    domain: DomainHandle,
    group: &[SourceId],
    data: &BindData,
) -> Result<(), Error> {
    for (index, source_id) in group.iter().enumerate() {
        if let Err(error) = bind_gpasid(iommu, pasids, set, domain, *source_id, data) {
            for bound in group[..index].iter().rev() {
                // Unbinding what was just bound is carried out, whatever does not answer.
                let _ = unbind_gpasid(iommu, pasids, set, *bound, data.hpasid);
            }
            return Err(error);
        }
    }
    Ok(())
}

/// Replaces the table that is bound to a PASID of a device by another one, without a moment in which neither is there.
/// The guest changed its PASID entry in place.
///
/// # Errors
///
/// Those of [`bind_gpasid`], with the old table left bound; [`Error::NotBound`]; [`Error::PasidBusy`] for a PASID that
/// several parts of a shared device use.
pub fn rebind_gpasid<R: Registers, M: Memory>(
    iommu: &mut Iommu<R, M>,
    pasids: &mut Pasids,
    set: SetId,
    domain: DomainHandle,
    source_id: SourceId,
    data: &BindData,
) -> Result<(), Error> {
    let (pasid, kind) = data.check()?;
    let not_bound = Error::NotBound { source_id, pasid };
    let space = pasids.find_mut(Some(set), pasid.get())?.ok_or(not_bound)?;
    if space.kind != kind {
        return Err(Error::OtherAddressSpace { pasid });
    }
    let device = space.device_mut(source_id).ok_or(not_bound)?;
    if device.users > 1 {
        return Err(Error::PasidBusy { source_id, pasid });
    }
    let replaced = iommu.replace_nested(source_id, pasid, domain, data.table());
    let in_place = matches!(
        replaced,
        Ok(())
            | Err(Error::QueueTimeout
                | Error::QueueStopped { .. }
                | Error::InvalidDescriptor { .. }
                | Error::DeviceTimedOut { .. })
    );
    if in_place {
        device.nested = Some((domain, data.table()));
    }
    replaced
}

/// Unbinds a guest's PASID from a device (V9 patch 04: `intel_svm_unbind_gpasid`). With the last user the entry is torn down
/// and page requests are drained. The PASID itself is not freed: its owner does that.
///
/// # Errors
///
/// [`Error::InvalidPasid`], [`Error::NoSuchDevice`], [`Error::Pasid`], [`Error::NotBound`]. With the queue's errors it is
/// unbound all the same.
pub fn unbind_gpasid<R: Registers, M: Memory>(
    iommu: &mut Iommu<R, M>,
    pasids: &mut Pasids,
    set: SetId,
    source_id: SourceId,
    hpasid: u64,
) -> Result<(), Error> {
    let pasid = bindable(hpasid)?;
    match pasids.find(Some(set), hpasid as u32)? {
        Some(space) if matches!(space.kind, SpaceKind::Guest { .. }) => {}
        _ => return Err(Error::NotBound { source_id, pasid }),
    }
    sva::drop_user(iommu, pasids, Some(set), source_id, pasid)
}

/// The owner of a set is gone: every PASID is unbound from every device behind `iommu`, then all are freed. For a system
/// with one unit; one with several calls [`ioasid::Allocator::release_set`] and detaches each device at its own.
///
/// # Errors
///
/// [`Error::Pasid`] for a set that does not exist. With the queue's errors (the first one) everything is unbound and freed
/// all the same.
pub fn release_set<R: Registers, M: Memory>(
    iommu: &mut Iommu<R, M>,
    pasids: &mut Pasids,
    set: SetId,
) -> Result<(), Error> {
    let mut result = Ok(());
    pasids.release_set(set, |id, space| {
        let devices = space.map(|space| core::mem::take(&mut space.devices)).unwrap_or_default();
        for device in devices {
            if iommu.devices.contains_key(&device.source_id) {
                result = result.and(iommu.tear_down(device.source_id, Pasid::truncated(id), false));
            }
        }
    })?;
    result
}

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
    Pasid(Pasid),
    Pages(Pasid, AddressRange),
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
    let did = iommu.domain(domain)?.id;
    let leaf = info.flags & invalidate_flag::LEAF != 0;
    let ats = iommu.device(source_id)?.config.ats;
    let has = |cache| info.cache & cache != 0;

    let mut descriptors = Vec::with_capacity(3);
    // The order the unit needs: PASID cache, IOTLB, device-TLB. [S 6.5.2.12]
    if has(cache_type::PASID) {
        descriptors.push(match scope {
            Scope::Domain => cache::pasid_cache_domain(did),
            Scope::Pasid(pasid) | Scope::Pages(pasid, _) => cache::pasid_cache_pasid(did, pasid),
        });
    }
    if has(cache_type::IOTLB) {
        descriptors.push(match scope {
            Scope::Domain => cache::iotlb_domain(did),
            Scope::Pasid(pasid) => cache::pasid_iotlb(did, pasid),
            Scope::Pages(pasid, range) => cache::pasid_iotlb_pages(did, pasid, range, leaf),
        });
    }
    if let Some(ats) = ats
        && has(cache_type::IOTLB | cache_type::DEV_IOTLB)
    {
        match scope {
            Scope::Domain => descriptors.extend(iommu.domain(domain)?.nested_device_tlb(source_id, ats)),
            Scope::Pasid(pasid) => {
                descriptors.push(cache::device_tlb_of_pasid(source_id, ats, pasid, AddressRange::ALL));
            }
            Scope::Pages(pasid, range) => {
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
    if !iommu.domain(domain)?.is_nest_parent() {
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
    if device.attachments.get(&pasid) != Some(&Attachment::Nested(domain)) {
        return Err(Error::NotBound { source_id, pasid });
    }
    if granularity == granularity::PASID {
        return Ok(Scope::Pasid(pasid));
    }
    Ok(Scope::Pages(pasid, checked_range(info)?))
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

/// Answers a page request for the guest that owns the PASID (svm.c:intel_svm_page_response).
///
/// # Errors
///
/// [`Error::PasidMissing`] for a request without PASID; [`Error::InvalidPasid`]; [`Error::Pasid`], [`Error::NotBound`]
/// where the PASID is not the set's or not bound to the device; the queue's.
pub fn respond<R: Registers, M: Memory>(
    iommu: &mut Iommu<R, M>,
    pasids: &Pasids,
    set: SetId,
    request: &PageRequest,
    code: ResponseCode,
) -> Result<(), Error> {
    let source_id = request.source_id;
    let pasid = bindable(request.pasid.ok_or(Error::PasidMissing)?.get().into())?;
    let space = pasids.find(Some(set), pasid.get())?;
    if space.and_then(|space| space.device(source_id)).is_none() {
        return Err(Error::NotBound { source_id, pasid });
    }
    iommu.respond(request, code)
}

/// What a user is told of nesting (`iommu_nesting_info`; V9 patch 10's PASID format).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NestingInfo {
    /// Format of the PASID table: [`FORMAT_INTEL_VTD`].
    pub format: u32,
    /// Bits of [`NestingInfo::BIND_PGTBL`], [`NestingInfo::CACHE_INVLD`].
    pub features: u32,
    /// Width of guest physical addresses that the domain maps, in bits.
    pub addr_width: u16,
    /// Width of PASIDs in bits.
    pub pasid_bits: u16,
    /// CAP, masked to what a guest's first stage depends on.
    pub cap: Capability,
    /// ECAP, masked likewise.
    pub ecap: ExtendedCapability,
}

impl NestingInfo {
    /// Guests' tables can be bound.
    pub const BIND_PGTBL: u32 = 1;
    /// Caches can be invalidated.
    pub const CACHE_INVLD: u32 = 2;
    /// The bits of CAP that are shown: FS1GP and FS5LP.
    pub const CAP_MASK: u64 = Capability::new().with_fs1gp(true).with_fs5lp(true).into_bits();
    /// The bits of ECAP that are shown: PRS, ERS, SRS, EAFS and PASID (PSS is told as `pasid_bits`).
    pub const ECAP_MASK: u64 = ExtendedCapability::new()
        .with_prs(true)
        .with_ers(true)
        .with_srs(true)
        .with_eafs(true)
        .with_pasid(true)
        .into_bits();
}

impl<R: Registers, M: Memory> Iommu<R, M> {
    /// The nesting information of a domain.
    ///
    /// # Errors
    ///
    /// [`Error::NoSuchDomain`]; [`Error::NotNestParent`].
    pub fn nesting_info(&self, domain: DomainHandle) -> Result<NestingInfo, Error> {
        let parent = self.domain(domain)?;
        if !parent.is_nest_parent() {
            return Err(Error::NotNestParent);
        }
        let (cap, ecap) = (self.capabilities.cap.into_bits(), self.capabilities.ecap.into_bits());
        Ok(NestingInfo {
            format: FORMAT_INTEL_VTD,
            features: NestingInfo::BIND_PGTBL | NestingInfo::CACHE_INVLD,
            addr_width: (64 - parent.last_address().leading_zeros()) as u16,
            pasid_bits: self.capabilities.pasid_bits() as u16,
            cap: Capability::from_bits(cap & NestingInfo::CAP_MASK),
            ecap: ExtendedCapability::from_bits(ecap & NestingInfo::ECAP_MASK),
        })
    }
}

#[cfg(test)]
mod tests;
