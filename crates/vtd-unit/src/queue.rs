// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The invalidation queue: fetches descriptors and carries them out in order. \[S 6.5.2\]
//!
//! One worker at a time holds the queue (`Registers::queue_running`). The processor that rings the doorbell
//! works off a bounded number of descriptors; what is left goes on in a thread of its own, so that no queue, however
//! long and however hostile, holds a virtual processor. Execution is serial, which satisfies every ordering rule: when
//! a wait descriptor is reached, each invalidation before it has drained the accesses it concerns.

use std::sync::{Arc, Once};

use vm_memory::GuestMemoryBackend;
use vtd_spec::descriptors::{
    ContextGranularity, IotlbGranularity, PasidCacheGranularity, PasidIotlbGranularity, Wait,
};
use vtd_spec::{Descriptor, DescriptorWidth, QueueError, SourceId, TranslationTableMode};

use crate::core::Core;
use crate::function::Function;
use crate::memory::{load_u64, store_u32};
use crate::registers::{Next, TimeOut};
use crate::request::{DeviceTlbInvalidation, PageGroupResponse};

/// Descriptors that the processor which rings the doorbell works off itself.
const DOORBELL_BUDGET: usize = 128;

/// Who works off the queue.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Worker {
    /// A processor that rang the doorbell: it has other things to do.
    Processor,
    /// A thread of the queue's own.
    Thread,
}

/// Whether an observer may have to look at any number of PASIDs because of one descriptor.
fn concerns_many(descriptor: &Descriptor) -> bool {
    match descriptor {
        Descriptor::ContextCache(_) | Descriptor::Iotlb(_) => true,
        Descriptor::PasidCache(pasids) => pasids.granularity != PasidCacheGranularity::Pasid,
        _ => false,
    }
}

