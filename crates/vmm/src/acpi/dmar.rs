// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! DMAR: the remapping unit. \[S 8\]
//!
//! One unit for everything (INCLUDE_PCI_ALL), with the I/O APIC in its scope. The functions are root-complex
//! integrated endpoints on bus 0, so that ATS needs neither ATSR nor SATC.
//! \[Linux drivers/iommu/intel/iommu.c: dmar_ats_supported\]

use vtd_spec::dmar::{DeviceScope, DmarError, DmarFlags, DmarHeader, Drhd, ScopeType};

use crate::layout;

/// What the DMAR says about the remapping unit.
#[derive(Clone, Copy, Debug)]
pub struct Remapping {
    /// Host address width in bits: what DMA can reach.
    pub address_width: u8,
    /// The unit remaps interrupts.
    pub interrupt_remapping: bool,
    /// Asks the system to leave x2APIC alone: the unit has no extended interrupt mode.
    pub x2apic_opt_out: bool,
}

/// The DMAR table.
pub fn build(remapping: &Remapping) -> Result<Vec<u8>, DmarError> {
    let flags = DmarFlags::new()
        .with_intr_remap(remapping.interrupt_remapping)
        .with_x2apic_opt_out(remapping.interrupt_remapping && remapping.x2apic_opt_out);
    let header = DmarHeader {
        oem_id: super::oem::OEM_ID,
        oem_table_id: super::oem::OEM_TABLE_ID,
        oem_revision: super::oem::OEM_REVISION,
        creator_id: *b"VSVA",
        creator_revision: 1,
        host_address_width: remapping.address_width.into(),
        flags,
    };
    let unit =
        Drhd { include_pci_all: true, size: 0, segment: 0, register_base: layout::REMAPPING_UNIT.base };
    let path = [[layout::IOAPIC_DEVFN >> 3, layout::IOAPIC_DEVFN & 7]];
    let ioapic = DeviceScope::new(ScopeType::IoApic, layout::IOAPIC_ID, layout::IOAPIC_BUS, &path);

    vtd_spec::dmar::table(&header, |writer| writer.drhd(&unit, &[ioapic]).map(|_| ()))
}
