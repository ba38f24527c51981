// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Processes bound to PASIDs: a device uses the process's own page table (Linux svm.c).
//!
//! The PASID is the process's, whatever devices it is bound to: a first-stage entry with domain-id 1 in each. The
//! tables are the caller's, who reports every change with [`invalidate`] before the memory is used otherwise.

use alloc::vec::Vec;

use ioasid::SetId;
use vtd_spec::{AddressRange, Descriptor, Pasid, SourceId};

use crate::address_space::{AddressSpace, BoundDevice, Pasids, SpaceKind, bindable};
use crate::cache;
use crate::error::Error;
use crate::iommu::Iommu;
use crate::memory::Memory;
use crate::registers::Registers;
use crate::state::FIRST_STAGE_DID;
use crate::state::FirstStageTable;

/// Binds a process's table to a PASID of a device. The PASID belongs to `set` and is the process's own: another table
/// cannot be bound to it. Binding the same device again is counted. Where the processor has pages of 1 GiB, the unit must
/// have them too (CAP.FS1GP; svm.c:intel_svm_check): this driver does not know the processor.
///
/// # Errors
///
/// [`Error::InvalidPasid`], [`Error::Pasid`] for one that is not the set's, [`Error::OtherAddressSpace`],
/// [`Error::ProcessEnded`]; [`Error::NoSuchDevice`], [`Error::PasidOutOfRange`], [`Error::PasidBusy`]; [`Error::Unsupported`] where the unit's walks
/// are not coherent, among others; [`Error::TableOutOfRange`]; [`Error::OutOfMemory`]; the queue's. Nothing is bound
/// then, and other devices of the PASID stay as they are.
pub fn bind<R: Registers, M: Memory>(
    iommu: &mut Iommu<R, M>,
    pasids: &mut Pasids,
    set: SetId,
    source_id: SourceId,
    pasid: Pasid,
    table: FirstStageTable,
) -> Result<(), Error> {
    let id = bindable(pasid.get().into())?.get();
    // The processor does not write its tables back for the unit (svm.c:intel_svm_check).
    if !iommu.capabilities.ecap.smpwc() {
        return Err(Error::lacks("coherent page walks (ECAP.SMPWC)"));
    }
    iommu.device(source_id)?;
    let kind = SpaceKind::Process(table);
    if let Some(space) = pasids.find_mut(Some(set), id)? {
        if space.kind != kind {
            return Err(Error::OtherAddressSpace { pasid });
        }
        if space.ended {
            return Err(Error::ProcessEnded { pasid });
        }
        if let Some(device) = space.device_mut(source_id) {
            device.users += 1;
            return Ok(());
        }
    }
    iommu.set_up_first_stage(source_id, pasid, table, None)?;
    let device = BoundDevice { source_id, users: 1, nested: None };
    add_device(pasids, set, pasid, kind, device)
}

/// Enters a new binding in the books.
pub(crate) fn add_device(
    pasids: &mut Pasids,
    set: SetId,
    pasid: Pasid,
    kind: SpaceKind,
    device: BoundDevice,
) -> Result<(), Error> {
    let id = pasid.get();
    match pasids.find_mut(Some(set), id)? {
        Some(space) => space.devices.push(device),
        None => {
            let space = AddressSpace { kind, devices: alloc::vec![device], ended: false };
            pasids.set_data(Some(set), id, Some(space))?;
        }
    }
    Ok(pasids.bind(Some(set), id)?)
}

/// Takes a binding out of the books, and the address space with the last one.
pub(crate) fn remove_device(
    pasids: &mut Pasids,
    set: Option<SetId>,
    pasid: Pasid,
    source_id: SourceId,
) -> Result<(), Error> {
    let id = pasid.get();
    let mut last = false;
    if let Some(space) = pasids.find_mut(set, id)? {
        space.devices.retain(|device| device.source_id != source_id);
        last = space.devices.is_empty();
    }
    if last {
        pasids.set_data(set, id, None)?;
    }
    Ok(pasids.unbind(set, id)?)
}

