// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What is bound to a PASID, system-wide: the data that this crate keeps with the PASIDs (Linux svm.c: `intel_svm`,
//! `intel_svm_dev`).

use alloc::vec::Vec;

use vtd_spec::{Pasid, SourceId};

use crate::state::DomainHandle;
use crate::state::{FirstStageTable, NestedTable};

/// The PASIDs of a system, shared by all its units. Devices go by source-id alone: a system is one PCI segment.
pub type Pasids = ioasid::Allocator<AddressSpace>;

/// What kind of address space it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpaceKind {
    /// A process of this system.
    Process(FirstStageTable),
    /// A process of a guest, which may know it by another PASID.
    Guest {
        /// The PASID the guest uses, where it was told.
        guest_pasid: Option<Pasid>,
    },
}

/// A device that an address space is bound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BoundDevice {
    /// The device.
    pub source_id: SourceId,
    /// How often it is bound: more than once by several parts of one device.
    pub users: u32,
    /// The guest's table and what it is nested on.
    pub(crate) nested: Option<(DomainHandle, NestedTable)>,
}

/// An address space bound to a PASID on one or more devices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddressSpace {
    pub(crate) kind: SpaceKind,
    pub(crate) devices: Vec<BoundDevice>,
    /// A process that has ended: its table is gone, and the devices are still to be unbound.
    pub(crate) ended: bool,
}

impl AddressSpace {
    /// What kind it is.
    pub fn kind(&self) -> SpaceKind {
        self.kind
    }

    /// The devices it is bound to.
    pub fn devices(&self) -> &[BoundDevice] {
        &self.devices
    }

    pub(crate) fn device(&self, source_id: SourceId) -> Option<&BoundDevice> {
        self.devices.iter().find(|device| device.source_id == source_id)
    }

    pub(crate) fn device_mut(&mut self, source_id: SourceId) -> Option<&mut BoundDevice> {
        self.devices.iter_mut().find(|device| device.source_id == source_id)
    }
}

/// The guest's name for a host PASID, where it was told.
pub(crate) fn guest_pasid(pasids: &Pasids, pasid: Pasid) -> Option<Pasid> {
    match pasids.find(None, pasid.get()).ok()??.kind {
        SpaceKind::Guest { guest_pasid } => guest_pasid,
        SpaceKind::Process(_) => None,
    }
}

/// A PASID that something can be bound to: not 0, which is for requests without PASID.
pub(crate) fn bindable(pasid: u64) -> Result<Pasid, crate::Error> {
    match u32::try_from(pasid).ok().and_then(Pasid::new) {
        Some(pasid) if pasid != Pasid::ZERO => Ok(pasid),
        _ => Err(crate::Error::InvalidPasid { pasid }),
    }
}
