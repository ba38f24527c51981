// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The invalidation queue: fetches descriptors and carries them out in order. \[S 6.5.2\]
//!
//! One worker at a time holds the queue (`Registers::claim_queue`). The processor that rings the doorbell works off a
//! bounded number of descriptors, as long as it finds nothing in flight that it would have to wait for; what is left goes to
//! the executor, so that no queue, however long and however hostile, holds a virtual processor. Execution is serial, which
//! satisfies every ordering rule: when a wait descriptor is reached, each invalidation before it has drained the accesses it
//! concerns.

use std::sync::Arc;

use vm_memory::GuestMemoryBackend;
use vtd_spec::descriptors::{
    ContextGranularity, IotlbGranularity, PasidCacheGranularity, PasidIotlbGranularity, Wait,
};
use vtd_spec::{Descriptor, DescriptorWidth, QueueError, SourceId, TranslationTableMode};

use crate::core::Core;
use crate::function::{Cache, Function};
use crate::memory::{load_u64, store_u32};
use crate::registers::{Next, TimeOut};
use crate::request::{DeviceTlbInvalidation, PageGroupResponse};
use crate::worker::Worker;

/// Descriptors that the processor which rings the doorbell works off itself.
const DOORBELL_BUDGET: usize = 128;
/// Those that the executor works off before it looks whether the unit is still there.
const EXECUTOR_BUDGET: usize = 1024;

/// Whether an observer may have to look at any number of PASIDs because of one descriptor.
fn concerns_many(descriptor: &Descriptor) -> bool {
    match descriptor {
        Descriptor::Iotlb(_) => true,
        Descriptor::PasidDeviceTlb(device) => device.gi,
        _ => false,
    }
}

/// The function that a device-TLB invalidation names, and what it receives.
fn of_device(descriptor: &Descriptor) -> Option<(SourceId, DeviceTlbInvalidation)> {
    match descriptor {
        Descriptor::DeviceTlb(device) => {
            Some((device.sid, DeviceTlbInvalidation { pasid: None, global: false, range: device.range }))
        }
        Descriptor::PasidDeviceTlb(device) => {
            let (pasid, global) = (Some(device.pasid), device.gi);
            Some((device.sid, DeviceTlbInvalidation { pasid, global, range: device.range }))
        }
        _ => None,
    }
}

/// Wait descriptors that were passed and are not complete, with the epoch of their queue: no more than a queue holds.
#[derive(Default)]
struct Waiting(Vec<(Wait, u64)>);

