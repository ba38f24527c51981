// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A driver for the device: it finds its way as Linux does (drivers/virtio/virtio_pci_modern_dev.c), then behaves and
//! misbehaves.

use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex};

use pci::PciFunction;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vtd_unit::Message;

use super::{Disk, DiskOptions, Dma, VirtioBlock};

mod boundaries;
mod function;
mod hostile;
mod requests;
mod through_unit;

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
}

impl Interrupts {
    fn arrive(&self, address: u64, data: u32) {
        assert_eq!(address, 0xfee0_0000);
        self.arrived.lock().unwrap().push(data);
    }

    fn wait(&self, data: u32) {
        patience::eventually(&format!("interrupt {data:#x}"), || {
            let mut arrived = self.arrived.lock().unwrap();
            let index = arrived.iter().position(|found| *found == data);
            index.is_some_and(|index| arrived.remove(index) == data)
        });
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

    fn message(&self, message: Message) {
        self.interrupts.arrive(message.address, message.data);
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
