// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Each operation against what a processor would do, on memory with and without faults.

mod random;

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering};

use vtd_unit::{Requester, ResponseCode};

use super::{Scratch, Task};
use crate::crc::tests::reference as reference_crc;
use crate::descriptor::{CrcSetup, Operation};
use crate::dma::{Aborted, Dma, OnFault};
use crate::status::{Record, Status};
use crate::testing::{OnRequest, PAGE, TestBus, noise, pasid};

const SIZES: [u32; 13] = [1, 2, 7, 8, 9, 63, 65, 4095, 4097, 65535, 65536, 65537, 150_001];
const SOURCE: u64 = 0x1000_0000;
const DESTINATION: u64 = 0x2000_0000;
const SECOND: u64 = 0x3000_0000;
const SETUP: CrcSetup =
    CrcSetup { seed: 0, seed_address: None, bypass_inversion: false, bypass_data_reflection: false };

fn try_run(bus: &TestBus, on_fault: OnFault, operation: Operation) -> Result<Record, Aborted> {
    let requester = Requester { pasid: pasid(), privileged: false };
    let abort = AtomicBool::new(false);
    let dma = Dma { bus, requests: &bus.requests, requester, abort: &abort };
    Task { dma, on_fault, scratch: &mut Scratch::new() }.run(&operation)
}

fn run(bus: &TestBus, on_fault: OnFault, operation: Operation) -> Record {
    try_run(bus, on_fault, operation).unwrap()
}

/// Runs with page faults reported: maps each faulting page, and goes on as `advance` tells for a partial record.
fn resume(
    bus: &TestBus,
    mut operation: Operation,
    advance: impl Fn(Operation, &Record) -> Operation,
) -> Record {
    for _ in 0..1000 {
        let record = run(bus, OnFault::Report, operation);
        if record.status != Status::PAGE_FAULT {
            return record;
        }
        bus.map(pasid(), record.fault.unwrap().address);
        operation = advance(operation, &record);
    }
    panic!("no end");
}

fn load(bus: &TestBus, address: u64, length: u32) -> Vec<u8> {
    bus.load(pasid(), address, length as usize)
}

/// Maps the pages of a range that noise fills, but for those whose number is a multiple of `holes`; returns what
/// memory will hold when the holes are mapped.
fn sparse(bus: &TestBus, address: u64, length: u32, holes: u64) -> Vec<u8> {
    for at in (address..address + u64::from(length)).chain([address + u64::from(length) - 1]) {
        if !(at / PAGE).is_multiple_of(holes) {
            bus.map(pasid(), at);
        }
    }
    let mut data = noise(address ^ u64::from(length), length as usize);
    for (n, byte) in data.iter_mut().enumerate() {
        let at = address + n as u64;
        if (at / PAGE).is_multiple_of(holes) {
            *byte = 0;
        } else {
            bus.store(pasid(), at, &[*byte]);
        }
    }
    data
}

#[test]
fn memory_move_copies_any_size_between_any_offsets() {
    for (n, size) in SIZES.into_iter().enumerate() {
        let bus = TestBus::new();
        let (source, destination) = (SOURCE + n as u64 * 37, DESTINATION + n as u64 * 1001);
        let data = noise(n as u64, size as usize);
        bus.store(pasid(), source, &data);
        // The destination was never touched: page requests bring it in.
        let record = run(&bus, OnFault::Request, Operation::Move { source, destination, size });
        assert_eq!(record, Record::new(Status::SUCCESS));
        assert_eq!(load(&bus, destination, size), data);
        assert_eq!(load(&bus, destination - 1, 1), [0]);
        assert_eq!(load(&bus, destination + u64::from(size), 1), [0]);
        assert!(bus.sent.lock().unwrap().iter().all(|request| request.write));
    }
}

#[test]
fn memory_move_handles_overlaps_in_both_directions() {
    for size in SIZES {
        for distance in [0, 1, 5, 4096, 65535, 65536, 70_000].into_iter().filter(|d| *d < size) {
            for upwards in [false, true] {
                let bus = TestBus::new();
                let low = SOURCE + 123;
                let high = low + u64::from(distance);
                let mut expected = noise(size.into(), (size + distance) as usize);
                bus.store(pasid(), low, &expected);
                let (source, destination) = if upwards { (low, high) } else { (high, low) };
                let record = run(&bus, OnFault::Report, Operation::Move { source, destination, size });
                assert_eq!(record, Record::new(Status::SUCCESS));
                let from = (source - low) as usize;
                expected.copy_within(from..from + size as usize, (destination - low) as usize);
                assert!(load(&bus, low, size + distance) == expected, "{size} {distance} {upwards}");
            }
        }
    }
}

