// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The unit as a VMM holds it: its register page, and the functions behind it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};

use vm_memory::GuestMemoryBackend;
use vtd_spec::{Capabilities, GlobalCommand, SourceId};

use crate::config::{ConfigError, Entries, UnitConfig, VirtualCommandEncoding};
use crate::core::Core;
use crate::endpoint::Endpoint;
use crate::endpoint_sink::EndpointSink;
use crate::executor::{Executor, WorkerThread};
use crate::function::{Cache, Function};
use crate::in_flight::InFlight;
use crate::notify::Notify;
use crate::observer::Observer;
use crate::pasid_allocator::PasidAllocator;
use crate::registers::{PAGE_BYTES, Registers};
use crate::statistics::Statistics;
use crate::worker::Worker;

/// Two functions cannot have one source-id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a function with source-id {0} is behind the unit already: remove it first")]
pub struct SourceIdInUse(pub SourceId);

/// An Intel VT-d remapping unit. Cheap to clone; each clone is the same unit.
///
/// See the crate's documentation for how its parts work together.
pub struct Unit<M> {
    core: Arc<Core<M>>,
}

impl<M> Clone for Unit<M> {
    fn clone(&self) -> Self {
        Self { core: Arc::clone(&self.core) }
    }
}

impl<M: GuestMemoryBackend + Send + Sync + 'static> Unit<M> {
    /// Size of the register page in bytes: what the VMM traps, 4 KiB aligned, at the DRHD's register base.
    pub const REGISTER_BYTES: u64 = PAGE_BYTES;

    /// A unit after power-up, whose tables and queues lie in `memory` and whose interrupts go to `notify`.
    ///
    /// # Errors
    ///
    /// Options that no unit can have together, or no thread for what register writes leave to be done.
    pub fn new(config: &UnitConfig, memory: Arc<M>, notify: Arc<dyn Notify>) -> Result<Self, ConfigError> {
        let executor = WorkerThread::start().map_err(|error| ConfigError::NoThread(error.to_string()))?;
        Self::with_executor(config, memory, notify, Arc::new(executor))
    }

    /// As [`Self::new`], with `executor` instead of a thread of the unit's own.
    ///
    /// # Errors
    ///
    /// Options that no unit can have together.
    pub fn with_executor(
        config: &UnitConfig,
        memory: Arc<M>,
        notify: Arc<dyn Notify>,
        executor: Arc<dyn Executor>,
    ) -> Result<Self, ConfigError> {
        let capabilities = config.capabilities()?;
        let registers = Box::new(Mutex::new(Registers::new(capabilities, config.vcmd)).into());
        let entries = Entries { iotlb: config.iotlb_entries, structures: config.structure_entries };
        let functions = RwLock::new(Arc::default()).into();
        let interrupts = RwLock::default().into();
        let core = Core {
            memory,
            capabilities,
            notify,
            virtual_command: config.vcmd,
            functions,
            interrupts,
            messages: InFlight::default().into(),
            executor,
            registers,
            observers: RwLock::default(),
            pasids: Mutex::default(),
            entries,
        };
        Ok(Self { core: Arc::new(core) })
    }

    /// What the unit reports of itself, for the ACPI tables among others.
    pub fn capabilities(&self) -> Capabilities {
        self.core.capabilities
    }

    /// Reads `data.len()` bytes at `offset` in the register page.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        self.core.registers().read(offset, data);
    }

    /// Writes `data` at `offset` in the register page: aligned doublewords and quadwords. What the write sets off is
    /// done when this returns, unless something has to be waited for or takes long: an access in flight, an observer that
    /// looks at many PASIDs, a long queue. That the executor finishes, and the registers tell when it is done. So a thread
    /// may write registers whatever it holds of the unit, from within a callback too.
    pub fn write(&self, offset: u64, data: &[u8]) {
        let mut effects = self.core.registers().write(offset, data);
        self.core.send_messages(effects.messages.drain(..));
        if let Some(command) = effects.command {
            effects.run_queue |= self.core.command(GlobalCommand::from_bits(command));
        }
        if effects.run_queue {
            self.core.run_queue_for_processor();
        }
        if let Some((command, encoding)) = effects.virtual_command.zip(self.core.virtual_command) {
            if encoding.may_wait(command) {
                let core = Arc::downgrade(&self.core);
                self.core.executor.execute(Box::new(move || {
                    if let Some(core) = core.upgrade() {
                        Self { core }.virtual_command(command, encoding);
                    }
                }));
            } else {
                self.virtual_command(command, encoding);
            }
        }
    }

    /// Carries a virtual command out; VCRSP tells when it is done.
    fn virtual_command(&self, command: u64, encoding: VirtualCommandEncoding) {
        let pasids = self.pasids().as_ref().and_then(Weak::upgrade);
        let response = encoding.execute(command, pasids.as_deref());
        self.core.registers().finish_virtual_command(response);
    }

    /// The port of the function `source_id`, whose invalidations and page group responses go to `sink`.
    ///
    /// # Errors
    ///
    /// Another function has that source-id; [`Self::remove_endpoint`] takes it out.
    pub fn endpoint(
        &self,
        source_id: SourceId,
        sink: Arc<dyn EndpointSink>,
    ) -> Result<Endpoint<M>, SourceIdInUse> {
        self.add_function(source_id, sink, Arc::clone(&self.core.notify))
    }

    /// As [`Self::endpoint`], for a function that another unit translates for: an assigned one, whose messages go to
    /// `messages` once they have been remapped. The port serves to pass on what the function's own host reports.
    ///
    /// # Errors
    ///
    /// As [`Self::endpoint`].
    pub fn endpoint_with_messages(
        &self,
        source_id: SourceId,
        sink: Arc<dyn EndpointSink>,
        messages: Arc<dyn Notify>,
    ) -> Result<Endpoint<M>, SourceIdInUse> {
        self.add_function(source_id, sink, messages)
    }

    fn add_function(
        &self,
        source_id: SourceId,
        sink: Arc<dyn EndpointSink>,
        messages: Arc<dyn Notify>,
    ) -> Result<Endpoint<M>, SourceIdInUse> {
        let mut functions = self.core.functions_mut();
        if functions.iter().any(|other| other.source_id == source_id) {
            return Err(SourceIdInUse(source_id));
        }
        let remapping = self.core.registers().remapping();
        let function = Arc::new(Function::new(source_id, sink, messages, remapping, self.core.entries));
        *functions = functions.iter().cloned().chain([Arc::clone(&function)]).collect();
        Ok(Endpoint::new(Arc::clone(&self.core), function))
    }

    /// Takes the function `source_id` out, as hot-unplug does: its ports reach nothing any more, and device-TLB
    /// invalidations for it time out. Waits for its accesses in flight, so not to be called with one. False where there is
    /// none.
    pub fn remove_endpoint(&self, source_id: SourceId) -> bool {
        let gone = {
            let mut functions = self.core.functions_mut();
            let gone = functions.iter().find(|function| function.source_id == source_id).cloned();
            *functions =
                functions.iter().filter(|function| function.source_id != source_id).cloned().collect();
            gone
        };
        if let Some(function) = &gone {
            // Nothing invalidates its caches any more.
            Worker::Executor.with(function, Cache::retire);
        }
        gone.is_some()
    }

    /// Has `observer` hear what software tells the unit, for as long as somebody else keeps it. There may be several.
    pub fn add_observer(&self, observer: &Arc<dyn Observer>) {
        let mut observers = self.core.observers.write().unwrap_or_else(PoisonError::into_inner);
        let there = observers.iter().filter(|other| other.strong_count() > 0).cloned();
        *observers = there.chain([Arc::downgrade(observer)]).collect();
    }

    /// Has the virtual command interface allocate from `pasids`, for as long as somebody else keeps it. False where it has
    /// another one, which stays.
    pub fn set_pasid_allocator(&self, pasids: &Arc<dyn PasidAllocator>) -> bool {
        let mut set = self.pasids();
        let free = set.as_ref().is_none_or(|other| other.strong_count() == 0);
        if free {
            *set = Some(Arc::downgrade(pasids));
        }
        free
    }

    /// Whether software can have PASIDs allocated.
    pub fn has_virtual_command(&self) -> bool {
        self.core.virtual_command.is_some()
    }

    fn pasids(&self) -> MutexGuard<'_, Option<Weak<dyn PasidAllocator>>> {
        self.core.pasids.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who finishes what register writes begin: also for what else a virtual processor's thread must not wait for.
    pub fn executor(&self) -> Arc<dyn Executor> {
        Arc::clone(&self.core.executor)
    }

    /// What the unit has done since power-up, for the functions that it has now.
    pub fn statistics(&self) -> Statistics {
        let mut sum = Statistics::default();
        for function in self.core.functions().iter() {
            sum += function.read().counters.read();
        }
        sum
    }

    pub(crate) fn core(&self) -> &Core<M> {
        &self.core
    }

    /// Puts the unit back to its state after power-up, with the functions it has: for a machine that is reset. Waits for
    /// accesses in flight, so not to be called with one.
    pub fn reset(&self) {
        self.start_over(true);
    }

    /// As [`reset`](Self::reset), but for a machine that kept its power: what the unit has recorded of faults, queue errors
    /// and completions (the sticky bits of FSTS, the fault records, ICS, IQERCD and PRS) is still there for whoever
    /// boots next. \[S 11.2\]
    pub fn warm_reset(&self) {
        self.start_over(false);
    }

    fn start_over(&self, power_up: bool) {
        self.core.registers().reset(power_up);
        self.core.apply_remapping(Worker::Executor);
        self.core.apply_interrupt_remapping(Worker::Executor);
        self.core.each_observer(|observer| {
            observer.interrupts_changed();
            observer.remapping_changed();
            observer.reset();
        });
    }
}
