// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The registers of the page request queue. \[S 7.4\]

use vm_memory::GuestMemoryBackend;
use vtd_spec::registers::offset;
use vtd_spec::{PageRequestDescriptor, PageRequestQueueAddress, PageRequestStatus, ResponseCode, SourceId};

use super::page::{Event, Registers};
use crate::memory::store_u64;
use crate::notify::Message;
use crate::request::PageRequest;

/// Bytes of a page request descriptor.
const DESCRIPTOR_BYTES: u64 = 32;

impl Registers {
    pub(crate) fn queue_page_request<M: GuestMemoryBackend>(
        &mut self,
        memory: &M,
        source_id: SourceId,
        request: PageRequest,
    ) -> (Option<ResponseCode>, Option<Message>) {
        let status = PageRequestStatus::from_bits(self.get32(offset::PRS));
        if status.pro() {
            return (Some(ResponseCode::Success), None);
        }
        let queue = PageRequestQueueAddress::from_bits(self.get64(offset::PQA));
        let size = 4096u64 << queue.pqs();
        let (head, tail) = (self.get64(offset::PQH) % size, self.get64(offset::PQT) % size);
        let next = (tail + DESCRIPTOR_BYTES) % size;
        if next == head {
            // A stop marker that cannot be queued is dropped silently: nobody waits for it. [ECAP.SMS]
            if self.capabilities.ecap.sms() && request.is_stop_marker() {
                return (Some(ResponseCode::Success), None);
            }
            let message = self.raise_page_request(status.with_pro(true));
            return (Some(ResponseCode::Success), message);
        }
        let descriptor = PageRequestDescriptor::new()
            .with_descriptor_type(PageRequestDescriptor::TYPE)
            .with_pp(request.requester.pasid.is_some())
            .with_rid(source_id)
            .with_pasid(request.requester.pasid.unwrap_or_default())
            .with_pmr(request.requester.privileged && request.requester.pasid.is_some())
            .with_rdr(request.read)
            .with_wrr(request.write)
            .with_lpig(request.last)
            .with_prgi(request.group)
            .with_addr(request.address);
        let base = queue.pqa().wrapping_add(tail);
        for (index, qword) in descriptor.to_qwords().into_iter().enumerate() {
            // A queue that lies outside memory loses its requests, as on hardware.
            if store_u64(memory, base.wrapping_add(8 * index as u64), qword).is_err() {
                return (Some(ResponseCode::InvalidRequest), None);
            }
        }
        self.set64(offset::PQT, next);
        (None, self.raise_page_request(status.with_ppr(true)))
    }

    /// Sets PPR or PRO; the event is raised by the first of them. \[S 7.4.2\]
    fn raise_page_request(&mut self, status: PageRequestStatus) -> Option<Message> {
        let before = PageRequestStatus::from_bits(self.get32(offset::PRS));
        self.set32(offset::PRS, status.into_bits());
        if before.ppr() || before.pro() { None } else { self.raise(Event::PageRequest) }
    }
}
