// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Each power of two and its neighbours in every field that a driver writes: registers, configuration, descriptors, rings and
//! request headers. No arithmetic on them overflows (tests are built with overflow checks), the disk keeps its size, and the
//! device works again after a reset.

use pci::{MsixLayout, MsixTable};

use super::super::common::CommonConfig;
use super::super::worker::{BOUNCE_SIZE, Shared};
use super::hostile::start;
use super::*;

const SECTORS: usize = 8;
const FEATURES: u64 = FLUSH | INDIRECT_DESC | EVENT_IDX;

/// 0, all ones, each power of two, one more and one less.
fn boundaries() -> impl Iterator<Item = u64> {
    let around = |bit: u32| [(1u64 << bit).wrapping_sub(1), 1 << bit, (1 << bit) + 1];
    (0..64).flat_map(around).chain([0, u64::MAX, u64::MAX - 1])
}

/// A device whose worker runs on this thread, so that its panic is one here.
struct Device {
    file: tempfile::NamedTempFile,
    memory: GuestMemoryMmap,
    shared: Shared<TestDma>,
    bounce: Vec<u8>,
}

impl Device {
    fn new() -> Self {
        let file = image(SECTORS);
        let dma = TestDma::new();
        let memory = dma.memory.clone();
        let msix = MsixTable::new(MsixLayout::in_bar(0, 2, 0, 0x800));
        let shared = Shared::new(dma, open(&file, false), CommonConfig::new(FEATURES, 256, 2), msix);
        shared.set_bus_master(true);
        Self { file, memory, shared, bounce: vec![0; BOUNCE_SIZE] }
    }

    fn store(&self, at: u64, value: u64, bytes: usize) {
        self.memory.write_slice(&value.to_le_bytes()[..bytes], GuestAddress(at)).unwrap();
    }

    /// A queue with a request in it: a read of sector 0, in `table`.
    fn prepare(&self, table: u64) {
        for area in [DESCRIPTORS, DRIVER_AREA, DEVICE_AREA, HEADER, INDIRECT] {
            self.memory.write_slice(&[0; 0x1000], GuestAddress(area)).unwrap();
        }
        start(&self.shared, QUEUE_SIZE, FEATURES);
        for (index, (address, length, flags)) in
            [(HEADER, 16, NEXT), (DATA, 512, WRITE | NEXT), (STATUS, 1, WRITE)].into_iter().enumerate()
        {
            let at = table + index as u64 * 16;
            self.store(at, address, 8);
            self.store(at + 8, length, 4);
            self.store(at + 12, flags.into(), 2);
            self.store(at + 14, index as u64 + 1, 2);
        }
        if table == INDIRECT {
            self.store(DESCRIPTORS, INDIRECT, 8);
            self.store(DESCRIPTORS + 8, 48, 4);
            self.store(DESCRIPTORS + 12, INDIRECT_FLAG.into(), 2);
        }
        self.store(STATUS, 0xaa, 1);
        self.store(DRIVER_AREA + 2, 1, 2);
    }

    fn serve(&mut self) {
        self.shared.serve_all(&mut self.bounce);
        assert_eq!(self.file.as_file().metadata().unwrap().len(), SECTORS as u64 * 512);
    }

    fn status(&self) -> u8 {
        self.memory.read_obj(GuestAddress(STATUS)).unwrap()
    }

    fn works(&mut self) {
        self.prepare(DESCRIPTORS);
        self.serve();
        assert_eq!(self.status(), 0);
    }
}

#[test]
fn boundaries_in_every_field_of_a_request_do_no_harm() {
    let header = [(HEADER, 4), (HEADER + 4, 4), (HEADER + 8, 8)];
    let descriptor = |table: u64| {
        (0..3).flat_map(move |index| {
            [(0, 8), (8, 4), (12, 2), (14, 2)].map(|(field, bytes)| (table + index * 16 + field, bytes))
        })
    };
    // flags, idx, the first entry, used_event.
    let ring = [(0, 2), (2, 2), (4, 2), (4 + 2 * u64::from(QUEUE_SIZE), 2)]
        .map(|(field, bytes)| (DRIVER_AREA + field, bytes));
    let mut device = Device::new();
    device.works();
    for table in [DESCRIPTORS, INDIRECT] {
        let fields: Vec<_> = header.into_iter().chain(descriptor(table)).chain(ring).collect();
        for (at, bytes) in fields {
            for value in boundaries() {
                device.prepare(table);
                device.store(at, value, bytes);
                device.serve();
            }
        }
        // A sector in every kind of request, and a length beside it.
        for kind in (0..16).chain([u64::from(u32::MAX)]) {
            for sector in boundaries() {
                for length in [0, 1, 511, 512, 513, 1 << 20, u64::from(u32::MAX)] {
                    device.prepare(table);
                    device.store(HEADER, kind, 4);
                    device.store(HEADER + 8, sector, 8);
                    device.store(table + 16 + 8, length, 4);
                    if kind == 1 {
                        device.store(table + 16 + 12, NEXT.into(), 2);
                    }
                    device.serve();
                }
            }
        }
    }
    device.works();
}

#[test]
fn boundaries_in_every_register_do_no_harm() {
    let mut device = Device::new();
    for at in 0..0x44 {
        for value in boundaries() {
            for bytes in [1, 2, 4, 8] {
                device.prepare(DESCRIPTORS);
                device.shared.common_write(at, &value.to_le_bytes()[..bytes]);
                device.serve();
                // The same before the driver is ready, which then is.
                device.shared.common_write(0x14, &[0]);
                device.shared.common_write(0x14, &[3]);
                device.shared.common_write(at, &value.to_le_bytes()[..bytes]);
                device.shared.common_write(0x14, &[0xf]);
                device.serve();
            }
        }
    }
    device.works();
}

#[test]
fn boundaries_in_configuration_space_and_windows_do_no_harm() {
    let driver = Driver::new(SECTORS, false);
    for value in boundaries() {
        for bytes in [1, 2, 4] {
            let data = &value.to_le_bytes()[..bytes];
            for at in (0..4096u16).step_by(bytes) {
                driver.function.config_write(at, data);
                driver.function.config_read(at, &mut [0; 8][..bytes]);
            }
        }
        for bytes in [1, 2, 4, 8] {
            let data = &value.to_le_bytes()[..bytes];
            let regions = [driver.regions.isr, driver.regions.device, driver.regions.notify, 0x4000, 0x4800];
            for at in regions.into_iter().flat_map(|region| region..region + 0x20) {
                driver.function.bar_write(0, at, data);
                driver.function.bar_read(0, at, &mut [0; 8][..bytes]);
            }
            for at in boundaries() {
                driver.function.bar_write(0, at, data);
                driver.function.bar_read(0, at, &mut [0; 8][..bytes]);
            }
        }
    }
    driver.function.reset();
    driver.enable_pci();
    let mut driver = driver;
    driver.start(0);
    assert_eq!(driver.request(0, 0, &[(DATA, 512)], WRITE), (0, 513));
}
