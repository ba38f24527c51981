// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A mediated function: the device's PASIDs are not those of the tables.

mod common;

use common::{Guest, entry, pasid};
use vm_memory::{Bytes, GuestAddress};
use vtd_spec::descriptors::{PasidDeviceTlb, PasidIotlb, PasidIotlbGranularity};
use vtd_spec::{AddressRange, Descriptor, DomainId, Pasid};
use vtd_unit::{DmaError, PageRequest, SourceId};

const DEVICE: Pasid = Pasid::truncated(3);
const HOST: Pasid = Pasid::truncated(0x777);
const ADDRESS: u64 = 0x7f12_3456_7000;

#[test]
fn requests_use_the_pasid_that_the_devices_stands_for() {
    for ats in [false, true] {
        let guest = Guest::new();
        guest.endpoint.set_ats_enabled(ats);
        guest.endpoint.translate_pasids();
        guest.bind(HOST);
        // The tables know the device's PASID too, as somebody else's.
        guest.bind(DEVICE);
        let (page, other) = (guest.page(), guest.page());
        guest.map(HOST, ADDRESS, page, entry::USER);
        guest.map(DEVICE, ADDRESS, other, entry::USER);
        let requester = Guest::with_pasid(DEVICE);
        assert!(guest.endpoint.write(requester, ADDRESS, &[1]).is_err(), "stands for nothing yet");
        guest.endpoint.set_pasid_translation(DEVICE, Some(HOST));
        guest.endpoint.write(requester, ADDRESS, &[1]).unwrap();
        assert_eq!(guest.memory.read_obj::<u8>(GuestAddress(page)).unwrap(), 1);
        assert_eq!(guest.memory.read_obj::<u8>(GuestAddress(other)).unwrap(), 0);
        // Invalidations name the tables' PASID.
        guest.map(HOST, ADDRESS, 0, 0);
        guest.submit_all(&[
            Descriptor::PasidIotlb(PasidIotlb {
                granularity: PasidIotlbGranularity::Page,
                did: DomainId(1),
                pasid: HOST,
                am: 0,
                ih: false,
                addr: ADDRESS,
            }),
            Descriptor::PasidDeviceTlb(PasidDeviceTlb {
                sid: common::SOURCE_ID,
                pfsid: SourceId(0),
                mip: 0,
                pasid: HOST,
                gi: false,
                range: AddressRange::new(ADDRESS, 0),
            }),
        ]);
        assert!(guest.endpoint.write(requester, ADDRESS, &[2]).is_err());
        if !ats {
            let fault = guest.take_fault(0).unwrap();
            assert_eq!((fault.fr(), fault.pv()), (0x71, HOST), "the record names the tables' PASID");
        }
        guest.map(HOST, ADDRESS, page, entry::USER);
        guest.endpoint.write(requester, ADDRESS, &[3]).unwrap();
        guest.endpoint.set_pasid_translation(DEVICE, None);
        assert!(guest.endpoint.write(requester, ADDRESS, &[4]).is_err());
        assert_eq!(guest.memory.read_obj::<u8>(GuestAddress(page)).unwrap(), 3);
        assert_eq!(guest.take_fault_reason(), None, "the host's tables had no say");
    }
}

#[test]
fn page_requests_carry_the_tables_pasid_and_are_refused_without_one() {
    let guest = Guest::new();
    guest.endpoint.set_ats_enabled(true);
    guest.endpoint.translate_pasids();
    guest.bind(HOST);
    guest.endpoint.set_pasid_translation(DEVICE, Some(HOST));
    let requester = Guest::with_pasid(DEVICE);
    let request = PageRequest { requester, address: ADDRESS, read: true, write: false, last: true, group: 5 };
    assert_eq!(
        guest.endpoint.read(requester, ADDRESS, &mut [0]),
        Err(DmaError::PageFault { address: ADDRESS, write: false })
    );
    guest.endpoint.page_request(request);
    assert_eq!(guest.load(common::PAGE_REQUEST_QUEUE) >> 32 & 0xf_ffff, u64::from(HOST.get()));
    guest.endpoint.page_request(PageRequest { requester: Guest::with_pasid(pasid(4)), ..request });
    let responses = guest.sink.responses.lock().unwrap();
    assert_eq!(responses.len(), 1);
    assert_eq!(responses[0].code, vtd_unit::ResponseCode::InvalidRequest);
}
