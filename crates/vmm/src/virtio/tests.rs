// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A driver for the device: it finds its way as Linux does (drivers/virtio/virtio_pci_modern_dev.c), then behaves and
//! misbehaves.

use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use pci::{MsixLayout, MsixTable, PciFunction};
use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vtd_spec::registers::offset;
use vtd_spec::{
    DomainId, FaultRecord, PasidDirectoryEntry, PasidEntry, PasidGranularTranslationType,
    ScalableContextEntry, SourceId,
};
use vtd_unit::{Endpoint, Message, Notify, Unit, UnitConfig};

use super::common::CommonConfig;
use super::worker::{BOUNCE_SIZE, Shared};
use super::{Disk, DiskOptions, Dma, VirtioBlock};

const MEMORY: u64 = 0x40_0000;
const DESCRIPTORS: u64 = 0x1000;
const DRIVER_AREA: u64 = 0x2000;
const DEVICE_AREA: u64 = 0x3000;
const HEADER: u64 = 0x4000;
const STATUS: u64 = 0x4100;
const INDIRECT: u64 = 0x5000;
const DATA: u64 = 0x1_0000;
const QUEUE_SIZE: u16 = 16;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT_FLAG: u16 = 4;

const VERSION_1: u64 = 1 << 32;
const ACCESS_PLATFORM: u64 = 1 << 33;
const FLUSH: u64 = 1 << 9;
const READ_ONLY: u64 = 1 << 5;
const INDIRECT_DESC: u64 = 1 << 28;
const EVENT_IDX: u64 = 1 << 29;

const QUEUE_DATA: u32 = 0x41;
const CONFIG_DATA: u32 = 0x40;

#[derive(Default)]
struct Interrupts {
    arrived: Mutex<Vec<u32>>,
    more: Condvar,
}

impl Interrupts {
    fn arrive(&self, address: u64, data: u32) {
        assert_eq!(address, 0xfee0_0000);
        self.arrived.lock().unwrap().push(data);
        self.more.notify_all();
    }

    fn wait(&self, data: u32) {
        let deadline = Instant::now() + Duration::from_secs(10);
        let mut arrived = self.arrived.lock().unwrap();
        loop {
            if let Some(index) = arrived.iter().position(|found| *found == data) {
                arrived.remove(index);
                return;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "interrupt {data:#x} did not arrive");
            arrived = self.more.wait_timeout(arrived, left).unwrap().0;
        }
    }

    fn count(&self) -> usize {
        self.arrived.lock().unwrap().len()
    }
}

#[derive(Clone)]
struct TestDma {
    memory: GuestMemoryMmap,
    interrupts: Arc<Interrupts>,
}

impl TestDma {
    fn new() -> Self {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY as usize)]).unwrap();
        Self { memory, interrupts: Arc::default() }
    }
}

impl Dma for TestDma {
    type Memory<'a> = GuestMemoryMmap;

    fn pin(&self, _first: u64) -> Option<GuestMemoryMmap> {
        Some(self.memory.clone())
    }

    fn message(&self, address: u64, data: u32) {
        self.interrupts.arrive(address, data);
    }
}

fn pattern(length: usize, seed: u8) -> Vec<u8> {
    (0..length).map(|at| (at as u8).wrapping_mul(31).wrapping_add((at >> 8) as u8) ^ seed).collect()
}

fn image(sectors: usize) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&pattern(sectors * 512, 0)).unwrap();
    file.seek(SeekFrom::Start(0)).unwrap();
    file
}

fn open(file: &tempfile::NamedTempFile, read_only: bool) -> Disk {
    Disk::open(&DiskOptions { path: file.path().to_owned(), read_only }).unwrap()
}

#[derive(Clone, Copy)]
struct Regions {
    common: u64,
    isr: u64,
    device: u64,
    notify: u64,
}

struct Driver<D: Dma = TestDma> {
    file: tempfile::NamedTempFile,
    function: VirtioBlock<D>,
    memory: GuestMemoryMmap,
    interrupts: Arc<Interrupts>,
    regions: Regions,
    /// What is added to an address of memory before the device gets it.
    io_base: u64,
    published: u16,
}

