// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The page request queue: requests of endpoints in, responses by the invalidation queue out. \[S 7.4\]

use std::sync::Arc;

use vm_memory::GuestMemoryBackend;
use vtd_spec::registers::offset;
use vtd_spec::{PageRequestDescriptor, PageRequestQueueAddress, PageRequestStatus, ResponseCode, SourceId};

use crate::endpoint::{Access, PageGroupResponse, PageRequest, Requester};
use crate::fault::{AddressType, Blocked, Fault, FaultType};
use crate::function::{Function, Miss, RequestKind};
use crate::memory::store_u64;
use crate::notify::Message;
use crate::registers::{Event, Registers};
use crate::unit::Core;

/// Bytes of a page request descriptor.
const DESCRIPTOR_BYTES: u64 = 32;

/// Times the caches may have to be filled again before a request is dropped as if the queue were full.
const TRIES: usize = 64;

impl<M: GuestMemoryBackend + Send + Sync + 'static> Core<M> {
    /// Takes a page request of a function. \[S 7.4.1\]
    pub(crate) fn page_request(&self, function: &Arc<Function>, request: PageRequest) {
        let host = function.read().host_pasid(request.requester.pasid);
        let (outcome, message) = match self.queue_page_request(function, request) {
            Ok(queued) => queued,
            Err(blocked) => {
                let access = if request.write { Access::Write } else { Access::Read };
                if host.is_none() {
                    function.sink.pasid_refused(request.requester, request.address, access);
                }
                let fault = Fault {
                    reason: blocked.reason,
                    source_id: function.source_id,
                    pasid: host.flatten(),
                    privileged: request.requester.privileged,
                    address: request.address,
                    kind: FaultType::PageRequest,
                    address_type: AddressType::Untranslated,
                };
                self.record_fault(blocked, &fault);
                (Some(ResponseCode::InvalidRequest), None)
            }
        };
        if let Some(message) = message {
            self.notify.message(message);
        }
        // Only the last request of a group is ever answered; a stop marker asks for nothing.
        if let Some(code) = outcome
            && request.last
            && !request.is_stop_marker()
        {
            // Under the device's PASID: what it stands for may be gone, or another by now.
            function.sink.automatic_page_group_response(PageGroupResponse {
                pasid: request.requester.pasid,
                group: request.group & 0x1ff,
                code,
            });
        }
    }

    /// Checks and queues a request; the answer is for a request that software will not see.
    fn queue_page_request(
        &self,
        function: &Function,
        request: PageRequest,
    ) -> Result<(Option<ResponseCode>, Option<Message>), Blocked> {
        for _ in 0..TRIES {
            let cache = function.read();
            match cache.check_page_request(request.requester) {
                Ok(()) => {
                    cache.forget_page(request.requester, request.address);
                    // Queued under the function's lock: a PASID whose invalidation has completed sends nothing more.
                    let pasid = cache.host_pasid(request.requester.pasid).flatten();
                    let requester = Requester { pasid, ..request.requester };
                    let queued = self.registers().queue_page_request(
                        &*self.memory,
                        function.source_id,
                        PageRequest { requester, ..request },
                    );
                    if queued.0.is_none() {
                        cache.counters.page_requests.add();
                    }
                    return Ok(queued);
                }
                Err(Miss::Blocked(blocked, _)) => return Err(blocked),
                Err(Miss::Unresolved | Miss::PageFault) => drop(cache),
            }
            let mut cache = function.write();
            if !cache.remapping.enabled {
                return Ok((Some(ResponseCode::InvalidRequest), None));
            }
            cache.resolve(
                &*self.memory,
                &self.capabilities,
                function.source_id,
                request.requester,
                RequestKind::PageRequest,
            )?;
        }
        Ok((Some(ResponseCode::Success), None))
    }
}

impl Registers {
    fn queue_page_request<M: GuestMemoryBackend>(
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
