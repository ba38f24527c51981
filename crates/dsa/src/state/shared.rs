// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The state itself, and what its parts do to it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use crate::command::{Pending, QueueSet};
use crate::descriptor::Descriptor;
use crate::group::Group;
use crate::interrupt::Permission;
use crate::registers::{ENGINES, GENCTRL_SOFTWARE_ERROR, GROUPS, QUEUES, VECTORS, cause};
use crate::software_error::{SoftwareError, SoftwareErrorRegister};
use crate::work_queue::{QueueConfig, QueueState, WorkQueue};

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
    pub(super) vectors: u16,
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
    pub(super) general_config: u32,
    pub(super) general_control: u32,
    pub(super) causes: u32,
    /// Causes that wait until another has been cleared.
    pub(super) deferred_causes: u32,
    pub(super) software_error: SoftwareErrorRegister,
    pub(super) permissions: [Permission; VECTORS as usize],
}

impl State {
    pub fn new() -> Self {
        let engine = |_| EngineSlot {
            abort: Arc::new(AtomicBool::new(false)),
            running: None,
            retired: 0,
            idle: false,
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

    /// Whether a descriptor of `pasid` may raise `vector`. \[D 3.7\]
    pub fn may_interrupt(&self, vector: u16, pasid: Option<vtd_unit::Pasid>) -> bool {
        self.permissions.get(usize::from(vector)).is_some_and(|entry| entry.allows(pasid))
    }

    /// Whether completion interrupts by `vector` are dropped.
    pub fn ignores_interrupt(&self, vector: u16) -> bool {
        self.permissions.get(usize::from(vector)).is_none_or(|entry| entry.ignores())
    }
}