impl Driver {
    fn new(sectors: usize, read_only: bool) -> Self {
        let dma = TestDma::new();
        let (memory, interrupts) = (dma.memory.clone(), Arc::clone(&dma.interrupts));
        Self::with_dma(dma, 0, memory, interrupts, image(sectors), read_only)
    }

    fn started(sectors: usize, features: u64) -> Self {
        let mut driver = Self::new(sectors, false);
        driver.start(features);
        driver
    }
}

impl<D: Dma> Driver<D> {
    fn with_dma(
        dma: D,
        io_base: u64,
        memory: GuestMemoryMmap,
        interrupts: Arc<Interrupts>,
        file: tempfile::NamedTempFile,
        read_only: bool,
    ) -> Self {
        let function = VirtioBlock::new(dma, open(&file, read_only)).unwrap();
        let regions = regions(&function);
        let driver = Self { file, function, memory, interrupts, regions, io_base, published: 0 };
        driver.enable_pci();
        driver
    }

    fn enable_pci(&self) {
        self.function.config_write(0x04, &[6, 4]);
        for (vector, data) in [(0, CONFIG_DATA), (1, QUEUE_DATA)] {
            let entry = 0x4000 + vector * 16;
            self.function.bar_write(0, entry, &0xfee0_0000_u64.to_le_bytes());
            self.function.bar_write(0, entry + 8, &data.to_le_bytes());
            self.function.bar_write(0, entry + 12, &[0; 4]);
        }
        self.function.config_write(find(&self.function, 0x11) + 2, &[0, 0x80]);
    }

    fn common32(&self, offset: u64, value: u32) {
        self.function.bar_write(0, self.regions.common + offset, &value.to_le_bytes());
    }

    fn common16(&self, offset: u64, value: u16) {
        self.function.bar_write(0, self.regions.common + offset, &value.to_le_bytes());
    }

    fn read32(&self, at: u64) -> u32 {
        let mut data = [0; 4];
        self.function.bar_read(0, at, &mut data);
        u32::from_le_bytes(data)
    }

    fn status(&self) -> u8 {
        let mut status = [0];
        self.function.bar_read(0, self.regions.common + 0x14, &mut status);
        status[0]
    }

    fn set_status(&self, status: u8) {
        self.function.bar_write(0, self.regions.common + 0x14, &[status]);
    }

    fn offered(&self) -> u64 {
        self.common32(0, 0);
        let low = self.read32(self.regions.common + 4);
        self.common32(0, 1);
        u64::from(self.read32(self.regions.common + 4)) << 32 | u64::from(low)
    }

    fn agree(&self, features: u64) -> bool {
        self.set_status(1);
        self.set_status(3);
        self.common32(8, 0);
        self.common32(0xc, features as u32);
        self.common32(8, 1);
        self.common32(0xc, (features >> 32) as u32);
        self.set_status(0xb);
        self.status() & 8 != 0
    }

    fn start(&mut self, features: u64) {
        for at in [DESCRIPTORS, DRIVER_AREA, DEVICE_AREA] {
            self.memory.write_slice(&[0; 0x1000], GuestAddress(at)).unwrap();
        }
        self.published = 0;
        assert!(self.agree(features | VERSION_1 | ACCESS_PLATFORM));
        self.common16(0x10, 0);
        self.common16(0x16, 0);
        self.common16(0x18, QUEUE_SIZE);
        self.common16(0x1a, 1);
        for (register, address) in [(0x20, DESCRIPTORS), (0x28, DRIVER_AREA), (0x30, DEVICE_AREA)] {
            let address = self.io_base + address;
            self.common32(register, address as u32);
            self.common32(register + 4, (address >> 32) as u32);
        }
        self.common16(0x1c, 1);
        self.set_status(0xf);
    }

    fn descriptor(&self, table: u64, index: u16, address: u64, length: u32, flags: u16, next: u16) {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.io_base.wrapping_add(address).to_le_bytes());
        bytes[8..12].copy_from_slice(&length.to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        self.memory.write_slice(&bytes, GuestAddress(table + u64::from(index) * 16)).unwrap();
    }

