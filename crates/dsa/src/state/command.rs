// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Administrative commands carried out: their checks, and what they wait for. \[D 3.15\]
//!
//! A command that waits for descriptors is finished by the engine that retires the last of them, so no processor of
//! the guest ever waits.

use super::shared::{DeviceState, Effects, State};
use crate::bus::PciState;
use crate::command::{ALL, Command, Pending, QueueSet, error};
use crate::registers::{GENCTRL_HALT, GROUPS, QUEUES, TOTAL_QUEUE_SIZE, cause};
use crate::software_error::{SoftwareError, code};
use crate::work_queue::QueueState;

impl Pending {
    fn is_settled(&self, state: &State) -> bool {
        state
            .queues
            .iter()
            .zip(self.awaited)
            .all(|(queue, limit)| queue.waiting.front().is_none_or(|first| first.sequence >= limit))
            && state
                .engines
                .iter()
                .filter_map(|engine| engine.running)
                .all(|running| self.awaited.get(running.queue).is_none_or(|limit| running.sequence >= *limit))
    }
}

impl State {
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

    /// A write of CMD. The command is finished or pending afterwards.
    pub fn start_command(&mut self, value: u32, pci: &PciState, effects: &mut Effects) {
        let interrupt = value >> 31 == 1;
        let command = match Command::parse(value).and_then(|command| {
            self.check_command(command, pci)?;
            Ok(command)
        }) {
            Ok(command) => command,
            Err(error) => return self.end_command(error, interrupt, effects),
        };
        if command == Command::EnableDevice {
            self.device = DeviceState::Enabled;
        }
        let awaited = self.begin(command, effects);
        self.command = Some(Pending { command, awaited, interrupt });
        self.settle_command(effects);
    }

    /// Finishes the pending command if nothing it waits for is left.
    pub fn settle_command(&mut self, effects: &mut Effects) {
        let Some(pending) = self.command else { return };
        if !pending.is_settled(self) {
            return;
        }
        self.command = None;
        let halted = matches!(self.device, DeviceState::Halted);
        if halted && pending.command != Command::ResetDevice {
            return self.end_command(error::HALTED, pending.interrupt, effects);
        }
        self.finish(pending.command, effects);
        self.end_command(0, pending.interrupt, effects);
    }

    fn end_command(&mut self, error: u8, interrupt: bool, effects: &mut Effects) {
        if error != 0 {
            tracing::debug!(error, "administrative command failed");
        }
        self.command_error = error;
        if interrupt {
            self.raise(crate::registers::cause::COMMAND, effects);
        }
    }

    fn check_command(&self, command: Command, pci: &PciState) -> Result<(), u8> {
        let enabled = self.device == DeviceState::Enabled;
        if self.device == DeviceState::Halted && command != Command::ResetDevice {
            return Err(error::HALTED);
        }
        match command {
            Command::EnableDevice => self.check_enable_device(pci),
            Command::DisableDevice if !enabled => Err(error::NOT_ENABLED),
            Command::EnableQueue(_) if !enabled => Err(error::DEVICE_NOT_ENABLED),
            Command::EnableQueue(index) => {
                let queue = self.queues.get(index).ok_or(error::QUEUE_INDEX)?;
                if queue.state != QueueState::Disabled {
                    return Err(error::QUEUE_NOT_DISABLED);
                }
                queue.config.check(pci)
            }
            Command::DisableQueues(set) | Command::DrainQueues(set) | Command::AbortQueues(set)
                if members(set).any(|queue| self.queues[queue].state != QueueState::Enabled) =>
            {
                Err(error::QUEUE_NOT_ENABLED)
            }
            _ => Ok(()),
        }
    }