#[test]
fn a_move_is_resumed_after_each_fault_forwards_and_backwards() {
    for (source, destination, size) in [
        (SOURCE + 5, DESTINATION + 4000, 100_000),
        (SOURCE + 5, SOURCE + 7001, 100_000),
        (SOURCE + 4097, SOURCE + 4100, 150_000),
        (SOURCE + 7001, SOURCE + 5, 100_000),
    ] {
        let bus = TestBus::new();
        let data = sparse(&bus, source, size, 3);
        let reversed = destination > source && destination - source < u64::from(size);
        let record = resume(&bus, Operation::Move { source, destination, size }, |operation, record| {
            let Operation::Move { source, destination, size } = operation else { unreachable!() };
            assert_eq!(record.result == 1, reversed);
            assert!(record.completed < size);
            let done = u64::from(record.completed);
            let size = size - record.completed;
            match record.result {
                0 => Operation::Move { source: source + done, destination: destination + done, size },
                _ => Operation::Move { source, destination, size },
            }
        });
        assert_eq!(record, Record::new(Status::SUCCESS));
        assert!(load(&bus, destination, size) == data, "{source:#x} {destination:#x}");
    }
}

#[test]
fn a_fault_before_any_progress_completes_nothing_and_names_the_address() {
    let bus = TestBus::new();
    bus.store(pasid(), SOURCE, &[1; 64]);
    let operation = Operation::Move { source: SOURCE + 3, destination: DESTINATION + 9, size: 20 };
    let record = run(&bus, OnFault::Report, operation);
    assert_eq!((record.status, record.completed), (Status::PAGE_FAULT, 0));
    let fault = record.fault.unwrap();
    assert!(fault.write);
    assert_eq!(fault.address, DESTINATION + 9);
    let operation = Operation::Move { source: SECOND + 3, destination: SOURCE, size: 20 };
    let fault = run(&bus, OnFault::Report, operation).fault.unwrap();
    assert_eq!((fault.address, fault.write), (SECOND + 3, false));
}

#[test]
fn a_read_only_destination_faults_for_writing() {
    let bus = TestBus::new();
    bus.store(pasid(), SOURCE, &noise(1, 0x3000));
    bus.map(pasid(), DESTINATION);
    bus.protect(pasid(), DESTINATION + PAGE);
    bus.on_request(OnRequest::Answer(ResponseCode::InvalidRequest));
    let operation = Operation::Move { source: SOURCE, destination: DESTINATION, size: 0x2000 };
    let record = run(&bus, OnFault::Request, operation);
    assert_eq!((record.status, record.completed), (Status::PAGE_REQUEST_INVALID, 0x1000));
    let fault = record.fault.unwrap();
    assert_eq!((fault.address, fault.write), (DESTINATION + PAGE, true));
}

#[test]
fn each_answer_to_a_page_request_has_its_status() {
    let operation = Operation::Fill { pattern: 1, destination: DESTINATION + 0xff8, size: 16 };
    for (action, status) in [
        (OnRequest::Map, Status::SUCCESS),
        (OnRequest::Answer(ResponseCode::InvalidRequest), Status::PAGE_REQUEST_INVALID),
        (OnRequest::Answer(ResponseCode::ResponseFailure), Status::TRANSLATION_ERROR),
        (OnRequest::Ignore, Status::PAGE_REQUEST_INVALID),
    ] {
        let bus = TestBus::new();
        bus.map(pasid(), DESTINATION);
        bus.on_request(action);
        let record = run(&bus, OnFault::Request, operation);
        assert_eq!(record.status, status, "{action:?}");
        assert_eq!(record.completed, if status == Status::SUCCESS { 0 } else { 8 });
        if status == Status::TRANSLATION_ERROR {
            // Without page requests a fault is reported.
            assert_eq!(run(&bus, OnFault::Request, operation).status, Status::PAGE_FAULT);
            assert_eq!(bus.sent.lock().unwrap().len(), 1);
        }
    }
}

