// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the accelerator's registers and its engines share.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::bus::Bus;
use crate::dma::Aborted;
use crate::page_request::PageRequests;
use crate::portal::Portals;
use crate::registers::{ENGINES, QUEUES};
use crate::state::{Effects, Job, State};

/// The accelerator.
pub(crate) struct Device<B> {
    pub bus: B,
    pub requests: Arc<PageRequests>,
    pub state: Mutex<State>,
    /// One for each engine: there may be work for it.
    pub work: [Condvar; ENGINES],
    /// A descriptor has gone, or abort flags were set.
    pub settled: Condvar,
    pub portals: Portals,
}

impl<B: Bus> Device<B> {
    /// A device after power-on. `requests` gets the responses to page requests that `bus` sends.
    pub fn new(bus: B, requests: Arc<PageRequests>) -> Arc<Self> {
        Arc::new(Self {
            bus,
            requests,
            state: Mutex::new(State::new()),
            work: Default::default(),
            settled: Condvar::new(),
            portals: Portals::new(),
        })
    }

    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state, then does what follows from that.
    pub fn update<T>(&self, change: impl FnOnce(&mut State, &mut Effects) -> T) -> T {
        let mut effects = Effects::default();
        let result = change(&mut self.lock(), &mut effects);
        self.apply(&effects);
        result
    }

    fn apply(&self, effects: &Effects) {
        if effects.aborts {
            self.requests.wake();
        }
        if effects.aborts || effects.retired {
            self.settled.notify_all();
        }
        for (engine, work) in self.work.iter().enumerate() {
            if effects.wake >> engine & 1 == 1 {
                work.notify_all();
            }
        }
        for queue in 0..QUEUES {
            if effects.clear_portals >> queue & 1 == 1 {
                self.portals.clear(queue);
            }
        }
        for vector in effects.vectors() {
            self.bus.interrupt(vector);
        }
    }

    /// Waits until the queue's descriptors before `job` are gone: the Drain operation. \[D 8.3.3\]
    pub fn wait_for_earlier(&self, job: &Job) -> Result<(), Aborted> {
        let mut state = self.lock();
        while !job.abort.load(Ordering::Acquire) {
            if !state.runs_earlier(job.queue, job.sequence) {
                return Ok(());
            }
            state = self.settled.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        Err(Aborted)
    }
}
