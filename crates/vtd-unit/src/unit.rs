// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The unit as a VMM holds it: its register page, and the functions behind it.

use std::sync::{
    Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak,
};

use vm_memory::GuestMemoryBackend;
use vtd_spec::registers::offset;
use vtd_spec::{Capabilities, GlobalCommand, InterruptRemapTableAddress, RootTableAddress, SourceId};

use crate::config::{ConfigError, UnitConfig};
use crate::endpoint::{Endpoint, EndpointSink};
use crate::fault::{Blocked, Fault};
use crate::function::{Entries, Function, Remapping};
use crate::interrupt::InterruptRemapping;
use crate::notify::{Message, Notify};
use crate::observer::Observer;
use crate::registers::{PAGE_BYTES, Registers};
use crate::statistics::Statistics;
use crate::virtual_command::{PasidAllocator, VirtualCommandEncoding};

/// What endpoints and the unit share.
pub(crate) struct Core<M> {
    pub(crate) memory: Arc<M>,
    pub(crate) capabilities: Capabilities,
    pub(crate) notify: Arc<dyn Notify>,
    virtual_command: Option<VirtualCommandEncoding>,
    functions: RwLock<Vec<Arc<Function>>>,
    interrupts: RwLock<InterruptRemapping>,
    registers: Box<Mutex<Registers>>,
    observer: OnceLock<Weak<dyn Observer>>,
    pasids: OnceLock<Weak<dyn PasidAllocator>>,
    /// Sizes of the caches that each function gets.
    entries: Entries,
}

impl<M> Core<M> {
    /// The register page. The innermost lock: nothing is called with it held.
    pub(crate) fn registers(&self) -> MutexGuard<'_, Registers> {
        self.registers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn functions(&self) -> RwLockReadGuard<'_, Vec<Arc<Function>>> {
        self.functions.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// What becomes of interrupt requests, for one of them.
    pub(crate) fn interrupts(&self) -> RwLockReadGuard<'_, InterruptRemapping> {
        self.interrupts.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// As [`Self::interrupts`], for a change or an invalidation: waits for the requests in flight.
    pub(crate) fn interrupts_mut(&self) -> RwLockWriteGuard<'_, InterruptRemapping> {
        self.interrupts.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who mirrors this unit's tables, if somebody does.
    pub(crate) fn observer(&self) -> Option<Arc<dyn Observer>> {
        self.observer.get()?.upgrade()
    }

    /// Records a fault, unless an FPD on its way says otherwise.
    pub(crate) fn record_fault(&self, blocked: Blocked, fault: &Fault) {
        if blocked.suppressed {
            return;
        }
        let message = self.registers().record_fault(fault);
        self.send(message);
    }

    pub(crate) fn send(&self, messages: impl IntoIterator<Item = Message>) {
        for message in messages {
            self.notify.message(message);
        }
    }

    /// An invalidation completion that answers nothing arrived. \[S 6.5.2.10\]
    pub(crate) fn invalidation_completion_error(&self, source_id: SourceId) {
        let message = {
            let mut registers = self.registers();
            let status = registers.fault_status();
            if !status.ice() {
                let record = registers.queue_error().with_icesid(source_id.0);
                registers.set_queue_error(record);
            }
            registers.raise_fault_condition(|status| status.with_ice(true))
        };
        self.send(message);
    }

    /// Takes over how the registers now say that interrupts are treated.
    fn apply_interrupt_remapping(&self) {
        let mut interrupts = self.interrupts_mut();
        *interrupts = self.registers().interrupts;
    }

    /// Gives every function the unit-wide state that the registers now hold, which empties their caches and waits
    /// for their accesses in flight. Whoever comes last applies the newest state.
    fn apply_remapping(&self) {
        let functions = self.functions.write().unwrap_or_else(PoisonError::into_inner);
        let remapping = self.registers().remapping();
        for function in functions.iter() {
            function.write().set_remapping(remapping);
        }
    }
}

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
            effects.run_queue |= self.command(GlobalCommand::from_bits(command));
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

    /// Carries out a write of GCMD, bit by bit in a fixed order; returns whether the queue is to be run. GSTS tells of a
    /// change when it is in effect and what it concerns has drained. \[S 11.4.4\]
    fn command(&self, command: GlobalCommand) -> bool {
        let core = &self.core;
        let (run_queue, remap) = {
            let mut registers = core.registers();
            let mut status = registers.status();
            let ecap = registers.capabilities.ecap;
            if ecap.qi() && command.qie() != status.qies() {
                status = status.with_qies(command.qie());
                registers.queue_epoch += 1;
                registers.set64(offset::IQH, 0);
            }
            if command.srtp() {
                registers.root_table = RootTableAddress::from_bits(registers.get64(offset::RTADDR));
                status = status.with_rtps(false);
            }
            if ecap.ir() {
                if command.sirtp() {
                    let table = InterruptRemapTableAddress::from_bits(registers.get64(offset::IRTA));
                    registers.interrupts.table = table;
                    status = status.with_irtps(false);
                }
                registers.interrupts.enabled = command.ire();
                registers.interrupts.compatibility = command.cfi();
            }
            let remap = command.srtp() || command.te() != status.tes();
            registers.set_status(status);
            registers.enable_remapping = command.te();
            if !command.te() && !registers.interrupts.enabled {
                registers.fault_index = 0;
            }
            (registers.claim_queue(), remap)
        };
        if core.capabilities.ecap.ir() {
            core.apply_interrupt_remapping();
        }
        if remap {
            core.apply_remapping();
            if let Some(observer) = core.observer() {
                observer.remapping_changed();
            }
        }
        let mut registers = core.registers();
        let (before, interrupts) = (registers.status(), registers.interrupts);
        let status = before
            .with_rtps(before.rtps() || command.srtp())
            .with_tes(registers.enable_remapping)
            .with_irtps(before.irtps() || command.sirtp() && core.capabilities.ecap.ir())
            .with_ires(interrupts.enabled)
            .with_cfis(interrupts.compatibility);
        registers.set_status(status);
        run_queue
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
        let mut functions = self.core.functions.write().unwrap_or_else(PoisonError::into_inner);
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

impl Registers {
    pub(crate) fn remapping(&self) -> Remapping {
        Remapping {
            enabled: self.enable_remapping,
            mode: self.root_table.ttm(),
            root_table: self.root_table.rta(),
        }
    }
}
