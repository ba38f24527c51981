// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Binding and unbinding (V9 patch 04), for a device, for a group, and for a machine that goes.

use ioasid::SetId;
use vtd_spec::{Pasid, SourceId};

use super::BindData;
use crate::address_space::{BoundDevice, Pasids, SpaceKind, bindable};
use crate::error::Error;
use crate::iommu::Iommu;
use crate::memory::Memory;
use crate::registers::Registers;
use crate::state::DomainHandle;
use crate::sva;

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
    if replaced.as_ref().err().is_none_or(Error::is_queues) {
        device.nested = Some((domain, data.table()));
    }
    replaced
}

/// Unbinds a guest's PASID from a device (V9 patch 04: `intel_svm_unbind_gpasid`). With the last user the entry is torn down
/// and page requests are drained. Those that were taken before and not answered are still to be, with
/// [`Iommu::respond`]. The PASID itself is not freed: its owner does that.
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
