// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Tests of writing and reading tables.

use std::vec;
use std::vec::Vec;

use super::*;
use crate::SourceId;
use proptest::prelude::*;

fn header() -> DmarHeader {
    DmarHeader {
        oem_id: *b"VSVA  ",
        oem_table_id: *b"VSVADMAR",
        oem_revision: 1,
        creator_id: *b"VSVA",
        creator_revision: 2,
        host_address_width: 46,
        flags: DmarFlags::new().with_intr_remap(true),
    }
}

/// One of each structure.
fn full_table() -> Vec<u8> {
    let mut buffer = vec![0xaa; 4096];
    let mut writer = Writer::new(&mut buffer, &header()).unwrap();
    let scopes = [
        DeviceScope::new(ScopeType::IoApic, 2, 0xff, &[[0x1f, 7]]),
        DeviceScope::new(ScopeType::Hpet, 0, 0xff, &[[0x1f, 6]]),
    ];
    let drhd = Drhd { include_pci_all: true, size: 0, segment: 0, register_base: 0xfed9_0000 };
    let sidp_scope = DeviceScope {
        flags: ScopeFlags::new().with_atc_required(true),
        ..DeviceScope::new(ScopeType::PciEndpoint, 0, 0, &[[3, 0]])
    };
    writer
        .drhd(&drhd, &scopes)
        .unwrap()
        .rmrr(&Rmrr { segment: 0, base: 0x7000_0000, limit: 0x7000_ffff }, &[])
        .unwrap()
        .atsr(
            &Atsr { all_ports: false, segment: 1 },
            &[DeviceScope::new(ScopeType::PciSubHierarchy, 0, 0, &[[0x1c, 0], [0, 0]])],
        )
        .unwrap()
        .rhsa(&Rhsa { register_base: 0xfed9_0000, proximity_domain: 3 })
        .unwrap()
        .andd(&Andd { device_number: 5, object_name: b"\\_SB.I2C0" })
        .unwrap()
        .satc(
            &Satc { atc_required: true, segment: 0 },
            &[DeviceScope::new(ScopeType::PciEndpoint, 0, 0, &[[3, 0]])],
        )
        .unwrap()
        .sidp(&Sidp { segment: 0 }, &[sidp_scope])
        .unwrap();
    let length = writer.finish().unwrap();
    buffer.truncate(length);
    buffer
}

#[test]
fn table_has_the_bytes_of_the_specification() {
    let mut buffer = [0xaa; 128];
    let mut writer = Writer::new(&mut buffer, &header()).unwrap();
    let drhd = Drhd { include_pci_all: true, size: 0, segment: 0, register_base: 0xfed9_0000 };
    writer.drhd(&drhd, &[DeviceScope::new(ScopeType::IoApic, 2, 0xff, &[[0x1f, 7]])]).unwrap();
    assert_eq!(writer.finish(), Ok(72));
    let expected: [u8; 72] = [
        b'D', b'M', b'A', b'R', 72, 0, 0, 0, 1, 0, b'V', b'S', b'V', b'A', b' ', b' ', // header
        b'V', b'S', b'V', b'A', b'D', b'M', b'A', b'R', 1, 0, 0, 0, b'V', b'S', b'V', b'A', //
        2, 0, 0, 0, 45, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, // host address width - 1, flags
        0, 0, 24, 0, 1, 0, 0, 0, 0, 0, 0xd9, 0xfe, 0, 0, 0, 0, // DRHD
        3, 8, 0, 0, 2, 0xff, 0x1f, 7, // I/O APIC 2 at ff:1f.7
    ];
    let checksum = expected.iter().enumerate().filter(|(i, _)| *i != 9).map(|(_, byte)| *byte);
    let checksum = checksum.fold(0u8, u8::wrapping_add).wrapping_neg();
    assert_eq!(buffer[9], checksum);
    assert_eq!(buffer[..9], expected[..9]);
    assert_eq!(buffer[10..72], expected[10..]);
    assert_eq!(buffer[72..], [0xaa; 56], "nothing behind the table is written");
}

