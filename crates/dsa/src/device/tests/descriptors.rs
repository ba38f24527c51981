// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Descriptors on their way from the portal to the completion record.

use super::*;

#[test]
fn descriptors_are_executed_and_recorded() {
    let machine = Machine::enabled();
    let data = noise(1, 10_000);
    machine.bus().store(pasid(), SOURCE + 3, &data);
    let record = machine.run(descriptor(opcode::MEMORY_MOVE, BLOCK, SOURCE + 3, DESTINATION + 77, 10_000));
    assert_eq!(record, [&[1][..], &[0; 31]].concat());
    assert!(machine.bus().load(pasid(), DESTINATION + 77, 10_000) == data);
    let record = machine.run(descriptor(opcode::CRC_GENERATION, BLOCK, SOURCE + 3, 0, 10_000));
    assert_eq!(record[0], 1);
    let crc = crate::crc::tests::reference(0, &data, false, false);
    assert_eq!(record[16..20], crc.to_le_bytes());
    assert_eq!(machine.run(no_op())[0], 1);
    assert_eq!(machine.run(descriptor(opcode::DRAIN, RECORD, 0, 0, 0))[0], 1);
    assert_eq!(machine.take_error(), [0; 3]);
}

#[test]
fn a_work_queue_reaches_the_memory_of_its_pasid_only() {
    let machine = Machine::enabled();
    machine.bus().on_request(OnRequest::Answer(ResponseCode::InvalidRequest));
    let other = Pasid::new(0x2b);
    machine.bus().store(pasid(), SOURCE, &[1; 64]);
    machine.bus().store(other, SOURCE, &[2; 64]);
    for pasid in [pasid(), other] {
        machine.bus().map(pasid, DESTINATION);
        machine.bus().map(pasid, RECORDS);
    }
    // The PASID and privilege of the descriptor are ignored.
    let copy = descriptor(opcode::MEMORY_MOVE, RECORD, SOURCE, DESTINATION, 64);
    let copy = at(set(copy, 0, &[0x2a, 0, 0, 0x80]), RECORDS);
    machine.submit(1, &copy);
    assert_eq!(machine.wait(other, RECORDS)[0], 1);
    assert_eq!(machine.bus().load(other, DESTINATION, 64), [2; 64]);
    assert_eq!(machine.bus().load(pasid(), DESTINATION, 64), [0; 64]);
}

#[test]
fn errors_without_a_completion_record_go_to_the_software_error_register() {
    let machine = Machine::enabled();
    machine.write32(INTCAUSE, u32::MAX);
    let before = machine.bus().interrupts().len();
    machine.submit(0, &at(no_op(), RECORDS + 16));
    machine.bus().wait_for_interrupts(before + 1);
    assert_eq!(machine.read32(INTCAUSE), 1);
    let [first, _, address] = machine.take_error();
    assert_eq!((first >> 8 & 0xff, address), (0x1b, RECORDS + 16));
    machine.write32(INTCAUSE, 1);

    machine.submit(0, &descriptor(opcode::FILL, 1 << 20, 0, DESTINATION, 8));
    let [first, second, _] = machine.wait_for_error();
    assert_eq!((first >> 8 & 0xff, first >> 32 & 0xff, first & 0x80), (0x11, 4, 0x80));
    assert_eq!(second >> 32, 1 << 20);
    machine.submit(0, &descriptor(opcode::FILL, 0, 0, DESTINATION, 8));
    assert_eq!(machine.wait_for_error()[0] >> 8 & 0xff, 0x03);
}

#[test]
fn successes_are_recorded_on_request_only() {
    let machine = Machine::enabled();
    machine.bus().map(pasid(), RECORDS);
    machine.submit(0, &at(fill(flag::RECORD_ADDRESS_VALID | flag::BLOCK_ON_FAULT, DESTINATION, 8), RECORDS));
    machine.submit(0, &at(descriptor(opcode::DRAIN, RECORD, 0, 0, 0), RECORDS + 32));
    machine.wait(pasid(), RECORDS + 32);
    assert_eq!(machine.bus().load(pasid(), RECORDS, 32), [0; 32]);
    assert_eq!(machine.bus().load(pasid(), DESTINATION, 8), [0xff; 8]);
    machine.submit(0, &at(fill(flag::RECORD_ADDRESS_VALID, DESTINATION, 0), RECORDS));
    assert_eq!(machine.wait(pasid(), RECORDS)[0], 0x13);
}

#[test]
fn rejected_descriptors_name_their_flags() {
    let machine = Machine::enabled();
    let record = machine.run(fill(RECORD | 1 << 20 | flag::FENCE, DESTINATION, 1));
    assert_eq!(record[0], 0x11);
    assert_eq!(record[16..20], (1_u32 << 20 | 1).to_le_bytes());
    assert_eq!(machine.run(descriptor(0x55, RECORD, 0, 0, 0))[0], 0x10);
    assert_eq!(machine.run(set(no_op(), 63, &[1]))[0], 0x12);
}

