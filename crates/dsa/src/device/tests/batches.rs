// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Batches: their lists, their members and fences.

use super::*;

/// Stores a list of descriptors at [`SOURCE`], with records at [`RECORDS`] + 0x1000 on, 32 bytes each.
fn store_list(machine: &Machine, members: &[Descriptor]) {
    for (n, member) in members.iter().enumerate() {
        let member = at(*member, RECORDS + 0x1000 + n as u64 * 32);
        machine.bus().store(pasid(), SOURCE + n as u64 * 64, &member.0);
        machine.bus().store(pasid(), RECORDS + 0x1000 + n as u64 * 32, &[0; 32]);
    }
}

fn batch(count: u32) -> Descriptor {
    descriptor(opcode::BATCH, RECORD, SOURCE, 0, count)
}

fn member_statuses(machine: &Machine, count: u64) -> Vec<u8> {
    (0..count).map(|n| machine.bus().load(pasid(), RECORDS + 0x1000 + n * 32, 1)[0]).collect()
}

#[test]
fn a_batch_executes_its_list() {
    let machine = Machine::enabled();
    let members: Vec<Descriptor> =
        (0..20).map(|n| fill(BLOCK, DESTINATION + n * 0x1800, n as u32 + 1)).collect();
    store_list(&machine, &members);
    let record = machine.run(batch(20));
    assert_eq!((record[0], record[4]), (1, 20));
    assert_eq!(member_statuses(&machine, 20), [1; 20]);
    for n in 0..20 {
        assert_eq!(machine.bus().load(pasid(), DESTINATION + n * 0x1800 + n, 2), [0xff, 0]);
    }
    assert_eq!(machine.run(batch(33))[0], 0x14);
}

#[test]
fn a_batch_tells_of_failures_and_a_fence_stops_at_them() {
    let machine = Machine::enabled();
    let bad = fill(RECORD, DESTINATION, 0);
    let fence = |descriptor: Descriptor| set(descriptor, 4, &[descriptor.0[4] | 1]);
    store_list(&machine, &[no_op(), bad, no_op(), batch(2), no_op()]);
    let record = machine.run(batch(5));
    assert_eq!((record[0], record[4]), (5, 5));
    assert_eq!(member_statuses(&machine, 5), [1, 0x13, 1, 0x10, 1]);

    store_list(&machine, &[no_op(), fence(no_op()), bad, no_op(), fence(no_op()), no_op()]);
    let record = machine.run(batch(6));
    assert_eq!((record[0], record[4]), (5, 4));
    assert_eq!(member_statuses(&machine, 6), [1, 1, 0x13, 1, 0, 0]);

    // An unexpected result of a comparison counts as a failure.
    let compare = descriptor(opcode::COMPARE, RECORD | flag::CHECK_RESULT, SOURCE, SOURCE, 8);
    store_list(&machine, &[set(compare, 40, &[1]), fence(no_op())]);
    assert_eq!(machine.run(batch(2))[0], 5);
    assert_eq!(member_statuses(&machine, 2), [2, 0]);
}

#[test]
fn errors_of_a_batchs_members_name_their_index() {
    let machine = Machine::enabled();
    store_list(&machine, &[no_op(), no_op(), no_op()]);
    machine.bus().store(pasid(), SOURCE + 2 * 64, &fill(0, DESTINATION, 0).0);
    assert_eq!(machine.run(batch(3))[0], 5);
    let [first, second, _] = machine.wait_for_error();
    assert_eq!((first >> 8 & 0xff, first & 0x10, second & 0xffff), (0x13, 0x10, 2));
}

#[test]
fn a_batch_list_that_faults_is_requested_or_reported() {
    let machine = Machine::enabled();
    let list = SOURCE + PAGE - 3 * 64;
    for n in 0..3 {
        machine.bus().store(pasid(), list + n * 64, &at(no_op(), RECORDS + 0x1000 + n * 32).0);
    }
    machine.bus().map(pasid(), RECORDS + 0x1000);
    machine.bus().on_request(OnRequest::Answer(ResponseCode::InvalidRequest));
    let record = machine.run(descriptor(opcode::BATCH, RECORD, list, 0, 5));
    assert_eq!((record[0], record[4]), (6, 3));
    assert_eq!(record[8..16], (SOURCE + PAGE).to_le_bytes());
    assert_eq!(machine.bus().sent.lock().unwrap().len(), 1);
    // A page of zeroes is a list of no-ops.
    machine.bus().on_request(OnRequest::Map);
    let record = machine.run(descriptor(opcode::BATCH, RECORD, list, 0, 5));
    assert_eq!((record[0], record[4]), (1, 5));
}

