// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The driver half that programs the physical unit, and what it is asked to attach.

use std::collections::HashMap;

use vtd_driver::nested::{self, BindData};
use vtd_driver::{DomainHandle, Iommu, NestedTable, Pasids};
use vtd_spec::Pasid;
use vtd_unit::FirstStageTable;

use super::function::Function;
use super::memory::{HostMemory, Tables};
use crate::host::{Attachment, DeviceId, HostError};
use crate::unit_registers::UnitRegisters;

/// What the driver's lock guards.
pub(super) struct Driver {
    pub(super) iommu: Iommu<UnitRegisters<HostMemory>, Tables>,
    pub(super) pasids: Pasids,
    pub(super) set: ioasid::SetId,
    /// The guest's memory: second stage, GPA to HPA.
    pub(super) domain: DomainHandle,
    pub(super) attached: HashMap<(DeviceId, Option<Pasid>), Attachment>,
}

pub(super) fn host_error(error: &vtd_driver::Error) -> HostError {
    use vtd_driver::Error as E;
    match *error {
        E::TableOutOfRange { address } => HostError::TableAddress(address),
        E::AddressWidth { bits } => HostError::Levels(if bits > 48 { 5 } else { 4 }),
        E::Unsupported { capability } if capability.contains("5-level") => HostError::Levels(5),
        E::Unsupported { capability } => HostError::Flag(capability),
        _ => HostError::Host(error.to_string()),
    }
}

impl Driver {
    fn bind_data(table: &FirstStageTable, pasid: Pasid) -> BindData {
        let mut vtd_flags = 0;
        if table.sre {
            vtd_flags |= nested::vtd_flag::SRE;
        }
        if table.eafe {
            vtd_flags |= nested::vtd_flag::EAFE;
        }
        let addr_width = if table.levels == 5 { 57 } else { 48 };
        BindData { addr_width, vtd_flags, wpe: table.wpe, ..BindData::new(table.address, pasid) }
    }

    fn nested_table(table: &FirstStageTable) -> NestedTable {
        NestedTable {
            sre: table.sre,
            eafe: table.eafe,
            wpe: table.wpe,
            ..NestedTable::new(table.address, if table.levels == 5 { 57 } else { 48 })
        }
    }

    /// Requests without PASID are entry 0's. Whatever is attached is replaced in place.
    pub(super) fn attach(
        &mut self,
        function: &Function,
        pasid: Option<Pasid>,
        to: Attachment,
    ) -> Result<(), vtd_driver::Error> {
        let replaces = self.attached.contains_key(&(function.id, pasid));
        let Self { iommu, pasids, set, domain, .. } = self;
        let (source_id, at) = (function.source_id, pasid.unwrap_or(Pasid::ZERO));
        match to {
            Attachment::Nested(table) if replaces => {
                iommu.replace_stages(source_id, at, *domain, Some(Self::nested_table(&table)))
            }
            Attachment::SecondStage if replaces => iommu.replace_stages(source_id, at, *domain, None),
            Attachment::Nested(table) if pasid.is_some() => {
                let data = Self::bind_data(&table, at);
                nested::bind_gpasid(iommu, pasids, *set, *domain, source_id, &data)
            }
            Attachment::Nested(table) => {
                iommu.setup_nested(source_id, at, *domain, Self::nested_table(&table))
            }
            Attachment::SecondStage => iommu.attach(*domain, source_id, at),
        }
    }

    pub(super) fn detach(
        &mut self,
        function: &Function,
        pasid: Option<Pasid>,
    ) -> Result<(), vtd_driver::Error> {
        let Self { iommu, pasids, set, .. } = self;
        let source_id = function.source_id;
        let Some(pasid) = pasid else { return iommu.detach(source_id, Pasid::ZERO) };
        match nested::unbind_gpasid(iommu, pasids, *set, source_id, pasid.get().into()) {
            // It was attached to the second stage alone at first.
            Err(vtd_driver::Error::NotBound { .. }) => iommu.detach(source_id, pasid),
            unbound => unbound,
        }
    }
}
