// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Fault records (dmar.c:dmar_fault).

use alloc::vec::Vec;

use vtd_spec::registers::offset;
use vtd_spec::{FaultRecord, FaultStatus};

use crate::iommu::Iommu;
use crate::memory::Memory;
use crate::registers::Registers;

/// Faults that the unit had recorded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// The records, oldest first.
    pub records: Vec<FaultRecord>,
    /// There were more than the unit could record.
    pub overflow: bool,
}

/// F in the highest doubleword of a record.
const F: u32 = 1 << 31;
/// What Linux writes to FSTS in the end: PFO, PPF and the withdrawn PRO.
const CLEAR: u32 = 0x83;

impl<R: Registers, M: Memory> Iommu<R, M> {
    /// Reads and clears the pending faults: from the fault record index on, each record cleared once it is read, then
    /// the overflow. Never more than the unit has records: what comes meanwhile raises the event again.
    pub fn take_faults(&mut self) -> Faults {
        let status = FaultStatus::from_bits(self.registers.read32(offset::FSTS));
        self.take_faults_of(status)
    }

    /// As [`take_faults`](Self::take_faults), of a status that was just read.
    pub(crate) fn take_faults_of(&mut self, status: FaultStatus) -> Faults {
        let cap = self.capabilities.cap;
        let mut faults = Faults { records: Vec::new(), overflow: status.pfo() };
        if !status.ppf() {
            if status.pfo() {
                self.registers.write32(offset::FSTS, FaultStatus::new().with_pfo(true).into_bits());
            }
            return faults;
        }
        let count = cap.fault_records();
        let mut index = u16::from(status.fri()) % count;
        for _ in 0..count {
            let record = cap.fault_record_offset() + 16 * u64::from(index);
            if self.registers.read32(record + 12) & F == 0 {
                break;
            }
            let qwords = [self.registers.read64(record), self.registers.read64(record + 8)];
            faults.records.push(FaultRecord::from_qwords(qwords));
            self.registers.write32(record + 12, F);
            index = (index + 1) % count;
        }
        self.registers.write32(offset::FSTS, CLEAR);
        faults
    }
}

#[cfg(test)]
mod tests;