#[test]
fn refused_reads_and_translations_end_an_operation_and_refused_writes_are_lost() {
    let bus = TestBus::new();
    bus.store(pasid(), SOURCE, &noise(1, 0x3000));
    bus.refuse(SOURCE + 2 * PAGE);
    let operation = Operation::Move { source: SOURCE, destination: DESTINATION, size: 0x3000 };
    let record = run(&bus, OnFault::Request, operation);
    assert_eq!((record.status, record.completed), (Status::READ_ERROR, 0x2000));

    bus.refuse_translation(SOURCE + PAGE);
    let record = run(&bus, OnFault::Request, operation);
    assert_eq!((record.status, record.completed), (Status::TRANSLATION_ERROR, 0x1000));
    assert_eq!(record.fault.unwrap().address, SOURCE + PAGE);

    let bus = TestBus::new();
    for page in 0..4 {
        bus.map(pasid(), DESTINATION + page * PAGE);
    }
    bus.refuse(DESTINATION + PAGE);
    let operation = Operation::Fill { pattern: u64::MAX, destination: DESTINATION + 0x10, size: 0x3000 };
    assert_eq!(run(&bus, OnFault::Report, operation).status, Status::SUCCESS);
    assert_eq!(load(&bus, DESTINATION + 0xfff, 1), [0xff]);
    assert_eq!(load(&bus, DESTINATION + 0x1000, 0x1000), [0; 0x1000]);
    assert_eq!(load(&bus, DESTINATION + 0x2000, 0x1010), [0xff; 0x1010]);
}

#[test]
fn transfers_run_over_the_end_of_the_address_space() {
    let bus = TestBus::new();
    bus.map(pasid(), 0);
    bus.map(pasid(), u64::MAX);
    let operation = Operation::Fill { pattern: 0x0807_0605_0403_0201, destination: u64::MAX - 2, size: 8 };
    assert_eq!(run(&bus, OnFault::Report, operation).status, Status::SUCCESS);
    assert_eq!(load(&bus, u64::MAX - 2, 8), [1, 2, 3, 4, 5, 6, 7, 8]);
}

#[test]
fn fill_repeats_its_pattern_from_the_destination() {
    let pattern = 0x8877_6655_4433_2211_u64;
    for (n, size) in SIZES.into_iter().enumerate() {
        let bus = TestBus::new();
        let destination = DESTINATION + n as u64 * 3;
        let record = run(&bus, OnFault::Request, Operation::Fill { pattern, destination, size });
        assert_eq!(record, Record::new(Status::SUCCESS));
        let expected: Vec<u8> = (0..size as usize).map(|n| pattern.to_le_bytes()[n % 8]).collect();
        assert!(load(&bus, destination, size) == expected, "{size}");
        assert_eq!(load(&bus, destination + u64::from(size), 8), [0; 8]);
    }
}

#[test]
fn a_fill_is_resumed_with_a_rotated_pattern() {
    let bus = TestBus::new();
    let (pattern, destination, size) = (0x8877_6655_4433_2211_u64, DESTINATION + 3, 20_001);
    resume(&bus, Operation::Fill { pattern, destination, size }, |operation, record| {
        let Operation::Fill { pattern, destination, size } = operation else { unreachable!() };
        Operation::Fill {
            pattern: pattern.rotate_right(record.completed % 8 * 8),
            destination: destination + u64::from(record.completed),
            size: size - record.completed,
        }
    });
    let expected: Vec<u8> = (0..size as usize).map(|n| pattern.to_le_bytes()[n % 8]).collect();
    assert!(load(&bus, destination, size) == expected);
}

#[test]
fn compare_finds_the_first_difference() {
    for size in SIZES {
        let bus = TestBus::new();
        let (first, second) = (SOURCE + 11, DESTINATION + 500);
        let data = noise(3, size as usize);
        bus.store(pasid(), first, &data);
        bus.store(pasid(), second, &data);
        let compare =
            |expected| run(&bus, OnFault::Report, Operation::Compare { first, second, size, expected });
        assert_eq!(compare(None), Record::new(Status::SUCCESS));
        assert_eq!(compare(Some(0)).status, Status::SUCCESS);
        assert_eq!(compare(Some(1)).status, Status::FALSE_PREDICATE);
        for position in [size - 1, size / 2, size / 3] {
            let at = second + u64::from(position);
            bus.store(pasid(), at, &[data[position as usize] ^ 0x80]);
            let record = compare(None);
            assert_eq!((record.status, record.result), (Status::SUCCESS, 1));
            assert_eq!(record.completed, position);
            assert_eq!(compare(Some(0)).status, Status::FALSE_PREDICATE);
            assert_eq!(compare(Some(1)).status, Status::SUCCESS);
        }
    }
}

