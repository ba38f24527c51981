// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use std::vec;

use vtd_spec::{Capability, ExtendedCapability};

use super::*;
use crate::fake::{Fake, capabilities};

const ALL: RangeInclusive<Ioasid> = 1..=ioasid::MAX_ID;
const ENCODINGS: [Encoding; 2] = [Encoding::Early, Encoding::Final];

fn with_vcs() -> (Capability, ExtendedCapability) {
    let (cap, ecap) = capabilities();
    (cap, ecap.with_vcs(true))
}

/// A unit whose host allocates PASIDs.
fn fake(encoding: Encoding) -> Fake {
    let (cap, ecap) = with_vcs();
    let fake = Fake::with(cap, ecap);
    match encoding {
        Encoding::Early => fake.set(early::VCCAP, 1),
        Encoding::Final => fake.set(r#final::VCCAP, 2),
    }
    fake
}

/// VCMD, VCRSP, and the bit of operand and result.
fn layout(encoding: Encoding) -> (u64, u64, u32) {
    match encoding {
        Encoding::Early => (0xe10, 0xe20, 8),
        Encoding::Final => (0xe00, 0xe10, 16),
    }
}

#[test]
fn pasids_are_allocated_and_freed_in_both_encodings() {
    for encoding in ENCODINGS {
        let fake = fake(encoding);
        let (command, response, shift) = layout(encoding);
        let mut interface = VirtualCommand::discover(fake.clone(), encoding).unwrap();
        fake.clear();
        fake.state().script.insert(response, vec![1, 1, 0xabcde << shift].into());
        assert_eq!(interface.allocate(), Ok(Pasid::truncated(0xabcde)));
        fake.set(response, 0);
        interface.free(Pasid::truncated(0xabcde)).unwrap();
        assert_eq!(fake.take_writes(), [(command, 8, 1), (command, 8, 2 | 0xabcde << shift)]);
    }
}

#[test]
fn status_codes_are_told_apart() {
    for (encoding, status, expected) in [
        (Encoding::Early, 1 << 1, Error::VirtualCommandNoPasid),
        (Encoding::Early, 2 << 1, Error::VirtualCommandNoPasid),
        (Encoding::Early, 3 << 1, Error::VirtualCommand { status: 3 }),
        (Encoding::Final, 1 << 1, Error::VirtualCommand { status: 1 }),
        (Encoding::Final, 16 << 1, Error::VirtualCommandNoPasid),
        (Encoding::Final, 1, Error::VirtualCommandTimeout),
    ] {
        let fake = fake(encoding);
        let mut interface = VirtualCommand::discover(fake.clone(), encoding).unwrap();
        fake.state().script.insert(layout(encoding).1, vec![status; 200].into());
        assert_eq!(interface.allocate(), Err(expected), "{encoding:?} {status}");
    }
}

#[test]
fn an_answer_that_comes_too_late_is_not_taken_for_the_next() {
    for encoding in ENCODINGS {
        let fake = fake(encoding);
        let (command, response, shift) = layout(encoding);
        let mut interface = VirtualCommand::discover(fake.clone(), encoding).unwrap();
        fake.clear();
        fake.set(response, 1);
        assert_eq!(interface.allocate(), Err(Error::VirtualCommandTimeout));
        assert_eq!(fake.take_writes(), [(command, 8, 1)]);
        assert_eq!(interface.free(Pasid::truncated(7)), Err(Error::VirtualCommandTimeout));
        assert_eq!(fake.take_writes(), [], "not while one is in progress");
        // The first one's PASID, then the answers to its return and to what is asked for.
        fake.state().script.insert(response, vec![0x55 << shift, 0, 0x66 << shift].into());
        assert_eq!(interface.allocate(), Ok(Pasid::truncated(0x66)));
        assert_eq!(fake.take_writes(), [(command, 8, 1 << 1 | 0x55 << shift), (command, 8, 1)]);
    }
}

#[test]
fn the_interface_is_looked_for_only_where_the_unit_has_it_and_once() {
    let (cap, ecap) = capabilities();
    for encoding in ENCODINGS {
        let without = Fake::with(cap, ecap);
        without.set(0xe00, 1);
        without.set(0xe30, 3);
        assert!(VirtualCommand::discover(without.clone(), encoding).is_none());
        assert!(without.state().log.iter().all(|access| access.1 < 0xe00), "VCCAP is not read");
        let with = fake(encoding);
        let mut interface = VirtualCommand::discover(with.clone(), encoding).unwrap();
        let _ = interface.allocate();
        let vccap = if encoding == Encoding::Early { 0xe00 } else { 0xe30 };
        let reads = with.state().log.iter().filter(|access| !access.0 && access.1 == vccap).count();
        assert_eq!(reads, 1);
        let (cap, ecap) = with_vcs();
        assert!(VirtualCommand::discover(Fake::with(cap, ecap), encoding).is_none(), "PAS is needed");
    }
    let linux = fake(Encoding::Final);
    linux.set(0xe30, 1);
    assert!(VirtualCommand::discover(linux, Encoding::Final).is_some(), "bit 0 is PAS to Linux");
}

#[test]
fn the_systems_pasids_come_from_the_host_where_it_wants_that() {
    for encoding in ENCODINGS {
        let fake = fake(encoding);
        let iommu = fake.driver();
        let (command, response, shift) = layout(encoding);
        let mut pasids = Pasids::new(ALL).unwrap();
        let set = pasids.create_set(10).unwrap();
        let id = pasids.allocate(set, ALL, None).unwrap();
        let outstanding = Error::Pasid(ioasid::Error::Outstanding { allocated: 1 });
        assert_eq!(register(&iommu, &mut pasids, encoding), Err(outstanding));
        pasids.free(set, id).unwrap();
        let registered = register(&iommu, &mut pasids, encoding).unwrap().unwrap();
        fake.clear();
        fake.state().script.insert(response, vec![0x1234 << shift].into());
        let id = pasids.allocate(set, ALL, None).unwrap();
        pasids.free(set, id).unwrap();
        assert_eq!(id, 0x1234);
        assert_eq!(fake.take_writes(), [(command, 8, 1), (command, 8, 2 | 0x1234 << shift)]);
        pasids.unregister_allocator(registered).unwrap();
        assert_eq!(pasids.allocate(set, ALL, None), Ok(1), "the built-in allocator again");
    }
}

#[test]
fn the_hosts_answer_is_not_trusted() {
    let fake = fake(Encoding::Final);
    let iommu = fake.driver();
    let mut pasids = Pasids::new(ALL).unwrap();
    let set = pasids.create_set(10).unwrap();
    register(&iommu, &mut pasids, Encoding::Final).unwrap();
    fake.set(0xe10, 0x42 << 16);
    assert_eq!(pasids.allocate(set, ALL, None), Ok(0x42));
    let again = pasids.allocate(set, ALL, None);
    assert_eq!(again, Err(ioasid::Error::CustomMisbehaved { id: 0x42 }));
    fake.set(0xe10, 0);
    assert_eq!(pasids.allocate(set, ALL, None), Err(ioasid::Error::CustomMisbehaved { id: 0 }));
    fake.set(0xe10, 16 << 1);
    assert_eq!(pasids.allocate(set, ALL, None), Err(ioasid::Error::CustomExhausted));
    assert_eq!(pasids.allocated(), 1);
}

#[test]
fn nothing_is_registered_without_caching_mode() {
    let (cap, ecap) = with_vcs();
    let fake = Fake::with(cap.with_cm(false), ecap);
    fake.set(r#final::VCCAP, 3);
    let iommu = fake.driver();
    let mut pasids = Pasids::new(ALL).unwrap();
    assert_eq!(register(&iommu, &mut pasids, Encoding::Final), Ok(None));
    assert_eq!(pasids.custom_interface(), None);
}
