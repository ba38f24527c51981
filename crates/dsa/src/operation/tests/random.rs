// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Operations on random ranges with random pages missing, against the same operation on a plain array. Page faults are
//! reported, and a driver that maps the page and goes on behind what has completed sees no difference.

use proptest::prelude::*;

use super::*;

const PAGES: u64 = 6;
const LENGTH: usize = (PAGES * PAGE) as usize;

/// Some pages of memory and what they hold, missing ones included.
struct Window {
    base: u64,
    bytes: Vec<u8>,
}

impl Window {
    /// Stores `bytes` at `base`, but for the pages whose bits in `missing` are set: they are not there, and zero once
    /// they are.
    fn new(bus: &TestBus, base: u64, mut bytes: Vec<u8>, missing: u8) -> Self {
        for (number, page) in bytes.chunks_mut(PAGE as usize).enumerate() {
            if missing >> number & 1 == 1 {
                page.fill(0);
            } else {
                bus.store(pasid(), base + number as u64 * PAGE, page);
            }
        }
        Self { base, bytes }
    }

    fn check(&self, bus: &TestBus) -> Result<(), TestCaseError> {
        prop_assert!(bus.load(pasid(), self.base, LENGTH) == self.bytes);
        Ok(())
    }
}

/// Offset and size of a range in a window.
fn range() -> impl Strategy<Value = (usize, usize)> {
    (0..LENGTH).prop_flat_map(|at| (Just(at), 1..=LENGTH - at))
}

/// Two offsets and a size that fits behind both.
fn ranges() -> impl Strategy<Value = (usize, usize, usize)> {
    (0..LENGTH, 0..LENGTH).prop_flat_map(|(a, b)| (Just(a), Just(b), 1..=LENGTH - a.max(b)))
}

