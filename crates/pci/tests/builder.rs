// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What no function can have is refused when it is built, not found out by a guest.

mod common;

use std::sync::Arc;

use common::{TestFunction, builder};
use pci::{
    AddError, AtsCapability, Bar, BuildError, CapabilityId, ConfigSpaceBuilder, Identity, MsixLayout,
    PasidCapability, PcieCapability, PriCapability, RootComplex,
};

fn empty() -> ConfigSpaceBuilder {
    ConfigSpaceBuilder::new(Identity {
        vendor: 1,
        device: 2,
        revision: 3,
        class: 4,
        subsystem_vendor: 5,
        subsystem: 6,
    })
}

fn error(builder: ConfigSpaceBuilder) -> BuildError {
    builder.build().err().expect("must not build")
}

#[test]
fn bars_need_free_registers_and_powers_of_two() {
    let bar64 = Bar::memory64(0x1000);
    assert_eq!(error(empty().bar(5, bar64)), BuildError::BarRegister(5));
    assert_eq!(error(empty().bar(6, Bar::memory32(0x1000))), BuildError::BarRegister(6));
    assert_eq!(error(empty().bar(usize::MAX, bar64)), BuildError::BarRegister(usize::MAX));
    assert_eq!(error(empty().bar(0, bar64).bar(1, Bar::memory32(0x1000))), BuildError::BarRegister(1));
    for size in [0, 64, 0x1800, u64::MAX] {
        assert_eq!(error(empty().bar(0, Bar::memory64(size))), BuildError::BarSize { bar: 0, size });
    }
    let size = 1 << 32;
    assert_eq!(error(empty().bar(0, Bar::memory32(size))), BuildError::BarSize { bar: 0, size });
    assert!(empty().bar(4, bar64).bar(0, Bar::memory32(1 << 31)).build().is_ok());
}

#[test]
fn the_largest_bar_decodes_half_of_everything() {
    let mut config = empty().bar(0, Bar::memory64(1 << 63)).build().unwrap();
    config.write(0x10, &[0xff; 8]);
    config.write(4, &[2]);
    let range = config.bars()[0].unwrap();
    assert_eq!((range.base, range.last()), (1 << 63, u64::MAX));
}

#[test]
fn msix_structures_lie_apart_inside_bars() {
    let with = |layout| error(empty().bar(0, Bar::memory64(0x1000)).msix(layout));
    let table = BuildError::MsixPlace("table");
    let pba = BuildError::MsixPlace("pending bit array");
    assert_eq!(with(MsixLayout::in_bar(1, 1, 0, 0x800)), table);
    assert_eq!(with(MsixLayout::in_bar(9, 1, 0, 0x800)), table);
    assert_eq!(with(MsixLayout::in_bar(0, 1, 4, 0x800)), table);
    assert_eq!(with(MsixLayout::in_bar(0, 2, 0xff0, 0x800)), table);
    assert_eq!(with(MsixLayout::in_bar(0, 1, 0, 0x804)), pba);
    assert_eq!(with(MsixLayout::in_bar(0, 1, 0, 0x1000)), pba);
    assert_eq!(with(MsixLayout::in_bar(0, 2, 0, 0x18)), pba);
    assert_eq!(
        with(MsixLayout::in_bar(0, 0, 0, 0x800)),
        BuildError::Value { id: 0x11, field: "the number of vectors" }
    );
    assert_eq!(
        with(MsixLayout::in_bar(0, 2049, 0, 0x800)),
        BuildError::Value { id: 0x11, field: "the number of vectors" }
    );
}

#[test]
fn capabilities_have_room_and_sane_fields() {
    let big = [0; 0xc0];
    assert_eq!(error(empty().capability(CapabilityId::VENDOR, &big, &[])), BuildError::NoRoom { id: 9 });
    assert!(empty().capability(CapabilityId::VENDOR, &big[2..], &[]).build().is_ok());
    let pcie = PcieCapability { function_level_reset: false, end_end_prefix: false };
    assert_eq!(error(builder().pcie(pcie)), BuildError::Twice { id: 0x10 });
    assert!(matches!(
        error(empty().ats(AtsCapability { queue_depth: 33, global_invalidate: false })),
        BuildError::Value { id: 0x0f, .. }
    ));
    assert!(matches!(
        error(empty().pasid(PasidCapability { width: 21, execute: false, privileged: false })),
        BuildError::Value { id: 0x1b, .. }
    ));
    assert!(matches!(
        error(empty().pri(PriCapability { capacity: 0, response_pasid_required: true })),
        BuildError::Value { id: 0x13, .. }
    ));
}

#[test]
fn without_a_capability_its_controls_are_off_and_its_setters_do_nothing() {
    let mut config = empty().build().unwrap();
    config.set_pri_response_failure();
    config.set_pri_stopped();
    assert!(!config.pri_stopped() && !config.pri_response_failure());
    assert_eq!(config.pri_capacity(), 0);
    assert!(config.write(0, &[0xff; 4096]).bus_master == Some(true));
    assert!(!config.memory_enabled(), "no BAR, no memory space");
    assert!(!config.ats_enabled() && !config.pasid_enabled() && !config.msix_control().enabled);
    let mut end = [0x5a; 4];
    config.read(4094, &mut end);
    assert_eq!(end, [0; 4]);
}

#[test]
fn functions_have_places_of_their_own() {
    let mut root = RootComplex::new();
    let function = || Arc::new(TestFunction::new());
    root.add(31, 7, function()).unwrap();
    assert_eq!(root.add(31, 7, function()), Err(AddError::Taken { device: 31, function: 7 }));
    assert_eq!(root.add(32, 0, function()), Err(AddError::NoSuchPlace { device: 32, function: 0 }));
    assert_eq!(root.add(0, 8, function()), Err(AddError::NoSuchPlace { device: 0, function: 8 }));
    let mut id = [0; 4];
    root.ecam_read(0xff << 12, &mut id);
    assert_eq!(id, [0x86, 0x80, 0x25, 0x0b]);
}
