// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What registers show and engines share: one lock guards it, and nothing is called with that lock held but
//! [`crate::bus::Bus::pci`]. What has to be called is collected in [`Effects`] and done after the lock is released.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use crate::bus::PciState;
use crate::command::{Pending, QueueSet};
use crate::descriptor::Descriptor;
use crate::group::Group;
use crate::interrupt::Permission;
use crate::registers::{
    self, CMDCAP_VALUE, CMDSTATUS_ACTIVE, ENGCAP_VALUE, ENGINES, GENCAP_VALUE, GENCFG_USER_INTERRUPTS,
    GENCTRL_HALT, GENCTRL_SOFTWARE_ERROR, GROUPS, GRPCAP_VALUE, GRPCFG, GRPCFG_END, GRPCFG_STRIDE, MSIXPERM,
    MSIXPERM_END, OFFSETS_VALUE, OPCAP_VALUE, QUEUES, SWERROR, SWERROR_END, VECTORS, VERSION_VALUE,
    WQCAP_VALUE, WQCFG, WQCFG_END, WQCFG_STRIDE, cause,
};
use crate::software_error::{Origin, SoftwareError, SoftwareErrorRegister, code};
use crate::work_queue::{QueueConfig, QueueState, Waiting, WorkQueue};

/// GENSTS bits 1:0.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum DeviceState {
    Disabled = 0,
    Enabled = 1,
    Draining = 2,
    /// Reset type 0: the Reset Device command brings it back.
    Halted = 3,
}

/// What is to be done after the lock is released.
#[derive(Default)]
pub(crate) struct Effects {
    /// Bit n: raise MSI-X vector n.
    vectors: u16,
    /// Bit n: wake engine n.
    pub wake: u8,
    /// Abort flags were set.
    pub aborts: bool,
    /// A descriptor has gone.
    pub retired: bool,
    /// Bit n: forget unfinished descriptors of work queue n.
    pub clear_portals: QueueSet,
}

impl Effects {
    pub fn vectors(&self) -> impl Iterator<Item = u16> {
        let vectors = self.vectors;
        (0..VECTORS).filter(move |vector| vectors >> vector & 1 == 1)
    }
}

/// A descriptor that an engine executes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Running {
    pub queue: usize,
    pub sequence: u64,
}

/// An engine as the others see it.
pub(crate) struct EngineSlot {
    /// Tells the engine to drop its descriptor.
    pub abort: Arc<AtomicBool>,
    pub running: Option<Running>,
    /// How many descriptors it has finished or dropped.
    pub retired: u64,
    /// It waits for work.
    pub idle: bool,
    /// Its thread has not decided to end.
    pub alive: bool,
    pub thread: Option<JoinHandle<()>>,
}

/// A descriptor on its way to an engine.
pub(crate) struct Job {
    pub queue: usize,
    pub sequence: u64,
    pub descriptor: Descriptor,
    pub config: QueueConfig,
    pub user_interrupts: bool,
    pub abort: Arc<AtomicBool>,
}

pub(crate) struct State {
    pub device: DeviceState,
    pub command: Option<Pending>,
    pub command_error: u8,
    pub groups: [Group; GROUPS],
    pub queues: [WorkQueue; QUEUES],
    pub engines: [EngineSlot; ENGINES],
    /// The device is going away.
    pub shutdown: bool,
    general_config: u32,
    general_control: u32,
    causes: u32,
    /// Causes that wait until another has been cleared.
    deferred_causes: u32,
    software_error: SoftwareErrorRegister,
    permissions: [Permission; VECTORS as usize],
}

impl State {
    pub fn new() -> Self {
        let engine = |_| EngineSlot {
            abort: Arc::new(AtomicBool::new(false)),
            running: None,
            retired: 0,
            idle: false,
            alive: false,
            thread: None,
        };
        Self {
            device: DeviceState::Disabled,
            command: None,
            command_error: 0,
            groups: Default::default(),
            queues: std::array::from_fn(|_| WorkQueue::new()),
            engines: std::array::from_fn(engine),
            shutdown: false,
            general_config: 0,
            general_control: 0,
            causes: 0,
            deferred_causes: 0,
            software_error: SoftwareErrorRegister::default(),
            permissions: Default::default(),
        }
    }

