// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! FSTS and the fault recording registers.

use bitfield_struct::bitfield;

use crate::bits::wide;

/// FSTS. \[S 11.4.7.1\]
#[bitfield(u32)]
#[derive(PartialEq, Eq)]
pub struct FaultStatus {
    /// Primary fault overflow; write 1 to clear.
    pub pfo: bool,
    /// Primary pending fault: some fault record has F=1; read-only.
    pub ppf: bool,
    #[bits(2)]
    __: u8,
    /// Invalidation queue error; write 1 to clear.
    pub iqe: bool,
    /// Invalidation completion error; write 1 to clear.
    pub ice: bool,
    /// Invalidation time-out error; write 1 to clear.
    pub ite: bool,
    #[bits(1)]
    __: u8,
    /// Fault record index: the first pending record, valid with PPF; read-only.
    pub fri: u8,
    #[bits(16)]
    __: u16,
}

impl FaultStatus {
    /// The bits that software clears by writing 1.
    pub const WRITE_1_TO_CLEAR: Self =
        Self::new().with_pfo(true).with_iqe(true).with_ice(true).with_ite(true);

    /// Whether a condition that raises the fault event is pending (or PFO): while one is, no further event is raised.
    /// \[S 7.3\]
    pub const fn event_pending(self) -> bool {
        self.pfo() || self.ppf() || self.iqe() || self.ice() || self.ite()
    }
}

/// The request type that bits T1 and T2 of a fault record tell. \[S 11.4.7.6\]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FaultRequestType {
    /// Write request: T1=0, T2=0.
    Write,
    /// Page request: T1=0, T2=1.
    PageRequest,
    /// Read request: T1=1, T2=0.
    Read,
    /// AtomicOp request: T1=1, T2=1.
    AtomicOp,
}

wide! {
    /// FRCD: a fault recording register, 128 bit. \[S 11.4.7.6\]
    ///
    /// All fields but F are read-only; F is cleared by writing 1.
    pub struct FaultRecord: 2 {
        /// Fault info, bits 63:12: the page of the original input address. Interrupt faults have
        /// [`interrupt_index`](Self::interrupt_index) there instead.
        addr fi, with_fi: 0 : 12, 52;
        /// The interrupt index of an interrupt remapping fault (bits 63:48).
        uint(u16) interrupt_index, with_interrupt_index: 0 : 48, 16;
        /// Source-id of the request.
        sid sid, with_sid: 1 : 0;
        /// Type bit 2; see [`request_type`](Self::request_type).
        flag t2, with_t2: 1 : 28;
        /// Privileged mode was requested (field PRIV); valid with PP.
        flag privileged, with_privileged: 1 : 29;
        /// Execute permission was requested; valid with PP.
        flag exe, with_exe: 1 : 30;
        /// PASID present: the request itself carried a PASID.
        flag pp, with_pp: 1 : 31;
        /// Fault reason: see [`FaultReason::code`](crate::FaultReason::code).
        uint(u8) fr, with_fr: 1 : 32, 8;
        /// PASID value; valid with PP.
        pasid pv, with_pv: 1 : 40;
        /// Address type: 0 untranslated, 1 translation request, 2 translated.
        uint(u8) at, with_at: 1 : 60, 2;
        /// Type bit 1; see [`request_type`](Self::request_type).
        flag t1, with_t1: 1 : 62;
        /// Fault: the record is valid. Write 1 to clear.
        flag f, with_f: 1 : 63;
    }
}

impl FaultRecord {
    /// The request type from T1 and T2.
    pub const fn request_type(&self) -> FaultRequestType {
        match (self.t1(), self.t2()) {
            (false, false) => FaultRequestType::Write,
            (false, true) => FaultRequestType::PageRequest,
            (true, false) => FaultRequestType::Read,
            (true, true) => FaultRequestType::AtomicOp,
        }
    }

    /// This record with T1 and T2 replaced.
    #[must_use]
    pub const fn with_request_type(self, request: FaultRequestType) -> Self {
        let (t1, t2) = match request {
            FaultRequestType::Write => (false, false),
            FaultRequestType::PageRequest => (false, true),
            FaultRequestType::Read => (true, false),
            FaultRequestType::AtomicOp => (true, true),
        };
        self.with_t1(t1).with_t2(t2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Pasid, SourceId};

    #[test]
    fn status_clear_of_linux_covers_overflow_and_pending() {
        // dmar.c:dmar_fault writes PFO | PPF | bit 7.
        let status = FaultStatus::from_bits(0x83);
        assert!(status.pfo() && status.ppf() && !status.iqe() && !status.ice() && !status.ite());
        assert_eq!(FaultStatus::new().with_fri(0xab).into_bits(), 0xab00);
        assert_eq!(FaultStatus::WRITE_1_TO_CLEAR.into_bits(), 0x71);
    }

    #[test]
    fn any_condition_counts_as_pending() {
        for bit in [0, 1, 4, 5, 6] {
            assert!(FaultStatus::from_bits(1 << bit).event_pending());
        }
        assert!(!FaultStatus::from_bits(!0x73).event_pending());
    }

    #[test]
    fn record_fields_lie_at_the_specified_bits() {
        let record = FaultRecord::new()
            .with_fi(0x7fff_1234_5678)
            .with_sid(SourceId(0x0018))
            .with_request_type(FaultRequestType::Read)
            .with_privileged(true)
            .with_pp(true)
            .with_fr(0x71)
            .with_pv(Pasid::truncated(0xabcde))
            .with_at(1)
            .with_f(true);
        assert_eq!(record.to_qwords(), [0x7fff_1234_5000, 0xdabc_de71_a000_0018]);
    }

    #[test]
    fn every_request_type_round_trips() {
        use FaultRequestType::*;
        for request in [Write, PageRequest, Read, AtomicOp] {
            assert_eq!(FaultRecord::new().with_request_type(request).request_type(), request);
        }
    }

    #[test]
    fn interrupt_index_lies_in_the_top_of_fault_info() {
        assert_eq!(FaultRecord::new().with_interrupt_index(0x1234).to_qwords()[0], 0x1234 << 48);
    }
}