    /// The checks of Enable Device. \[D 5.1\]
    fn check_enable_device(&self, pci: &PciState) -> Result<(), u8> {
        let sizes = self.queues.iter().map(|queue| queue.config.size());
        let group_count = |has: &dyn Fn(usize) -> bool| (0..GROUPS).filter(|group| has(*group)).count();
        let queue_in = |queue: usize| group_count(&|group| self.groups[group].has_queue(queue));
        let engine_in = |engine: usize| group_count(&|group| self.groups[group].has_engine(engine));
        let queue_wrong = |(queue, size): (usize, u32)| match queue_in(queue) {
            0 => size != 0,
            1 => size == 0,
            _ => true,
        };
        let checks = [
            (self.device != DeviceState::Disabled, error::NOT_DISABLED),
            (!pci.bus_master, error::BUS_MASTER),
            (
                pci.pri && (pci.pri_allocation == 0 || pci.pri_allocation > pci.pri_capacity),
                error::PRI_ALLOCATION,
            ),
            (sizes.clone().sum::<u32>() > TOTAL_QUEUE_SIZE, error::TOTAL_SIZE),
            (self.groups.iter().any(|group| (group.queues == 0) != (group.engines == 0)), error::GROUP),
            (sizes.enumerate().any(queue_wrong), error::QUEUE_GROUP),
            ((0..self.engines.len()).any(|engine| engine_in(engine) > 1), error::ENGINE_GROUP),
        ];
        checks.iter().find(|(wrong, _)| *wrong).map_or(Ok(()), |(_, error)| Err(*error))
    }

    /// The first half of a command: stops what has to stop. Returns what has to be awaited.
    fn begin(&mut self, command: Command, effects: &mut Effects) -> [u64; QUEUES] {
        let (set, stop, abort) = match command {
            Command::EnableDevice | Command::EnableQueue(_) => return [0; QUEUES],
            Command::DisableDevice => (ALL, true, false),
            Command::ResetDevice => (ALL, true, true),
            Command::DrainAll => (ALL, false, false),
            Command::AbortAll => (ALL, false, true),
            Command::DisableQueues(set) => (set, true, false),
            Command::ResetQueues(set) => (set, true, true),
            Command::DrainQueues(set) => (set, false, false),
            Command::AbortQueues(set) => (set, false, true),
            Command::DrainPasid(pasid) => (self.queues_of_pasid(pasid), false, false),
            Command::AbortPasid(pasid) => (self.queues_of_pasid(pasid), false, true),
        };
        if matches!(command, Command::DisableDevice | Command::ResetDevice) {
            self.device = DeviceState::Draining;
        }
        let mut awaited = [0; QUEUES];
        for index in members(set) {
            let queue = &mut self.queues[index];
            if stop && queue.state == QueueState::Enabled {
                queue.state = QueueState::Draining;
            }
            awaited[index] = queue.next_sequence;
        }
        if abort {
            self.abort(set, effects);
        }
        awaited
    }

    /// The second half, after everything has settled.
    fn finish(&mut self, command: Command, effects: &mut Effects) {
        match command {
            Command::EnableQueue(index) => {
                if let Some(queue) = self.queues.get_mut(index) {
                    queue.state = QueueState::Enabled;
                    effects.clear_portals |= 1 << index;
                }
            }
            Command::DisableDevice => {
                self.device = DeviceState::Disabled;
                self.disable_queues(ALL);
                effects.wake = u8::MAX;
            }
            Command::ResetDevice => {
                self.disable_queues(ALL);
                self.reset_configuration();
                effects.wake = u8::MAX;
            }
            Command::DisableQueues(set) => self.disable_queues(set),
            Command::ResetQueues(set) => {
                self.disable_queues(set);
                for index in members(set) {
                    self.queues[index].reset_config();
                }
            }
            Command::EnableDevice
            | Command::DrainAll
            | Command::AbortAll
            | Command::DrainQueues(_)
            | Command::AbortQueues(_)
            | Command::DrainPasid(_)
            | Command::AbortPasid(_) => {}
        }
    }

    fn disable_queues(&mut self, set: QueueSet) {
        for index in members(set) {
            self.queues[index].state = QueueState::Disabled;
        }
    }

    fn queues_of_pasid(&self, pasid: u32) -> QueueSet {
        let uses = |index: &usize| self.queues[*index].config.pasid().is_some_and(|own| own.get() == pasid);
        members(ALL).filter(uses).fold(0, |set, index| set | 1 << index)
    }
}

/// The queues of a set: each index is below [`QUEUES`].
fn members(set: QueueSet) -> impl Iterator<Item = usize> {
    (0..QUEUES).filter(move |index| set >> index & 1 == 1)
}
