// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Chains, tables, rings and registers that no driver may make.

use pci::{MsixLayout, MsixTable};
use proptest::prelude::*;

use super::super::common::CommonConfig;
use super::super::worker::{BOUNCE_SIZE, Shared};
use super::*;

#[test]
fn broken_chains_and_rings_stop_the_queue_until_a_reset() {
    let mut driver = Driver::started(16, 0);
    driver.header(0, 0);
    driver.descriptor(DESCRIPTORS, 0, HEADER, 16, NEXT, 0);
    driver.expect_needs_reset(0);
    driver.header(0, 0);
    driver.descriptor(DESCRIPTORS, 0, HEADER, 16, NEXT, QUEUE_SIZE);
    driver.expect_needs_reset(0);
    driver.expect_needs_reset(QUEUE_SIZE);
    driver.descriptor(DESCRIPTORS, 0, HEADER, 16, 0, 0);
    driver.expect_needs_reset(0);
    driver.descriptor(DESCRIPTORS, 0, HEADER, 15, NEXT, 1);
    driver.descriptor(DESCRIPTORS, 1, STATUS, 1, WRITE, 0);
    driver.expect_needs_reset(0);
    driver.descriptor(DESCRIPTORS, 0, STATUS, 1, WRITE | NEXT, 1);
    driver.descriptor(DESCRIPTORS, 1, HEADER, 16, 0, 0);
    driver.expect_needs_reset(0);
    driver.descriptor(DESCRIPTORS, 0, MEMORY, 16, NEXT, 1);
    driver.descriptor(DESCRIPTORS, 1, STATUS, 1, WRITE, 0);
    driver.expect_needs_reset(0);
    driver.descriptor(DESCRIPTORS, 0, HEADER, 16, NEXT, 1);
    driver.descriptor(DESCRIPTORS, 1, MEMORY, 1, WRITE, 0);
    driver.expect_needs_reset(0);
    // More available entries than the queue has.
    driver.published = driver.published.wrapping_add(QUEUE_SIZE);
    driver.expect_needs_reset(0);
}

#[test]
fn indirect_tables_that_no_driver_may_make_stop_the_queue() {
    let mut driver = Driver::started(16, INDIRECT_DESC);
    let good = u32::from(driver.chain(INDIRECT, &[(DATA, 512)], WRITE)) * 16;
    let table_of_pieces = |driver: &Driver, pieces: u16| {
        for index in 0..pieces {
            driver.descriptor(INDIRECT, index, HEADER, 1, NEXT, index + 1);
        }
        driver.descriptor(INDIRECT, pieces, STATUS, 1, WRITE, 0);
        (u32::from(pieces) + 1) * 16
    };
    for (address, length, flags) in [
        // No multiple of a descriptor, empty, longer than 16 bits can number, outside memory, across its end.
        (INDIRECT, good - 1, INDIRECT_FLAG),
        (INDIRECT, 0, INDIRECT_FLAG),
        (INDIRECT, 16 << 16, INDIRECT_FLAG),
        (MEMORY, good, INDIRECT_FLAG),
        (u64::MAX - 7, good, INDIRECT_FLAG),
    ] {
        driver.descriptor(DESCRIPTORS, 0, address, length, flags, 0);
        driver.expect_needs_reset(0);
    }
    // A table in a table, a loop in a table, a table longer than the queue.
    driver.descriptor(INDIRECT, 0, INDIRECT, 32, INDIRECT_FLAG, 0);
    driver.descriptor(DESCRIPTORS, 0, INDIRECT, 16, INDIRECT_FLAG, 0);
    driver.expect_needs_reset(0);
    driver.descriptor(INDIRECT, 0, HEADER, 16, NEXT, 0);
    driver.descriptor(DESCRIPTORS, 0, INDIRECT, 16, INDIRECT_FLAG, 0);
    driver.expect_needs_reset(0);
    let length = table_of_pieces(&driver, QUEUE_SIZE);
    driver.descriptor(DESCRIPTORS, 0, INDIRECT, length, INDIRECT_FLAG, 0);
    driver.expect_needs_reset(0);
    // More than 2^32 bytes.
    driver.descriptor(DESCRIPTORS, 0, HEADER, 16, NEXT, 1);
    driver.descriptor(DESCRIPTORS, 1, DATA, u32::MAX, WRITE | NEXT, 2);
    driver.descriptor(DESCRIPTORS, 2, STATUS, 1, WRITE, 0);
    driver.expect_needs_reset(0);
}

#[test]
fn registers_that_make_no_queue_are_told_when_the_driver_is_ready() {
    for (register, value) in [(0x18, 15_u16), (0x18, 512), (0x18, 0), (0x20, 8), (0x28, 1), (0x30, 2)] {
        let driver = Driver::new(16, false);
        assert!(driver.agree(VERSION_1 | ACCESS_PLATFORM));
        driver.common16(0x10, 0);
        if register == 0x18 {
            driver.common16(register, value);
        } else {
            driver.common32(register, value.into());
        }
        driver.common16(0x1c, 1);
        driver.set_status(0xf);
        assert_eq!(driver.status(), 0x4f, "{register:#x} = {value}");
        driver.interrupts.wait(CONFIG_DATA);
    }
}