impl<M: GuestMemoryBackend + Send + Sync + 'static> Core<M> {
    /// Works off the queue for a processor that rang the doorbell. The caller has claimed the queue.
    pub(crate) fn run_queue_for_processor(self: &Arc<Self>) {
        let mut time_out = None;
        if self.run_queue(Worker::Processor, &mut time_out) {
            return;
        }
        let core = Arc::clone(self);
        let rest = move || {
            let mut time_out = time_out;
            while !core.run_queue(Worker::Thread, &mut time_out) {}
        };
        if let Err(error) = std::thread::Builder::new().name("vtd-queue".into()).spawn(rest) {
            static TOLD: Once = Once::new();
            TOLD.call_once(|| {
                tracing::warn!(%error, "no thread for the invalidation queue: it is worked off on the processor");
            });
            while !self.run_queue(Worker::Thread, &mut time_out) {}
        }
    }

    /// Works off the queue, a processor only what is bounded; true when it was left empty or stopped, and released.
    fn run_queue(&self, worker: Worker, time_out: &mut Option<TimeOut>) -> bool {
        let on_processor = worker == Worker::Processor;
        let observed = self.observer().is_some();
        for _ in 0..if on_processor { DOORBELL_BUDGET } else { usize::MAX } {
            let next = self.registers().next_descriptor(time_out);
            match next {
                Next::Idle(message) => {
                    self.send(message);
                    return true;
                }
                Next::Register(command) => {
                    if let Some(descriptor) = &command.descriptor {
                        if on_processor && observed && concerns_many(descriptor) {
                            return false;
                        }
                        self.invalidate_at_once(descriptor);
                    }
                    self.registers().finish_register_invalidation(&command);
                }
                Next::Error { error, epoch } => self.queue_error(error, epoch),
                Next::Fetch { address, width, mode, epoch, following } => {
                    match self.fetch(address, width, mode) {
                        // Fetched again by a thread, as if it had never been looked at.
                        Ok(descriptor) if on_processor && observed && concerns_many(&descriptor) => {
                            return false;
                        }
                        Ok(descriptor) => {
                            if self.registers().advance(epoch, following) {
                                self.execute(&descriptor, epoch, time_out);
                                self.tell_observer(&descriptor);
                            }
                        }
                        Err(error) => self.queue_error(error, epoch),
                    }
                }
            }
        }
        false
    }

    /// Carries out a command of an invalidation register, which no wait descriptor follows.
    fn invalidate_at_once(&self, descriptor: &Descriptor) {
        // Of context cache and IOTLB: these do not time out.
        self.execute(descriptor, 0, &mut None);
        self.tell_observer(descriptor);
        if let Some(observer) = self.observer() {
            observer.complete(false);
        }
    }

    fn fetch(
        &self,
        address: u64,
        width: DescriptorWidth,
        mode: TranslationTableMode,
    ) -> Result<Descriptor, QueueError> {
        let mut qwords = [0; 4];
        for (index, qword) in qwords.iter_mut().take(width.bytes() / 8).enumerate() {
            *qword = load_u64(&*self.memory, address.wrapping_add(8 * index as u64))
                .map_err(|_| QueueError::FetchError)?;
        }
        Descriptor::decode_in(mode, qwords, width, &self.capabilities)
    }

    fn execute(&self, descriptor: &Descriptor, epoch: u64, time_out: &mut Option<TimeOut>) {
        match descriptor {
            Descriptor::ContextCache(context) => self.each_function(|function| {
                // The context cache is not tagged with domains in scalable mode. [S 6.5.2.1]
                if context.granularity != ContextGranularity::Device || context.names(function.source_id) {
                    function.write().invalidate_context();
                }
            }),
            Descriptor::Iotlb(iotlb) => self.each_function(|function| {
                let mut cache = function.write();
                match iotlb.granularity {
                    IotlbGranularity::Global => cache.invalidate_iotlb(),
                    IotlbGranularity::Domain => cache.invalidate_iotlb_of_domain(iotlb.did, None),
                    IotlbGranularity::Page => {
                        cache.invalidate_iotlb_of_domain(iotlb.did, Some(iotlb.range()))
                    }
                }
            }),
            Descriptor::PasidIotlb(iotlb) => self.each_function(|function| {
                let range = match iotlb.granularity {
                    PasidIotlbGranularity::Pasid => None,
                    PasidIotlbGranularity::Page => Some(iotlb.range()),
                };
                function.write().invalidate_pasid_iotlb(iotlb.did, iotlb.pasid, range, iotlb.ih);
            }),
            Descriptor::PasidCache(pasids) => self.each_function(|function| {
                let mut cache = function.write();
                match pasids.granularity {
                    PasidCacheGranularity::Global => cache.invalidate_pasids(),
                    PasidCacheGranularity::Domain => cache.invalidate_pasids_of_domain(pasids.did),
                    PasidCacheGranularity::Pasid => cache.invalidate_pasid(pasids.did, pasids.pasid),
                }
            }),
            Descriptor::DeviceTlb(device) => {
                let invalidation = DeviceTlbInvalidation { pasid: None, global: false, range: device.range };
                self.invalidate_device(device.sid, invalidation, epoch, time_out);
            }
            Descriptor::PasidDeviceTlb(device) => {
                let (pasid, global) = (Some(device.pasid), device.gi);
                let invalidation = DeviceTlbInvalidation { pasid, global, range: device.range };
                self.invalidate_device(device.sid, invalidation, epoch, time_out);
            }
            Descriptor::PageGroupResponse(response) => {
                // A response to a function that is gone, or to no request, is discarded.
                if let Some(function) = self.function(response.rid) {
                    function.sink.page_group_response(PageGroupResponse {
                        pasid: response.pasid,
                        group: response.prgi,
                        code: response.rc,
                    });
                }
            }
            // Nothing is kept of the interrupt remapping table, but requests may be in flight.
            Descriptor::InterruptEntryCache(_) => drop(self.interrupts_mut()),
            // No unit here has host permission tables: the type does not decode.
            Descriptor::HptCache(_) => {}
            Descriptor::Wait(wait) => match time_out.take().filter(|time_out| time_out.epoch == epoch) {
                // Waits that a time-out catches pending are aborted: no status, no interrupt. [S 6.5.2.11]
                Some(time_out) => {
                    let message = self.registers().invalidation_time_out(&time_out);
                    self.send(message);
                }
                None => self.complete_wait(wait, epoch),
            },
        }
    }

    /// Waits and responses are heard elsewhere: a wait before it completes, a response by its function's sink.
    fn tell_observer(&self, descriptor: &Descriptor) {
        if matches!(descriptor, Descriptor::Wait(_) | Descriptor::PageGroupResponse(_)) {
            return;
        }
        if let Some(observer) = self.observer() {
            observer.invalidated(descriptor);
        }
    }

    fn each_function(&self, mut f: impl FnMut(&Function)) {
        for function in self.functions().iter() {
            f(function);
        }
    }

    fn function(&self, source_id: SourceId) -> Option<Arc<Function>> {
        self.functions().iter().find(|function| function.source_id == source_id).cloned()
    }

    fn invalidate_device(
        &self,
        source_id: SourceId,
        invalidation: DeviceTlbInvalidation,
        epoch: u64,
        time_out: &mut Option<TimeOut>,
    ) {
        let Some(function) = self.function(source_id) else {
            if time_out.as_ref().is_none_or(|time_out| time_out.epoch != epoch) {
                *time_out = Some(TimeOut { epoch, source_id });
            }
            return;
        };
        let scope = if invalidation.global { None } else { Some(invalidation.pasid) };
        function.write().invalidate_device_tlb(scope, invalidation.range);
        function.sink.device_tlb_invalidation(invalidation);
    }

    /// All before a wait has been carried out, page requests received before it are in their queue. \[S 6.5.2.8\]
    fn complete_wait(&self, wait: &Wait, epoch: u64) {
        if let Some(observer) = self.observer() {
            observer.complete(wait.pd);
        }
        let message = {
            let mut registers = self.registers();
            // Whoever has disabled the queue may use the status address for something else.
            if registers.queue_epoch != epoch {
                return;
            }
            let address = wait.status_address & self.capabilities.max_host_address();
            if wait.sw {
                // A status that has no memory to go to is lost.
                let _ = store_u32(&*self.memory, address, wait.status_data);
            }
            if wait.interrupt { registers.complete_invalidation() } else { None }
        };
        self.send(message);
    }

    fn queue_error(&self, error: QueueError, epoch: u64) {
        let message = {
            let mut registers = self.registers();
            if registers.queue_epoch != epoch {
                return;
            }
            let record = registers.queue_error().with_iqei(error.into_bits());
            registers.set_queue_error(record);
            registers.raise_fault_condition(|status| status.with_iqe(true))
        };
        self.send(message);
    }
}
