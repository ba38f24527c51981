// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The registers of the invalidation queue. \[S 6.5.2\]

use vtd_spec::registers::offset;
use vtd_spec::{
    DescriptorWidth, FaultStatus, InvalidationQueueAddress, InvalidationQueueTail, QueueError,
    QueueErrorRecord, SourceId, TranslationTableMode, check_queue_mode,
};

use super::invalidation::Command;
use super::page::{Event, Registers};
use crate::notify::Message;

/// What a worker finds when it looks for the next descriptor.
pub(crate) enum Next {
    /// Nothing more to fetch; the queue is not released, because the caller has waits to complete.
    Empty,
    /// Nothing more to do; the queue is released. With the message that the last time-out is due.
    Idle(Option<Message>),
    /// A command of an invalidation register.
    Register(Command),
    /// A descriptor in the queue as it was enabled the `epoch`-th time.
    Fetch { address: u64, width: DescriptorWidth, mode: TranslationTableMode, epoch: u64, following: u64 },
    /// The registers of the queue, as it was enabled the `epoch`-th time, are wrong.
    Error { error: QueueError, epoch: u64 },
}

/// An invalidation time-out that the next wait descriptor will report, unless the queue is disabled before.
#[derive(Clone, Copy)]
pub(crate) struct TimeOut {
    pub epoch: u64,
    pub source_id: SourceId,
}

impl Registers {
    /// The next descriptor; releases the queue where there is none, unless the caller still needs it.
    pub(crate) fn next_descriptor(&mut self, needed: bool, time_out: &mut Option<TimeOut>) -> Next {
        self.settle_queue_status();
        if let Some(command) = self.pending_register_invalidation() {
            return Next::Register(command);
        }
        if !self.queue_enabled || !self.queue_has_work() {
            return self.release_queue(needed, time_out);
        }
        let queue = self.queue_address();
        let mode = self.root_table.ttm();
        let width = queue.width();
        let checked = check_queue_mode(mode, width, &self.capabilities)
            .and_then(|()| InvalidationQueueTail::from_bits(self.get64(offset::IQT)).check(queue));
        if let Err(error) = checked {
            return Next::Error { error, epoch: self.queue_epoch };
        }
        // Where software has changed IQA under a running queue, the head is moved to a descriptor of the queue that now
        // is; else it might never meet the tail.
        let head = (self.get64(offset::IQH) & !(width.bytes() as u64 - 1)) % queue.size();
        if head == self.get64(offset::IQT) {
            self.set64(offset::IQH, head);
            return self.release_queue(needed, time_out);
        }
        let following = (head + width.bytes() as u64) % queue.size();
        let address = queue.iqa().wrapping_add(head);
        Next::Fetch { address, width, mode, epoch: self.queue_epoch, following }
    }

    fn release_queue(&mut self, needed: bool, time_out: &mut Option<TimeOut>) -> Next {
        if needed {
            return Next::Empty;
        }
        self.queue_running = false;
        self.settle_queue_status();
        // No wait followed: the time-out is seen all the same.
        Next::Idle(time_out.take().and_then(|time_out| self.invalidation_time_out(&time_out)))
    }

    /// A function has not answered a device-TLB invalidation. \[S 6.5.2.11\]
    #[must_use]
    pub(crate) fn invalidation_time_out(&mut self, time_out: &TimeOut) -> Option<Message> {
        if time_out.epoch != self.queue_epoch {
            return None;
        }
        if !self.fault_status().ite() {
            let record = self.queue_error().with_itesid(time_out.source_id.0);
            self.set_queue_error(record);
        }
        self.raise_fault_condition(|status| status.with_ite(true))
    }

    /// Whether the queue is still enabled as it was the `epoch`-th time.
    pub(crate) fn is_queue_epoch(&self, epoch: u64) -> bool {
        self.queue_epoch == epoch
    }

    /// The descriptor at the head is valid: moves past it, unless the queue was disabled meanwhile.
    pub(crate) fn advance(&mut self, epoch: u64, following: u64) -> bool {
        let same = self.queue_epoch == epoch;
        if same {
            self.set64(offset::IQH, following);
        }
        same
    }

    /// Invalidation wait complete with IF set. \[S 6.5.2.9\]
    pub(crate) fn complete_invalidation(&mut self) -> Option<Message> {
        if self.get32(offset::ICS) & 1 != 0 {
            return None;
        }
        self.set32(offset::ICS, 1);
        self.raise(Event::InvalidationCompletion)
    }

    pub(crate) fn queue_error(&self) -> QueueErrorRecord {
        QueueErrorRecord::from_bits(self.get64(offset::IQERCD))
    }

    pub(crate) fn set_queue_error(&mut self, record: QueueErrorRecord) {
        self.set64(offset::IQERCD, record.into_bits());
    }

    /// Head and tail differ, and no error stops the queue. \[S 6.5.2\]
    pub(crate) fn queue_has_work(&self) -> bool {
        let status = FaultStatus::from_bits(self.get32(offset::FSTS));
        self.get64(offset::IQH) != self.get64(offset::IQT) && !status.iqe() && !status.ite()
    }

    /// The invalidation queue's address register.
    pub(crate) fn queue_address(&self) -> InvalidationQueueAddress {
        InvalidationQueueAddress::from_bits(self.get64(offset::IQA))
    }
}