    /// What the Reset Device command does to registers. \[D tables 9-3, 9-4\]
    pub fn reset_configuration(&mut self) {
        self.device = DeviceState::Disabled;
        self.general_config = 0;
        self.general_control = 0;
        self.causes = 0;
        self.deferred_causes = 0;
        self.groups = Default::default();
        self.permissions = Default::default();
        for queue in &mut self.queues {
            queue.clear_config();
        }
    }

    /// Function level reset, and the state after power-on.
    pub fn reset(&mut self, effects: &mut Effects) {
        self.abort(QueueSet::MAX, effects);
        for queue in &mut self.queues {
            queue.state = QueueState::Disabled;
        }
        self.reset_configuration();
        self.command = None;
        self.command_error = 0;
        self.software_error = SoftwareErrorRegister::default();
        effects.wake = u8::MAX;
        effects.clear_portals = QueueSet::MAX;
    }

    /// Drops the waiting descriptors of some queues and tells engines to drop theirs.
    pub fn abort(&mut self, set: QueueSet, effects: &mut Effects) {
        for (index, queue) in self.queues.iter_mut().enumerate() {
            if set >> index & 1 == 1 {
                queue.waiting.clear();
            }
        }
        for engine in &self.engines {
            if engine.running.is_some_and(|running| set >> running.queue & 1 == 1) {
                engine.abort.store(true, Ordering::Release);
            }
        }
        effects.aborts = true;
    }

    /// A descriptor arrived at a portal. Descriptors for a queue that is not enabled are dropped. \[D 3.3\]
    pub fn submit(&mut self, index: usize, descriptor: Descriptor, effects: &mut Effects) {
        let enabled = self.device == DeviceState::Enabled;
        let Some(queue) = self.queues.get_mut(index) else { return };
        if !enabled || queue.state != QueueState::Enabled {
            tracing::debug!(queue = index, "descriptor for a work queue that is not enabled");
            return;
        }
        if queue.waiting.len() >= queue.config.size() as usize {
            let origin = Origin {
                queue: index as u8,
                operation: descriptor.opcode(),
                pasid: queue.config.pasid(),
                privileged: queue.config.privileged(),
                batch_index: None,
            };
            let error = SoftwareError { code: code::QUEUE_FULL, origin: Some(origin), ..Default::default() };
            return self.report(&error, effects);
        }
        queue.waiting.push_back(Waiting { sequence: queue.next_sequence, descriptor });
        queue.next_sequence += 1;
        let Some(group) = self.groups.iter().find(|group| group.has_queue(index)) else { return };
        for (number, engine) in self.engines.iter_mut().enumerate() {
            if engine.idle && group.has_engine(number) {
                engine.idle = false;
                effects.wake |= 1 << number;
                return;
            }
        }
    }

    /// Work for an engine: from the queues of its group, each in turns by its priority.
    pub fn next_job(&mut self, engine: usize) -> Option<Job> {
        if !matches!(self.device, DeviceState::Enabled | DeviceState::Draining) {
            return None;
        }
        let group = *self.groups.iter().find(|group| group.has_engine(engine))?;
        let ready = |(index, queue): &(usize, &mut WorkQueue)| {
            group.has_queue(*index) && queue.state != QueueState::Disabled && !queue.waiting.is_empty()
        };
        if self.queues.iter_mut().enumerate().filter(ready).all(|(_, queue)| queue.credit == 0) {
            for (_, queue) in self.queues.iter_mut().enumerate().filter(ready) {
                queue.credit = queue.config.priority();
            }
        }
        let (index, queue) =
            self.queues.iter_mut().enumerate().filter(ready).max_by_key(|(_, queue)| queue.credit)?;
        queue.credit = queue.credit.saturating_sub(1);
        let Waiting { sequence, descriptor } = queue.waiting.pop_front()?;
        let config = queue.config;
        let slot = self.engines.get_mut(engine)?;
        slot.abort.store(false, Ordering::Release);
        slot.running = Some(Running { queue: index, sequence });
        let abort = Arc::clone(&slot.abort);
        let user_interrupts = self.general_config & GENCFG_USER_INTERRUPTS != 0;
        Some(Job { queue: index, sequence, descriptor, config, user_interrupts, abort })
    }

