// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Legacy mode: what guests use that do not know scalable mode, or were told not to.

mod common;

use common::{CONTEXT_TABLE, Guest, ROOT_TABLE, SOURCE_ID, pasid};
use vm_memory::{Bytes, GuestAddress};
use vtd_spec::descriptors::{Iotlb, IotlbGranularity};
use vtd_spec::registers::offset;
use vtd_spec::tables::LegacyTranslationType;
use vtd_spec::{AddressWidth, Descriptor, DomainId, LegacyContextEntry};
use vtd_unit::{DmaError, PageRequest, Requester, ResponseCode, UnitConfig};

const READ: u64 = 1;
const WRITE: u64 = 2;
const DOMAIN: DomainId = DomainId(4);
const ADDRESS: u64 = 0x1234_5000;

struct Legacy {
    guest: Guest,
    table: u64,
}

impl Legacy {
    fn new() -> Self {
        let guest = Guest::powered_up(&UnitConfig::default());
        guest.write32(offset::FECTL, 0);
        guest.enable_queue();
        guest.store(ROOT_TABLE, CONTEXT_TABLE | 1);
        guest.write64(offset::RTADDR, ROOT_TABLE);
        guest.command(1 << 30);
        guest.command(1 << 31);
        let table = guest.page();
        let legacy = Self { guest, table };
        legacy.write_context(legacy.context());
        legacy
    }

    fn context(&self) -> LegacyContextEntry {
        LegacyContextEntry::new()
            .with_p(true)
            .with_did(DOMAIN)
            .with_aw(AddressWidth::Bits39.into_bits())
            .with_ssptptr(self.table)
    }

    fn write_context(&self, entry: LegacyContextEntry) {
        let [low, high] = entry.to_qwords();
        let at = CONTEXT_TABLE + u64::from(SOURCE_ID.devfn()) * 16;
        self.guest.store(at + 8, high);
        self.guest.store(at, low);
    }

    fn map(&self, address: u64, page: u64, rights: u64) {
        let mut table = self.table;
        for level in (2..=3).rev() {
            let at = table + ((address >> (12 + 9 * (level - 1))) & 0x1ff) * 8;
            if self.guest.load(at) == 0 {
                self.guest.store(at, self.guest.page() | READ | WRITE);
            }
            table = self.guest.load(at) & !0xfff;
        }
        self.guest.store(table + ((address >> 12) & 0x1ff) * 8, page | rights);
    }

    fn write(&self) -> Result<(), DmaError> {
        self.guest.endpoint.write(Requester::default(), ADDRESS, &[7])
    }

    fn read(&self) -> Result<(), DmaError> {
        self.guest.endpoint.read(Requester::default(), ADDRESS, &mut [0])
    }
}

#[test]
fn dma_goes_through_the_second_stage_until_it_is_unmapped() {
    let legacy = Legacy::new();
    let page = legacy.guest.page();
    legacy.map(ADDRESS, page, READ | WRITE);
    legacy.write().unwrap();
    assert_eq!(legacy.guest.memory.read_obj::<u8>(GuestAddress(page)).unwrap(), 7);
    legacy.map(ADDRESS, 0, 0);
    let granularity = IotlbGranularity::Page;
    let iotlb = Iotlb { granularity, dw: true, dr: true, did: DOMAIN, am: 0, ih: false, addr: ADDRESS };
    legacy.guest.submit(&Descriptor::Iotlb(iotlb));
    assert!(legacy.write().is_err());
    assert_eq!(legacy.guest.take_fault_reason(), Some(0x05));
    assert!(legacy.read().is_err());
    assert_eq!(legacy.guest.take_fault_reason(), Some(0x06));
}

#[test]
fn pass_through_reaches_memory_and_nothing_else_is_asked() {
    let legacy = Legacy::new();
    legacy.write_context(
        legacy.context().with_tt(LegacyTranslationType::PassThrough.into_bits()).with_ssptptr(0),
    );
    let page = legacy.guest.page();
    legacy.guest.endpoint.write(Requester::default(), page, &[9]).unwrap();
    assert_eq!(legacy.guest.memory.read_obj::<u8>(GuestAddress(page)).unwrap(), 9);
    assert!(legacy.guest.endpoint.write(Requester::default(), 1 << 50, &[9]).is_err());
    assert_eq!(legacy.guest.take_fault_reason(), Some(0x04));
}

