// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! MADT: the processors' local APICs and the I/O APIC. \[ACPI 5.2.12\]

use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic};

use crate::layout;

/// The MADT of a machine with `processors` processors.
///
/// No interrupt source overrides: ISA interrupts are the pins of their number, edge-triggered and active high. The
/// flag for a pair of 8259s stays 0.
pub fn build(processors: u8) -> MADT {
    let mut madt = MADT::new(
        super::oem::OEM_ID,
        super::oem::OEM_TABLE_ID,
        super::oem::OEM_REVISION,
        LocalInterruptController::Address(layout::LOCAL_APIC as u32),
    );
    for id in 0..processors {
        madt.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(layout::IOAPIC_ID, layout::IOAPIC.base as u32, 0));
    madt
}
