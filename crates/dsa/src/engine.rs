// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! An engine: takes descriptors from the work queues of its group and executes them, one at a time. \[D 3.4\]

use std::sync::atomic::{Ordering, fence};

use vtd_unit::Pasid;

use crate::bus::Bus;
use crate::core::Device;
use crate::descriptor::{DESCRIPTOR_SIZE, Descriptor, Limits, Operation, Rejection, decode, flag};
use crate::dma::{Aborted, Dma, Fault, FaultKind, OnFault};
use crate::operation::{Scratch, Task};
use crate::software_error::{Origin, SoftwareError};
use crate::state::Job;
use crate::status::{RECORD_SIZE, Record, Status};

const PAGE: usize = 0x1000;

/// What the members of a batch share with it.
struct Context<'a, B> {
    device: &'a Device<B>,
    job: &'a Job,
    dma: Dma<'a, B>,
    limits: Limits,
    /// Faults of completion records and descriptor lists.
    on_own_fault: OnFault,
}

/// Executes a descriptor to its end, unless it is aborted. Afterwards nothing of it is left: no memory access, no
/// interrupt and no engine that waits for a page.
pub(crate) fn execute<B: Bus>(device: &Device<B>, job: &Job, scratch: &mut Scratch) {
    let pci = device.bus.pci();
    let context = Context {
        device,
        job,
        dma: Dma {
            bus: &device.bus,
            requests: &device.requests,
            requester: job.config.requester(&pci),
            abort: &job.abort,
        },
        limits: job.config.limits(job.user_interrupts),
        on_own_fault: if pci.pri { OnFault::Request } else { OnFault::Report },
    };
    if context.process(&job.descriptor, None, scratch).is_err() {
        tracing::debug!(queue = job.queue, "descriptor aborted");
    }
}

