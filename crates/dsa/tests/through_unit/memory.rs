// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Work on the memory of processes.

use patience::Patience;
use vm_memory::Bytes;
use vtd_spec::Pasid;
use vtd_spec::registers::offset;

use crate::machine::*;

#[test]
fn memory_moves_between_pointers_of_a_process() {
    let machine = Machine::ready();
    let data = noise(40_001);
    machine.put(PASID, SOURCE + 77, &data);
    // The destination was never touched.
    let pages = std::cell::Cell::new(0);
    let record = machine.run(MOVE | BLOCK, SOURCE + 77, DESTINATION + 4001, 40_001, |request| {
        pages.set(pages.get() + 1);
        assert_eq!(request.pasid(), PASID);
        assert!(request.wrr() && !request.rdr());
        true
    });
    assert_eq!(record, [&[1][..], &[0; 31]].concat());
    assert!(machine.get(PASID, DESTINATION + 4001, 40_001) == data);
    assert_eq!(pages.get(), 11);
    // All pages are there now.
    let record = machine.run(MOVE | RECORDED, DESTINATION + 4001, SOURCE + 78, 40_000, |_| false);
    assert_eq!(record[0], 1);
    assert!(machine.get(PASID, SOURCE + 78, 40_000) == data[..40_000]);
    assert_eq!(machine.faults(), 0);
}

#[test]
fn equal_pointers_of_two_processes_are_different_memory() {
    let machine = Machine::ready();
    for (pasid, byte) in [(PASID, 1), (OTHER_PASID, 2)] {
        machine.put(pasid, SOURCE, &[byte; 100]);
        machine.put(pasid, DESTINATION, &[0; 100]);
        machine.put(pasid, RECORD, &[0; 32]);
    }
    machine.submit(0, RECORD, MOVE | RECORDED, SOURCE, DESTINATION, 100);
    machine.submit(1, RECORD, MOVE | RECORDED, SOURCE, DESTINATION, 50);
    assert_eq!(machine.command(3, 0), 0);
    for (pasid, byte, length) in [(PASID, 1, 100), (OTHER_PASID, 2, 50)] {
        assert_eq!(machine.get(pasid, RECORD, 1), [1]);
        let expected = [vec![byte; length], vec![0; 100 - length]].concat();
        assert_eq!(machine.get(pasid, DESTINATION, 100), expected);
    }
}

#[test]
fn what_was_unmapped_is_not_reached_any_more() {
    let machine = Machine::ready();
    machine.put(PASID, SOURCE, &[1; 0x3000]);
    machine.put(PASID, DESTINATION, &[0; 0x3000]);
    assert_eq!(machine.run(MOVE | RECORDED, SOURCE, DESTINATION, 0x3000, |_| false)[0], 1);
    let frame = machine.physical(PASID, DESTINATION + PAGE);
    machine.unmap(PASID, DESTINATION + PAGE);
    machine.memory.write_obj(0x55_u8, frame).unwrap();
    let record = machine.run(MOVE | RECORDED, SOURCE, DESTINATION, 0x3000, |_| false);
    assert_eq!(record[0], 0x83);
    assert_eq!(record[4..8], 0x1000_u32.to_le_bytes());
    assert_eq!(record[8..16], (DESTINATION + PAGE).to_le_bytes());
    // With blocking the fault handler has the last word.
    let record = machine.run(MOVE | BLOCK, SOURCE, DESTINATION, 0x3000, |_| false);
    assert_eq!((record[0], &record[8..16]), (0x84, &(DESTINATION + PAGE).to_le_bytes()[..]));
    assert_eq!(machine.memory.read_obj::<u8>(frame).unwrap(), 0x55);
    // A read-only page is a fault for writing only.
    machine.put(PASID, SOURCE + 0x3000, &[7; 8]);
    let leaf = machine.leaf(PASID, SOURCE + 0x3000);
    let entry = machine.load(leaf) & !WRITABLE;
    machine.unmap(PASID, SOURCE + 0x3000);
    machine.store(leaf, entry);
    assert_eq!(machine.run(MOVE | RECORDED, SOURCE + 0x3000, DESTINATION, 8, |_| false)[0], 1);
    assert_eq!(machine.run(FILL | RECORDED, 0, SOURCE + 0x3000, 8, |_| false)[0], 0x83);
    assert_eq!(machine.run(FILL | BLOCK, 0, SOURCE + 0x3000, 8, |_| false)[0], 0x84);
    assert_eq!(machine.get(PASID, SOURCE + 0x3000, 8), [7; 8]);
    assert_eq!(machine.faults(), 0);
}