#[derive(Clone, Debug)]
enum Op {
    Common(u64, Vec<u8>),
    Memory(u64, Vec<u8>),
    Descriptor(u16, u64, u32, u16, u16),
    Publish(u16, u16),
    BusMaster(bool),
    Start(u16, u64),
    Serve,
}

fn op() -> impl Strategy<Value = Op> {
    let address = prop_oneof![
        4 => (0_u64..0x10).prop_map(|page| page << 12),
        1 => MEMORY - 20..MEMORY + 20,
        1 => u64::MAX - 20..=u64::MAX,
        1 => any::<u64>(),
    ];
    let length = prop_oneof![Just(1_u32), Just(16), Just(512), 0_u32..2000, any::<u32>()];
    prop_oneof![
        2 => (0_u64..0x44, prop::collection::vec(any::<u8>(), 1..9)).prop_map(|(at, data)| Op::Common(at, data)),
        2 => (0x1000_u64..0x6000, prop::collection::vec(any::<u8>(), 1..17))
            .prop_map(|(at, data)| Op::Memory(at, data)),
        8 => (0_u16..8, address, length, 0_u16..8, 0_u16..9)
            .prop_map(|(index, address, length, flags, next)| Op::Descriptor(index, address, length, flags, next)),
        3 => (0_u16..9, 0_u16..3).prop_map(|(head, count)| Op::Publish(head, count)),
        1 => any::<bool>().prop_map(Op::BusMaster),
        3 => (prop_oneof![Just(8_u16), 0_u16..20], any::<u64>()).prop_map(|(size, features)| Op::Start(size, features)),
        5 => Just(Op::Serve),
    ]
}

/// Resets a device and starts its queue, of `size` entries.
pub(super) fn start(shared: &Shared<TestDma>, size: u16, features: u64) {
    let features = features | VERSION_1 | ACCESS_PLATFORM;
    let writes: [(u64, &[u8]); 13] = [
        (0x14, &[0]),
        (0x14, &[3]),
        (0x08, &[0; 4]),
        (0x0c, &features.to_le_bytes()[..4]),
        (0x08, &[1, 0, 0, 0]),
        (0x0c, &features.to_le_bytes()[4..]),
        (0x14, &[0xb]),
        (0x18, &size.to_le_bytes()),
        (0x20, &DESCRIPTORS.to_le_bytes()),
        (0x28, &DRIVER_AREA.to_le_bytes()),
        (0x30, &DEVICE_AREA.to_le_bytes()),
        (0x1c, &[1, 0]),
        (0x14, &[0xf]),
    ];
    for (at, data) in writes {
        shared.common_write(at, data);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// The worker runs on this thread, so that a panic of it is a panic here.
    #[test]
    fn hostile_rings_and_registers_neither_panic_nor_hang(ops in prop::collection::vec(op(), 1..60)) {
        let file = image(8);
        let dma = TestDma::new();
        let memory = dma.memory.clone();
        let offered = FLUSH | INDIRECT_DESC | EVENT_IDX;
        let msix = MsixTable::new(MsixLayout::in_bar(0, 2, 0, 0x800));
        let shared = Shared::new(dma, open(&file, false), CommonConfig::new(offered, 256, 2), msix);
        shared.set_bus_master(true);
        let mut bounce = vec![0; BOUNCE_SIZE];
        let mut published = 0_u16;
        for op in ops {
            match op {
                Op::Common(at, data) => { shared.common_write(at, &data); }
                Op::Memory(at, data) => memory.write_slice(&data, GuestAddress(at)).unwrap(),
                Op::Descriptor(index, address, length, flags, next) => {
                    let at = DESCRIPTORS + u64::from(index) * 16;
                    memory.write_obj(address, GuestAddress(at)).unwrap();
                    memory.write_obj(length, GuestAddress(at + 8)).unwrap();
                    memory.write_obj(flags, GuestAddress(at + 12)).unwrap();
                    memory.write_obj(next, GuestAddress(at + 14)).unwrap();
                }
                Op::Publish(head, count) => {
                    for _ in 0..count {
                        let slot = DRIVER_AREA + 4 + u64::from(published % 8) * 2;
                        memory.write_obj(head, GuestAddress(slot)).unwrap();
                        published = published.wrapping_add(1);
                    }
                    memory.write_obj(published, GuestAddress(DRIVER_AREA + 2)).unwrap();
                }
                Op::BusMaster(enabled) => shared.set_bus_master(enabled),
                Op::Start(size, features) => {
                    published = 0;
                    memory.write_obj(0_u16, GuestAddress(DRIVER_AREA + 2)).unwrap();
                    start(&shared, size, features & offered);
                }
                Op::Serve => shared.serve_all(&mut bounce),
            }
        }
        shared.serve_all(&mut bounce);
        prop_assert_eq!(file.as_file().metadata().unwrap().len(), 8 * 512);
    }
}