    fn header(&self, kind: u32, sector: u64) {
        self.memory.write_obj(kind.to_le(), GuestAddress(HEADER)).unwrap();
        self.memory.write_obj(0_u32, GuestAddress(HEADER + 4)).unwrap();
        self.memory.write_obj(sector.to_le(), GuestAddress(HEADER + 8)).unwrap();
        self.memory.write_obj(0xaa_u8, GuestAddress(STATUS)).unwrap();
    }

    /// Header, data pieces and status as one chain from descriptor 0.
    fn chain(&self, table: u64, data: &[(u64, u32)], data_flags: u16) -> u16 {
        self.descriptor(table, 0, HEADER, 16, NEXT, 1);
        let mut index = 1;
        for (address, length) in data {
            self.descriptor(table, index, *address, *length, data_flags | NEXT, index + 1);
            index += 1;
        }
        self.descriptor(table, index, STATUS, 1, WRITE, 0);
        index + 1
    }

    fn publish(&mut self, head: u16) {
        let slot = DRIVER_AREA + 4 + u64::from(self.published % QUEUE_SIZE) * 2;
        self.memory.write_obj(head.to_le(), GuestAddress(slot)).unwrap();
        // used_event: an interrupt for the next used entry.
        let used_event = DRIVER_AREA + 4 + u64::from(QUEUE_SIZE) * 2;
        self.memory.write_obj(self.published.to_le(), GuestAddress(used_event)).unwrap();
        self.published = self.published.wrapping_add(1);
        self.memory.write_obj(self.published.to_le(), GuestAddress(DRIVER_AREA + 2)).unwrap();
    }

    fn kick(&self) {
        self.function.bar_write(0, self.regions.notify, &[0, 0]);
    }

    fn used(&self) -> u16 {
        u16::from_le(self.memory.read_obj(GuestAddress(DEVICE_AREA + 2)).unwrap())
    }

    /// Runs one request to its end; returns the status and the length in the used ring.
    fn request(&mut self, kind: u32, sector: u64, data: &[(u64, u32)], data_flags: u16) -> (u8, u32) {
        self.header(kind, sector);
        self.chain(DESCRIPTORS, data, data_flags);
        self.finish(0)
    }

    fn finish(&mut self, head: u16) -> (u8, u32) {
        self.publish(head);
        self.kick();
        self.interrupts.wait(QUEUE_DATA);
        assert_eq!(self.used(), self.published);
        let element = DEVICE_AREA + 4 + u64::from((self.published - 1) % QUEUE_SIZE) * 8;
        let id: u32 = self.memory.read_obj(GuestAddress(element)).unwrap();
        assert_eq!(id, u32::from(head));
        let length = self.memory.read_obj(GuestAddress(element + 4)).unwrap();
        (self.memory.read_obj(GuestAddress(STATUS)).unwrap(), length)
    }

    fn data(&self, address: u64, length: usize) -> Vec<u8> {
        let mut data = vec![0; length];
        self.memory.read_slice(&mut data, GuestAddress(address)).unwrap();
        data
    }

    fn disk(&self, offset: u64, length: usize) -> Vec<u8> {
        let mut data = vec![0; length];
        self.file.as_file().read_exact_at(&mut data, offset).unwrap();
        data
    }

    fn expect_needs_reset(&mut self, head: u16) {
        self.publish(head);
        self.kick();
        self.interrupts.wait(CONFIG_DATA);
        assert_eq!(self.status(), 0x4f);
        self.set_status(0);
        assert_eq!(self.status(), 0);
        self.start(0);
        let read = self.request(0, 0, &[(DATA, 512)], WRITE);
        assert_eq!(read, (0, 513), "works again after the reset");
    }
}

fn config_bytes<const N: usize>(function: &impl PciFunction, offset: u16) -> [u8; N] {
    let mut data = [0; N];
    function.config_read(offset, &mut data);
    data
}

fn capabilities(function: &impl PciFunction) -> Vec<(u8, u16)> {
    let mut found = vec![];
    let [mut at] = config_bytes(function, 0x34);
    while at != 0 {
        let [id, next] = config_bytes(function, at.into());
        found.push((id, u16::from(at)));
        at = next;
    }
    found
}

fn find(function: &impl PciFunction, id: u8) -> u16 {
    capabilities(function).into_iter().find(|cap| cap.0 == id).unwrap().1
}

