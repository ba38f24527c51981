// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! DSDT: the root bridge, the address ranges of the board, and the serial port.

use acpi_tables::Aml;
use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Arg, CreateDWordField, Device, EISAName, Else, Equal, IO, If,
    Interrupt, Memory32Fixed, Method, Name, Or, Package, Path, ResourceTemplate, Return, Scope, Uuid, ZERO,
};
use acpi_tables::sdt::Sdt;

use super::Description;
use crate::{layout, power};

/// `_OSC` of PCI host bridges. \[PCI Firmware 4.5.1\]
const OSC_PCI: &str = "33db4d5b-1ff7-401c-9657-7441c03dd766";
/// `_OSC` status: the UUID is not known.
const OSC_UNRECOGNIZED_UUID: u32 = 4;

/// The DSDT of the machine.
pub fn build(description: &Description) -> Sdt {
    let s5 = power::SLEEP_TYPE_S5;
    let mut aml = Vec::new();
    Name::new("_S5_".into(), &Package::new(vec![&s5, &s5, &ZERO, &ZERO])).to_aml_bytes(&mut aml);
    root_bridge(description, &mut aml);
    board(description, &mut aml);
    serial(&mut aml);

    let mut dsdt =
        Sdt::new(*b"DSDT", 36, 6, super::oem::OEM_ID, super::oem::OEM_TABLE_ID, super::oem::OEM_REVISION);
    dsdt.append_slice(&aml);
    dsdt
}

/// The PCI Express root bridge: its windows, and all native features granted to the system. No `_PRT`: functions
/// interrupt by message only.
fn root_bridge(description: &Description, aml: &mut Vec<u8>) {
    let (mem32, mem64) = (layout::PCI_MEM32, description.pci_mem64);
    let config = pci::CONFIG_ADDRESS_PORT;
    let uncached = AddressSpaceCacheable::NotCacheable;

    let buses = AddressSpace::new_bus_number(0u16, u16::from(layout::LAST_BUS));
    let config_ports = IO::new(config, config, 1, 8);
    let ports_below = AddressSpace::new_io(0u16, config - 1, None);
    let ports_above = AddressSpace::new_io(config + 8, 0xffffu16, None);
    let window32 = AddressSpace::new_memory(uncached, true, mem32.base as u32, mem32.last() as u32, None);
    let window64 = AddressSpace::new_memory(uncached, true, mem64.base, mem64.last(), None);
    let resources =
        ResourceTemplate::new(vec![&buses, &config_ports, &ports_below, &ports_above, &window32, &window64]);

    // _OSC(UUID, revision, count, capabilities): everything asked for is granted by returning it unchanged.
    let (uuid, capabilities, status) = (Uuid::new(OSC_PCI), Arg(3), Path::new("CDW1"));
    let known = Equal::new(&Arg(0), &uuid);
    let granted = Return::new(&capabilities);
    let grant = If::new(&known, vec![&granted]);
    let status_field = CreateDWordField::new(&status, &capabilities, &ZERO);
    let set_status = Or::new(&status, &status, &OSC_UNRECOGNIZED_UUID);
    let refuse = Else::new(vec![&status_field, &set_status, &granted]);

    let (hid, cid) = (EISAName::new("PNP0A08"), EISAName::new("PNP0A03"));
    let bridge = Device::new(
        "PCI0".into(),
        vec![
            &Name::new("_HID".into(), &hid),
            &Name::new("_CID".into(), &cid),
            &Name::new("_UID".into(), &ZERO),
            &Name::new("_SEG".into(), &ZERO),
            &Name::new("_BBN".into(), &ZERO),
            &Name::new("_CRS".into(), &resources),
            &Method::new("_OSC".into(), 4, false, vec![&grant, &refuse]),
        ],
    )
    .in_system_bus();
    aml.extend(bridge);
}

/// Ranges that belong to the board, so that nothing else is put there: ECAM and the remapping unit's registers.
fn board(description: &Description, aml: &mut Vec<u8>) {
    let fixed = |w: layout::Window| Memory32Fixed::new(true, w.base as u32, w.size as u32);
    let ecam = fixed(layout::ECAM);
    let unit = fixed(layout::REMAPPING_UNIT);
    let mut ranges: Vec<&dyn Aml> = vec![&ecam];
    if description.remapping.is_some() {
        ranges.push(&unit);
    }
    let board = Device::new(
        "BORD".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0C02")),
            &Name::new("_UID".into(), &ZERO),
            &Name::new("_CRS".into(), &ResourceTemplate::new(ranges)),
        ],
    )
    .in_system_bus();
    aml.extend(board);
}

/// The serial port. The kernel takes its interrupt from here: a hardware-reduced platform has no ISA interrupts of
/// its own.
fn serial(aml: &mut Vec<u8>) {
    let ports = IO::new(layout::SERIAL_PORT, layout::SERIAL_PORT, 1, 8);
    let interrupt = Interrupt::new(true, true, false, false, layout::SERIAL_IRQ.into());
    let serial = Device::new(
        "COM1".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0501")),
            &Name::new("_UID".into(), &ZERO),
            &Name::new("_DDN".into(), &"COM1"),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&ports, &interrupt])),
        ],
    )
    .in_system_bus();
    aml.extend(serial);
}

trait InSystemBus {
    /// The object's bytes inside `\_SB_`.
    fn in_system_bus(&self) -> Vec<u8>;
}

impl<T: Aml> InSystemBus for T {
    fn in_system_bus(&self) -> Vec<u8> {
        super::bytes(&Scope::new("\\_SB_".into(), vec![self]))
    }
}