#[test]
fn a_member_whose_completion_record_is_lost_counts_as_failed() {
    let machine = Machine::enabled();
    let fence = |descriptor: Descriptor| set(descriptor, 4, &[descriptor.0[4] | 1]);
    store_list(&machine, &[no_op(), no_op(), fence(no_op())]);
    let unmapped = RECORDS + 0x10_0000;
    machine.bus().store(pasid(), SOURCE + 64, &at(no_op(), unmapped).0);
    machine.bus().on_request(OnRequest::Answer(ResponseCode::InvalidRequest));
    let record = machine.run(batch(3));
    assert_eq!((record[0], record[4]), (5, 2));
    assert_eq!(member_statuses(&machine, 3), [1, 0, 0]);
    let [first, second, address] = machine.take_error();
    assert_eq!((first >> 8 & 0xff, second & 0xffff, address), (0x1a, 1, unmapped));
}

#[test]
fn an_abort_ends_a_batch_between_its_members() {
    let machine = Machine::enabled();
    store_list(&machine, &[no_op(), fill(BLOCK, DESTINATION, 8), no_op()]);
    machine.bus().map(pasid(), RECORDS);
    machine.bus().on_request(OnRequest::Hold);
    machine.submit(0, &at(batch(3), RECORDS));
    drop(machine.bus().wait_for_held(1));
    assert_eq!(machine.command(ABORT_QUEUE, 1), 0);
    machine.bus().answer(ResponseCode::Success);
    assert_eq!(member_statuses(&machine, 3), [1, 0, 0]);
    assert_eq!(machine.bus().load(pasid(), RECORDS, 1), [0]);
}

#[test]
fn a_batch_can_have_as_many_members_as_the_device_allows() {
    let machine = Machine::new();
    machine.configure();
    machine.write32(WQCFG + 12, 31 | 10 << 5);
    assert_eq!(machine.command(ENABLE, 0), 0);
    assert_eq!(machine.command(ENABLE_QUEUE, 0), 0);
    let members: Vec<Descriptor> =
        (0..1024).map(|n| fill(BLOCK, DESTINATION + n * 4, 1 + n as u32 % 3)).collect();
    store_list(&machine, &members);
    let record = machine.run(batch(1024));
    assert_eq!((record[0], &record[4..8]), (1, &1024_u32.to_le_bytes()[..]));
    assert_eq!(member_statuses(&machine, 1024), [1; 1024]);
    let expected: Vec<u8> = (0..4096).map(|n| if n % 4 <= n / 4 % 3 { 0xff } else { 0 }).collect();
    assert!(machine.bus().load(pasid(), DESTINATION, 4096) == expected);
    assert_eq!(machine.run(batch(1025))[0], 0x14);
}

#[test]
fn a_member_that_faults_has_its_partial_record_and_stops_at_the_next_fence_only() {
    let machine = Machine::enabled();
    machine.bus().map(pasid(), DESTINATION);
    let fence = |descriptor: Descriptor| set(descriptor, 4, &[descriptor.0[4] | 1]);
    let faulting = fill(RECORD, DESTINATION + 0xff0, 32);
    let other = fill(RECORD, DESTINATION, 8);
    store_list(&machine, &[faulting, other, fence(other), other]);
    let record = machine.run(batch(4));
    assert_eq!((record[0], record[4]), (5, 2));
    assert_eq!(member_statuses(&machine, 4), [0x83, 1, 0, 0]);
    let partial = machine.bus().load(pasid(), RECORDS + 0x1000, 32);
    assert_eq!((partial[4], &partial[8..16]), (16, &(DESTINATION + PAGE).to_le_bytes()[..]));
    // With blocking the same list succeeds.
    let blocking = fill(BLOCK, DESTINATION + 0xff0, 32);
    store_list(&machine, &[blocking, other, fence(other), other]);
    assert_eq!(machine.run(batch(4))[0], 1);
    assert_eq!(member_statuses(&machine, 4), [1; 4]);
}