/// virtio_pci_find_capability and vp_modern_map_capability
fn regions(function: &impl PciFunction) -> Regions {
    let find = |kind: u8, minimum: u32| {
        let mut vendor = capabilities(function).into_iter().filter(|cap| cap.0 == 9);
        let at = vendor.find(|cap| config_bytes::<1>(function, cap.1 + 3) == [kind]).unwrap().1;
        assert_eq!(config_bytes::<1>(function, at + 4), [0], "BAR 0");
        assert!(u32::from_le_bytes(config_bytes(function, at + 12)) >= minimum);
        u64::from(u32::from_le_bytes(config_bytes(function, at + 8)))
    };
    Regions { common: find(1, 0x38), isr: find(3, 1), device: find(4, 0x18), notify: find(2, 2) }
}

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
fn data_goes_to_the_file_and_comes_back_from_it_in_pieces_of_any_size() {
    for features in [0, FLUSH | EVENT_IDX | INDIRECT_DESC] {
        let mut driver = Driver::started(1024, features);
        // Longer than one bounce buffer, in odd pieces.
        let length = 3 * BOUNCE_SIZE / 2;
        let pieces = [(DATA + 1, 1000), (DATA + 0x2_0003, 70_000), (DATA + 0x1_0000, length as u32 - 71_000)];
        let (status, written) = driver.request(0, 7, &pieces, WRITE);
        assert_eq!((status, written), (0, length as u32 + 1));
        let mut read = vec![];
        for (address, length) in pieces {
            read.extend(driver.data(address, length as usize));
        }
        assert_eq!(read, driver.disk(7 * 512, length));
        assert_eq!(driver.data(DATA, 1), [0], "nothing before the buffer");

        let fresh = pattern(length, 0x77);
        let mut rest = fresh.as_slice();
        for (address, length) in pieces {
            let (part, after) = rest.split_at(length as usize);
            driver.memory.write_slice(part, GuestAddress(address)).unwrap();
            rest = after;
        }
        assert_eq!(driver.request(1, 500, &pieces, 0), (0, 1));
        assert_eq!(driver.disk(500 * 512, length), fresh);
        assert_eq!(driver.disk(499 * 512, 512), &pattern(500 * 512, 0)[499 * 512..]);
        assert_eq!(driver.request(4, 0, &[], 0), (0, 1));
        assert_eq!(driver.request(8, 0, &[(DATA, 20)], WRITE), (0, 21));
        assert_eq!(&driver.data(DATA, 10), b"vsva-disk\0");
    }
}

#[test]
fn chains_may_be_indirect_and_laid_out_at_will() {
    let mut driver = Driver::started(16, INDIRECT_DESC);
    driver.header(0, 3);
    let count = driver.chain(INDIRECT, &[(DATA, 512)], WRITE);
    driver.descriptor(DESCRIPTORS, 5, INDIRECT, u32::from(count) * 16, INDIRECT_FLAG, 0);
    assert_eq!(driver.finish(5), (0, 513));
    assert_eq!(driver.data(DATA, 512), driver.disk(3 * 512, 512));

    // The header in two descriptors, data and status in one.
    driver.header(0, 4);
    driver.descriptor(DESCRIPTORS, 0, HEADER, 9, NEXT, 3);
    driver.descriptor(DESCRIPTORS, 3, HEADER + 9, 7, NEXT, 2);
    driver.descriptor(DESCRIPTORS, 2, DATA + 0x1000, 513, WRITE, 0);
    driver.finish(0);
    assert_eq!(driver.data(DATA + 0x1000, 512), driver.disk(4 * 512, 512));
    assert_eq!(driver.data(DATA + 0x1200, 1), [0]);
}