#[test]
fn completion_interrupts_need_permission() {
    let machine = Machine::new();
    machine.configure();
    machine.write32(GENCFG, 1 << 12);
    assert_eq!(machine.command(ENABLE, 0), 0);
    assert_eq!(machine.command(ENABLE_QUEUE, 0), 0);
    let with_handle =
        |handle| set(descriptor(opcode::NO_OP, RECORD | flag::REQUEST_INTERRUPT, 0, 0, 0), 36, &[handle]);
    let before = machine.bus().interrupts().len();
    for handle in [3, 9, 255] {
        assert_eq!(machine.run(with_handle(handle))[0], 0x19);
        let [first, second, _] = machine.wait_for_error();
        assert_eq!((first >> 8 & 0xff, second >> 32), (0x19, handle.into()));
    }
    assert_eq!(machine.bus().interrupts().len(), before);
    machine.write32(MSIXPERM + 3 * 8, 0x2a << 12 | 8);
    assert_eq!(machine.run(with_handle(3))[0], 1);
    machine.bus().wait_for_interrupts(before + 1);
    assert_eq!(machine.bus().interrupts()[before..], [3]);
    machine.write32(MSIXPERM + 3 * 8, 0x2a << 12 | 8 | 4);
    assert_eq!(machine.run(with_handle(3))[0], 1);
    assert_eq!(machine.command(DRAIN_ALL, 0), 0);
    assert_eq!(machine.bus().interrupts()[before + 1..], [0]);
    // Without the user-mode interrupt enable the flag is reserved.
    let machine = Machine::enabled();
    machine.write32(MSIXPERM + 3 * 8, 0x2a << 12 | 8);
    let record = machine.run(with_handle(3));
    assert_eq!((record[0], record[16]), (0x11, 0x10));
}

#[test]
fn only_the_devices_own_threads_access_memory() {
    let machine = Machine::enabled();
    assert_eq!(machine.run(fill(BLOCK, DESTINATION, 3 << 12))[0], 1);
    assert_eq!(machine.run(descriptor(opcode::DRAIN, RECORD, 0, 0, 0))[0], 1);
    machine.submit(0, &at(no_op(), RECORDS + 16));
    machine.wait_for_error();
    assert_eq!(machine.command(DISABLE, 0), 0);
    assert_eq!(machine.command(RESET, 0), 0);
    let accessors = machine.bus().accessors.lock().unwrap();
    assert!(!accessors.is_empty() && !accessors.contains(&thread::current().id()));
}

#[test]
fn threads_that_submit_at_once_do_not_mix_their_descriptors() {
    const ROUNDS: u64 = 200;
    let machine = Machine::enabled();
    thread::scope(|scope| {
        for submitter in 0..4 {
            let machine = &machine;
            scope.spawn(move || {
                let record = RECORDS + submitter * PAGE;
                machine.bus().map(pasid(), record);
                for round in 0..ROUNDS {
                    let destination = DESTINATION + submitter * 0x10_0000 + round * 8;
                    let pattern = submitter << 32 | round | 1 << 63;
                    let fill = descriptor(opcode::FILL, BLOCK, pattern, destination, 8);
                    machine.bus().store(pasid(), record, &[0; 32]);
                    for (n, part) in at(fill, record).0.chunks(8).enumerate() {
                        machine.0.write_portal(0x1000 + submitter * 64 + n as u64 * 8, part);
                        thread::yield_now();
                    }
                    assert_eq!(machine.wait(pasid(), record)[0], 1);
                    assert_eq!(machine.bus().load(pasid(), destination, 8), pattern.to_le_bytes());
                }
            });
        }
    });
    assert_eq!(machine.take_error(), [0; 3]);
}

#[test]
fn a_full_queue_drops_descriptors_with_an_error() {
    let machine = Machine::enabled();
    machine.bus().on_request(OnRequest::Hold);
    // Queue 2 has one engine, which is kept busy.
    machine.submit(2, &at(fill(BLOCK, DESTINATION, 8), RECORDS));
    drop(machine.bus().wait_for_held(1));
    for n in 0..16 {
        machine.submit(2, &at(no_op(), RECORDS + 32 + n * 32));
    }
    assert_eq!(machine.take_error(), [0; 3]);
    machine.submit(2, &at(no_op(), RECORDS));
    let [first, ..] = machine.wait_for_error();
    assert_eq!((first >> 8 & 0xff, first >> 16 & 0xff), (0x53, 2));
    machine.bus().on_request(OnRequest::Map);
    machine.bus().answer(ResponseCode::Success);
    assert_eq!(machine.command(DRAIN_QUEUE, 4), 0);
    for n in 0..17 {
        assert_eq!(machine.bus().load(pasid(), RECORDS + n * 32, 1), [1], "{n}");
    }
}