    /// An engine is done with its descriptor: nothing of it is left.
    pub fn retire(&mut self, engine: usize, effects: &mut Effects) {
        if let Some(slot) = self.engines.get_mut(engine) {
            slot.running = None;
            slot.retired += 1;
        }
        effects.retired = true;
        self.settle_command(effects);
    }

    /// Whether a queue's descriptor before `sequence` is still executed.
    pub fn runs_earlier(&self, queue: usize, sequence: u64) -> bool {
        self.engines
            .iter()
            .filter_map(|engine| engine.running)
            .any(|running| running.queue == queue && running.sequence < sequence)
    }

    /// Records an error in the software error register.
    pub fn report(&mut self, error: &SoftwareError, effects: &mut Effects) {
        tracing::debug!(?error, "software error");
        if self.software_error.record(error) && self.general_control & GENCTRL_SOFTWARE_ERROR != 0 {
            self.raise(cause::SOFTWARE_ERROR, effects);
        }
    }

    /// Sets a cause and raises vector 0. Linux acknowledges all causes at once and, where it finds a halt, handles
    /// nothing else (irq.c:idxd_misc_thread), so a halt and a command's completion never show together.
    pub fn raise(&mut self, new: u32, effects: &mut Effects) {
        let excluded = match new {
            cause::HALT => cause::COMMAND,
            cause::COMMAND => cause::HALT,
            _ => 0,
        };
        if self.causes & excluded != 0 {
            self.deferred_causes |= new;
            return;
        }
        self.causes |= new;
        effects.vectors |= 1;
    }

    /// Configuration space changed in a way that hardware allows only while it is Disabled. \[D 5.8.2, 9.1.3\]
    pub fn configuration_changed(&mut self, effects: &mut Effects) {
        if matches!(self.device, DeviceState::Disabled | DeviceState::Halted) {
            return;
        }
        self.report(&SoftwareError { code: code::CONFIG_CHANGED, ..Default::default() }, effects);
        self.device = DeviceState::Halted;
        self.abort(QueueSet::MAX, effects);
        for queue in &mut self.queues {
            queue.state = QueueState::Disabled;
        }
        self.settle_command(effects);
        if self.general_control & GENCTRL_HALT != 0 {
            self.raise(cause::HALT, effects);
        }
        effects.wake = u8::MAX;
    }

    /// Whether a descriptor of `pasid` may raise `vector`. \[D 3.7\]
    pub fn may_interrupt(&self, vector: u16, pasid: Option<vtd_unit::Pasid>) -> bool {
        self.permissions.get(usize::from(vector)).is_some_and(|entry| entry.allows(pasid))
    }

    /// Whether completion interrupts by `vector` are dropped.
    pub fn ignores_interrupt(&self, vector: u16) -> bool {
        self.permissions.get(usize::from(vector)).is_none_or(|entry| entry.ignores())
    }