#[test]
fn requests_that_cannot_be_served_get_a_status() {
    let mut driver = Driver::started(16, 0);
    assert_eq!(driver.request(0, 16, &[(DATA, 512)], WRITE), (1, 0), "beyond the end");
    assert_eq!(driver.request(0, 15, &[(DATA, 1024)], WRITE), (1, 0), "across the end");
    assert_eq!(driver.request(1, u64::MAX, &[(DATA, 512)], 0), (1, 1));
    assert_eq!(driver.request(0, 0, &[(DATA, 100)], WRITE), (1, 0), "part of a sector");
    assert_eq!(driver.request(0, 0, &[(MEMORY, 512)], WRITE), (1, 0), "no memory");
    assert_eq!(driver.request(1, 0, &[(u64::MAX - 100, 512)], 0), (1, 1));
    assert_eq!(driver.request(11, 0, &[(DATA, 512)], 0), (2, 1), "discard was not offered");
    assert_eq!(driver.request(0, 0, &[], WRITE), (0, 1));
    assert_eq!(driver.disk(0, 16 * 512), pattern(16 * 512, 0));
}

#[test]
fn a_read_only_disk_is_not_written() {
    let mut driver = Driver::new(16, true);
    driver.start(READ_ONLY);
    assert_eq!(driver.request(1, 0, &[(DATA, 512)], 0), (1, 1));
    assert_eq!(driver.request(4, 0, &[], 0), (0, 1));
    assert_eq!(driver.request(0, 1, &[(DATA, 512)], WRITE), (0, 513));
    assert_eq!(driver.data(DATA, 512), driver.disk(512, 512));
}

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

struct ToInterrupts(Arc<Interrupts>);

impl Notify for ToInterrupts {
    fn message(&self, message: Message) {
        self.0.arrive(message.address, message.data);
    }
}

const IO_BASE: u64 = 0x1_c000_0000;
const MAPPED: u64 = 0x10_0000;
const FAULT_DATA: u32 = 0x50;

/// Translates `IO_BASE` to 0, 1 MiB by pages of 4 KiB, for requests without PASID, with tables as Linux makes them.
fn translating_unit(
    memory: &GuestMemoryMmap,
    interrupts: &Arc<Interrupts>,
    id: SourceId,
) -> Unit<GuestMemoryMmap> {
    let [root, context, directory, pasids, level4, level3, level2, level1] =
        [0, 1, 2, 3, 4, 5, 6, 7].map(|page| 0x30_0000 + page * 0x1000);
    let store = |at: u64, value: u64| memory.write_obj(value, GuestAddress(at)).unwrap();
    store(root, context | 1);
    let entry = ScalableContextEntry::new().with_present(true).with_pasid_dir_ptr(directory);
    for (index, value) in (0..).zip(entry.to_qwords()) {
        store(context + u64::from(id.devfn()) * 32 + index * 8, value);
    }
    store(directory, PasidDirectoryEntry::new().with_p(true).with_smptblptr(pasids).into_bits());
    let entry = PasidEntry::new()
        .with_p(true)
        .with_pgtt(PasidGranularTranslationType::FirstStage)
        .with_did(DomainId(1))
        .with_pwsnp(true)
        .with_fsptptr(level4);
    for (index, value) in (0..).zip(entry.to_qwords()) {
        store(pasids + index * 8, value);
    }
    store(level4, level3 | 7);
    store(level3 + (IO_BASE >> 30) * 8, level2 | 7);
    store(level2, level1 | 7);
    for page in 0..MAPPED >> 12 {
        store(level1 + page * 8, page << 12 | 7);
    }

    let notify = Arc::new(ToInterrupts(Arc::clone(interrupts)));
    let unit = Unit::new(&UnitConfig::default(), Arc::new(memory.clone()), notify).unwrap();
    let write = |at: u64, value: u32| unit.write(at, &value.to_le_bytes());
    write(offset::FEDATA, FAULT_DATA);
    write(offset::FEADDR, 0xfee0_0000);
    write(offset::FECTL, 0);
    unit.write(offset::RTADDR, &(root | 0x400).to_le_bytes());
    write(offset::GCMD, 1 << 30);
    write(offset::GCMD, 1 << 31);
    unit
}

