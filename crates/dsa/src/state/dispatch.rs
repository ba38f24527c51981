// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Descriptors on their way from the portals through the work queues to the engines and out.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::shared::{DeviceState, Effects, Job, Running, State};
use crate::descriptor::Descriptor;
use crate::registers::GENCFG_USER_INTERRUPTS;
use crate::software_error::{Origin, SoftwareError, code};
use crate::work_queue::{QueueState, Waiting, WorkQueue};

impl State {
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
}