#[test]
fn a_difference_wins_over_a_fault_behind_it() {
    let bus = TestBus::new();
    bus.store(pasid(), SOURCE, &[1; 100]);
    bus.store(pasid(), DESTINATION, &[1; 0x2000]);
    let operation =
        Operation::Compare { first: SOURCE, second: DESTINATION, size: 0x2000, expected: Some(0) };
    assert_eq!(run(&bus, OnFault::Report, operation).completed, 100);
    bus.store(pasid(), SOURCE, &[1; 0x1000]);
    let record = run(&bus, OnFault::Report, operation);
    assert_eq!((record.status, record.completed), (Status::PAGE_FAULT, 0x1000));
    // The earlier of two faults counts, whichever range it is in.
    bus.unmap(pasid(), DESTINATION);
    let record = run(&bus, OnFault::Report, operation);
    assert_eq!((record.completed, record.fault.unwrap().address), (0, DESTINATION));
}

#[test]
fn a_comparison_is_resumed_after_each_fault() {
    let bus = TestBus::new();
    let (first, second, size) = (SOURCE + 1, DESTINATION + 777, 50_000);
    let data = sparse(&bus, first, size, 2);
    bus.store(pasid(), second, &data);
    bus.store(pasid(), second + 49_998, &[data[49_998] ^ 1]);
    let expected = None;
    let total = Cell::new(0);
    let record = resume(&bus, Operation::Compare { first, second, size, expected }, |operation, record| {
        let Operation::Compare { first, second, size, expected } = operation else { unreachable!() };
        total.set(total.get() + record.completed);
        let done = u64::from(record.completed);
        let size = size - record.completed;
        Operation::Compare { first: first + done, second: second + done, size, expected }
    });
    assert_eq!(record.result, 1);
    assert!(total.get() > 0);
    assert_eq!(total.get() + record.completed, 49_998);
}

#[test]
fn compare_pattern_finds_the_first_difference() {
    let pattern = 0x8877_6655_4433_2211_u64;
    for size in SIZES {
        let bus = TestBus::new();
        let source = SOURCE + 13;
        let data: Vec<u8> = (0..size as usize).map(|n| pattern.to_le_bytes()[n % 8]).collect();
        bus.store(pasid(), source, &data);
        let compare = |expected| {
            run(&bus, OnFault::Report, Operation::ComparePattern { source, pattern, size, expected })
        };
        assert_eq!(compare(Some(0)), Record::new(Status::SUCCESS));
        for position in [size - 1, size / 2] {
            bus.store(pasid(), source + u64::from(position), &[0]);
            let record = compare(Some(0));
            assert_eq!((record.status, record.result), (Status::FALSE_PREDICATE, 1));
            assert_eq!(record.completed, position);
        }
    }
    let bus = TestBus::new();
    bus.store(pasid(), SOURCE, &pattern.to_le_bytes().repeat(512));
    let operation = Operation::ComparePattern { source: SOURCE, pattern, size: 5000, expected: None };
    let record = run(&bus, OnFault::Report, operation);
    assert_eq!((record.status, record.completed), (Status::PAGE_FAULT, 4096));
}

/// Entries of the delta from `first` to `second`.
fn reference_delta(first: &[u8], second: &[u8]) -> Vec<u8> {
    let mut record = Vec::new();
    for (n, (old, new)) in first.chunks(8).zip(second.chunks(8)).enumerate() {
        if old != new {
            record.extend_from_slice(&(n as u16).to_le_bytes());
            record.extend_from_slice(new);
        }
    }
    record
}

#[test]
fn deltas_are_created_and_applied() {
    let record_address = SECOND;
    for (size, step) in [(8, 1), (16, 3), (4096, 100), (4104, 8), (65_544, 1000), (0x8_0000, 7919)] {
        let bus = TestBus::new();
        let (first, second) = (SOURCE + 8, DESTINATION + 0xff0);
        let old = noise(7, size as usize);
        let mut new = old.clone();
        for at in (0..size as usize).step_by(step) {
            new[at] ^= 1;
        }
        let delta = reference_delta(&old, &new);
        bus.store(pasid(), first, &old);
        bus.store(pasid(), second, &new);
        let create = |max_record, expected| {
            let record = record_address;
            run(
                &bus,
                OnFault::Request,
                Operation::CreateDelta { first, second, size, record, max_record, expected },
            )
        };
        let max_record = (delta.len() as u32).max(80);
        let created = create(max_record, Some(0b010));
        assert_eq!((created.status, created.result), (Status::SUCCESS, 1));
        assert_eq!((created.completed, created.extra), (0, delta.len() as u64));
        assert!(load(&bus, record_address, delta.len() as u32) == delta);
        assert_eq!(create(max_record, Some(0b101)).status, Status::FALSE_PREDICATE);

        if delta.len() > 80 {
            let overflow = create(80, Some(0b100));
            assert_eq!((overflow.status, overflow.result, overflow.extra), (Status::SUCCESS, 2, 80));
            let next = u16::from_le_bytes([delta[80], delta[81]]);
            assert_eq!(overflow.completed, u32::from(next) * 8);
        }

        let record_size = delta.len() as u32;
        let operation =
            Operation::ApplyDelta { record: record_address, record_size, destination: first, size };
        assert_eq!(run(&bus, OnFault::Request, operation), Record::new(Status::SUCCESS));
        assert!(load(&bus, first, size) == new);
        let equal = create(max_record, Some(0b001));
        assert_eq!((equal.status, equal.result, equal.extra), (Status::SUCCESS, 0, 0));
    }
}

