// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The ACPI tables: a hardware-reduced platform with one PCI Express root bridge and a remapping unit.

mod dmar;
mod dsdt;
mod fadt;
mod madt;
mod oem;

use acpi_tables::{Aml, mcfg::MCFG, rsdp::Rsdp, xsdt::XSDT};

use crate::layout::{self, Window};
use oem::{OEM_ID, OEM_REVISION, OEM_TABLE_ID};

/// What the tables describe.
#[derive(Clone, Copy, Debug)]
pub struct Description {
    /// Number of processors, with APIC ids from 0 on.
    pub processors: u8,
    /// The root bridge's 64-bit window for BARs.
    pub pci_mem64: Window,
    /// The remapping unit, if there is one.
    pub remapping: Option<dmar::Remapping>,
}

pub use dmar::Remapping;

/// The tables' bytes, to be put at [`layout::ACPI`]; the RSDP is first.
pub struct Tables {
    /// All tables.
    pub bytes: Vec<u8>,
    /// Address of the RSDP.
    pub rsdp: u64,
}

/// Why there are no tables.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// They do not fit their window.
    #[error("{0} bytes of ACPI tables do not fit: fewer processors or devices are needed")]
    TooLarge(usize),
    /// The DMAR cannot be written.
    #[error("DMAR: {0}")]
    Dmar(#[from] vtd_spec::dmar::DmarError),
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

/// Puts tables behind one another and knows their addresses.
struct Arena {
    bytes: Vec<u8>,
}

impl Arena {
    fn push(&mut self, table: &dyn Aml) -> u64 {
        self.push_bytes(&bytes(table))
    }

    fn push_bytes(&mut self, table: &[u8]) -> u64 {
        self.bytes.resize(self.bytes.len().next_multiple_of(16), 0);
        let address = layout::ACPI.base + self.bytes.len() as u64;
        self.bytes.extend(table);
        address
    }
}

/// Builds all tables.
pub fn build(description: &Description) -> Result<Tables, Error> {
    let mut arena = Arena { bytes: vec![0; Rsdp::len()] };
    let dsdt = arena.push(&dsdt::build(description));
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    xsdt.add_entry(arena.push(&fadt::build(dsdt)));
    xsdt.add_entry(arena.push(&madt::build(description.processors)));
    let mut mcfg = MCFG::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    mcfg.add_ecam(layout::ECAM.base, 0, 0, layout::LAST_BUS);
    xsdt.add_entry(arena.push(&mcfg));
    if let Some(remapping) = &description.remapping {
        xsdt.add_entry(arena.push_bytes(&dmar::build(remapping)?));
    }
    let xsdt = arena.push(&xsdt);
    let rsdp = bytes(&Rsdp::new(OEM_ID, xsdt));
    arena.bytes[..rsdp.len()].copy_from_slice(&rsdp);
    if arena.bytes.len() as u64 > layout::ACPI.size {
        return Err(Error::TooLarge(arena.bytes.len()));
    }
    Ok(Tables { bytes: arena.bytes, rsdp: layout::ACPI.base })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn description(processors: u8) -> Description {
        Description {
            processors,
            pci_mem64: layout::pci_mem64(1 << 30),
            remapping: Some(Remapping {
                address_width: 48,
                interrupt_remapping: true,
                x2apic_opt_out: false,
            }),
        }
    }

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    fn at(tables: &Tables, address: u64) -> &[u8] {
        &tables.bytes[(address - layout::ACPI.base) as usize..]
    }

    fn le(bytes: &[u8]) -> u64 {
        bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
    }

    /// Walks from the RSDP as an operating system does, checking each checksum.
    fn walk(tables: &Tables) -> Vec<(String, Vec<u8>)> {
        let rsdp = at(tables, tables.rsdp);
        assert_eq!(&rsdp[..8], b"RSD PTR ");
        assert_eq!((sum(&rsdp[..20]), sum(&rsdp[..36])), (0, 0));
        let table = |address: u64| {
            let bytes = at(tables, address);
            let length = le(&bytes[4..8]) as usize;
            assert_eq!(sum(&bytes[..length]), 0, "checksum of {:?}", &bytes[..4]);
            bytes[..length].to_vec()
        };
        let xsdt = table(le(&rsdp[24..32]));
        let mut found = Vec::new();
        for entry in xsdt[36..].chunks(8) {
            let bytes = table(le(entry));
            if &bytes[..4] == b"FACP" {
                found.push(("DSDT".into(), table(le(&bytes[140..148]))));
            }
            found.push((String::from_utf8(bytes[..4].to_vec()).unwrap(), bytes));
        }
        found
    }

    #[test]
    fn every_table_is_reachable_and_its_checksum_holds() {
        for processors in [1, 2, 254] {
            let tables = build(&description(processors)).unwrap();
            let names: Vec<_> = walk(&tables).into_iter().map(|(name, _)| name).collect();
            assert_eq!(names, ["DSDT", "FACP", "APIC", "MCFG", "DMAR"]);
        }
    }

    #[test]
    fn no_remapping_unit_means_no_dmar() {
        let tables = build(&Description { remapping: None, ..description(1) }).unwrap();
        assert!(walk(&tables).iter().all(|(name, _)| name != "DMAR"));
    }

    #[test]
    fn mcfg_names_the_buses_that_have_a_place_in_the_window() {
        let tables = build(&description(1)).unwrap();
        let (_, mcfg) = walk(&tables).into_iter().find(|(name, _)| name == "MCFG").unwrap();
        let (base, first, last) = (le(&mcfg[44..52]), mcfg[54], mcfg[55]);
        assert_eq!((base, first), (layout::ECAM.base, 0));
        assert_eq!(layout::ECAM.size, u64::from(last - first + 1) * pci::ECAM_BUS_SIZE);
    }

    #[test]
    fn the_root_bridge_has_the_buses_that_mcfg_names() {
        let tables = build(&description(1)).unwrap();
        let (_, dsdt) = walk(&tables).into_iter().find(|(name, _)| name == "DSDT").unwrap();
        // A word address space descriptor for bus numbers. [ACPI 6.4.3.5.3]
        let at = dsdt.windows(4).position(|bytes| bytes == [0x88, 0x0d, 0x00, 0x02]).unwrap();
        let word = |offset: usize| le(&dsdt[at + offset..at + offset + 2]);
        let (first, last, count) = (word(8), word(10), word(14));
        assert_eq!((first, last, count), (0, layout::LAST_BUS.into(), u64::from(layout::LAST_BUS) + 1));
    }

    #[test]
    fn madt_lists_each_processor_and_the_ioapic() {
        let tables = build(&description(3)).unwrap();
        let (_, madt) = walk(&tables).into_iter().find(|(name, _)| name == "APIC").unwrap();
        let mut entries = Vec::new();
        let mut rest = &madt[44..];
        while let [kind, length, ..] = *rest {
            entries.push((kind, rest[..usize::from(length)].to_vec()));
            rest = &rest[usize::from(length)..];
        }
        let local: Vec<_> = entries.iter().filter(|e| e.0 == 0).map(|e| (e.1[3], e.1[4])).collect();
        assert_eq!(local, [(0, 1), (1, 1), (2, 1)]);
        let io = entries.iter().find(|e| e.0 == 1).unwrap();
        assert_eq!(le(&io.1[4..8]), layout::IOAPIC.base);
    }

    #[test]
    fn dmar_describes_the_unit_and_the_ioapics_source_id() {
        let tables = build(&description(1)).unwrap();
        let (_, dmar) = walk(&tables).into_iter().find(|(name, _)| name == "DMAR").unwrap();
        assert_eq!((dmar[36], dmar[37]), (47, 1));
        let drhd = &dmar[48..];
        assert_eq!((le(&drhd[..2]), drhd[4], le(&drhd[8..16])), (0, 1, layout::REMAPPING_UNIT.base));
        let scope = &drhd[16..];
        assert_eq!(scope[..8], [3, 8, 0, 0, layout::IOAPIC_ID, layout::IOAPIC_BUS, 0, 0]);
        assert_eq!(dmar.len(), 48 + le(&drhd[2..4]) as usize);
    }

    #[test]
    fn fadt_is_hardware_reduced_with_reset_and_sleep_registers() {
        let tables = build(&description(1)).unwrap();
        let (_, fadt) = walk(&tables).into_iter().find(|(name, _)| name == "FACP").unwrap();
        assert_eq!(fadt.len(), 276);
        let flags = le(&fadt[112..116]);
        assert_eq!(flags & (1 << 20 | 1 << 10), 1 << 20 | 1 << 10);
        assert_eq!((fadt[116], le(&fadt[120..128]), fadt[128]), (1, 0x604, 1));
        assert_eq!((fadt[244], le(&fadt[248..256])), (1, 0x600));
    }
}