fn rest(address: u64, record: &Record) -> u64 {
    address + u64::from(record.completed)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn a_move_copies_as_through_a_buffer((from, to, size) in ranges(), missing in any::<u8>()) {
        let bus = TestBus::new();
        let mut window = Window::new(&bus, SOURCE, noise(1, LENGTH), missing);
        let [source, destination] = [from, to].map(|at| SOURCE + at as u64);
        let operation = Operation::Move { source, destination, size: size as u32 };
        let last = resume(&bus, operation, |operation, record| {
            let Operation::Move { source, destination, size } = operation else { unreachable!() };
            let size = size - record.completed;
            match record.result {
                0 => Operation::Move { source: rest(source, record), destination: rest(destination, record), size },
                _ => Operation::Move { source, destination, size },
            }
        });
        prop_assert_eq!(last, Record::new(Status::SUCCESS));
        window.bytes.copy_within(from..from + size, to);
        window.check(&bus)?;
    }

    #[test]
    fn a_fill_repeats_its_pattern((at, size) in range(), pattern in any::<u64>(), missing in any::<u8>()) {
        let bus = TestBus::new();
        let mut window = Window::new(&bus, DESTINATION, noise(2, LENGTH), missing);
        let operation = Operation::Fill { pattern, destination: DESTINATION + at as u64, size: size as u32 };
        let last = resume(&bus, operation, |operation, record| {
            let Operation::Fill { pattern, destination, size } = operation else { unreachable!() };
            let pattern = pattern.rotate_right(record.completed % 8 * 8);
            Operation::Fill { pattern, destination: rest(destination, record), size: size - record.completed }
        });
        prop_assert_eq!(last, Record::new(Status::SUCCESS));
        for (n, byte) in window.bytes[at..at + size].iter_mut().enumerate() {
            *byte = pattern.to_le_bytes()[n % 8];
        }
        window.check(&bus)?;
    }

    #[test]
    fn a_comparison_finds_the_first_difference(
        (a, b, size) in ranges(),
        changes in prop::collection::vec(0..LENGTH, 0..3),
        missing in any::<[u8; 2]>(),
        expected in prop::option::of(0_u8..2),
    ) {
        let bus = TestBus::new();
        let first = Window::new(&bus, SOURCE, vec![0; LENGTH], missing[0]);
        let mut bytes = vec![0; LENGTH];
        for at in changes {
            bytes[at] = 1;
        }
        let second = Window::new(&bus, DESTINATION, bytes, missing[1]);
        let difference = first.bytes[a..a + size].iter().zip(&second.bytes[b..]).position(|(a, b)| a != b);
        let result = u8::from(difference.is_some());
        let status = match expected {
            Some(expected) if expected != result => Status::FALSE_PREDICATE,
            _ => Status::SUCCESS,
        };
        let total = Cell::new(0);
        let operation = Operation::Compare {
            first: SOURCE + a as u64,
            second: DESTINATION + b as u64,
            size: size as u32,
            expected,
        };
        let last = resume(&bus, operation, |operation, record| {
            let Operation::Compare { first, second, size, expected } = operation else { unreachable!() };
            total.set(total.get() + record.completed);
            let size = size - record.completed;
            Operation::Compare { first: rest(first, record), second: rest(second, record), size, expected }
        });
        prop_assert_eq!((last.status, last.result), (status, result));
        if let Some(difference) = difference {
            prop_assert_eq!((total.get() + last.completed) as usize, difference);
        }
        first.check(&bus)?;
        second.check(&bus)?;
    }

    #[test]
    fn a_crc_with_copy_is_that_of_what_was_copied(
        (from, to, size) in ranges(),
        seed in any::<u32>(),
        flags in any::<[bool; 2]>(),
        missing in any::<[u8; 2]>(),
    ) {
        let bus = TestBus::new();
        let source = Window::new(&bus, SOURCE, noise(3, LENGTH), missing[0]);
        let mut destination = Window::new(&bus, DESTINATION, noise(4, LENGTH), missing[1]);
        let [bypass_inversion, bypass_data_reflection] = flags;
        let setup = CrcSetup { seed, seed_address: None, bypass_inversion, bypass_data_reflection };
        let operation = Operation::CopyCrc {
            source: SOURCE + from as u64,
            destination: DESTINATION + to as u64,
            size: size as u32,
            setup,
        };
        let last = resume(&bus, operation, |operation, record| {
            let Operation::CopyCrc { source, destination, size, setup } = operation else { unreachable!() };
            Operation::CopyCrc {
                source: rest(source, record),
                destination: rest(destination, record),
                size: size - record.completed,
                setup: CrcSetup { seed: record.extra as u32, ..setup },
            }
        });
        let data = &source.bytes[from..from + size];
        let crc = reference_crc(seed, data, bypass_inversion, bypass_data_reflection);
        prop_assert_eq!(last, Record::new(Status::SUCCESS).with_extra(crc.into()));
        destination.bytes[to..to + size].copy_from_slice(data);
        source.check(&bus)?;
        destination.check(&bus)?;
    }

    #[test]
    fn a_dualcast_copies_to_both(
        (from, to, size) in ranges(),
        missing in any::<[u8; 3]>(),
    ) {
        let bus = TestBus::new();
        let source = Window::new(&bus, SOURCE, noise(5, LENGTH), missing[0]);
        let mut copies = [(DESTINATION, missing[1]), (SECOND, missing[2])]
            .map(|(base, missing)| Window::new(&bus, base, noise(base, LENGTH), missing));
        let operation = Operation::Dualcast {
            source: SOURCE + from as u64,
            destinations: [DESTINATION, SECOND].map(|base| base + to as u64),
            size: size as u32,
        };
        let last = resume(&bus, operation, |operation, record| {
            let Operation::Dualcast { source, destinations, size } = operation else { unreachable!() };
            let destinations = destinations.map(|address| rest(address, record));
            Operation::Dualcast { source: rest(source, record), destinations, size: size - record.completed }
        });
        prop_assert_eq!(last, Record::new(Status::SUCCESS));
        for copy in &mut copies {
            copy.bytes[to..to + size].copy_from_slice(&source.bytes[from..from + size]);
            copy.check(&bus)?;
        }
        source.check(&bus)?;
    }

    #[test]
    fn a_delta_that_was_created_and_applied_makes_both_equal(
        (a, b, size) in ranges(),
        changes in prop::collection::vec(0..LENGTH, 0..40),
        max_entries in 8_u32..80,
        missing in any::<[u8; 3]>(),
    ) {
        let (a, b, size) = (a & !7, b & !7, (size & !7).max(8));
        let bus = TestBus::new();
        let mut first = Window::new(&bus, SOURCE, vec![0; LENGTH], missing[0]);
        let mut bytes = vec![0; LENGTH];
        for at in changes {
            bytes[at] = at as u8 | 1;
        }
        let second = Window::new(&bus, DESTINATION, bytes, missing[1]);
        let (old, new) = (&first.bytes[a..a + size], &second.bytes[b..b + size]);
        let delta = reference_delta(old, new);
        let create = Operation::CreateDelta {
            first: SOURCE + a as u64,
            second: DESTINATION + b as u64,
            size: size as u32,
            record: SECOND,
            max_record: max_entries * 10,
            expected: None,
        };
        // What a partial record covers is complete: each page that is missing ends it early once.
        let created = loop {
            let record = run(&bus, OnFault::Report, create);
            let compared = match (record.status, record.result) {
                (Status::PAGE_FAULT, _) | (_, 2) => record.completed as usize,
                _ => size,
            };
            let part = reference_delta(&old[..compared], &new[..compared]);
            prop_assert_eq!(record.extra as usize, part.len());
            prop_assert!(load(&bus, SECOND, part.len() as u32) == part);
            match record.fault {
                Some(fault) => bus.map(pasid(), fault.address),
                None => break record,
            }
        };
        prop_assert_eq!(created.status, Status::SUCCESS);
        let fits = delta.len() <= max_entries as usize * 10;
        prop_assert_eq!(created.result, if !fits { 2 } else { u8::from(!delta.is_empty()) });
        prop_assume!(fits && !delta.is_empty());

        let record = Window::new(&bus, SECOND + LENGTH as u64, [&delta[..], &vec![0; LENGTH - delta.len()]].concat(), 0);
        let apply = Operation::ApplyDelta {
            record: record.base,
            record_size: delta.len() as u32,
            destination: SOURCE + a as u64,
            size: size as u32,
        };
        // The pages that a comparison read are there; take some away again.
        let missing_now = missing[2];
        first = Window::new(&bus, SOURCE, first.bytes, 0);
        for number in (0..PAGES).filter(|number| missing_now >> number & 1 == 1) {
            let page = &mut first.bytes[(number * PAGE) as usize..][..PAGE as usize];
            if page.iter().all(|byte| *byte == 0) {
                bus.unmap(pasid(), SOURCE + number * PAGE);
            }
        }
        let last = resume(&bus, apply, |operation, result| {
            let Operation::ApplyDelta { record, record_size, destination, size } = operation else { unreachable!() };
            let record_size = record_size - result.completed;
            Operation::ApplyDelta { record: rest(record, result), record_size, destination, size }
        });
        prop_assert_eq!(last, Record::new(Status::SUCCESS));
        first.bytes[a..a + size].copy_from_slice(&second.bytes[b..b + size]);
        first.check(&bus)?;
    }
}
