// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Submission to the invalidation queue: batches, waits, and what to do when the unit stops (dmar.c:qi_submit_sync,
//! qi_check_fault).

use alloc::vec::Vec;

use vtd_spec::descriptors::Wait;
use vtd_spec::registers::offset;
use vtd_spec::{Descriptor, FaultStatus, QueueError, QueueErrorRecord, SourceId};

use crate::error::Error;
use crate::iommu::Iommu;
use crate::memory::Memory;
use crate::registers::Registers;
use crate::state::queue::PAGES;

/// Descriptors of 32 bytes in the queue.
const ENTRIES: u32 = (PAGES * 4096 / 32) as u32;
/// Descriptors that go in front of one wait.
const BATCH: usize = 64;
/// Times a device may fail to complete before its invalidations are given up.
const TIME_OUTS: u32 = 3;

/// Status dword of a wait under way and of one that is complete (Linux iommu.h: `QI_IN_USE`, `QI_DONE`).
const IN_USE: u64 = 1;
const DONE: u32 = 2;

/// How a batch ended early.
enum Stop {
    /// It was done in full but for the descriptor at this place, the first that was refused.
    Invalid {
        index: usize,
        reason: Option<QueueError>,
    },
    /// The wait was aborted: a device (0 where the unit does not say which) did not complete.
    TimedOut(SourceId),
    Failed(Error),
}

impl<R: Registers, M: Memory> Iommu<R, M> {
    /// Has descriptors carried out in order and waits until they are.
    ///
    /// Any number may be given: they go in batches, with one wait each.
    ///
    /// # Errors
    ///
    /// [`Error::InvalidDescriptor`] for the first one that the unit refuses, or else [`Error::DeviceTimedOut`] for a device
    /// that does not complete; the other descriptors have been carried out all the same. [`Error::QueueTimeout`] and
    /// [`Error::QueueStopped`]: nothing is known of what was carried out.
    pub fn submit(&mut self, descriptors: &[Descriptor]) -> Result<(), Error> {
        let mut result = Ok(());
        for (number, batch) in descriptors.chunks(BATCH).enumerate() {
            let done = self.submit_batch(batch, Wait::default()).map_err(|error| match error {
                Error::InvalidDescriptor { index, reason } => {
                    Error::InvalidDescriptor { index: index + number * BATCH, reason }
                }
                error => error,
            });
            if matches!(done, Err(Error::QueueTimeout | Error::QueueStopped { .. })) {
                return done;
            }
            result = worse(result, done);
        }
        result
    }

    /// Submits one batch; `wait` has the flags (PD) that its wait descriptor is to have.
    pub(crate) fn submit_batch(&mut self, descriptors: &[Descriptor], wait: Wait) -> Result<(), Error> {
        let mut batch: Vec<Descriptor> = descriptors.to_vec();
        // The place that each had in the batch at first.
        let mut places: Vec<usize> = (0..batch.len()).collect();
        let mut result = Ok(());
        let mut time_outs = 0;
        loop {
            match self.submit_once(&batch, wait) {
                Ok(()) => return result,
                Err(Stop::Invalid { index, reason }) => {
                    let index = places.get(index).copied().unwrap_or(index);
                    return worse(result, Err(Error::InvalidDescriptor { index, reason }));
                }
                Err(Stop::Failed(error)) => return Err(error),
                Err(Stop::TimedOut(source_id)) => {
                    // The wait was aborted: everything is submitted again, unless the device is gone or never answers.
                    time_outs += 1;
                    if time_outs < TIME_OUTS && (source_id.0 == 0 || self.devices.contains_key(&source_id)) {
                        continue;
                    }
                    result = worse(result, Err(Error::DeviceTimedOut { source_id }));
                    let before = batch.len();
                    places.retain(|place| device_tlb_of(&descriptors[*place]) != Some(source_id));
                    if places.len() == before {
                        // The unit does not say whose it is: no device-TLB can be relied upon.
                        places.retain(|place| device_tlb_of(&descriptors[*place]).is_none());
                    }
                    if places.len() == before {
                        return result;
                    }
                    batch = places.iter().map(|place| descriptors[*place]).collect();
                    time_outs = 0;
                }
            }
        }
    }