#[test]
fn a_delta_whose_record_faults_ends_before_the_first_unrecorded_difference() {
    let bus = TestBus::new();
    let size = 0x4000;
    bus.store(pasid(), SOURCE, &vec![0; size as usize]);
    bus.store(pasid(), DESTINATION, &vec![1; size as usize]);
    bus.map(pasid(), SECOND);
    let operation = Operation::CreateDelta {
        first: SOURCE,
        second: DESTINATION,
        size,
        record: SECOND,
        max_record: 0x8000,
        expected: None,
    };
    let record = run(&bus, OnFault::Report, operation);
    assert_eq!((record.status, record.extra), (Status::PAGE_FAULT, 4090));
    assert_eq!(record.completed, 409 * 8);
    assert_eq!(record.fault.unwrap().address, SECOND + PAGE);
    // A source that faults ends it after what was compared before, which is recorded.
    for page in 1..8 {
        bus.map(pasid(), SECOND + page * PAGE);
    }
    bus.unmap(pasid(), DESTINATION + 2 * PAGE);
    let record = run(&bus, OnFault::Report, operation);
    assert_eq!((record.completed, record.extra), (0x2000, 10 * 0x400));
}

#[test]
fn apply_delta_checks_its_offsets_and_is_resumed() {
    let entry = |unit: u16| [&unit.to_le_bytes()[..], &[(unit as u8).wrapping_add(1); 8]].concat();
    let bus = TestBus::new();
    let apply = |record, record_size| {
        let operation = Operation::ApplyDelta { record, record_size, destination: DESTINATION, size: 0x4000 };
        run(&bus, OnFault::Request, operation)
    };
    bus.store(pasid(), SOURCE + 1, &[entry(1), entry(5), entry(5)].concat());
    let record = apply(SOURCE + 1, 30);
    assert_eq!((record.status, record.completed), (Status::DELTA_OFFSET_ORDER, 20));
    assert_eq!(load(&bus, DESTINATION + 40, 8), [6; 8]);
    bus.store(pasid(), SOURCE + 1, &[entry(0x7ff), entry(0x800)].concat());
    let record = apply(SOURCE + 1, 20);
    assert_eq!((record.status, record.completed), (Status::DELTA_OFFSET_RANGE, 10));

    let all: Vec<u8> = (0..0x800).step_by(3).flat_map(entry).collect();
    let bus = TestBus::new();
    bus.store(pasid(), SOURCE + 4000, &all);
    let operation = Operation::ApplyDelta {
        record: SOURCE + 4000,
        record_size: all.len() as u32,
        destination: DESTINATION,
        size: 0x4000,
    };
    resume(&bus, operation, |operation, result| {
        let Operation::ApplyDelta { record, record_size, destination, size } = operation else {
            unreachable!()
        };
        assert_eq!(result.completed % 10, 0);
        let record_size = record_size - result.completed;
        let record = record + u64::from(result.completed);
        Operation::ApplyDelta { record, record_size, destination, size }
    });
    for unit in 0..0x800_u16 {
        let expected = if unit % 3 == 0 { [(unit as u8).wrapping_add(1); 8] } else { [0; 8] };
        assert_eq!(load(&bus, DESTINATION + u64::from(unit) * 8, 8), expected);
    }
}