#[test]
fn written_structures_read_back() {
    let table = full_table();
    let dmar = Dmar::parse(&table).unwrap();
    assert_eq!(*dmar.header(), header());
    let structures: Vec<_> = dmar.structures().collect::<Result<_, _>>().unwrap();
    let [
        RemappingStructure::Drhd(drhd, drhd_scopes),
        RemappingStructure::Rmrr(rmrr, rmrr_scopes),
        RemappingStructure::Atsr(atsr, atsr_scopes),
        RemappingStructure::Rhsa(rhsa),
        RemappingStructure::Andd(andd),
        RemappingStructure::Satc(satc, satc_scopes),
        RemappingStructure::Sidp(sidp, sidp_scopes),
    ] = structures.as_slice()
    else {
        panic!("structures are missing or out of order: {structures:?}");
    };
    assert_eq!(*drhd, Drhd { include_pci_all: true, size: 0, segment: 0, register_base: 0xfed9_0000 });
    let scopes: Vec<_> = drhd_scopes.clone().map(Result::unwrap).collect();
    assert_eq!(scopes.len(), 2);
    assert_eq!((scopes[0].scope_type, scopes[0].enumeration_id), (ScopeType::IoApic, 2));
    assert_eq!(scopes[0].source_id(), Some(SourceId::new(0xff, 0x1f, 7)));
    assert_eq!(scopes[1].scope_type, ScopeType::Hpet);
    assert_eq!(*rmrr, Rmrr { segment: 0, base: 0x7000_0000, limit: 0x7000_ffff });
    assert_eq!(rmrr_scopes.clone().count(), 0);
    assert_eq!(*atsr, Atsr { all_ports: false, segment: 1 });
    let port = atsr_scopes.clone().next().unwrap().unwrap();
    assert_eq!((port.path, port.source_id()), (&[[0x1c, 0], [0, 0]][..], None));
    assert_eq!(*rhsa, Rhsa { register_base: 0xfed9_0000, proximity_domain: 3 });
    assert_eq!(*andd, Andd { device_number: 5, object_name: b"\\_SB.I2C0" });
    assert_eq!(*satc, Satc { atc_required: true, segment: 0 });
    assert_eq!(satc_scopes.clone().next().unwrap().unwrap().source_id(), Some(SourceId::new(0, 3, 0)));
    assert_eq!(*sidp, Sidp { segment: 0 });
    assert!(sidp_scopes.clone().next().unwrap().unwrap().flags.atc_required());
}

/// Sets length and checksum of a table that was tampered with.
fn seal(table: &mut [u8]) {
    let length = table.len() as u32;
    table[4..8].copy_from_slice(&length.to_le_bytes());
    table[9] = 0;
    table[9] = table.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)).wrapping_neg();
}

fn table_with(structures: &[u8]) -> Vec<u8> {
    let mut table = vec![0; DmarHeader::SIZE];
    Writer::new(&mut table, &header()).unwrap();
    table.extend_from_slice(structures);
    seal(&mut table);
    table
}

#[test]
fn damaged_tables_are_refused() {
    let table = full_table();
    assert_eq!(Dmar::parse(&table[..table.len() - 1]).unwrap_err(), DmarError::Truncated);
    assert_eq!(Dmar::parse(&[]).unwrap_err(), DmarError::Truncated);
    let mut other = table.clone();
    other[0] = b'X';
    assert_eq!(Dmar::parse(&other).unwrap_err(), DmarError::Signature);
    let mut other = table.clone();
    other[60] ^= 1;
    assert_eq!(Dmar::parse(&other).unwrap_err(), DmarError::Checksum);
    let mut other = table;
    other[4..8].copy_from_slice(&47u32.to_le_bytes());
    assert_eq!(Dmar::parse(&other).unwrap_err(), DmarError::Length);
}

#[test]
fn bad_structure_lengths_end_the_iteration() {
    for (bytes, error) in [
        (&[0, 0, 0, 0][..], DmarError::Length),
        (&[0, 0, 3, 0], DmarError::Length),
        (&[0, 0, 16, 0, 0, 0], DmarError::Truncated),
        (&[0, 0, 4], DmarError::Truncated),
    ] {
        let table = table_with(bytes);
        let mut structures = Dmar::parse(&table).unwrap().structures();
        assert_eq!(structures.next().unwrap().unwrap_err(), error);
        assert!(structures.next().is_none());
    }
}

