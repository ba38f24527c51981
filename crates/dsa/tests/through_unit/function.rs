// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The function: what configuration space does to it, its interrupts, resets.

use std::time::Duration;

use patience::Patience;
use pci::PciFunction;
use vm_memory::Bytes;
use vtd_spec::descriptors::{PageGroupResponse, PasidIotlb, PasidIotlbGranularity};
use vtd_spec::registers::offset;
use vtd_spec::{AddressRange, Descriptor, ResponseCode};

use crate::machine::*;

#[test]
fn the_function_is_what_idxd_looks_for() {
    let machine = Machine::new();
    assert_eq!(machine.config(0), 0x0b25_8086);
    assert_eq!(machine.config(8) >> 8, 0x08_80_00);
    for (register, size) in [(0x10, 0x1_0000_u32), (0x18, 0x2_0000)] {
        machine.set_config(register, u32::MAX);
        assert_eq!(machine.config(register), size.wrapping_neg() | 0xc);
    }
    // An integrated endpoint that is alone: Linux asks neither for ACS nor for a bridge with prefixes then.
    assert_eq!(machine.config(0xc) >> 16 & 0xff, 0);
    let pcie = machine.capability(0x10);
    assert_eq!(machine.config(pcie) >> 20 & 0xf, 9);
    assert_eq!(machine.config(pcie + 4) >> 28 & 1, 1);
    assert_eq!(machine.config(pcie + 0x24) >> 21 & 7, 0b011);
    let mut portal = [0xaa; 8];
    machine.dsa.bar_read(2, 0x1000, &mut portal);
    assert_eq!(portal, [0; 8]);
}

#[test]
fn function_level_reset_ends_blocked_work() {
    let machine = Machine::ready();
    machine.submit(0, RECORD, FILL | BLOCK, u64::MAX, DESTINATION, 8);
    let mut patience = Patience::default();
    while machine.read_unit(offset::PQT) == 0 {
        patience.pause("page request");
    }
    let pcie = machine.capability(0x10);
    machine.dsa.config_write(pcie + 8, &[0x10, 0xa8]);
    assert_eq!(machine.config(4) & 6, 0);
    assert_eq!(machine.read(GENSTS), 0);
    assert_eq!(machine.read(MSIX_TABLE + 12), 1);
    machine.serve(|_| true);
    machine.enable_function();
    machine.enable_device();
    machine.put(PASID, SOURCE, &[3; 8]);
    assert_eq!(machine.run(MOVE | BLOCK, SOURCE, DESTINATION, 8, |_| true)[0], 1);
}

#[test]
fn disabling_bus_mastering_under_the_driver_halts_the_device() {
    let machine = Machine::ready();
    machine.set_config(4, 2);
    assert_eq!(machine.read(GENSTS), 3);
    assert_eq!(machine.read(SWERROR) >> 8 & 0xff, 0x51);
    machine.write(CMD, 5 << 20);
    assert_eq!(machine.read(CMDSTATUS), 0);
    assert_eq!(machine.read(GENSTS), 0);
}

#[test]
fn a_device_can_be_dropped_with_work_in_flight() {
    let machine = Machine::ready();
    for n in 0..8 {
        machine.submit(0, RECORD, FILL | BLOCK, u64::MAX, DESTINATION + n * PAGE, 8);
    }
    let mut patience = Patience::default();
    while machine.read_unit(offset::PQT) == 0 {
        patience.pause("page request");
    }
    let Machine { dsa, unit, .. } = machine;
    drop(dsa);
    drop(unit);
}

/// Answers a page request, or one that there is not.
fn respond(machine: &Machine, prgi: u16, rc: ResponseCode) {
    let response = PageGroupResponse { pasid: Some(PASID), rid: SOURCE_ID, rc, prgi };
    machine.invalidate(&[Descriptor::PageGroupResponse(response)]);
}

fn await_page_request(machine: &Machine) {
    let mut patience = Patience::default();
    while machine.read_unit(offset::PQT) == machine.read_unit(offset::PQH) {
        patience.pause("page request");
    }
}

#[test]
fn a_response_to_no_request_sets_its_status_bit_and_nothing_else() {
    let machine = Machine::ready();
    let status = machine.extended_capability(0x13) + 4;
    assert_eq!(machine.config(status), 0x8000_0001);
    respond(&machine, 77, ResponseCode::ResponseFailure);
    assert_eq!(machine.config(status), 0x8002_0001);
    machine.set_config(status, 0x0002_0001);
    assert_eq!(machine.config(status), 0x8000_0001);
    assert_eq!(machine.run(FILL | BLOCK, 0, DESTINATION, 8, |_| true)[0], 1);
}

#[test]
fn a_response_failure_stops_page_requests_until_they_are_enabled_again() {
    let machine = Machine::ready();
    let pri = machine.extended_capability(0x13);
    for abandoned in [false, true] {
        machine.put(PASID, RECORD, &[0; 32]);
        machine.submit(0, RECORD, FILL | BLOCK, 0, DESTINATION, 8);
        await_page_request(&machine);
        if abandoned {
            // Abort WQ: the response finds nobody who waits.
            assert_eq!(machine.command(9, 1), 0);
        }
        let group = machine.take_page_request().prgi();
        respond(&machine, group, ResponseCode::ResponseFailure);
        assert_eq!(machine.command(8, 1), 0);
        assert_eq!(machine.get(PASID, RECORD, 1), if abandoned { [0] } else { [0x22] });
        assert_eq!(machine.config(pri + 4), 0x8101_0001);
        // Acknowledging the failure does not start the interface.
        machine.set_config(pri + 4, 0x0001_0001);
        assert_eq!(machine.run(FILL | BLOCK, 0, DESTINATION, 8, |_| panic!("a page request"))[0], 0x83);

        machine.write(CMD, 5 << 20);
        machine.set_config(pri + 4, 0);
        machine.set_config(pri + 4, 1);
        assert_eq!(machine.config(pri + 4), 0x8000_0001);
        machine.write(SWERROR, 3);
        machine.enable_device();
        assert_eq!(machine.run(FILL | BLOCK, 0, DESTINATION + PAGE, 8, |_| true)[0], 1);
        machine.unmap(PASID, DESTINATION + PAGE);
    }
}

