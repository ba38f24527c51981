// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Who finishes what a register write has begun, where that has to wait for something or takes long.

use std::io;
use std::sync::mpsc::{self, Sender};
use std::thread::{self, JoinHandle};

/// What is left to do.
pub type Work = Box<dyn FnOnce() + Send>;

/// Finishes what a register write has begun: an invalidation that waits for accesses in flight, a long queue. A unit has a
/// thread of its own for that, unless the VMM names another executor
/// ([`Unit::with_executor`](crate::Unit::with_executor)).
pub trait Executor: Send + Sync {
    /// Has `work` carried out soon, on a thread that may wait, and returns at once. Called by whoever writes registers, a
    /// virtual processor's thread among them. Pieces of work may run at the same time and in any order; one that is
    /// dropped leaves its command undone.
    fn execute(&self, work: Work);
}

/// The unit's own: one thread, `vtd-worker`, which ends with the unit.
pub(crate) struct WorkerThread {
    /// None while the thread is being ended.
    sender: Option<Sender<Work>>,
    thread: Option<JoinHandle<()>>,
}

impl WorkerThread {
    pub(crate) fn start() -> io::Result<Self> {
        let (sender, work) = mpsc::channel::<Work>();
        let run = move || work.into_iter().for_each(|work| work());
        let thread = thread::Builder::new().name("vtd-worker".into()).spawn(run)?;
        Ok(Self { sender: Some(sender), thread: Some(thread) })
    }
}

impl Executor for WorkerThread {
    fn execute(&self, work: Work) {
        if let Some(sender) = &self.sender {
            // It is there as long as the sender is.
            let _ = sender.send(work);
        }
    }
}

impl Drop for WorkerThread {
    fn drop(&mut self) {
        drop(self.sender.take());
        // Where the unit's last owner was a piece of work, the thread ends by itself.
        if let Some(thread) = self.thread.take().filter(|own| own.thread().id() != thread::current().id()) {
            let _ = thread.join();
        }
    }
}