#[test]
fn dualcast_copies_to_both_destinations_and_is_resumed() {
    for (n, size) in SIZES.into_iter().enumerate() {
        let bus = TestBus::new();
        let source = SOURCE + n as u64;
        let destinations = [DESTINATION + 77 + n as u64, SECOND + 77 + n as u64];
        let data = sparse(&bus, source, size, 2);
        let record = resume(&bus, Operation::Dualcast { source, destinations, size }, |operation, record| {
            let Operation::Dualcast { source, destinations, size } = operation else { unreachable!() };
            let done = u64::from(record.completed);
            let [first, second] = destinations.map(|address| address + done);
            let size = size - record.completed;
            Operation::Dualcast { source: source + done, destinations: [first, second], size }
        });
        assert_eq!(record, Record::new(Status::SUCCESS));
        for destination in destinations {
            assert!(load(&bus, destination, size) == data, "{size}");
        }
    }
}

#[test]
fn crc_with_and_without_copy_matches_the_reference_and_is_resumed() {
    for (n, size) in SIZES.into_iter().enumerate() {
        for flags in 0..4 {
            let bus = TestBus::new();
            let source = SOURCE + n as u64;
            let destination = DESTINATION + 4090;
            let data = sparse(&bus, source, size, 2);
            let setup = CrcSetup {
                seed: 0xdead_beef,
                seed_address: None,
                bypass_inversion: flags & 1 != 0,
                bypass_data_reflection: flags & 2 != 0,
            };
            let expected =
                reference_crc(setup.seed, &data, setup.bypass_inversion, setup.bypass_data_reflection);
            let record =
                resume(&bus, Operation::CopyCrc { source, destination, size, setup }, |operation, record| {
                    let Operation::CopyCrc { source, destination, size, setup } = operation else {
                        unreachable!()
                    };
                    let done = u64::from(record.completed);
                    let setup = CrcSetup { seed: record.extra as u32, ..setup };
                    Operation::CopyCrc {
                        source: source + done,
                        destination: destination + done,
                        size: size - record.completed,
                        setup,
                    }
                });
            assert_eq!((record.status, record.extra), (Status::SUCCESS, expected.into()));
            assert!(load(&bus, destination, size) == data);
            let record = run(&bus, OnFault::Report, Operation::Crc { source, size, setup });
            assert_eq!((record.status, record.extra), (Status::SUCCESS, expected.into()));
        }
    }
}

#[test]
fn a_crc_seed_is_read_from_memory() {
    let bus = TestBus::new();
    bus.store(pasid(), SOURCE, b"123456789");
    let setup = CrcSetup { seed: 0x5555, seed_address: Some(SECOND + 4), ..SETUP };
    let operation = Operation::Crc { source: SOURCE, size: 9, setup };
    let record = run(&bus, OnFault::Report, operation);
    assert_eq!((record.status, record.completed), (Status::PAGE_FAULT, 0));
    bus.store(pasid(), SECOND + 4, &[0; 4]);
    assert_eq!(run(&bus, OnFault::Report, operation).extra, 0xe306_9283);
}

#[test]
fn cache_flush_touches_its_range() {
    let bus = TestBus::new();
    let operation = Operation::CacheFlush { destination: DESTINATION + 9, size: 0x5000 };
    bus.map(pasid(), DESTINATION);
    let record = run(&bus, OnFault::Report, operation);
    assert_eq!((record.status, record.completed), (Status::PAGE_FAULT, 0x1000 - 9));
    assert_eq!(run(&bus, OnFault::Request, operation), Record::new(Status::SUCCESS));
    assert_eq!(bus.sent.lock().unwrap().len(), 5);
}

#[test]
fn an_abort_ends_an_operation_that_is_under_way() {
    let bus = TestBus::new();
    // Without ATS a write to nowhere is lost: two gigabytes take long enough.
    bus.pci.lock().unwrap().ats = false;
    let abort = AtomicBool::new(false);
    let requester = Requester { pasid: pasid(), privileged: false };
    let operation = Operation::Fill { pattern: 0, destination: DESTINATION, size: 1 << 31 };
    let aborted = std::thread::scope(|scope| {
        let engine = scope.spawn(|| {
            let dma = Dma { bus: &bus, requests: &bus.requests, requester, abort: &abort };
            Task { dma, on_fault: OnFault::Request, scratch: &mut Scratch::new() }.run(&operation)
        });
        while bus.writes.load(Ordering::SeqCst) == 0 {
            std::thread::yield_now();
        }
        abort.store(true, Ordering::Release);
        engine.join().unwrap()
    });
    assert_eq!(aborted, Err(Aborted));
    assert!(bus.writes.load(Ordering::SeqCst) < 1 << 19);
}
