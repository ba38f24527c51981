// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Page faults of a descriptor, its completion record and its list, and the page requests that they lead to.

use super::*;

#[test]
fn page_faults_are_reported_or_requested_as_the_descriptor_says() {
    let machine = Machine::enabled();
    machine.bus().map(pasid(), DESTINATION);
    let record = machine.run(fill(RECORD, DESTINATION + 0x800, 0x1000));
    assert_eq!(record[0], 0x83);
    assert_eq!(record[4..8], 0x800_u32.to_le_bytes());
    assert_eq!(record[8..16], (DESTINATION + PAGE).to_le_bytes());
    assert_eq!(machine.bus().sent.lock().unwrap().len(), 0);

    machine.bus().on_request(OnRequest::Answer(ResponseCode::InvalidRequest));
    let record = machine.run(fill(BLOCK, DESTINATION + 0x800, 0x1000));
    assert_eq!((record[0], &record[4..8]), (0x84, &0x800_u32.to_le_bytes()[..]));

    machine.bus().on_request(OnRequest::Map);
    assert_eq!(machine.run(fill(BLOCK, DESTINATION + 0x800, 0x1000))[0], 1);
    let sent = machine.bus().sent.lock().unwrap().clone();
    assert_eq!(sent.len(), 2);
    for request in sent {
        assert_eq!((request.address, request.requester.pasid), (DESTINATION + PAGE, pasid()));
        assert!(request.write && !request.read && !request.requester.privileged);
    }
}

#[test]
fn completion_records_are_brought_in_whatever_the_flags_say() {
    let machine = Machine::enabled();
    machine.submit(0, &at(no_op(), RECORDS));
    assert_eq!(machine.wait(pasid(), RECORDS)[0], 1);
    assert_eq!(machine.bus().sent.lock().unwrap().len(), 1);

    machine.bus().on_request(OnRequest::Answer(ResponseCode::InvalidRequest));
    machine.submit(0, &at(no_op(), RECORDS + PAGE));
    let [first, _, address] = machine.wait_for_error();
    assert_eq!(first, 0x2a << 40 | 0x1a << 8 | 1 << 5 | 0b1101);
    assert_eq!(address, RECORDS + PAGE);

    machine.bus().on_request(OnRequest::Answer(ResponseCode::ResponseFailure));
    machine.submit(0, &at(fill(BLOCK, DESTINATION, 1), RECORDS));
    let error = machine.wait_for_error();
    assert_eq!((error[0] >> 8 & 0xff, error[2]), (0x22, DESTINATION));

    // Page requests are off now.
    machine.submit(0, &at(no_op(), RECORDS + PAGE));
    assert_eq!(machine.wait_for_error()[0] >> 8 & 0xff, 0x1a);
    assert_eq!(machine.bus().sent.lock().unwrap().len(), 3);
}

#[test]
fn several_page_requests_are_in_flight_within_the_allocation() {
    let machine = Machine::enabled();
    machine.bus().pci.lock().unwrap().pri_allocation = 2;
    machine.bus().on_request(OnRequest::Hold);
    machine.bus().map(pasid(), RECORDS);
    for n in 0..3 {
        machine.submit(0, &at(fill(BLOCK, DESTINATION + n * PAGE, 8), RECORDS + n * 32));
    }
    let held = machine.bus().wait_for_held(2).clone();
    assert_ne!(held[0].group, held[1].group);
    thread::sleep(Duration::from_millis(30));
    assert_eq!(machine.bus().wait_for_held(2).len(), 2);
    machine.bus().answer(ResponseCode::Success);
    drop(machine.bus().wait_for_held(2));
    machine.bus().answer(ResponseCode::InvalidRequest);
    machine.bus().answer(ResponseCode::Success);
    assert_eq!(machine.command(DRAIN_QUEUE, 1), 0);
    let mut statuses: Vec<u8> = (0..3).map(|n| machine.bus().load(pasid(), RECORDS + n * 32, 1)[0]).collect();
    statuses.sort_unstable();
    assert_eq!(statuses, [1, 1, 0x84]);
}

#[test]
fn responses_to_nobody_or_with_another_pasid_are_dropped() {
    let machine = Machine::enabled();
    machine.bus().on_request(OnRequest::Hold);
    machine.submit(0, &at(fill(BLOCK, DESTINATION, 8), RECORDS));
    let request = machine.bus().wait_for_held(1)[0];
    let mut other = request;
    other.requester.pasid = Pasid::new(0x2b);
    machine.bus().respond(&other, ResponseCode::InvalidRequest);
    other = request;
    other.group ^= 1;
    machine.bus().respond(&other, ResponseCode::InvalidRequest);
    other.group = u16::MAX;
    machine.bus().respond(&other, ResponseCode::ResponseFailure);
    machine.bus().on_request(OnRequest::Map);
    machine.bus().answer(ResponseCode::Success);
    assert_eq!(machine.wait(pasid(), RECORDS)[0], 1);
}

#[test]
fn abandoned_page_requests_count_until_they_are_answered() {
    let machine = Machine::enabled();
    machine.bus().pci.lock().unwrap().pri_allocation = 1;
    machine.bus().map(pasid(), RECORDS);
    machine.bus().on_request(OnRequest::Hold);
    machine.submit(0, &at(fill(BLOCK, DESTINATION, 8), RECORDS));
    drop(machine.bus().wait_for_held(1));
    assert_eq!(machine.command(ABORT_QUEUE, 1), 0);
    machine.submit(0, &at(fill(BLOCK, DESTINATION, 8), RECORDS));
    thread::sleep(Duration::from_millis(20));
    assert_eq!(machine.bus().sent.lock().unwrap().len(), 1);
    machine.bus().answer(ResponseCode::InvalidRequest);
    machine.bus().answer(ResponseCode::Success);
    assert_eq!(machine.wait(pasid(), RECORDS)[0], 1);
}

#[test]
fn without_page_requests_each_kind_of_fault_has_its_code() {
    let machine = Machine::new();
    machine.configure();
    machine.bus().pci.lock().unwrap().pri = false;
    machine.write32(WQCFG + 8, MODE & !2 | 0x2a00);
    assert_eq!(machine.command(ENABLE, 0), 0);
    assert_eq!(machine.command(ENABLE_QUEUE, 0), 0);
    assert_eq!(machine.run(fill(RECORD, DESTINATION, 8))[0], 0x83);
    assert_eq!(machine.run(fill(BLOCK, DESTINATION, 8))[0], 0x11);
    let record = machine.run(descriptor(opcode::BATCH, RECORD, SOURCE, 0, 2));
    assert_eq!((record[0], record[4], &record[8..16]), (6, 0, &SOURCE.to_le_bytes()[..]));
    machine.submit(0, &at(no_op(), RECORDS + PAGE));
    let [first, _, address] = machine.wait_for_error();
    assert_eq!((first >> 8 & 0xff, address), (0x1a, RECORDS + PAGE));
    assert_eq!(machine.bus().sent.lock().unwrap().len(), 0);
}
