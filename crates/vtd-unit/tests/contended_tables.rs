// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! SFS.10 and SSS.6: an accessed or dirty bit that cannot be set, because the entry never stays the same for long enough.

mod common;

use std::sync::Arc;

use common::{Guest, ROOT_TABLE, SOURCE_ID, entry, pasid};
use vm_memory::bitmap::BS;
use vm_memory::guest_memory::Error;
use vm_memory::{
    Bytes, GuestAddress, GuestMemoryRegion, GuestMemoryRegionBytes, GuestRegionCollection, GuestRegionMmap,
    GuestUsize, MemoryRegionAddress, VolatileSlice,
};
use vtd_spec::registers::offset;
use vtd_spec::{AddressWidth, DomainId, PasidEntry, PasidGranularTranslationType, SecondStageEntry};
use vtd_unit::{DmaError, EndpointSink, Notify, Unit, UnitConfig};

/// A region in which, if it is `restless`, every access finds that an ignored bit of the quadword has just changed.
struct Region {
    region: GuestRegionMmap<()>,
    restless: bool,
}

impl GuestMemoryRegion for Region {
    type B = ();

    fn len(&self) -> GuestUsize {
        self.region.len()
    }

    fn start_addr(&self) -> GuestAddress {
        self.region.start_addr()
    }

    fn bitmap(&self) -> BS<'_, Self::B> {
        self.region.bitmap()
    }

    fn get_slice(
        &self,
        offset: MemoryRegionAddress,
        count: usize,
    ) -> Result<VolatileSlice<'_, BS<'_, Self::B>>, Error> {
        if self.restless && count == 8 {
            let entry: u64 = self.region.read_obj(offset)?;
            self.region.write_obj(entry ^ 1 << 10, offset)?;
        }
        self.region.get_slice(offset, count)
    }
}

impl GuestMemoryRegionBytes for Region {}

const TABLES: u64 = 0x10_0000;
const SECOND_TABLES: u64 = TABLES + 0x4000;

#[test]
fn an_update_that_fails_is_a_fault_and_recorded_for_translation_requests_too() {
    let region = |start, bytes, restless| Region {
        region: GuestRegionMmap::from_range(GuestAddress(start), bytes, None).unwrap(),
        restless,
    };
    let memory =
        GuestRegionCollection::from_regions(vec![region(0, 0x1_0000, false), region(TABLES, 0x1_0000, true)])
            .unwrap();
    let store = |address, value: u64| memory.write_obj(value, GuestAddress(address)).unwrap();
    store(ROOT_TABLE, 0x2001);
    store(0x2000 + u64::from(SOURCE_ID.0) * 32, 0x3000 | 0xd);
    store(0x3008, 0x4001);
    let pasid_entry = Guest::first_stage(DomainId(1), TABLES);
    for (index, qword) in pasid_entry.to_qwords().into_iter().enumerate() {
        store(0x4000 + 2 * 64 + 8 * index as u64, qword);
    }
    // Accessed everywhere but in the leaf for one page; dirty nowhere.
    for level in 0..3 {
        store(TABLES + 0x1000 * level, (TABLES + 0x1000 * (level + 1)) | entry::USER | entry::A);
    }
    store(TABLES + 0x3008, 0x8000 | entry::USER | entry::A);
    store(TABLES + 0x3010, 0x8000 | entry::USER);
    store(TABLES + 0x3018, 0x8000 | entry::USER | entry::A | entry::D);
    // The same once more for a second stage.
    let second = PasidEntry::new()
        .with_p(true)
        .with_pgtt(PasidGranularTranslationType::SecondStage)
        .with_did(DomainId(2))
        .with_aw(AddressWidth::Bits48.into_bits())
        .with_ssptptr(SECOND_TABLES)
        .with_ssade(true)
        .with_pwsnp(true);
    for (index, qword) in second.to_qwords().into_iter().enumerate() {
        store(0x4000 + 3 * 64 + 8 * index as u64, qword);
    }
    let (rights, a, d) = (3, SecondStageEntry::A, SecondStageEntry::D);
    for level in 0..3 {
        store(SECOND_TABLES + 0x1000 * level, (SECOND_TABLES + 0x1000 * (level + 1)) | rights | a);
    }
    store(SECOND_TABLES + 0x3008, 0x8000 | rights | a);
    store(SECOND_TABLES + 0x3010, 0x8000 | rights);
    store(SECOND_TABLES + 0x3018, 0x8000 | rights | a | d);

    let messages = Arc::new(common::Messages::default());
    let notify = Arc::clone(&messages) as Arc<dyn Notify>;
    let config = UnitConfig { ssts: true, ssads: true, ..UnitConfig::default() };
    let unit = Unit::new(&config, Arc::new(memory), notify).unwrap();
    let sink: Arc<dyn EndpointSink> = Arc::new(common::Sink::default());
    let endpoint = unit.endpoint(SOURCE_ID, sink).unwrap();
    unit.write(offset::RTADDR, &(ROOT_TABLE | 0x400).to_le_bytes());
    unit.write(offset::GCMD, &(1u32 << 30).to_le_bytes());
    unit.write(offset::GCMD, &(1u32 << 31).to_le_bytes());

    let reason = || {
        let mut high = [0; 8];
        unit.read(0x228, &mut high);
        unit.write(0x22c, &(1u32 << 31).to_le_bytes());
        unit.write(offset::FSTS, &1u32.to_le_bytes());
        let high = u64::from_le_bytes(high);
        (high >> 63 != 0).then_some((high >> 32) as u8)
    };
    for (number, code, ats) in
        [(0x42, 0x91, false), (0x42, 0x91, true), (0x43, 0x7d, false), (0x43, 0x7d, true)]
    {
        let requester = Guest::with_pasid(pasid(number));
        endpoint.set_ats_enabled(ats);
        // A translation request may be repeated after SFS.10, not after SSS.6.
        let error = |address, write| match (ats, code) {
            (false, _) => DmaError::Refused { address },
            (true, 0x91) => DmaError::PageFault { address, write },
            (true, _) => DmaError::TranslationRefused { address, completer_abort: true },
        };
        // Each on its own record, which is where the ring is reset to.
        let run = |address: u64, write: bool, expected: Option<u8>| {
            unit.write(offset::GCMD, &0u32.to_le_bytes());
            unit.write(offset::GCMD, &(1u32 << 31).to_le_bytes());
            let result = if write {
                endpoint.write(requester, address, &[1])
            } else {
                endpoint.read(requester, address, &mut [0])
            };
            assert_eq!(result, expected.map_or(Ok(()), |_| Err(error(address, write))));
            assert_eq!(reason(), expected, "{address:#x} write: {write} ats: {ats}");
        };
        run(0x1000, false, None);
        run(0x1000, true, Some(code));
        run(0x2000, false, Some(code));
        run(0x2000, true, Some(code));
        run(0x3000, true, None);
    }
}
