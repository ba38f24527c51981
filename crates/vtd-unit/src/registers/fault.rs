// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Fault records and conditions. \[S 7.2, 7.3\]

use vtd_spec::registers::offset;
use vtd_spec::{FaultRecord, FaultStatus};

use super::page::{Event, Registers};
use crate::notify::Message;
use crate::outcome::Fault;

impl Registers {
    /// Records a fault and raises the fault event where it is the first. \[S 7.2.1\]
    #[must_use]
    pub(crate) fn record_fault(&mut self, fault: &Fault) -> Option<Message> {
        let status = self.fault_status();
        if status.pfo() {
            return None;
        }
        let (base, count) = self.fault_records;
        // One unread record per function is enough to find a broken one, and leaves room for the others.
        let same_source = |index: u16| {
            let record = base + u64::from(index) * 16;
            self.get32(record + 12) >> 31 != 0
                && self.get32(record + 8) & 0xffff == u32::from(fault.source_id.0)
        };
        if (0..count).any(same_source) {
            return None;
        }
        let index = self.fault_index % count;
        let record = base + u64::from(index) * 16;
        if self.get32(record + 12) >> 31 != 0 {
            self.set32(offset::FSTS, status.with_pfo(true).into_bits());
            return None;
        }
        // Bits above the widest input address are zero; interrupt faults have their index there.
        let width = u32::from(self.capabilities.cap.mgaw()) + 1;
        let unused = if fault.reason.is_interrupt() { 0 } else { u64::MAX.checked_shl(width).unwrap_or(0) };
        let entry = FaultRecord::new()
            .with_fi(fault.address & !unused)
            .with_sid(fault.source_id)
            .with_request_type(fault.kind)
            .with_privileged(fault.pasid.is_some() && fault.privileged)
            .with_pp(fault.pasid.is_some())
            .with_fr(fault.reason.code())
            .with_pv(fault.pasid.unwrap_or_default())
            .with_at(fault.address_type as u8)
            .with_f(true);
        for (at, qword) in [record, record + 8].into_iter().zip(entry.to_qwords()) {
            self.set64(at, qword);
        }
        self.fault_index = (index + 1) % count;
        let first = !status.ppf();
        let quiet = self.no_condition();
        let mut status = status.with_ppf(true);
        if first {
            status = status.with_fri(index as u8);
        }
        self.set32(offset::FSTS, status.into_bits());
        if first && quiet { self.raise(Event::Fault) } else { None }
    }

    /// Sets conditions of FSTS that raise the fault event (IQE, ICE, ITE). \[S 7.3\]
    #[must_use]
    pub(crate) fn raise_fault_condition(
        &mut self,
        set: impl FnOnce(FaultStatus) -> FaultStatus,
    ) -> Option<Message> {
        let quiet = self.no_condition();
        self.set32(offset::FSTS, set(self.fault_status()).into_bits());
        if quiet { self.raise(Event::Fault) } else { None }
    }

    fn no_condition(&self) -> bool {
        !self.fault_status().event_pending()
    }

    /// After software cleared something: PPF follows the records, and with the last condition gone the event is no
    /// longer pending.
    pub(crate) fn settle_fault_event(&mut self) {
        let (base, count) = self.fault_records;
        let pending = (0..u64::from(count)).any(|record| self.get32(base + record * 16 + 12) >> 31 != 0);
        self.set32(offset::FSTS, self.fault_status().with_ppf(pending).into_bits());
        if self.no_condition() {
            self.set_pending(Event::Fault, false);
        }
    }
}
