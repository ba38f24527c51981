// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Faults on their way to a guest's machine monitor: the ring of the VFIO half (vsva kernel set: `VFIO_REGION_SUBTYPE_
//! NESTED_DMA_FAULT`, a header and 512 `struct iommu_fault`). The guest is told its own PASIDs.
//!
//! What does not fit is never dropped in silence: a page request that its device waits for is answered Invalid Request,
//! an unrecoverable fault is counted.

use alloc::collections::VecDeque;

use vtd_spec::{FaultRecord, FaultRequestType, Pasid, ResponseCode};

use crate::address_space::{Pasids, guest_pasid};
use crate::error::Error;
use crate::iommu::Iommu;
use crate::memory::Memory;
use crate::registers::Registers;
use crate::state::PageRequest;

/// Entries of the ring (vsva kernel set: 512).
pub const ENTRIES: usize = 512;

/// Why a request was blocked (`enum iommu_fault_reason`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Reason {
    /// None of the others.
    Unknown = 0,
    /// The PASID table could not be read.
    PasidFetch = 1,
    /// The PASID entry is malformed.
    BadPasidEntry = 2,
    /// The PASID is not bound, or out of range.
    PasidInvalid = 3,
    /// A table of the walk could not be read.
    WalkAbort = 4,
    /// A paging entry is not present or malformed.
    PteFetch = 5,
    /// The tables do not permit the access.
    Permission = 6,
    /// The access itself was refused.
    Access = 7,
    /// The address is out of range.
    OutOfRangeAddress = 8,
}

impl Reason {
    /// The uAPI's name for one of VT-d's codes. \[S table 30\]
    pub const fn from_code(code: u8) -> Self {
        match code {
            0x38 | 0x40 | 0x50 | 0x58 => Self::PasidFetch,
            0x3a | 0x42 | 0x43 | 0x52 | 0x5a | 0x5b => Self::BadPasidEntry,
            0x39 | 0x41 | 0x45 | 0x46 | 0x48 | 0x51 | 0x59 | 0x89 => Self::PasidInvalid,
            0x70 | 0x73 | 0x78 | 0x7b => Self::WalkAbort,
            0x71 | 0x72 | 0x79 | 0x7a => Self::PteFetch,
            0x5c | 0x5d | 0x75..=0x77 | 0x81 | 0x82 | 0x85 | 0x86 => Self::Permission,
            0x44 | 0x47 | 0x87 => Self::Access,
            0x74 | 0x80 | 0x83 | 0x84 => Self::OutOfRangeAddress,
            _ => Self::Unknown,
        }
    }
}

/// What a fault wanted (`IOMMU_FAULT_PERM_*`).
mod perm {
    pub(super) const READ: u32 = 1;
    pub(super) const WRITE: u32 = 2;
    pub(super) const EXECUTE: u32 = 4;
    pub(super) const PRIVILEGED: u32 = 8;
}

/// One fault (`struct iommu_fault`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A request was blocked (`IOMMU_FAULT_DMA_UNRECOV`).
    Unrecoverable {
        /// Why.
        reason: Reason,
        /// PASID of the request.
        pasid: Option<Pasid>,
        /// The guest's name for it, where it has another.
        guest_pasid: Option<Pasid>,
        /// `IOMMU_FAULT_PERM_*`.
        perm: u32,
        /// Address of the request, whole pages.
        address: u64,
    },
    /// A device asks for a page (`IOMMU_FAULT_PAGE_REQ`).
    PageRequest {
        /// The request, to be answered as it is by [`nested::respond`](crate::nested::respond).
        request: PageRequest,
        /// The guest's name for its PASID, where it has another.
        guest_pasid: Option<Pasid>,
    },
}

impl Fault {
    fn unrecoverable(pasids: &Pasids, record: &FaultRecord) -> Self {
        let pasid = record.pp().then(|| record.pv());
        let access = match record.request_type() {
            FaultRequestType::Write => perm::WRITE,
            FaultRequestType::AtomicOp => perm::READ | perm::WRITE,
            _ => perm::READ,
        };
        Self::Unrecoverable {
            reason: Reason::from_code(record.fr()),
            pasid,
            guest_pasid: pasid.and_then(|pasid| guest_pasid(pasids, pasid)),
            perm: [(true, access), (record.exe(), perm::EXECUTE), (record.privileged(), perm::PRIVILEGED)]
                .into_iter()
                .fold(0, |perm, (wanted, bit)| if wanted { perm | bit } else { perm }),
            address: record.fi(),
        }
    }

    /// Size of the structure in bytes.
    pub const SIZE: usize = 64;

    /// The structure: type 0, padding 4; of an event reason 8, flags 12, pasid 16, perm 20, addr 24, fetch_addr 32; of a page
    /// request flags 8, pasid 12, grpid 16, perm 20, addr 24, private data 32. The rest is zero. The PASID is the guest's.
    pub fn to_bytes(&self) -> [u8; Self::SIZE] {
        let (words, address) = match *self {
            Self::Unrecoverable { reason, pasid, guest_pasid, perm, address } => {
                let pasid = guest_pasid.or(pasid);
                // PASID_VALID 1, ADDR_VALID 2.
                let flags = u32::from(pasid.is_some()) | 2;
                ([1, 0, reason as u32, flags, pasid.map_or(0, Pasid::get), perm], address)
            }
            Self::PageRequest { request, guest_pasid } => {
                let pasid = guest_pasid.or(request.pasid);
                // PASID_VALID 1, LAST_PAGE 2, RESPONSE_NEEDS_PASID 8.
                let valid = if pasid.is_some() { 1 | 8 } else { 0 };
                let flags = valid | if request.last { 2 } else { 0 };
                let read = if request.read { perm::READ } else { 0 };
                let write = if request.write { perm::WRITE } else { 0 };
                let group = u32::from(request.group);
                ([2, 0, flags, pasid.map_or(0, Pasid::get), group, read | write], request.address)
            }
        };
        let mut bytes = [0; Self::SIZE];
        let fields = words.iter().flat_map(|word| word.to_le_bytes()).chain(address.to_le_bytes());
        for (byte, field) in bytes.iter_mut().zip(fields) {
            *byte = field;
        }
        bytes
    }
}