impl<M: GuestMemoryBackend + Send + Sync + 'static> Core<M> {
    /// Works off the queue for a processor that rang the doorbell. The caller has claimed the queue.
    pub(crate) fn run_queue_for_processor(self: &Arc<Self>) {
        let mut time_out = None;
        if self.run_queue(Worker::Processor, &mut time_out) {
            return;
        }
        let core = Arc::downgrade(self);
        self.executor.execute(Box::new(move || {
            let mut time_out = time_out;
            while core.upgrade().is_some_and(|core| !core.run_queue(Worker::Executor, &mut time_out)) {}
        }));
    }

    /// Works off a bounded part of the queue; true when it was left empty or stopped, and released.
    fn run_queue(&self, worker: Worker, time_out: &mut Option<TimeOut>) -> bool {
        let mut waiting = Waiting::default();
        let on_processor = worker == Worker::Processor;
        let observed = self.is_observed();
        for _ in 0..if on_processor { DOORBELL_BUDGET } else { EXECUTOR_BUDGET } {
            let next = self.registers().next_descriptor(!waiting.0.is_empty(), time_out);
            match next {
                Next::Empty => self.complete_waits(&mut waiting),
                Next::Idle(message) => {
                    self.send_messages(message);
                    return true;
                }
                Next::Register(command) => {
                    if let Some(descriptor) = &command.descriptor {
                        if on_processor && observed && concerns_many(descriptor)
                            || !self.invalidate(descriptor, worker)
                        {
                            return false;
                        }
                        self.tell_observer(descriptor);
                        // No wait descriptor follows.
                        self.each_observer(|observer| observer.complete(false));
                    }
                    self.registers().finish_register_invalidation(&command);
                }
                Next::Error { error, epoch } => {
                    self.complete_waits(&mut waiting);
                    self.queue_error(error, epoch);
                }
                Next::Fetch { address, width, mode, epoch, following } => {
                    match self.fetch(address, width, mode) {
                        Ok(descriptor) => {
                            // Fetched again by the executor, as if it had never been looked at.
                            let behind = matches!(descriptor, Descriptor::Wait(_)) && self.is_behind();
                            if on_processor && (behind || observed && concerns_many(&descriptor))
                                || !self.invalidate(&descriptor, worker)
                            {
                                return false;
                            }
                            if self.registers().advance(epoch, following) {
                                match &descriptor {
                                    Descriptor::Wait(wait) if behind && time_out.is_none() => {
                                        waiting.0.push((*wait, epoch));
                                    }
                                    _ => {
                                        if matches!(descriptor, Descriptor::Wait(_)) {
                                            self.complete_waits(&mut waiting);
                                        }
                                        self.follow(&descriptor, epoch, time_out);
                                    }
                                }
                                self.tell_observer(&descriptor);
                            }
                        }
                        Err(error) => {
                            self.complete_waits(&mut waiting);
                            self.queue_error(error, epoch);
                        }
                    }
                }
            }
        }
        self.complete_waits(&mut waiting);
        false
    }

    fn is_behind(&self) -> bool {
        let mut behind = false;
        self.each_observer(|observer| behind |= observer.is_behind());
        behind
    }

    /// Completes waits that lie behind one another, in order. The first has the observers look; what has been heard since is
    /// in effect as well then.
    fn complete_waits(&self, waiting: &mut Waiting) {
        for (wait, epoch) in std::mem::take(&mut waiting.0) {
            self.complete_wait(&wait, epoch);
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

    /// What a descriptor takes out of the unit's own caches, and the requests that used it have ended. False where `worker`
    /// must not wait for them; all is then to be done again, which does no harm.
    fn invalidate(&self, descriptor: &Descriptor, worker: Worker) -> bool {
        let each = |change: &dyn Fn(&mut Cache)| {
            self.functions().iter().all(|function| worker.with(function, change))
        };
        match descriptor {
            Descriptor::ContextCache(context) => self.functions().iter().all(|function| {
                // The context cache is not tagged with domains in scalable mode. [S 6.5.2.1]
                let concerned =
                    context.granularity != ContextGranularity::Device || context.names(function.source_id);
                !concerned || worker.with(function, Cache::invalidate_context)
            }),
            Descriptor::Iotlb(iotlb) => each(&|cache| match iotlb.granularity {
                IotlbGranularity::Global => cache.invalidate_iotlb(),
                IotlbGranularity::Domain => cache.invalidate_iotlb_of_domain(iotlb.did, None),
                IotlbGranularity::Page => cache.invalidate_iotlb_of_domain(iotlb.did, Some(iotlb.range())),
            }),
            Descriptor::PasidIotlb(iotlb) => {
                let range = match iotlb.granularity {
                    PasidIotlbGranularity::Pasid => None,
                    PasidIotlbGranularity::Page => Some(iotlb.range()),
                };
                each(&|cache| cache.invalidate_pasid_iotlb(iotlb.did, iotlb.pasid, range, iotlb.ih))
            }
            Descriptor::PasidCache(pasids) => each(&|cache| match pasids.granularity {
                PasidCacheGranularity::Global => cache.invalidate_pasids(),
                PasidCacheGranularity::Domain => cache.invalidate_pasids_of_domain(pasids.did),
                PasidCacheGranularity::Pasid => cache.invalidate_pasid(pasids.did, pasids.pasid),
            }),
            Descriptor::DeviceTlb(_) | Descriptor::PasidDeviceTlb(_) => {
                let Some((source_id, invalidation)) = of_device(descriptor) else { return true };
                let scope = if invalidation.global { None } else { Some(invalidation.pasid) };
                self.function(source_id).is_none_or(|function| {
                    worker.with(&function, |cache| cache.invalidate_device_tlb(scope, invalidation.range))
                })
            }
            // Nothing is kept of the interrupt remapping table, but messages may be in flight.
            Descriptor::InterruptEntryCache(_) => self.drain_messages(worker == Worker::Executor),
            // No unit here has host permission tables: the type does not decode.
            Descriptor::PageGroupResponse(_) | Descriptor::Wait(_) | Descriptor::HptCache(_) => true,
        }
    }

    /// What a descriptor does once, and outside the unit.
    fn follow(&self, descriptor: &Descriptor, epoch: u64, time_out: &mut Option<TimeOut>) {
        match descriptor {
            Descriptor::DeviceTlb(_) | Descriptor::PasidDeviceTlb(_) => {
                let Some((source_id, invalidation)) = of_device(descriptor) else { return };
                match self.function(source_id) {
                    Some(function) => function.sink.device_tlb_invalidation(invalidation),
                    None if time_out.as_ref().is_none_or(|time_out| time_out.epoch != epoch) => {
                        *time_out = Some(TimeOut { epoch, source_id });
                    }
                    None => {}
                }
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
            Descriptor::Wait(wait) => match time_out.take().filter(|time_out| time_out.epoch == epoch) {
                // Waits that a time-out catches pending are aborted: no status, no interrupt. [S 6.5.2.11]
                Some(time_out) => {
                    let message = self.registers().invalidation_time_out(&time_out);
                    self.send_messages(message);
                }
                None => self.complete_wait(wait, epoch),
            },
            _ => {}
        }
    }

    /// Waits and responses are heard elsewhere: a wait before it completes, a response by its function's sink.
    fn tell_observer(&self, descriptor: &Descriptor) {
        if matches!(descriptor, Descriptor::Wait(_) | Descriptor::PageGroupResponse(_)) {
            return;
        }
        self.each_observer(|observer| observer.invalidated(descriptor));
    }

    fn function(&self, source_id: SourceId) -> Option<Arc<Function>> {
        self.functions().iter().find(|function| function.source_id == source_id).cloned()
    }

    /// All before a wait has been carried out, page requests received before it are in their queue. \[S 6.5.2.8\]
    fn complete_wait(&self, wait: &Wait, epoch: u64) {
        self.each_observer(|observer| observer.complete(wait.pd));
        let message = {
            let mut registers = self.registers();
            // Whoever has disabled the queue may use the status address for something else.
            if !registers.is_queue_epoch(epoch) {
                return;
            }
            let address = wait.status_address & self.capabilities.max_host_address();
            if wait.sw {
                // A status that has no memory to go to is lost.
                let _ = store_u32(&*self.memory, address, wait.status_data);
            }
            if wait.interrupt { registers.complete_invalidation() } else { None }
        };
        self.send_messages(message);
    }

    fn queue_error(&self, error: QueueError, epoch: u64) {
        let message = {
            let mut registers = self.registers();
            if !registers.is_queue_epoch(epoch) {
                return;
            }
            let record = registers.queue_error().with_iqei(error.into_bits());
            registers.set_queue_error(record);
            registers.raise_fault_condition(|status| status.with_iqe(true))
        };
        self.send_messages(message);
    }
}
