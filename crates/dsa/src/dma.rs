// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Memory accesses of a descriptor: by the work queue's PASID, with page faults cured through page requests where
//! the descriptor allows it, and ended early when the descriptor is aborted. \[D 3.12\]

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use vtd_unit::{Access, DmaError, Requester};

use crate::bus::Bus;
use crate::page_request::{Answer, PageRequests};

/// How often one page is requested without becoming accessible before the operation ends with "too many retries".
/// A unit whose page request queue overflows answers Success to requests that nobody saw, so that a few rounds with
/// pauses between them have to be survived. [S 7.4.1]
const MAX_REQUESTS_PER_PAGE: u32 = 32;
const PAGE: u64 = 0x1000;

/// Whether a page fault leads to a page request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum OnFault {
    /// No: it ends the operation.
    Report,
    /// Yes: the engine waits for the page.
    Request,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum FaultKind {
    /// No translation, and no page request made.
    Page,
    /// No translation, and page requests did not help.
    InvalidRequest,
    /// The read was refused.
    ReadError,
    /// The translation request was refused, or page requests have stopped.
    Translation,
}

/// The access that an operation could not make.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Fault {
    /// The first address that could not be accessed.
    pub address: u64,
    /// The access was a write.
    pub write: bool,
    pub kind: FaultKind,
}

/// The descriptor was aborted: it must leave no trace from now on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Aborted;

/// How far a transfer got: all the way if there is no fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Progress {
    /// Bytes from the start that were accessed.
    pub done: usize,
    pub fault: Option<Fault>,
}

/// A descriptor's access to memory.
pub(crate) struct Dma<'a, B> {
    pub bus: &'a B,
    pub requests: &'a PageRequests,
    pub requester: Requester,
    pub abort: &'a AtomicBool,
}

impl<B: Bus> Dma<'_, B> {
    /// Reads `data.len()` bytes at `address`.
    pub fn read(&self, address: u64, data: &mut [u8], on_fault: OnFault) -> Result<Progress, Aborted> {
        self.transfer(address, data.len(), Access::Read, on_fault, |at, from, to| {
            match data.get_mut(from..to) {
                Some(part) => self.bus.read(self.requester, at, part),
                None => Ok(()),
            }
        })
    }

    /// Writes `data` at `address`. A write that the root complex refuses is lost without notice, as a posted write
    /// is.
    pub fn write(&self, address: u64, data: &[u8], on_fault: OnFault) -> Result<Progress, Aborted> {
        self.transfer(address, data.len(), Access::Write, on_fault, |at, from, to| match data.get(from..to) {
            Some(part) => self.bus.write(self.requester, at, part),
            None => Ok(()),
        })
    }

    /// Translates `length` bytes at `address` for reading, without data.
    pub fn touch(&self, address: u64, length: usize, on_fault: OnFault) -> Result<Progress, Aborted> {
        self.transfer(address, length, Access::Read, on_fault, |at, from, to| {
            self.bus.probe(self.requester, at, to.saturating_sub(from), Access::Read)
        })
    }

    pub fn check_abort(&self) -> Result<(), Aborted> {
        if self.abort.load(Ordering::Acquire) { Err(Aborted) } else { Ok(()) }
    }

    /// Calls `access(address, from, to)` for parts of a range until it is done or a fault cannot be cured.
    fn transfer(
        &self,
        start: u64,
        length: usize,
        kind: Access,
        on_fault: OnFault,
        mut access: impl FnMut(u64, usize, usize) -> Result<(), DmaError>,
    ) -> Result<Progress, Aborted> {
        let write = kind == Access::Write;
        let mut done = 0;
        let mut requested = 0;
        while done < length {
            self.check_abort()?;
            let address = start.wrapping_add(done as u64);
            // An access does not run over the end of the address space; what follows is at its start.
            let room = usize::try_from(address.wrapping_neg()).unwrap_or(usize::MAX);
            let part = (length - done).min(if room == 0 { usize::MAX } else { room });
            let error = match access(address, done, done + part) {
                Ok(()) => {
                    done += part;
                    requested = 0;
                    continue;
                }
                Err(error) => error,
            };
            let reached = |at: u64| match usize::try_from(at.wrapping_sub(address)) {
                Ok(bytes) if bytes < part => bytes,
                _ => 0,
            };
            match error {
                DmaError::PageFault { address: at, .. } => {
                    let advance = reached(at);
                    if advance > 0 {
                        requested = 0;
                    }
                    done += advance;
                    let address = address.wrapping_add(advance as u64);
                    let stop = |kind| Ok(Progress { done, fault: Some(Fault { address, write, kind }) });
                    if on_fault == OnFault::Report {
                        return stop(FaultKind::Page);
                    }
                    if requested >= MAX_REQUESTS_PER_PAGE {
                        return stop(FaultKind::InvalidRequest);
                    }
                    self.pause_before(requested);
                    requested += 1;
                    match self.requests.request(self.bus, self.requester, address, write, self.abort) {
                        Answer::Success => {}
                        Answer::Invalid => return stop(FaultKind::InvalidRequest),
                        Answer::Failure => return stop(FaultKind::Translation),
                        Answer::Off => return stop(FaultKind::Page),
                        Answer::Aborted => return Err(Aborted),
                    }
                }
                DmaError::TranslationRefused { address: at, .. } => {
                    let advance = reached(at);
                    let address = address.wrapping_add(advance as u64);
                    let fault = Fault { address, write, kind: FaultKind::Translation };
                    return Ok(Progress { done: done + advance, fault: Some(fault) });
                }
                DmaError::Refused { address: at } if write => {
                    let advance = reached(at) as u64;
                    let page_left = PAGE - (address.wrapping_add(advance) & (PAGE - 1));
                    done += part.min(usize::try_from(advance + page_left).unwrap_or(part));
                    requested = 0;
                }
                DmaError::Refused { address: at } => {
                    let advance = reached(at);
                    let address = address.wrapping_add(advance as u64);
                    let fault = Fault { address, write, kind: FaultKind::ReadError };
                    return Ok(Progress { done: done + advance, fault: Some(fault) });
                }
            }
        }
        Ok(Progress { done, fault: None })
    }

    /// The first repetitions come at once, later ones after growing pauses.
    fn pause_before(&self, requested: u32) {
        if requested >= 3 {
            let time = Duration::from_millis(1 << (requested - 3).min(6)).min(Duration::from_millis(50));
            self.requests.pause(time, self.abort);
        }
    }
}