    /// The QWORD at `offset`, which is a multiple of 8. Registers that do not exist read 0.
    pub fn read(&self, offset: u64) -> u64 {
        match offset {
            registers::VERSION => VERSION_VALUE,
            registers::GENCAP => GENCAP_VALUE,
            registers::WQCAP => WQCAP_VALUE,
            registers::GRPCAP => GRPCAP_VALUE,
            registers::ENGCAP => ENGCAP_VALUE,
            registers::OPCAP => OPCAP_VALUE,
            registers::OFFSETS => OFFSETS_VALUE,
            registers::GENCFG => self.general_config.into(),
            registers::GENCTRL => self.general_control.into(),
            registers::GENSTS => self.device as u64,
            registers::INTCAUSE => self.causes.into(),
            registers::CMDSTATUS => {
                let active = if self.command.is_some() { CMDSTATUS_ACTIVE } else { 0 };
                u64::from(if active != 0 { active } else { self.command_error.into() })
            }
            registers::CMDCAP => CMDCAP_VALUE,
            SWERROR..SWERROR_END => self.software_error.read(((offset - SWERROR) / 8) as usize),
            MSIXPERM..MSIXPERM_END => self
                .permissions
                .get(((offset - MSIXPERM) / 8) as usize)
                .map_or(0, |entry| entry.read().into()),
            WQCFG..WQCFG_END => {
                let (queue, dword) = entry(offset - WQCFG, WQCFG_STRIDE);
                self.queues.get(queue).map_or(0, |queue| pair(queue.read(dword), queue.read(dword + 1)))
            }
            GRPCFG..GRPCFG_END => {
                let (group, dword) = entry(offset - GRPCFG, GRPCFG_STRIDE);
                self.groups.get(group).map_or(0, |group| pair(group.read(dword), group.read(dword + 1)))
            }
            _ => 0,
        }
    }

    /// A write of the bits in `mask` of the DWORD at `offset`, which is a multiple of 4. What cannot be written
    /// ignores it. CMD is not written here.
    pub fn write(&mut self, offset: u64, value: u32, mask: u32, effects: &mut Effects) {
        let disabled = self.device == DeviceState::Disabled;
        let merge = |old: u32, writable: u32| old & !(mask & writable) | value & mask & writable;
        match offset {
            registers::GENCFG if disabled => {
                self.general_config = merge(self.general_config, GENCFG_USER_INTERRUPTS);
            }
            registers::GENCTRL => {
                self.general_control = merge(self.general_control, GENCTRL_SOFTWARE_ERROR | GENCTRL_HALT);
            }
            registers::INTCAUSE => {
                self.causes &= !(value & mask);
                for deferred in [cause::COMMAND, cause::HALT] {
                    if self.deferred_causes & deferred != 0 {
                        self.deferred_causes &= !deferred;
                        self.raise(deferred, effects);
                    }
                }
            }
            SWERROR => self.software_error.clear(value & mask),
            MSIXPERM..MSIXPERM_END if offset.is_multiple_of(8) => {
                if let Some(entry) = self.permissions.get_mut(((offset - MSIXPERM) / 8) as usize) {
                    entry.write(value, mask);
                }
            }
            WQCFG..WQCFG_END => {
                let (queue, dword) = entry(offset - WQCFG, WQCFG_STRIDE);
                if let Some(queue) = self.queues.get_mut(queue) {
                    queue.write(dword, value, mask, disabled);
                }
            }
            GRPCFG..GRPCFG_END if disabled => {
                let (group, dword) = entry(offset - GRPCFG, GRPCFG_STRIDE);
                if let Some(group) = self.groups.get_mut(group) {
                    group.write(dword, value, mask);
                }
            }
            _ => {}
        }
    }

    /// A write of CMD. \[D 9.2.14\]
    pub fn write_command(
        &mut self,
        value: u32,
        pci: &PciState,
        spawn_engines: impl FnOnce(&mut State) -> bool,
        effects: &mut Effects,
    ) {
        if self.command.is_some() {
            let error = SoftwareError { code: code::COMMAND_ACTIVE, ..Default::default() };
            return self.report(&error, effects);
        }
        self.start_command(value, pci, spawn_engines, effects);
    }
}

/// Index and DWORD of an offset in a table.
const fn entry(offset: u64, stride: u64) -> (usize, usize) {
    ((offset / stride) as usize, (offset % stride / 4) as usize)
}

const fn pair(low: u32, high: u32) -> u64 {
    low as u64 | (high as u64) << 32
}
