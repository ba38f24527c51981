// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The accelerator without its PCI side: registers, portals and engine threads over a [`Bus`].

use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::thread::{self, JoinHandle};

use crate::bus::Bus;
use crate::core::Device;
use crate::engine::execute;
use crate::operation::Scratch;
use crate::registers::{CMD, ENGINES};
use crate::state::{DeviceState, Effects, Job, State};

#[cfg(test)]
mod tests;

impl<B: Bus> Device<B> {
    /// Reads registers at `offset` of BAR 0. Registers that do not exist read 0.
    pub fn read_registers(&self, offset: u64, data: &mut [u8]) {
        let state = self.lock();
        for (index, byte) in data.iter_mut().enumerate() {
            let at = offset.wrapping_add(index as u64);
            let qword = state.read(at & !7).to_le_bytes();
            *byte = qword.get((at & 7) as usize).copied().unwrap_or(0);
        }
    }

    /// Writes registers at `offset` of BAR 0. Aligned accesses of 1, 2, 4 and 8 bytes are allowed, others are
    /// dropped. \[D 9\]
    pub fn write_registers(&self, offset: u64, data: &[u8]) {
        if !matches!(data.len(), 1 | 2 | 4 | 8) || !offset.is_multiple_of(data.len() as u64) {
            return;
        }
        let mut value = [0; 8];
        let mut mask = [0; 8];
        for (index, byte) in data.iter().enumerate() {
            let at = (offset as usize & 3) + index;
            if let (Some(value), Some(mask)) = (value.get_mut(at), mask.get_mut(at)) {
                (*value, *mask) = (*byte, 0xff);
            }
        }
        let (value, mask) = (u64::from_le_bytes(value), u64::from_le_bytes(mask));
        for (at, value, mask) in [
            (offset & !3, value as u32, mask as u32),
            ((offset & !3) + 4, (value >> 32) as u32, (mask >> 32) as u32),
        ] {
            match (at, mask) {
                (_, 0) => {}
                (CMD, u32::MAX) => self.write_command(value),
                _ => self.update(|state, effects| state.write(at, value, mask, effects)),
            }
        }
    }

    fn write_command(&self, value: u32) {
        self.update(|state, effects| {
            // Asked under the lock: a change of configuration space either is seen here or finds what this does.
            let pci = self.bus.pci();
            state.write_command(value, &pci, effects);
        });
    }

    /// A store to a portal, at `offset` of BAR 2.
    pub fn write_portal(&self, offset: u64, data: &[u8]) {
        if let Some((queue, descriptor)) = self.portals.store(offset, data) {
            self.update(|state, effects| state.submit(queue, descriptor, effects));
        }
    }

    /// Bus Master, PASID, ATS or page request enables changed: halts a device that is not Disabled. When this
    /// returns, nothing of earlier descriptors is left.
    pub fn configuration_changed(&self) {
        self.stop(State::configuration_changed);
    }

    /// Back to the state after power-on. When this returns, nothing of earlier descriptors is left.
    pub fn reset(&self) {
        self.stop(State::reset);
        self.requests.cancel_all();
    }

    /// Makes a change that aborts all descriptors, if any, and waits for their end: engines look at their abort flags
    /// between pieces of 64 KiB and wherever they wait.
    fn stop(&self, change: impl FnOnce(&mut State, &mut Effects)) {
        let busy = self.update(|state, effects| {
            change(state, effects);
            state.engines.each_ref().map(|engine| {
                let aborted = engine.abort.load(Ordering::Acquire);
                engine.running.filter(|_| aborted).map(|_| engine.retired)
            })
        });
        let mut state = self.lock();
        while state.engines.iter().zip(busy).any(|(engine, busy)| busy == Some(engine.retired)) {
            state = self.settled.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Ends the engine threads.
    pub fn shut_down(&self) {
        let threads = self.update(|state, effects| {
            state.shutdown = true;
            state.reset(effects);
            state.engines.each_mut().map(|engine| engine.thread.take())
        });
        threads.into_iter().flatten().for_each(join);
    }

    /// Starts the engines' threads. They are made with the device and end with it: no access of a guest's starts one.
    ///
    /// # Errors
    ///
    /// There is none to be had; then none is left.
    pub fn start_engines(self: &Arc<Self>) -> io::Result<()> {
        for index in 0..ENGINES {
            let device = Arc::clone(self);
            let builder = thread::Builder::new().name(format!("dsa-engine{index}"));
            match builder.spawn(move || device.run_engine(index)) {
                Ok(thread) => self.lock().engines[index].thread = Some(thread),
                Err(error) => {
                    self.shut_down();
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    fn run_engine(&self, index: usize) {
        let mut scratch = Scratch::new();
        while let Some(job) = self.wait_for_job(index) {
            execute(self, &job, &mut scratch);
            self.update(|state, effects| state.retire(index, effects));
        }
    }

    /// Waits for work; `None` if the device goes away.
    fn wait_for_job(&self, index: usize) -> Option<Job> {
        let work = self.work.get(index)?;
        let mut state = self.lock();
        loop {
            let runs = matches!(state.device, DeviceState::Enabled | DeviceState::Draining);
            if state.shutdown {
                return None;
            }
            if runs && let Some(job) = state.next_job(index) {
                return Some(job);
            }
            if let Some(slot) = state.engines.get_mut(index) {
                slot.idle = true;
            }
            state = work.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

fn join(thread: JoinHandle<()>) {
    if thread.join().is_err() {
        tracing::error!("an engine thread of the accelerator had panicked");
    }
}