/// The ring. One side delivers, the other takes.
#[derive(Debug, Default)]
pub struct FaultRing {
    entries: VecDeque<Fault>,
    lost: u64,
}

impl FaultRing {
    /// An empty ring.
    pub fn new() -> Self {
        Self::default()
    }

    /// Delivers an unrecoverable fault; one that finds the ring full is counted as lost.
    pub fn report(&mut self, pasids: &Pasids, record: &FaultRecord) {
        if self.entries.len() < ENTRIES {
            self.entries.push_back(Fault::unrecoverable(pasids, record));
        } else {
            self.lost += 1;
        }
    }

    /// Delivers a page request; one that finds the ring full is answered Invalid Request, if its device waits for it.
    ///
    /// # Errors
    ///
    /// The queue's, for that answer.
    pub fn request<R: Registers, M: Memory>(
        &mut self,
        iommu: &mut Iommu<R, M>,
        pasids: &Pasids,
        request: PageRequest,
    ) -> Result<(), Error> {
        if self.entries.len() < ENTRIES {
            let guest_pasid = request.pasid.and_then(|pasid| guest_pasid(pasids, pasid));
            self.entries.push_back(Fault::PageRequest { request, guest_pasid });
            return Ok(());
        }
        self.lost += 1;
        iommu.respond(&request, ResponseCode::InvalidRequest)
    }

    /// Takes the oldest fault.
    pub fn take(&mut self) -> Option<Fault> {
        self.entries.pop_front()
    }

    /// Faults that found the ring full, since it was made.
    pub fn lost(&self) -> u64 {
        self.lost
    }
}

#[cfg(test)]
mod tests {
    use vtd_spec::SourceId;

    use super::*;

    fn pasids() -> Pasids {
        Pasids::new(1..=ioasid::MAX_ID).unwrap()
    }

    fn record(code: u8) -> FaultRecord {
        // A write by PASID 5 at 0x7000_1000, F set.
        let high = 1 << 63 | 5 << 40 | u64::from(code) << 32 | 1 << 31 | 0x18;
        FaultRecord::from_qwords([0x7000_1000, high])
    }

    #[test]
    fn a_record_becomes_the_structure_of_the_interface() {
        let bytes = Fault::unrecoverable(&pasids(), &record(0x85)).to_bytes();
        let word = |offset: usize| u32::from_le_bytes(bytes[offset..offset + 4].try_into().unwrap());
        assert_eq!([word(0), word(4), word(8), word(12), word(16), word(20)], [1, 0, 6, 3, 5, 2]);
        assert_eq!((word(24), word(28)), (0x7000_1000, 0));
        assert!(bytes[32..].iter().all(|byte| *byte == 0));
        // A read to execute, privileged.
        let record = FaultRecord::from_qwords([0, 1 << 62]).with_exe(true).with_privileged(true);
        let Fault::Unrecoverable { perm, pasid, .. } = Fault::unrecoverable(&pasids(), &record) else {
            panic!()
        };
        assert_eq!((perm, pasid), (1 | 4 | 8, None));
    }

    #[test]
    fn a_page_request_becomes_the_structure_of_the_interface() {
        let request = PageRequest {
            source_id: SourceId(0x18),
            pasid: Some(Pasid::truncated(5)),
            address: 0x7000_1000,
            read: true,
            write: true,
            group: 9,
            last: true,
        };
        for (guest_pasid, pasid) in [(None, 5), (Some(Pasid::truncated(0x77)), 0x77)] {
            let bytes = Fault::PageRequest { request, guest_pasid }.to_bytes();
            let word = |offset: usize| u32::from_le_bytes(bytes[offset..offset + 4].try_into().unwrap());
            assert_eq!([word(0), word(4), word(8)], [2, 0, 1 | 2 | 8]);
            assert_eq!([word(12), word(16), word(20), word(24)], [pasid, 9, 3, 0x7000_1000]);
        }
    }

    #[test]
    fn each_code_has_a_name_and_unknown_ones_say_so() {
        let cases = [
            (0x58, Reason::PasidFetch),
            (0x5a, Reason::BadPasidEntry),
            (0x59, Reason::PasidInvalid),
            (0x70, Reason::WalkAbort),
            (0x71, Reason::PteFetch),
            (0x81, Reason::Permission),
            (0x82, Reason::Permission),
            (0x87, Reason::Access),
            (0x80, Reason::OutOfRangeAddress),
            (0xff, Reason::Unknown),
        ];
        for (code, reason) in cases {
            assert_eq!(Reason::from_code(code), reason, "{code:#x}");
        }
    }

    #[test]
    fn a_full_ring_counts_what_is_lost_and_keeps_what_it_has() {
        let mut ring = FaultRing::new();
        for _ in 0..ENTRIES + 3 {
            ring.report(&pasids(), &record(0x71));
        }
        assert_eq!(ring.lost(), 3);
        assert_eq!(core::iter::from_fn(|| ring.take()).count(), ENTRIES);
        ring.report(&pasids(), &record(0x71));
        assert!(ring.take().is_some());
    }
}
