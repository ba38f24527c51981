// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How fault records are kept: the ring, its overflow, one record for each function, and the event.

mod common;

use common::Guest;
use vtd_spec::registers::offset;
use vtd_spec::{Pasid, SourceId};
use vtd_unit::UnitConfig;

const BOUND: Pasid = Pasid::truncated(0x42);

/// Functions that fault once each, at addresses that tell them apart.
struct Crowd {
    guest: Guest,
    endpoints: Vec<vtd_unit::Endpoint<common::Memory>>,
}

impl Crowd {
    fn new(records: u16, functions: u8) -> Self {
        let guest = Guest::with_config(&UnitConfig { fault_records: records, ..UnitConfig::default() });
        let endpoints =
            (0..functions).map(|device| guest.endpoint_at(SourceId::new(0, 4 + device, 0)).0).collect();
        Self { guest, endpoints }
    }

    fn fault(&self, function: usize) {
        let address = 0x1000 * (1 + function as u64);
        self.endpoints[function].read(Guest::with_pasid(BOUND), address, &mut [0]).unwrap_err();
    }

    /// (F, function) of each record.
    fn records(&self) -> Vec<Option<usize>> {
        let base = (self.guest.read64(offset::CAP) >> 24 & 0x3ff) * 16;
        let count = (self.guest.read64(offset::CAP) >> 40 & 0xff) + 1;
        (0..count)
            .map(|index| {
                let high = self.guest.read64(base + index * 16 + 8);
                (high >> 63 != 0).then(|| (self.guest.read64(base + index * 16) >> 12) as usize - 1)
            })
            .collect()
    }

    fn clear_record(&self, index: u64) {
        assert!(self.guest.take_fault(index).is_some());
    }

    /// (PFO, PPF, FRI), FRI where it is valid.
    fn status(&self) -> (bool, bool, u32) {
        let status = self.guest.read32(offset::FSTS);
        assert_eq!(status & 0x70, 0);
        (status & 1 != 0, status & 2 != 0, if status & 2 != 0 { status >> 8 } else { 0 })
    }
}

#[test]
fn records_are_a_ring_that_overflows_once() {
    let crowd = Crowd::new(4, 12);
    for function in 0..4 {
        crowd.fault(function);
    }
    assert_eq!(crowd.records(), [Some(0), Some(1), Some(2), Some(3)]);
    assert_eq!(crowd.status(), (false, true, 0));
    assert_eq!(crowd.guest.messages.take().len(), 1, "one event until software has looked");
    // Full: the next is lost, and that is told.
    crowd.fault(4);
    assert_eq!(crowd.status(), (true, true, 0));
    assert_eq!(crowd.records(), [Some(0), Some(1), Some(2), Some(3)]);
    // Room alone does not help while PFO is set.
    crowd.clear_record(0);
    crowd.clear_record(1);
    crowd.fault(5);
    assert_eq!(crowd.records(), [None, None, Some(2), Some(3)]);
    // PFO is not cleared by anything but a one.
    crowd.guest.write32(offset::FSTS, 0xffff_fffe);
    assert_eq!(crowd.status(), (true, true, 0));
    crowd.guest.write32(offset::FSTS, 1);
    assert_eq!(crowd.status(), (false, true, 0));
    crowd.fault(6);
    assert_eq!(crowd.records(), [Some(6), None, Some(2), Some(3)]);
    assert!(crowd.guest.messages.take().is_empty(), "PPF stood all the time");
    for index in [2, 3, 0] {
        crowd.clear_record(index);
    }
    assert_eq!(crowd.status(), (false, false, 0));
    // The ring goes on where it stopped, and FRI says where that is.
    crowd.fault(7);
    assert_eq!(crowd.records(), [None, Some(7), None, None]);
    assert_eq!(crowd.status(), (false, true, 1));
    assert_eq!(crowd.guest.messages.take().len(), 1);
}

#[test]
fn linux_reads_all_faults_of_a_ring_that_wrapped() {
    let crowd = Crowd::new(3, 9);
    for round in 0..6 {
        let order = [round, round + 1, round + 2];
        for function in order {
            crowd.fault(function);
        }
        let faults: Vec<_> =
            crowd.guest.take_faults().iter().map(|record| (record.fi() >> 12) as usize - 1).collect();
        assert_eq!(faults, order);
        crowd.fault(round);
        crowd.guest.take_faults();
        assert_eq!(crowd.status(), (false, false, 0));
    }
}

#[test]
fn a_function_has_one_unread_record() {
    let crowd = Crowd::new(8, 3);
    crowd.fault(0);
    crowd.fault(1);
    for _ in 0..20 {
        crowd.fault(0);
        crowd.fault(1);
    }
    assert_eq!(crowd.records()[..3], [Some(0), Some(1), None]);
    assert_eq!(crowd.status(), (false, true, 0));
    crowd.clear_record(0);
    crowd.fault(0);
    assert_eq!(crowd.records()[..4], [None, Some(1), Some(0), None]);
}

#[test]
fn the_ring_starts_afresh_when_translation_is_turned_off() {
    let crowd = Crowd::new(4, 4);
    crowd.fault(0);
    crowd.fault(1);
    crowd.guest.take_faults();
    crowd.guest.command_off(1 << 31);
    crowd.guest.command(1 << 31);
    crowd.fault(2);
    assert_eq!(crowd.records(), [Some(2), None, None, None]);
    assert_eq!(crowd.status(), (false, true, 0));
}

#[test]
fn a_record_is_read_only_but_for_its_flag() {
    let crowd = Crowd::new(2, 2);
    crowd.fault(0);
    let base = (crowd.guest.read64(offset::CAP) >> 24 & 0x3ff) * 16;
    let record = [crowd.guest.read64(base), crowd.guest.read64(base + 8)];
    crowd.guest.write64(base, !0);
    crowd.guest.write64(base + 8, !(1 << 63));
    assert_eq!([crowd.guest.read64(base), crowd.guest.read64(base + 8)], record);
    crowd.guest.write64(base + 8, 1 << 63);
    assert_eq!([crowd.guest.read64(base), crowd.guest.read64(base + 8)], [record[0], record[1] & !(1 << 63)]);
}

#[test]
fn no_event_is_raised_while_any_condition_stands() {
    let crowd = Crowd::new(4, 2);
    crowd.guest.endpoint.unsolicited_invalidation_completion();
    assert_eq!(crowd.guest.messages.take().len(), 1);
    crowd.fault(0);
    crowd.guest.queue_qwords([0xf, 0, 0, 0]);
    crowd.guest.ring();
    assert_eq!(crowd.guest.read32(offset::FSTS), 0x32);
    assert!(crowd.guest.messages.take().is_empty());
    crowd.guest.take_faults();
    crowd.guest.write32(offset::FSTS, 0x10);
    crowd.guest.ring();
    // The bad descriptor is fetched again: IQE anew, while ICE still stands.
    assert_eq!(crowd.guest.read32(offset::FSTS) & 0x72, 0x30);
    assert!(crowd.guest.messages.take().is_empty());
    crowd.guest.command_off(1 << 26);
    crowd.guest.write32(offset::FSTS, 0x71);
    crowd.fault(1);
    assert_eq!(crowd.guest.messages.take().len(), 1);
}
