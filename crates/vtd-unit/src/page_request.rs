// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The page request queue: requests of endpoints in, responses by the invalidation queue out. \[S 7.4\]

use std::sync::Arc;

use vm_memory::GuestMemoryBackend;
use vtd_spec::ResponseCode;

use crate::core::Core;
use crate::function::{Cache, Function, Implied, Miss, RequestKind};
use crate::notify::Message;
use crate::outcome::{AddressType, Blocked, Fault, FaultType};
use crate::request::{Access, PageGroupResponse, PageRequest, Requester};

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
                    self.imply(cache.implied(request.requester, request.address));
                    return Ok(self.enqueue(function, &cache, request));
                }
                Err(Miss::Blocked(blocked, _)) => return Err(blocked),
                // This thread holds the caches: nobody can fill them now.
                Err(Miss::Unresolved | Miss::PageFault) if function.is_held() => {
                    if !cache.remapping.enabled {
                        return Ok((Some(ResponseCode::InvalidRequest), None));
                    }
                    let (source_id, requester) = (function.source_id, request.requester);
                    self.imply(cache.implied_apart(
                        &*self.memory,
                        &self.capabilities,
                        source_id,
                        requester,
                        request.address,
                    )?);
                    return Ok(self.enqueue(function, &cache, request));
                }
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

    /// What a request takes out of the caches of all functions before it is queued. \[S 6.5.3.1\]
    fn imply(&self, implied: Option<Implied>) {
        let Some(implied) = implied else { return };
        self.functions().iter().for_each(|function| function.forget_implied(implied));
    }

    /// Puts a request into the queue, under the function's lock: a PASID whose invalidation has completed sends nothing more.
    fn enqueue(
        &self,
        function: &Function,
        cache: &Cache,
        request: PageRequest,
    ) -> (Option<ResponseCode>, Option<Message>) {
        let pasid = cache.host_pasid(request.requester.pasid).flatten();
        let requester = Requester { pasid, ..request.requester };
        let request = PageRequest { requester, ..request };
        let queued = self.registers().queue_page_request(&*self.memory, function.source_id, request);
        if queued.0.is_none() {
            cache.counters.page_requests.add();
        }
        queued
    }
}
