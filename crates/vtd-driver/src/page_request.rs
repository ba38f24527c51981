// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The page request queue and the responses (prq.c).

use alloc::vec::Vec;

use vtd_spec::descriptors::Wait;
use vtd_spec::registers::offset;
use vtd_spec::{
    AddressRange, Descriptor, DomainId, PageRequestDescriptor, PageRequestStatus, Pasid, ResponseCode,
    SourceId,
};

use crate::cache;
use crate::error::Error;
use crate::iommu::Iommu;
use crate::memory::Memory;
use crate::registers::Registers;
use crate::state::page_request_queue::PAGES;
use crate::state::{PageRequest, PageRequests};

/// Byte offsets in the queue.
const RING_MASK: u64 = (PAGES as u64 * 4096 - 1) & !0x1f;
/// Requests that may wait here for the caller, who has not asked for them while PASIDs were drained.
const PENDING: usize = PAGES * 4096 / 32;
/// Times a drain is repeated for an overflow.
const DRAINS: u32 = 8;

impl<R: Registers, M: Memory> Iommu<R, M> {
    /// Takes all requests off the queue. Requests that no software can serve are answered with Invalid Request and not
    /// shown: a non-canonical address, privileged accesses, execution, an unknown device. Stop markers are dropped.
    ///
    /// # Errors
    ///
    /// The queue's, for those answers; the requests are kept for the next call.
    pub fn take_page_requests(&mut self) -> Result<PageRequests, Error> {
        self.collect_page_requests(None)?;
        Ok(self.page_requests.as_mut().map(|queue| core::mem::take(&mut queue.pending)).unwrap_or_default())
    }

    /// Moves what the unit has queued to the pending requests, but for those of a PASID that is going.
    fn collect_page_requests(&mut self, going: Option<(SourceId, Pasid)>) -> Result<(), Error> {
        let Some(mut queue) = self.page_requests.take() else { return Ok(()) };
        let mut responses = Vec::new();
        // PPR is cleared before PQT is read: what comes later raises the event again.
        self.registers.write32(offset::PRS, PageRequestStatus::new().with_ppr(true).into_bits());
        let tail = self.registers.read64(offset::PQT) & RING_MASK;
        let mut head = self.registers.read64(offset::PQH) & RING_MASK;
        while head != tail {
            let mut qwords = [0; 4];
            for (index, qword) in qwords.iter_mut().enumerate() {
                *qword = self.memory.load(queue.base + head + 8 * index as u64);
            }
            head = (head + 32) & RING_MASK;
            let request = PageRequestDescriptor::from_qwords(qwords);
            // A stop marker gets no response.
            if request.is_stop_marker() {
                continue;
            }
            match self.check_page_request(&request) {
                Some(request) if !going.is_some_and(|going| request.is_of(going)) => {
                    if queue.pending.requests.len() < PENDING {
                        queue.pending.requests.push(request);
                    } else {
                        // As the unit does where its queue is full: the device asks again.
                        queue.pending.overflow = true;
                        responses.extend(response_to(&request, ResponseCode::Success));
                    }
                }
                _ => {
                    if request.lpig() {
                        let pasid = request.pp().then_some(request.pasid());
                        let code = ResponseCode::InvalidRequest;
                        responses.push(cache::response(request.rid(), pasid, request.prgi(), code));
                    }
                }
            }
        }
        self.registers.write64(offset::PQH, tail);
        if PageRequestStatus::from_bits(self.registers.read32(offset::PRS)).pro() {
            let head = self.registers.read64(offset::PQH) & RING_MASK;
            if head == self.registers.read64(offset::PQT) & RING_MASK {
                queue.pending.overflow = true;
                self.registers.write32(offset::PRS, PageRequestStatus::new().with_pro(true).into_bits());
            }
        }
        if let Some(going) = going {
            // The last requests of groups that were taken off earlier and not served.
            let (gone, kept) = queue.pending.requests.drain(..).partition(|request| request.is_of(going));
            queue.pending.requests = kept;
            let gone: Vec<PageRequest> = gone;
            responses.extend(gone.iter().filter_map(|gone| response_to(gone, ResponseCode::InvalidRequest)));
        }
        self.page_requests = Some(queue);
        if responses.is_empty() { Ok(()) } else { self.submit(&responses) }
    }

    /// A request that can be served.
    fn check_page_request(&self, request: &PageRequestDescriptor) -> Option<PageRequest> {
        let known = self.devices.get(&request.rid()).is_some_and(|device| device.config.page_requests);
        let asks = request.rdr() || request.wrr();
        if !known
            || !self.is_canonical(request.addr())
            || (request.pmr() && asks)
            || (request.exr() && request.rdr())
        {
            return None;
        }
        Some(PageRequest {
            source_id: request.rid(),
            pasid: request.pp().then_some(request.pasid()),
            address: request.addr(),
            read: request.rdr(),
            write: request.wrr(),
            group: request.prgi(),
            last: request.lpig(),
        })
    }

    /// Whether an address is canonical in the widest first stage that the unit has.
    fn is_canonical(&self, address: u64) -> bool {
        let unused = if self.capabilities.cap.fs5lp() { 64 - 57 } else { 64 - 48 };
        ((address << unused) as i64 >> unused) as u64 == address
    }

    /// Answers a request that is the last of its group; another one has no answer, and nothing is sent.
    ///
    /// # Errors
    ///
    /// The queue's.
    pub fn respond(&mut self, request: &PageRequest, code: ResponseCode) -> Result<(), Error> {
        match response_to(request, code) {
            Some(response) => self.submit(&[response]),
            None => Ok(()),
        }
    }

    /// No page request of a PASID is left anywhere when this returns (prq.c:intel_iommu_drain_pasid_prq): what the queue
    /// holds is answered, then what is on its way is pushed out by invalidations and a wait with PD, again if the
    /// queue overflowed meanwhile. \[S 7.10\]
    pub(crate) fn drain_page_requests(
        &mut self,
        source_id: SourceId,
        pasid: Pasid,
        did: DomainId,
    ) -> Result<(), Error> {
        if self.page_requests.is_none() {
            return Ok(());
        }
        let device_tlb = self.device(source_id)?.device_tlb(pasid, AddressRange::ALL);
        let mut result = self.collect_page_requests(Some((source_id, pasid)));
        for _ in 0..DRAINS {
            let iotlb =
                if pasid == Pasid::ZERO { cache::iotlb_domain(did) } else { cache::pasid_iotlb(did, pasid) };
            let mut descriptors = alloc::vec![cache::barrier(), iotlb];
            descriptors.extend(device_tlb);
            let wait = Wait { pd: self.capabilities.ecap.pds(), ..Wait::default() };
            result = result.and(self.submit_batch(&descriptors, wait));
            let overflow = PageRequestStatus::from_bits(self.registers.read32(offset::PRS)).pro();
            result = result.and(self.collect_page_requests(Some((source_id, pasid))));
            if !overflow || result.is_err() {
                break;
            }
        }
        result
    }
}

fn response_to(request: &PageRequest, code: ResponseCode) -> Option<Descriptor> {
    request.last.then(|| cache::response(request.source_id, request.pasid, request.group, code))
}

#[cfg(test)]
mod tests;
