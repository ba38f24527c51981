// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The unit as a VMM holds it: its register page, and the functions behind it.

use std::sync::{Arc, Mutex, OnceLock, RwLock, Weak};

use vm_memory::GuestMemoryBackend;
use vtd_spec::{Capabilities, GlobalCommand, SourceId};

use crate::config::{ConfigError, Entries, UnitConfig};
use crate::core::Core;
use crate::endpoint::Endpoint;
use crate::endpoint_sink::EndpointSink;
use crate::function::Function;
use crate::notify::Notify;
use crate::observer::Observer;
use crate::pasid_allocator::PasidAllocator;
use crate::registers::{PAGE_BYTES, Registers};
use crate::statistics::Statistics;

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
    /// Options that no unit can have together.
    pub fn new(config: &UnitConfig, memory: Arc<M>, notify: Arc<dyn Notify>) -> Result<Self, ConfigError> {
        let capabilities = config.capabilities()?;
        let registers = Box::new(Mutex::new(Registers::new(capabilities, config.vcmd)));
        let entries = Entries { iotlb: config.iotlb_entries, structures: config.structure_entries };
        let functions = RwLock::new(Vec::new());
        let interrupts = RwLock::default();
        let core = Core {
            memory,
            capabilities,
            notify,
            virtual_command: config.vcmd,
            functions,
            interrupts,
            registers,
            observer: OnceLock::new(),
            pasids: OnceLock::new(),
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
    /// done when this returns, except for a long invalidation queue, which is finished in the background.
    pub fn write(&self, offset: u64, data: &[u8]) {
        let mut effects = self.core.registers().write(offset, data);
        self.core.send(effects.messages.drain(..));
        if let Some(command) = effects.command {
            effects.run_queue |= self.core.command(GlobalCommand::from_bits(command));
        }
        if effects.run_queue {
            self.core.run_queue_for_processor();
        }
        if let Some((command, encoding)) = effects.virtual_command.zip(self.core.virtual_command) {
            let pasids = self.core.pasids.get().and_then(Weak::upgrade);
            let response = encoding.execute(command, pasids.as_deref());
            self.core.registers().finish_virtual_command(response);
        }
    }

    /// The port of the function `source_id`, whose invalidations and page group responses go to `sink`. A later call
    /// for the same source-id replaces the function.
    pub fn endpoint(&self, source_id: SourceId, sink: Arc<dyn EndpointSink>) -> Endpoint<M> {
        self.add_function(source_id, sink, Arc::clone(&self.core.notify))
    }

    /// As [`Self::endpoint`], for a function that another unit translates for: an assigned one, whose messages go to
    /// `messages` once they have been remapped. The port serves to pass on what the function's own host reports.
    pub fn endpoint_with_messages(
        &self,
        source_id: SourceId,
        sink: Arc<dyn EndpointSink>,
        messages: Arc<dyn Notify>,
    ) -> Endpoint<M> {
        self.add_function(source_id, sink, messages)
    }

    fn add_function(
        &self,
        source_id: SourceId,
        sink: Arc<dyn EndpointSink>,
        messages: Arc<dyn Notify>,
    ) -> Endpoint<M> {
        let mut functions = self.core.functions_mut();
        let remapping = self.core.registers().remapping();
        let function = Arc::new(Function::new(source_id, sink, messages, remapping, self.core.entries));
        for gone in functions.extract_if(.., |other| other.source_id == source_id) {
            // Nothing invalidates its caches any more.
            gone.write().retire();
        }
        functions.push(Arc::clone(&function));
        Endpoint::new(Arc::clone(&self.core), function)
    }

    /// Has `observer` hear what software tells the unit, for as long as somebody else keeps it. The first one set
    /// stays; false where there was one.
    pub fn set_observer(&self, observer: &Arc<dyn Observer>) -> bool {
        self.core.observer.set(Arc::downgrade(observer)).is_ok()
    }

    /// Has the virtual command interface allocate from `pasids`, for as long as somebody else keeps it. The first
    /// one set stays; false where there was one.
    pub fn set_pasid_allocator(&self, pasids: &Arc<dyn PasidAllocator>) -> bool {
        self.core.pasids.set(Arc::downgrade(pasids)).is_ok()
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

    /// Puts the unit back to its state after power-up, with the functions it has: for a machine that is reset.
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
        self.core.apply_remapping();
        self.core.apply_interrupt_remapping();
        if let Some(observer) = self.core.observer() {
            observer.remapping_changed();
            observer.reset();
        }
    }
}