#[test]
fn dma_is_translated_by_source_id_and_a_fault_is_an_error_and_a_record() {
    let TestDma { memory, interrupts } = TestDma::new();
    let id = SourceId::new(0, 2, 0);
    let unit = translating_unit(&memory, &interrupts, id);
    let dma: Endpoint<_> = super::endpoint(&unit, id);
    let mut driver = Driver::with_dma(dma, IO_BASE, memory, interrupts, image(64), false);
    driver.start(INDIRECT_DESC | EVENT_IDX | FLUSH);
    let length = 0x3000;
    assert_eq!(driver.request(0, 5, &[(DATA + 512, length)], WRITE), (0, length + 1));
    assert_eq!(driver.data(DATA + 512, length as usize), driver.disk(5 * 512, length as usize));
    driver.memory.write_slice(&pattern(1024, 9), GuestAddress(DATA)).unwrap();
    assert_eq!(driver.request(1, 0, &[(DATA, 1024)], 0), (0, 1));
    assert_eq!(driver.disk(0, 1024), pattern(1024, 9));

    let capabilities = unit.capabilities();
    let records = u64::from(capabilities.cap.fro()) * 16;
    let interrupts = Arc::clone(&driver.interrupts);
    let fault = || {
        interrupts.wait(FAULT_DATA);
        let read = |at: u64| {
            let mut data = [0; 8];
            let (low, high) = data.split_at_mut(4);
            unit.read(at, low);
            unit.read(at + 4, high);
            u64::from_le_bytes(data)
        };
        // The first pending record, by FSTS.FRI.
        let record_at = records + (read(offset::FSTS) >> 8 & 0xff) * 16;
        let record = FaultRecord::from_qwords([read(record_at), read(record_at + 8)]);
        unit.write(record_at + 12, &(1_u32 << 31).to_le_bytes());
        assert!(record.f());
        (record.sid(), record.fi())
    };
    // The second page of the buffer is not mapped: the first one's bytes count as written or not, the status tells.
    let (status, _) = driver.request(0, 0, &[(MAPPED - 512, 1024)], WRITE);
    assert_eq!(status, 1);
    assert_eq!(fault(), (id, IO_BASE + MAPPED));

    // A status byte that cannot be written is more than an error of the request.
    driver.header(4, 0);
    driver.descriptor(DESCRIPTORS, 0, HEADER, 16, NEXT, 1);
    driver.descriptor(DESCRIPTORS, 1, MAPPED + 0x1234, 1, WRITE, 0);
    driver.expect_needs_reset(0);
    assert_eq!(fault(), (id, IO_BASE + MAPPED + 0x1000));
}

#[test]
fn queues_and_buffers_at_the_end_of_the_address_space_fault() {
    let TestDma { memory, interrupts } = TestDma::new();
    let id = SourceId::new(0, 2, 0);
    let unit = translating_unit(&memory, &interrupts, id);
    let dma: Endpoint<_> = super::endpoint(&unit, id);
    let mut driver = Driver::with_dma(dma, IO_BASE, memory, interrupts, image(64), false);
    driver.start(0);
    let last = (u64::MAX - 100).wrapping_sub(IO_BASE);
    assert_eq!(driver.request(0, 0, &[(last, 512)], WRITE).0, 1);
    assert_eq!(driver.request(1, 0, &[(last, 512)], 0).0, 1);
    for register in [0x20, 0x28, 0x30] {
        driver.set_status(0);
        assert!(driver.agree(VERSION_1 | ACCESS_PLATFORM));
        driver.common16(0x10, 0);
        driver.common16(0x18, QUEUE_SIZE);
        for (other, address) in [(0x20, DESCRIPTORS), (0x28, DRIVER_AREA), (0x30, DEVICE_AREA)] {
            let address = if other == register { u64::MAX << 4 } else { IO_BASE + address };
            driver.common32(other, address as u32);
            driver.common32(other + 4, (address >> 32) as u32);
        }
        driver.memory.write_obj(0u16, GuestAddress(DRIVER_AREA + 2)).unwrap();
        driver.published = 0;
        driver.common16(0x1c, 1);
        driver.set_status(0xf);
        driver.header(0, 0);
        driver.chain(DESCRIPTORS, &[(DATA, 512)], WRITE);
        driver.publish(0);
        driver.kick();
        driver.interrupts.wait(CONFIG_DATA);
        assert_eq!(driver.status(), 0x4f, "{register:#x}");
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
                    let features = features & offered | VERSION_1 | ACCESS_PLATFORM;
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
                Op::Serve => shared.serve_all(&mut bounce),
            }
        }
        shared.serve_all(&mut bounce);
        prop_assert_eq!(file.as_file().metadata().unwrap().len(), 8 * 512);
    }
}