#[test]
fn each_reason_of_legacy_mode_can_be_provoked() {
    let context = |f: &dyn Fn(LegacyContextEntry) -> LegacyContextEntry| {
        let legacy = Legacy::new();
        legacy.write_context(f(legacy.context()));
        legacy
    };
    let root = |value: u64| {
        let legacy = Legacy::new();
        legacy.guest.store(ROOT_TABLE, value);
        legacy
    };
    let entry = |value: u64| {
        let legacy = Legacy::new();
        legacy.guest.store(legacy.table + ((ADDRESS >> 30) & 0x1ff) * 8, value);
        legacy
    };
    let outside = Legacy::new();
    outside.guest.write64(offset::RTADDR, 0x7fff_0000_0000);
    outside.guest.command(1 << 30);
    let cases = [
        (0x08, outside),
        (0x01, root(0)),
        (0x0a, root(CONTEXT_TABLE | 3)),
        (0x09, root(0x7fff_0000_0001)),
        (0x02, context(&|entry| entry.with_p(false))),
        (
            0x0b,
            context(&|entry| {
                LegacyContextEntry::from_qwords([entry.to_qwords()[0] | 0x10, entry.to_qwords()[1]])
            }),
        ),
        (0x03, context(&|entry| entry.with_aw(4))),
        (0x03, context(&|entry| entry.with_tt(3))),
        (0x03, context(&|entry| entry.with_ssptptr(0x7fff_0000_0000))),
        (0x07, entry(0x7fff_0000_0003)),
        (0x0c, entry(1 << 11 | 3)),
        (0x06, entry(0)),
    ];
    for (reason, legacy) in cases {
        assert!(legacy.read().is_err(), "{reason:#x}");
        assert_eq!(legacy.guest.take_fault_reason(), Some(reason));
    }
    let legacy = Legacy::new();
    assert!(legacy.guest.endpoint.read(Requester::default(), 1 << 39, &mut [0]).is_err());
    assert_eq!(legacy.guest.take_fault_reason(), Some(0x04));
    legacy.map(ADDRESS, 0xfee0_0000, READ | WRITE);
    assert!(legacy.read().is_err());
    assert_eq!(legacy.guest.take_fault_reason(), Some(0x0e));
}

#[test]
fn requests_that_only_scalable_mode_knows_are_refused() {
    let legacy = Legacy::new();
    let page = legacy.guest.page();
    legacy.map(ADDRESS, page, READ | WRITE);
    legacy.write().unwrap();
    let requester = Guest::with_pasid(pasid(5));
    assert!(legacy.guest.endpoint.read(requester, ADDRESS, &mut [0]).is_err());
    assert_eq!(legacy.guest.take_fault_reason(), Some(0x31));
    let request = PageRequest { requester, address: ADDRESS, read: true, write: false, last: true, group: 1 };
    legacy.guest.endpoint.page_request(request);
    assert_eq!(legacy.guest.take_fault_reason(), Some(0x32));
    assert_eq!(legacy.guest.sink.responses.lock().unwrap()[0].code, ResponseCode::InvalidRequest);
}

#[test]
fn ats_needs_the_context_to_allow_it() {
    let legacy = Legacy::new();
    let page = legacy.guest.page();
    legacy.map(ADDRESS, page, READ);
    legacy.guest.endpoint.set_ats_enabled(true);
    assert!(matches!(legacy.read(), Err(DmaError::TranslationRefused { .. })));
    assert_eq!(legacy.guest.take_fault_reason(), Some(0x0d));
    let kind = LegacyTranslationType::WithDeviceTlb.into_bits();
    legacy.write_context(legacy.context().with_tt(kind));
    legacy.guest.unit.write(offset::RTADDR, &ROOT_TABLE.to_le_bytes());
    legacy.guest.command(1 << 30);
    legacy.read().unwrap();
    assert_eq!(legacy.write(), Err(DmaError::PageFault { address: ADDRESS, write: true }));
    assert_eq!(legacy.guest.take_fault_reason(), None);
}
