// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

use super::*;
use crate::fake::Fake;

const RECORDS: u64 = 0x220;

fn record(fake: &Fake, index: u64, address: u64) -> FaultRecord {
    let record = FaultRecord::new().with_fi(address).with_fr(0x71).with_f(true);
    let [low, high] = record.to_qwords();
    fake.set(RECORDS + 16 * index, low);
    fake.set(RECORDS + 16 * index + 8, high);
    record
}

#[test]
fn records_are_read_from_the_index_on_and_cleared_one_by_one() {
    let fake = Fake::new();
    let mut iommu = fake.driver();
    let expected = [record(&fake, 3, 0x3000), record(&fake, 0, 0x4000)];
    fake.set(offset::FSTS, FaultStatus::new().with_ppf(true).with_pfo(true).with_fri(3).into_bits().into());
    assert_eq!(iommu.take_faults(), Faults { records: expected.into(), overflow: true });
    let f = u64::from(F);
    let writes = [(RECORDS + 0x3c, 4, f), (RECORDS + 0xc, 4, f), (offset::FSTS, 4, 0x83)];
    assert_eq!(fake.take_writes(), writes);
}

#[test]
fn an_overflow_alone_is_cleared() {
    let fake = Fake::new();
    let mut iommu = fake.driver();
    assert_eq!((iommu.take_faults(), fake.take_writes().len()), (Faults::default(), 0));
    fake.set(offset::FSTS, 1);
    assert_eq!(iommu.take_faults(), Faults { records: Vec::new(), overflow: true });
    assert_eq!(fake.take_writes(), [(offset::FSTS, 4, 1)]);
}

#[test]
fn a_unit_that_faults_without_end_is_left_after_one_round() {
    let fake = Fake::new();
    let mut iommu = fake.driver();
    for index in 0..4 {
        record(&fake, index, 0);
    }
    // An index beyond the records does not lead beyond them.
    fake.set(offset::FSTS, FaultStatus::new().with_ppf(true).with_fri(0xff).into_bits().into());
    assert_eq!(iommu.take_faults().records.len(), 4);
}