#[test]
fn completion_record_is_brought_in_by_a_page_request() {
    let machine = Machine::ready();
    machine.put(PASID, DESTINATION, &[0; 16]);
    machine.submit(0, RECORD, FILL | RECORDED, u64::MAX, DESTINATION, 16);
    let mut patience = Patience::default();
    while machine.serve(|request| request.addr() == RECORD) == 0 {
        patience.pause("page request");
    }
    assert_eq!(machine.command(8, 1), 0);
    assert_eq!(machine.get(PASID, RECORD, 1), [1]);
    assert_eq!(machine.get(PASID, DESTINATION, 16), [0xff; 16]);
}

#[test]
fn a_process_that_dies_with_work_in_flight_is_drained() {
    let machine = Machine::ready();
    for n in 0..16 {
        machine.submit(0, RECORD, FILL | BLOCK, u64::MAX, DESTINATION + n * PAGE, 8);
    }
    let mut patience = Patience::default();
    while machine.read_unit(offset::PQT) < 4 * 32 {
        patience.pause("page requests");
    }
    // idxd_file_dev_release: drain, with the fault handler refusing whatever comes.
    machine.messages.0.lock().unwrap().clear();
    machine.write(CMD, 1 << 31 | 8 << 20 | 1);
    assert_eq!(machine.read(CMDSTATUS) >> 31, 1);
    while machine.read(CMDSTATUS) >> 31 == 1 {
        machine.serve(|_| false);
        patience.pause("the drain's end");
    }
    assert_eq!(machine.await_command(), 0);
    assert_eq!(machine.command(10, 1), 0);
    assert_eq!(machine.read_unit(offset::PQT), machine.read_unit(offset::PQH));
    // No record could be written: the first is told by the software error register.
    assert_eq!(machine.read(SWERROR) >> 8 & 0xff, 0x1a);
    machine.write(SWERROR, 3);
    machine.write(WQCFG + 8, 0x1000_00a3 | PASID.get() << 8);
    machine.write(WQCFG + 12, 31 | 5 << 5);
    assert_eq!(machine.command(6, 0), 0);
    machine.put(PASID, DESTINATION, &[0; 8]);
    assert_eq!(machine.run(FILL | RECORDED, u64::MAX, DESTINATION, 8, |_| false)[0], 1);
}

#[test]
fn a_pasid_without_a_valid_entry_reaches_nothing() {
    // Not present is a page fault, whose page request the unit refuses; reserved bits refuse the translation.
    // \[S 7.1.3\]
    for (first_qword, code) in [(0, 0x1a), (PRESENT | 1 << 10, 0x22)] {
        let machine = Machine::ready();
        assert_eq!(machine.command(10, 1), 0);
        let unbound = Pasid::truncated(0x77);
        machine.store(machine.pasid_entry(unbound), first_qword);
        machine.write(WQCFG + 8, 0x1000_00a3 | unbound.get() << 8);
        machine.write(WQCFG + 12, 31 | 5 << 5);
        assert_eq!(machine.command(6, 0), 0);
        machine.submit(0, RECORD, FILL | RECORDED, u64::MAX, DESTINATION, 8);
        assert_eq!(machine.command(3, 0), 0);
        assert_eq!(machine.read(SWERROR) >> 8 & 0xff, code);
        assert_ne!(machine.faults(), 0);
    }
}