#[test]
fn short_and_unknown_structures_do_not_hide_the_next_one() {
    // A DRHD of 8 bytes, an unknown type 9, an ATSR.
    let table = table_with(&[0, 0, 8, 0, 0, 0, 0, 0, 9, 0, 5, 0, 0xee, 2, 0, 8, 0, 1, 0, 0, 0]);
    let structures: Vec<_> = Dmar::parse(&table).unwrap().structures().collect();
    assert_eq!(*structures[0].as_ref().unwrap_err(), DmarError::Length);
    assert!(matches!(structures[1], Ok(RemappingStructure::Other(9, [9, 0, 5, 0, 0xee]))));
    assert!(matches!(structures[2], Ok(RemappingStructure::Atsr(Atsr { all_ports: true, .. }, _))));
    assert_eq!(structures.len(), 3);
}

#[test]
fn bad_scope_lengths_end_the_scopes() {
    for (scope, error) in [
        (&[1, 5, 0, 0, 0, 0][..], DmarError::Length),
        (&[1, 7, 0, 0, 0, 0, 0], DmarError::Length),
        (&[1, 8, 0, 0, 0, 0], DmarError::Truncated),
        (&[1, 8, 0], DmarError::Truncated),
    ] {
        let mut structure = vec![2, 0, 8 + scope.len() as u8, 0, 0, 0, 0, 0];
        structure.extend_from_slice(scope);
        let table = table_with(&structure);
        let structure = Dmar::parse(&table).unwrap().structures().next();
        let Some(Ok(RemappingStructure::Atsr(_, mut scopes))) = structure else {
            panic!("an ATSR was written");
        };
        assert_eq!(scopes.next().unwrap().unwrap_err(), error);
        assert!(scopes.next().is_none());
    }
}

#[test]
fn object_name_without_its_nul_is_an_error() {
    let table = table_with(&[4, 0, 10, 0, 0, 0, 0, 1, b'A', b'B']);
    let structure = Dmar::parse(&table).unwrap().structures().next();
    assert_eq!(structure.unwrap().unwrap_err(), DmarError::Length);
}

#[test]
fn writer_refuses_what_does_not_fit() {
    assert_eq!(Writer::new(&mut [0; 47], &header()).unwrap_err(), DmarError::BufferTooSmall);
    let mut buffer = [0; 60];
    let mut writer = Writer::new(&mut buffer, &header()).unwrap();
    assert_eq!(writer.drhd(&Drhd::default(), &[]).unwrap_err(), DmarError::BufferTooSmall);
    writer.atsr(&Atsr::default(), &[]).unwrap();
    assert_eq!(writer.drhd(&Drhd::default(), &[]).unwrap_err(), DmarError::OutOfOrder);
    let named = Andd { device_number: 0, object_name: b"A\0B" };
    assert_eq!(writer.andd(&named).unwrap_err(), DmarError::Name);
    assert_eq!(writer.finish(), Ok(56));
    let table = Dmar::parse(&buffer).unwrap();
    assert_eq!(table.structures().count(), 1, "what failed left nothing behind");
}

#[test]
fn writer_refuses_lengths_beyond_their_fields() {
    let mut buffer = vec![0; 0x2_0000];
    let mut writer = Writer::new(&mut buffer, &header()).unwrap();
    let path = vec![[0, 0]; 125];
    let long = DeviceScope::new(ScopeType::PciEndpoint, 0, 0, &path);
    assert_eq!(writer.atsr(&Atsr::default(), &[long]).unwrap_err(), DmarError::TooLong);
    let scopes = vec![DeviceScope::new(ScopeType::PciEndpoint, 0, 0, &[[0, 0]]); 8192];
    assert_eq!(writer.atsr(&Atsr::default(), &scopes).unwrap_err(), DmarError::TooLong);
    assert!(writer.atsr(&Atsr::default(), &scopes[..8190]).is_ok());
}

proptest! {
    #[test]
    fn reading_any_bytes_ends_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
        let table = table_with(&bytes);
        let mut seen = 0;
        for structure in Dmar::parse(&table).unwrap().structures() {
            seen += 1;
            if let Ok(
                RemappingStructure::Drhd(_, scopes)
                | RemappingStructure::Rmrr(_, scopes)
                | RemappingStructure::Atsr(_, scopes)
                | RemappingStructure::Satc(_, scopes)
                | RemappingStructure::Sidp(_, scopes),
            ) = structure
            {
                prop_assert!(scopes.count() <= bytes.len());
            }
        }
        prop_assert!(seen <= bytes.len());
        let _ = Dmar::parse(&bytes);
    }
}