#[test]
fn descriptors_for_disabled_queues_are_dropped() {
    let machine = Machine::enabled();
    assert_eq!(machine.command(DISABLE_QUEUE, 1 << 1), 0);
    machine.submit(0, &at(no_op(), RECORDS));
    machine.wait(pasid(), RECORDS);
    machine.submit(1, &at(no_op(), RECORDS + 32));
    machine.submit(7, &at(no_op(), RECORDS + 32));
    assert_eq!(machine.command(DRAIN_ALL, 0), 0);
    assert_eq!(machine.bus().load(Pasid::new(0x2b), RECORDS + 32, 32), [0; 32]);
    assert_eq!(machine.command(DISABLE, 0), 0);
    machine.submit(0, &at(no_op(), RECORDS + 64));
    assert_eq!(machine.command(RESET, 0), 0);
    assert_eq!(machine.bus().load(pasid(), RECORDS + 64, 32), [0; 32]);
}

#[test]
fn a_drain_operation_waits_for_earlier_descriptors() {
    let machine = Machine::enabled();
    machine.bus().map(pasid(), RECORDS);
    machine.bus().on_request(OnRequest::Hold);
    machine.submit(0, &at(fill(BLOCK, DESTINATION, 8), RECORDS));
    drop(machine.bus().wait_for_held(1));
    machine.submit(0, &at(descriptor(opcode::DRAIN, RECORD, 0, 0, 0), RECORDS + 32));
    machine.submit(0, &at(no_op(), RECORDS + 64));
    assert_eq!(machine.wait(pasid(), RECORDS + 64)[0], 1);
    thread::sleep(Duration::from_millis(20));
    assert_eq!(machine.bus().load(pasid(), RECORDS + 32, 1), [0]);
    machine.bus().answer(ResponseCode::Success);
    assert_eq!(machine.wait(pasid(), RECORDS + 32)[0], 1);
    assert_eq!(machine.bus().load(pasid(), RECORDS, 1), [1]);
    // An abort ends the waiting.
    machine.submit(0, &at(fill(BLOCK, DESTINATION + PAGE, 8), RECORDS + 96));
    drop(machine.bus().wait_for_held(1));
    machine.submit(0, &at(descriptor(opcode::DRAIN, RECORD, 0, 0, 0), RECORDS + 128));
    assert_eq!(machine.command(RESET_QUEUE, 1), 0);
}

#[test]
fn engines_serve_the_queues_of_a_group_by_priority() {
    let machine = Machine::new();
    for (queue, priority) in [(0, 1), (1, 3)] {
        machine.write32(WQCFG + 64 * queue, 16);
        machine.write32(WQCFG + 64 * queue + 8, 0x1000_0001 | priority << 4);
        machine.write32(WQCFG + 64 * queue + 12, 21 | 5 << 5);
    }
    machine.write64(GRPCFG, 3);
    machine.write64(GRPCFG + 32, 1);
    machine.0.update(|state, effects| {
        state.device = DeviceState::Enabled;
        for queue in 0..2 {
            state.queues[queue].state = crate::work_queue::QueueState::Enabled;
            for _ in 0..8 {
                state.submit(queue, no_op(), effects);
            }
        }
        let order: Vec<usize> = std::iter::from_fn(|| state.next_job(0)).map(|job| job.queue).collect();
        assert_eq!(order.len(), 16);
        assert_eq!(order[..8].iter().filter(|queue| **queue == 1).count(), 6);
        assert!(state.next_job(1).is_none());
        state.engines[0].running = None;
        state.device = DeviceState::Disabled;
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn any_64_bytes_complete_or_are_reported(
        mut bytes in prop::array::uniform32(any::<u16>()),
        known in any::<bool>(),
        plain in any::<bool>(),
        small in any::<bool>(),
    ) {
        if known {
            let codes = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0x10, 0x11, 0x20];
            bytes[3] = bytes[3] & 0xff | codes[usize::from(bytes[3] >> 8) % 13] << 8;
        }
        if plain {
            bytes[2] = 0x000c;
            bytes[3] &= 0xff00;
            bytes[4] &= !0x1f;
        }
        if small {
            bytes[16] &= 0x0ff8;
            bytes[17] = 0;
        }
        let mut descriptor = Descriptor([0; 64]);
        for (to, from) in descriptor.0.chunks_mut(2).zip(bytes) {
            to.copy_from_slice(&from.to_le_bytes());
        }
        let machine = Machine::enabled();
        machine.submit(0, &descriptor);
        prop_assert_eq!(machine.command(DRAIN_ALL, 0), 0);
        let recorded = descriptor.has(flag::RECORD_ADDRESS_VALID)
            && machine.bus().load(pasid(), descriptor.record_address(), 1) != [0];
        let reported = machine.read64(SWERROR) & 1 == 1;
        let silent = descriptor.flags() & flag::REQUEST_RECORD == 0;
        prop_assert!(recorded || reported || silent);
    }
}
