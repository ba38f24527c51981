// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The virtual command registers, as Linux from 5.7 to 6.3 uses them.

mod common;

use std::sync::{Arc, Mutex};

use common::Guest;
use vtd_spec::Pasid;
use vtd_unit::{PasidAllocator, UnitConfig, VirtualCommandEncoding};

/// Hands out 100, 101 and no more.
#[derive(Default)]
struct Two(Mutex<Vec<u32>>);

impl PasidAllocator for Two {
    fn allocate(&self) -> Option<Pasid> {
        let mut taken = self.0.lock().unwrap();
        let pasid = (100..102).find(|number| !taken.contains(number))?;
        taken.push(pasid);
        Pasid::new(pasid)
    }

    fn free(&self, pasid: Pasid) -> bool {
        let mut taken = self.0.lock().unwrap();
        let before = taken.len();
        taken.retain(|number| *number != pasid.get());
        taken.len() < before
    }
}

fn guest(vcmd: VirtualCommandEncoding) -> (Guest, Arc<dyn PasidAllocator>) {
    let guest = Guest::with_config(&UnitConfig { vcmd: Some(vcmd), ..UnitConfig::default() });
    let pasids: Arc<dyn PasidAllocator> = Arc::new(Two::default());
    assert!(guest.unit.set_pasid_allocator(&pasids));
    (guest, pasids)
}

/// VCRSP, once the command is done: freeing may wait for the host.
fn response(guest: &Guest, at: u64) -> u64 {
    patience::eventually("the virtual command", || guest.read64(at) & 1 == 0);
    guest.read64(at)
}

#[test]
fn the_early_encoding_can_say_that_there_is_no_pasid_as_linux_before_5_12_reads_it() {
    let (guest, _pasids) = guest(VirtualCommandEncoding::EarlyNoPasid1);
    let command = |value| {
        guest.write64(0xe10, value);
        response(&guest, 0xe20)
    };
    assert_eq!((command(1), command(1)), (100 << 8, 101 << 8));
    assert_eq!(command(1), 1 << 1, "none left");
    assert_eq!(command(2 | 102 << 8), 1 << 1, "not allocated");
    assert_eq!(command(2 | 100 << 8), 0);
}

#[test]
fn early_encoding_allocates_and_frees() {
    let (guest, _pasids) = guest(VirtualCommandEncoding::Early);
    assert_eq!(guest.read64(0xe00) & 1, 1, "VCCAP.PAS");
    let command = |value| {
        guest.write64(0xe10, value);
        response(&guest, 0xe20)
    };
    assert_eq!(command(1), 100 << 8);
    assert_eq!(command(1), 101 << 8);
    assert_eq!(command(1), 2 << 1, "none left");
    assert_eq!(command(2 | 100 << 8), 0);
    assert_eq!(command(2 | 100 << 8), 2 << 1, "not allocated");
    assert_eq!(command(1), 100 << 8);
    assert_eq!(command(0x77), 1 << 1, "undefined");
    assert_eq!(command(0), 0, "null");
}

#[test]
fn final_encoding_allocates_and_frees() {
    let (guest, _pasids) = guest(VirtualCommandEncoding::Final);
    assert_eq!(guest.read64(0xe30) & 1, 1, "what Linux tests");
    assert_eq!(guest.read64(0xe30) & 2, 2, "what the specification says");
    let command = |value| {
        guest.write64(0xe00, value);
        response(&guest, 0xe10)
    };
    assert_eq!(command(1), 100 << 16);
    assert_eq!(command(1), 101 << 16);
    assert_eq!(command(1), 16 << 1);
    assert_eq!(command(2 | 101 << 16), 0);
    assert_eq!(command(2 | 0xffff_ffff << 16), 16 << 1, "no PASID is that wide");
    assert_eq!(command(0x77), 1 << 1);
}

#[test]
fn without_a_host_there_is_no_pasid() {
    let guest = Guest::with_config(&UnitConfig {
        vcmd: Some(VirtualCommandEncoding::Final),
        ..UnitConfig::default()
    });
    guest.write64(0xe00, 1);
    assert_eq!(guest.read64(0xe10), 16 << 1);
}

#[test]
fn without_the_capability_there_are_no_registers() {
    let guest = Guest::new();
    for offset in (0xe00..0xe40).step_by(8) {
        guest.write64(offset, !0);
        assert_eq!(guest.read64(offset), 0, "{offset:#x}");
    }
}

#[test]
fn the_low_half_of_a_command_starts_it() {
    let (guest, _pasids) = guest(VirtualCommandEncoding::Final);
    guest.write64(0xe00, 1);
    // Free it again, the upper bits of the operand first.
    guest.write32(0xe04, 0);
    assert_eq!(guest.read64(0xe10), 100 << 16, "half a command is none");
    guest.write32(0xe00, 2 | 100 << 16);
    assert_eq!(response(&guest, 0xe10), 0);
}
