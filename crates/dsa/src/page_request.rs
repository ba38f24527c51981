// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The page requests in flight. Each has a group of its own, so that a response finds the engine that waits for it.
//! \[PCIe 10.4; D 3.12\]

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use vtd_unit::{PageGroupResponse, PageRequest, Pasid, Requester, ResponseCode};

use crate::bus::Bus;

/// Group indexes are 9 bits wide. \[PCIe 10.4.1\]
const GROUPS: usize = 512;

/// How a page request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Translate again.
    Success,
    /// The access is not allowed.
    Invalid,
    /// Page requests have stopped.
    Failure,
    /// Page requests are, or were meanwhile, switched off.
    Off,
    /// The descriptor was aborted.
    Aborted,
}

#[derive(Clone, Copy)]
enum Slot {
    Free,
    /// An engine waits.
    Waiting(Option<Pasid>),
    /// The engine has gone; the index is not used again before the response came.
    Abandoned(Option<Pasid>),
    Done(Answer),
}

struct Table {
    slots: [Slot; GROUPS],
    outstanding: u32,
    next: usize,
}

/// The page requests of one function.
pub(crate) struct PageRequests {
    table: Mutex<Table>,
    changed: Condvar,
}

impl PageRequests {
    pub fn new() -> Self {
        let table = Table { slots: [Slot::Free; GROUPS], outstanding: 0, next: 0 };
        Self { table: Mutex::new(table), changed: Condvar::new() }
    }

    /// Requests one page and waits for the response, at most until `abort` is set (see [`Self::wake`]).
    pub fn request(
        &self,
        bus: &impl Bus,
        requester: Requester,
        address: u64,
        write: bool,
        abort: &AtomicBool,
    ) -> Answer {
        let group = match self.reserve(bus, requester.pasid, abort) {
            Ok(group) => group,
            Err(answer) => return answer,
        };
        bus.page_request(PageRequest {
            requester,
            address: address & !0xfff,
            read: !write,
            write,
            last: true,
            // Cannot truncate: `group` is below 512.
            group: group as u16,
        });
        self.wait(group, abort)
    }

    /// Waits until `abort` is set, but not longer than `time`.
    pub fn pause(&self, time: Duration, abort: &AtomicBool) {
        let until = Instant::now() + time;
        let mut table = self.lock();
        while !abort.load(Ordering::Acquire) {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            table = self.changed.wait_timeout(table, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Makes waiting engines look at their abort flags.
    pub fn wake(&self) {
        let _table = self.lock();
        self.changed.notify_all();
    }

    /// Page requests were switched off or reset: none that is in flight will be answered.
    pub fn cancel_all(&self) {
        self.cancel(Answer::Off);
    }

    /// Takes a response; `false` if it answers no request that is in flight, with the same PASID.
    pub fn respond(&self, response: PageGroupResponse) -> bool {
        let answer = match response.code {
            ResponseCode::Success => Answer::Success,
            ResponseCode::InvalidRequest => Answer::Invalid,
            ResponseCode::ResponseFailure => Answer::Failure,
        };
        let mut table = self.lock();
        match table.slots.get(usize::from(response.group)).copied() {
            Some(Slot::Waiting(pasid)) if pasid == response.pasid => {
                table.slots[usize::from(response.group)] = Slot::Done(answer);
            }
            Some(Slot::Abandoned(pasid)) if pasid == response.pasid => {
                table.slots[usize::from(response.group)] = Slot::Free;
                table.outstanding = table.outstanding.saturating_sub(1);
            }
            _ => return false,
        }
        self.changed.notify_all();
        true
    }

    /// A request was answered Response Failure: no further responses are due. \[PCIe 10.4.2\]
    pub fn fail_all(&self) {
        self.cancel(Answer::Failure);
    }

    fn reserve(&self, bus: &impl Bus, pasid: Option<Pasid>, abort: &AtomicBool) -> Result<usize, Answer> {
        let mut table = self.lock();
        loop {
            if abort.load(Ordering::Acquire) {
                return Err(Answer::Aborted);
            }
            let pci = bus.pci();
            if !pci.pri {
                return Err(Answer::Off);
            }
            if table.outstanding < pci.pri_allocation.min(GROUPS as u32)
                && let Some(group) = table.free_group()
            {
                table.slots[group] = Slot::Waiting(pasid);
                table.outstanding += 1;
                return Ok(group);
            }
            table = self.changed.wait(table).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn wait(&self, group: usize, abort: &AtomicBool) -> Answer {
        let mut table = self.lock();
        loop {
            match table.slots[group] {
                Slot::Done(answer) => {
                    table.slots[group] = Slot::Free;
                    table.outstanding = table.outstanding.saturating_sub(1);
                    self.changed.notify_all();
                    return answer;
                }
                Slot::Waiting(pasid) if abort.load(Ordering::Acquire) => {
                    table.slots[group] = Slot::Abandoned(pasid);
                    return Answer::Aborted;
                }
                _ => table = self.changed.wait(table).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }

    fn cancel(&self, answer: Answer) {
        let mut table = self.lock();
        let mut freed = 0;
        for slot in &mut table.slots {
            match slot {
                Slot::Waiting(_) => *slot = Slot::Done(answer),
                Slot::Abandoned(_) => {
                    *slot = Slot::Free;
                    freed += 1;
                }
                Slot::Free | Slot::Done(_) => {}
            }
        }
        table.outstanding = table.outstanding.saturating_sub(freed);
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn free_group(&mut self) -> Option<usize> {
        let group =
            (0..GROUPS).map(|n| (self.next + n) % GROUPS).find(|n| matches!(self.slots[*n], Slot::Free))?;
        self.next = (group + 1) % GROUPS;
        Some(group)
    }
}