impl<B: Bus> Context<'_, B> {
    /// Executes a descriptor from a portal or, with its index, from a batch. Returns its status.
    fn process(
        &self,
        descriptor: &Descriptor,
        batch_index: Option<u16>,
        scratch: &mut Scratch,
    ) -> Result<Status, Aborted> {
        self.dma.check_abort()?;
        let has_record = descriptor.has(flag::RECORD_ADDRESS_VALID);
        if has_record && !descriptor.record_address().is_multiple_of(RECORD_SIZE as u64) {
            self.report(descriptor, batch_index, |error| SoftwareError {
                code: Status::RECORD_ALIGNMENT.0,
                address: descriptor.record_address(),
                ..error
            });
            return Ok(Status::RECORD_ALIGNMENT);
        }
        let limits = Limits { in_batch: batch_index.is_some(), ..self.limits };
        let record = match self.check(descriptor, &limits) {
            Err(rejection) => Record::new(rejection.status).with_extra(rejection.invalid_flags.into()),
            Ok(Operation::Batch { list, count }) => self.batch(list, count, scratch)?,
            Ok(Operation::Drain) => {
                self.device.wait_for_earlier(self.job)?;
                Record::new(Status::SUCCESS)
            }
            Ok(operation) => {
                let blocks = descriptor.has(flag::BLOCK_ON_FAULT);
                let on_fault = if blocks { self.on_own_fault } else { OnFault::Report };
                let dma = Dma { ..self.dma };
                Task { dma, on_fault, scratch }.run(&operation)?
            }
        };
        self.complete(descriptor, batch_index, &record)
    }

    fn check(&self, descriptor: &Descriptor, limits: &Limits) -> Result<Operation, Rejection> {
        let operation = decode(descriptor, limits)?;
        if descriptor.has(flag::REQUEST_INTERRUPT) && !self.may_interrupt(descriptor) {
            return Err(Status::INTERRUPT_HANDLE.into());
        }
        Ok(operation)
    }

    /// Executes the descriptors of a list, in order. \[D 3.8, 8.3.2\]
    fn batch(&self, list: u64, count: u32, scratch: &mut Scratch) -> Result<Record, Aborted> {
        let mut page = [0; PAGE];
        let mut processed = 0;
        let mut failed = false;
        let finished = |processed: u32, failed: bool| Record {
            completed: processed,
            ..Record::new(if failed { Status::BATCH_FAILED } else { Status::SUCCESS })
        };
        while processed < count {
            let address = list.wrapping_add(u64::from(processed) * DESCRIPTOR_SIZE as u64);
            // The list is aligned, so that descriptors do not cross pages.
            let rest = (count - processed) as usize * DESCRIPTOR_SIZE;
            let length = rest.min(PAGE - (address as usize & (PAGE - 1)));
            let part = page.get_mut(..length).unwrap_or_default();
            let read = self.dma.read(address, part, self.on_own_fault)?;
            for bytes in part.get(..read.done).unwrap_or_default().as_chunks().0 {
                let member = Descriptor(*bytes);
                if failed && member.has(flag::FENCE) {
                    return Ok(finished(processed, failed));
                }
                // The count of a batch is at most 1024.
                let status = self.process(&member, Some(processed as u16), scratch)?;
                failed |= !status.lets_fence_pass();
                processed += 1;
            }
            if let Some(fault) = read.fault {
                let status = match fault.kind {
                    FaultKind::Page | FaultKind::InvalidRequest => Status::BATCH_PAGE_FAULT,
                    FaultKind::ReadError | FaultKind::Translation => Status::of_fault(&fault),
                };
                return Ok(Record { status, ..Record::partial(fault, processed) });
            }
        }
        Ok(finished(processed, failed))
    }

    /// Completion record, software error and interrupt, as far as each is due. Returns the status, which is that of
    /// the completion record's write where that failed. \[D 3.6, 3.7, 5.7\]
    fn complete(
        &self,
        descriptor: &Descriptor,
        batch_index: Option<u16>,
        record: &Record,
    ) -> Result<Status, Aborted> {
        self.dma.check_abort()?;
        let status = record.status;
        let mut outcome = status;
        let has_record = descriptor.has(flag::RECORD_ADDRESS_VALID);
        if has_record
            && (descriptor.has(flag::REQUEST_RECORD) || status.always_recorded())
            && let Some(fault) = self.write_record(descriptor.record_address(), record)?
        {
            outcome = match fault.kind {
                FaultKind::Translation => Status::TRANSLATION_ERROR,
                _ => Status::RECORD_PAGE_FAULT,
            };
            self.report(descriptor, batch_index, |error| SoftwareError {
                code: outcome.0,
                write: true,
                address: descriptor.record_address(),
                ..error
            });
        }
        let always_reported = matches!(status, Status::INTERRUPT_HANDLE | Status::TRANSLATION_ERROR);
        if always_reported || (!has_record && status.always_recorded()) {
            let information = match status {
                Status::INTERRUPT_HANDLE => Some(descriptor.interrupt_handle().into()),
                Status::INVALID_FLAGS => Some(record.extra as u32),
                _ => None,
            };
            self.report(descriptor, batch_index, |error| SoftwareError {
                code: status.0,
                write: record.fault.is_some_and(|fault| fault.write),
                information,
                address: record.fault.map_or(0, |fault| fault.address),
                ..error
            });
        }
        if descriptor.has(flag::REQUEST_INTERRUPT) && self.limits.interrupts && self.may_interrupt(descriptor)
        {
            self.dma.check_abort()?;
            let vector = descriptor.interrupt_handle();
            if !self.device.lock().ignores_interrupt(vector) {
                self.device.bus.interrupt(vector);
            }
        }
        Ok(outcome)
    }

    /// Writes a completion record, the status byte last: software polls it. Returns the fault that prevented it.
    fn write_record(&self, address: u64, record: &Record) -> Result<Option<Fault>, Aborted> {
        let bytes = record.encode();
        let (status, rest) = bytes.split_at(1);
        // What the operation wrote is visible before its record, and the record before its status.
        fence(Ordering::SeqCst);
        let written = self.dma.write(address.wrapping_add(1), rest, self.on_own_fault)?;
        if written.fault.is_some() {
            return Ok(written.fault);
        }
        fence(Ordering::SeqCst);
        Ok(self.dma.write(address, status, self.on_own_fault)?.fault)
    }

    fn may_interrupt(&self, descriptor: &Descriptor) -> bool {
        self.device.lock().may_interrupt(descriptor.interrupt_handle(), self.pasid())
    }

    fn pasid(&self) -> Option<Pasid> {
        self.job.config.pasid()
    }

    fn report(
        &self,
        descriptor: &Descriptor,
        batch_index: Option<u16>,
        fill: impl FnOnce(SoftwareError) -> SoftwareError,
    ) {
        let origin = Origin {
            queue: self.job.queue as u8,
            operation: descriptor.opcode(),
            pasid: self.pasid(),
            privileged: self.job.config.privileged(),
            batch_index,
        };
        let error = fill(SoftwareError { origin: Some(origin), ..Default::default() });
        self.device.update(|state, effects| state.report(&error, effects));
    }
}