    fn submit_once(&mut self, batch: &[Descriptor], wait: Wait) -> Result<(), Stop> {
        let count = batch.len() as u32 + 1;
        self.await_space(count).map_err(Stop::Failed)?;
        let first = self.queue.next;
        let last = (first + count - 1) % ENTRIES;
        let status = self.queue.status + 8 * u64::from(last);
        let wait = Wait { sw: true, status_data: DONE, status_address: status, ..wait };
        self.memory.store(status, IN_USE);
        for (number, descriptor) in batch.iter().chain([&Descriptor::Wait(wait)]).enumerate() {
            self.write_descriptor((first + number as u32) % ENTRIES, descriptor);
        }
        self.queue.next = (last + 1) % ENTRIES;
        self.queue.outstanding += count;
        self.registers.write32(offset::IQT, self.queue.next << 5);

        let mut invalid = None;
        let mut polls = 0;
        while self.memory.load(status) as u32 != DONE {
            let fault = FaultStatus::from_bits(self.registers.read32(offset::FSTS));
            if fault.iqe() {
                let refused = self.repair(first, count).map_err(Stop::Failed)?;
                invalid = invalid.or(refused);
            }
            if fault.ite() {
                let record = QueueErrorRecord::from_bits(self.registers.read64(offset::IQERCD));
                self.clear_fault(FaultStatus::new().with_ite(true));
                return Err(Stop::TimedOut(SourceId(record.itesid())));
            }
            if fault.ice() {
                // A device completed what nobody asked of it: nothing of ours is affected.
                self.clear_fault(FaultStatus::new().with_ice(true));
            }
            if !self.registers.relax(polls) {
                return Err(Stop::Failed(Error::QueueTimeout));
            }
            polls += 1;
        }
        self.queue.outstanding = 0;
        match invalid {
            None => Ok(()),
            Some((index, reason)) => Err(Stop::Invalid { index, reason }),
        }
    }

    fn write_descriptor(&self, entry: u32, descriptor: &Descriptor) {
        let address = self.queue.base + 32 * u64::from(entry);
        for (index, qword) in descriptor.encode().into_iter().enumerate() {
            self.memory.store(address + 8 * index as u64, qword);
        }
    }

    /// The unit stopped at a descriptor that it takes for invalid: puts a barrier, which does nothing, in its place and
    /// lets the unit go on. (Linux puts a copy of the wait there, which is right for batches of one only.)
    ///
    /// Returns the place in the batch; `None` for a descriptor of an earlier batch, which was given up.
    fn repair(&self, first: u32, count: u32) -> Result<Option<(usize, Option<QueueError>)>, Error> {
        let reason = QueueErrorRecord::from_bits(self.registers.read64(offset::IQERCD)).error();
        let head = self.head();
        let behind = (self.queue.next + ENTRIES - head) % ENTRIES;
        let of_descriptor = matches!(
            reason,
            None | Some(QueueError::InvalidType | QueueError::ReservedField | QueueError::FetchError)
        );
        if !of_descriptor || behind == 0 || behind > self.queue.outstanding {
            return Err(Error::QueueStopped { reason });
        }
        self.write_descriptor(head, &Descriptor::Wait(Wait { fn_: true, ..Wait::default() }));
        self.clear_fault(FaultStatus::new().with_iqe(true));
        let place = (head + ENTRIES - first) % ENTRIES;
        match place + 1 {
            // The wait comes last. The queue goes on, but nothing tells how far this batch has come.
            place if place == count => Err(Error::QueueStopped { reason }),
            place if place < count => Ok(Some((place as usize - 1, reason))),
            _ => Ok(None),
        }
    }

    /// The entry that the unit fetches next; one of the queue's, whatever the register says (all ones once the unit is gone).
    fn head(&self) -> u32 {
        (self.registers.read64(offset::IQH) as u32 >> 5) % ENTRIES
    }

    fn clear_fault(&self, bits: FaultStatus) {
        self.registers.write32(offset::FSTS, bits.into_bits());
    }

    /// Waits until `count` entries are free: there are, unless earlier submissions failed.
    fn await_space(&mut self, count: u32) -> Result<(), Error> {
        let mut polls = 0;
        while self.queue.outstanding + count >= ENTRIES {
            let head = self.head();
            self.queue.outstanding = (self.queue.next + ENTRIES - head) % ENTRIES;
            if self.queue.outstanding + count >= ENTRIES {
                let fault = FaultStatus::from_bits(self.registers.read32(offset::FSTS));
                if fault.iqe() {
                    self.repair(self.queue.next, 0)?;
                }
                if fault.ite() {
                    self.clear_fault(FaultStatus::new().with_ite(true));
                }
                if !self.registers.relax(polls) {
                    return Err(Error::QueueTimeout);
                }
                polls += 1;
            }
        }
        Ok(())
    }
}

/// The error of two that says more was left undone; of equals the first.
fn worse(first: Result<(), Error>, second: Result<(), Error>) -> Result<(), Error> {
    if unit_has_forgotten(&first) && second.is_err() && !unit_has_forgotten(&second) {
        second
    } else {
        first.and(second)
    }
}

/// Whether the unit itself no longer uses what a submission invalidated. A device that did not complete has no way to the
/// tables: only the unit reads them.
pub(crate) fn unit_has_forgotten(submitted: &Result<(), Error>) -> bool {
    matches!(submitted, Ok(()) | Err(Error::DeviceTimedOut { .. }))
}

/// The device whose device-TLB a descriptor invalidates.
fn device_tlb_of(descriptor: &Descriptor) -> Option<SourceId> {
    match descriptor {
        Descriptor::DeviceTlb(device) => Some(device.sid),
        Descriptor::PasidDeviceTlb(device) => Some(device.sid),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
