// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The function as a driver finds it: identity, features, interrupts, resets, the window in configuration space.

use std::time::Duration;

use pci::PciFunction;
use vm_memory::{Bytes, GuestAddress};

use super::*;

#[test]
fn linux_finds_a_modern_block_device() {
    let driver = Driver::new(100, false);
    assert_eq!(config_bytes::<4>(&driver.function, 0), [0xf4, 0x1a, 0x42, 0x10]);
    assert_eq!(config_bytes::<4>(&driver.function, 8), [1, 0, 0x80, 1]);
    let expected = VERSION_1 | ACCESS_PLATFORM | FLUSH | 1 << 2 | 1 << 6 | INDIRECT_DESC | EVENT_IDX;
    assert_eq!(driver.offered(), expected);
    assert_eq!(driver.read32(driver.regions.device), 100);
    assert_eq!(driver.read32(driver.regions.device + 4), 0);
    assert_eq!(driver.read32(driver.regions.device + 12), 254);
    assert_eq!(driver.read32(driver.regions.device + 20), 512);
    assert_eq!(driver.read32(driver.regions.common + 0x1e) as u16, 0, "notify offset");
    assert_eq!(Driver::new(1, true).offered(), expected | READ_ONLY);
}

#[test]
fn a_driver_that_bypasses_the_unit_is_refused() {
    let driver = Driver::new(1, false);
    assert!(!driver.agree(VERSION_1 | FLUSH));
    driver.set_status(0);
    assert!(driver.agree(VERSION_1 | ACCESS_PLATFORM));
}

#[test]
fn a_function_that_is_no_bus_master_neither_works_nor_interrupts() {
    let mut driver = Driver::started(16, 0);
    driver.function.config_write(0x04, &[2]);
    driver.header(0, 0);
    driver.chain(DESCRIPTORS, &[(DATA, 512)], WRITE);
    driver.publish(0);
    driver.kick();
    std::thread::sleep(Duration::from_millis(30));
    assert_eq!((driver.used(), driver.interrupts.count()), (0, 0));
    driver.function.config_write(0x04, &[6]);
    driver.interrupts.wait(QUEUE_DATA);
    assert_eq!(driver.used(), 1);
}

#[test]
fn no_access_follows_a_reset_of_any_kind() {
    for round in 0..30 {
        let mut driver = Driver::started(4096, 0);
        driver.header(0, 0);
        driver.chain(DESCRIPTORS, &[(DATA, 0x10_0000), (DATA, 0x10_0000)], WRITE);
        for _ in 0..QUEUE_SIZE {
            driver.publish(0);
        }
        driver.kick();
        std::thread::sleep(Duration::from_micros(round * 100));
        match round % 3 {
            0 => driver.set_status(0),
            1 => {
                let control = find(&driver.function, 0x10) + 8;
                let [low, high] = config_bytes(&driver.function, control);
                driver.function.config_write(control, &[low, high | 0x80]);
            }
            _ => driver.function.reset(),
        }
        let interrupts = driver.interrupts.count();
        driver.memory.write_slice(&vec![0x5a; 0x10_0000], GuestAddress(DATA)).unwrap();
        let used = driver.used();
        std::thread::sleep(Duration::from_millis(3));
        assert!(driver.data(DATA, 0x10_0000).iter().all(|byte| *byte == 0x5a), "round {round}");
        assert_eq!((driver.used(), driver.interrupts.count()), (used, interrupts), "round {round}");
        assert_eq!(driver.status(), 0);
    }
}

#[test]
fn the_interrupt_status_tells_the_cause_once() {
    let mut driver = Driver::started(16, 0);
    driver.request(0, 0, &[(DATA, 512)], WRITE);
    let isr = driver.regions.isr;
    assert_eq!(driver.read32(isr), 1);
    assert_eq!(driver.read32(isr), 0);
    driver.publish(QUEUE_SIZE);
    driver.kick();
    driver.interrupts.wait(CONFIG_DATA);
    assert_eq!(driver.read32(isr), 2);
}

#[test]
fn registers_can_be_reached_through_configuration_space() {
    let driver = Driver::new(77, false);
    let mut vendor = capabilities(&driver.function).into_iter().rev();
    let window = vendor.find(|cap| cap.0 == 9).unwrap().1;
    assert_eq!(config_bytes(&driver.function, window + 3), [5]);
    let point = |bar: u8, offset: u64, length: u32| {
        driver.function.config_write(window + 4, &[bar]);
        driver.function.config_write(window + 8, &(offset as u32).to_le_bytes());
        driver.function.config_write(window + 12, &length.to_le_bytes());
    };
    point(0, driver.regions.device, 4);
    assert_eq!(config_bytes(&driver.function, window + 16), [77, 0, 0, 0]);
    point(0, driver.regions.common + 0x14, 1);
    driver.function.config_write(window + 16, &[1, 0, 0, 0]);
    assert_eq!(driver.status(), 1);
    assert_eq!(config_bytes(&driver.function, window + 16), [1, 0, 0, 0]);
    for (bar, offset, length) in
        [(1, 0x2000, 4), (0, 0x8000, 4), (0, 0x2001, 2), (0, 0x2000, 8), (0, 0x2000, 0)]
    {
        point(bar, offset, length);
        assert_eq!(config_bytes(&driver.function, window + 16), [0; 4]);
        driver.function.config_write(window + 16, &[1; 4]);
    }
}