/// The page table changed in `range`: nobody uses what it said before when this returns. `leaf`: no table was freed.
/// (svm.c:intel_arch_invalidate_secondary_tlbs.) Only the devices behind `iommu` are told: call it for each unit.
///
/// # Errors
///
/// [`Error::Pasid`] for a PASID that is not allocated; [`Error::OtherAddressSpace`] where no process is bound to it; the
/// queue's.
pub fn invalidate<R: Registers, M: Memory>(
    iommu: &mut Iommu<R, M>,
    pasids: &Pasids,
    pasid: Pasid,
    range: AddressRange,
    leaf: bool,
) -> Result<(), Error> {
    let Some(space) = pasids.find(None, pasid.get())? else { return Ok(()) };
    if !matches!(space.kind, SpaceKind::Process(_)) {
        return Err(Error::OtherAddressSpace { pasid });
    }
    let here = |device: &&BoundDevice| iommu.devices.contains_key(&device.source_id);
    let devices: Vec<Option<Descriptor>> = space
        .devices
        .iter()
        .filter(here)
        .map(|device| iommu.devices[&device.source_id].device_tlb(pasid, range))
        .collect();
    if devices.is_empty() {
        return Ok(());
    }
    let mut descriptors = alloc::vec![cache::pasid_iotlb_pages(FIRST_STAGE_DID, pasid, range, leaf)];
    descriptors.extend(devices.into_iter().flatten());
    iommu.submit(&descriptors)
}

/// The process ends before it is unbound (svm.c:intel_mm_release): its table goes away, devices may go on for a while. The
/// entries are taken away, and faults of the PASID are not reported; [`unbind`] still has to follow for each device. Only
/// the devices behind `iommu`: call it for each unit.
///
/// # Errors
///
/// As [`invalidate`]. The entries are taken away all the same.
pub fn release<R: Registers, M: Memory>(
    iommu: &mut Iommu<R, M>,
    pasids: &mut Pasids,
    pasid: Pasid,
) -> Result<(), Error> {
    let Some(space) = pasids.find_mut(None, pasid.get())? else { return Ok(()) };
    if !matches!(space.kind, SpaceKind::Process(_)) {
        return Err(Error::OtherAddressSpace { pasid });
    }
    space.ended = true;
    let mut result = Ok(());
    for device in &space.devices {
        if iommu.devices.contains_key(&device.source_id) {
            result = result.and(iommu.tear_down(device.source_id, pasid, true));
        }
    }
    result
}

/// Unbinds a process from a device: P cleared, PASID cache, IOTLB, device-TLB, the entry zeroed, page requests drained.
/// The device must not use the PASID any more. The PASID stays allocated: its owner frees it.
///
/// # Errors
///
/// [`Error::Pasid`]; [`Error::NotBound`]. With the queue's errors the binding is gone all the same.
pub fn unbind<R: Registers, M: Memory>(
    iommu: &mut Iommu<R, M>,
    pasids: &mut Pasids,
    set: SetId,
    source_id: SourceId,
    pasid: Pasid,
) -> Result<(), Error> {
    match pasids.find(Some(set), pasid.get())? {
        Some(space) if matches!(space.kind, SpaceKind::Process(_)) => {}
        _ => return Err(Error::NotBound { source_id, pasid }),
    }
    drop_user(iommu, pasids, Some(set), source_id, pasid)
}

/// One user less; the last one takes the entry away.
pub(crate) fn drop_user<R: Registers, M: Memory>(
    iommu: &mut Iommu<R, M>,
    pasids: &mut Pasids,
    set: Option<SetId>,
    source_id: SourceId,
    pasid: Pasid,
) -> Result<(), Error> {
    iommu.device(source_id)?;
    let not_bound = Error::NotBound { source_id, pasid };
    let space = pasids.find_mut(set, pasid.get())?.ok_or(not_bound)?;
    let device = space.device_mut(source_id).ok_or(not_bound)?;
    if device.users > 1 {
        device.users -= 1;
        return Ok(());
    }
    let torn_down = iommu.tear_down(source_id, pasid, false);
    remove_device(pasids, set, pasid, source_id)?;
    torn_down
}

#[cfg(test)]
mod tests;
