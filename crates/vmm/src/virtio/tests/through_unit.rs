// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! DMA through the remapping unit, by source-id.

use vtd_spec::registers::offset;
use vtd_spec::{
    DomainId, FaultRecord, PasidDirectoryEntry, PasidEntry, PasidGranularTranslationType,
    ScalableContextEntry, SourceId,
};
use vtd_unit::{Endpoint, Message, Notify, Unit, UnitConfig};

use super::*;

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
    let dma: Endpoint<_> = unit.endpoint(id, Arc::new(())).unwrap();
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
    let dma: Endpoint<_> = unit.endpoint(id, Arc::new(())).unwrap();
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