#[test]
fn translations_do_not_outlive_their_pasids() {
    let machine = Machine::ready();
    machine.put(PASID, SOURCE, &[1; 8]);
    machine.put(PASID, DESTINATION, &[0; 8]);
    assert_eq!(machine.run(MOVE | RECORDED, SOURCE, DESTINATION, 8, |_| false)[0], 1);
    machine.write(CMD, 5 << 20);
    let pasid = machine.extended_capability(0x1b) + 4;
    machine.set_config(pasid, 0);
    // The unit's caches are emptied, the function's are not told.
    let former = machine.physical(PASID, DESTINATION);
    machine.store(machine.leaf(PASID, DESTINATION), 0);
    let range = AddressRange::new(DESTINATION, 0);
    machine.invalidate(&[Descriptor::PasidIotlb(PasidIotlb {
        granularity: PasidIotlbGranularity::Page,
        did: DOMAIN,
        pasid: PASID,
        am: 0,
        ih: false,
        addr: range.base(),
    })]);
    machine.set_config(pasid, 5 << 16);
    machine.enable_device();
    machine.put(PASID, SOURCE, &[2; 8]);
    assert_eq!(machine.run(MOVE | RECORDED, SOURCE, DESTINATION, 8, |_| false)[0], 0x83);
    assert_eq!(machine.memory.read_obj::<u8>(former).unwrap(), 1);
}

#[test]
fn a_masked_vector_is_pending_until_it_is_unmasked() {
    let machine = Machine::ready();
    let msix = machine.capability(0x11);
    let pending = || machine.read(0x3000) & 1;
    for function_mask in [false, true] {
        let mask = |masked: u32| match function_mask {
            true => machine.set_config(msix, 1 << 31 | masked << 30),
            false => machine.write(MSIX_TABLE + 12, masked),
        };
        mask(1);
        machine.messages.0.lock().unwrap().clear();
        machine.write(CMD, 1 << 31 | 3 << 20);
        assert_eq!((machine.read(CMDSTATUS), pending()), (0, 1));
        assert!(!machine.has_message(0x50));
        mask(0);
        assert!(machine.has_message(0x50));
        assert_eq!(pending(), 0);
        machine.write(INTCAUSE, 2);
    }
}

#[test]
fn a_message_to_an_address_that_is_no_interrupt_is_a_write_that_is_translated() {
    let machine = Machine::ready();
    machine.write(MSIX_TABLE, 0x0030_0000);
    machine.store(0x30_0000, 0x1111_2222);
    machine.messages.0.lock().unwrap().clear();
    machine.write(CMD, 1 << 31 | 3 << 20);
    assert_eq!(machine.read(CMDSTATUS), 0);
    assert!(machine.messages.0.lock().unwrap().iter().all(|message| message.data != 0x50));
    assert_eq!(machine.load(0x30_0000), 0x1111_2222, "there is no table for requests without PASID");
    machine.write(INTCAUSE, 2);
    machine.write(MSIX_TABLE, 0xfee0_0000);
    assert_eq!(machine.command(3, 0), 0);
}

#[test]
fn of_two_writers_of_configuration_space_the_last_one_wins_in_the_device_too() {
    let machine = Machine::ready();
    let control = machine.capability(0x11) + 2;
    for _ in 0..300 {
        std::thread::scope(|scope| {
            for first in [0, 1] {
                let machine = &machine;
                scope.spawn(move || {
                    for n in 0..100 {
                        machine.dsa.config_write(control + 1, &[((first + n) % 2) << 7]);
                    }
                });
            }
        });
        machine.messages.0.lock().unwrap().clear();
        machine.write(CMD, 1 << 31 | 3 << 20);
        let enabled = machine.config(control - 2) >> 31 == 1;
        assert_eq!(machine.has_message(0x50), enabled);
    }
}

#[test]
fn function_level_reset_ends_work_that_runs_on_all_engines() {
    let machine = Machine::ready();
    const SIZE: u32 = 4 << 20;
    for page in 0..u64::from(SIZE) / PAGE {
        machine.map(PASID, DESTINATION + page * PAGE);
    }
    machine.put(PASID, RECORD, &[0; 32]);
    for byte in 1..=16 {
        machine.submit(0, RECORD, FILL | BLOCK, byte * 0x0101_0101_0101_0101, DESTINATION, SIZE);
    }
    let last = DESTINATION + u64::from(SIZE) - 1;
    let mut patience = Patience::default();
    while machine.get(PASID, last, 1) == [0] {
        patience.pause("a write");
    }
    let pcie = machine.capability(0x10);
    machine.dsa.config_write(pcie + 8, &[0x10, 0xa8]);
    // From here on the memory is somebody else's.
    let image =
        || (0..u64::from(SIZE) / PAGE).map(|page| machine.get(PASID, DESTINATION + page * PAGE, 1)[0]);
    let before: Vec<u8> = image().collect();
    std::thread::sleep(Duration::from_millis(20));
    assert!(image().eq(before));
    assert!(!machine.has_message(0x51));
}
