// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The operations on memory. Each works through its range in pieces, looks at the abort flag between them, and
//! returns the completion record that is due. \[D 8.3\]

mod compare;
mod copy;
mod crc;
mod delta;
mod fill;
mod task;
#[cfg(test)]
mod tests;

use crate::bus::Bus;
use crate::descriptor::Operation;
use crate::dma::Aborted;
use crate::status::{Record, Status};
pub(crate) use task::{Scratch, Task};
use task::{advance, at, pieces};

impl<B: Bus> Task<'_, B> {
    /// Executes an operation on memory. Batch and drain, which the engine executes, are none.
    pub fn run(&mut self, operation: &Operation) -> Result<Record, Aborted> {
        match *operation {
            Operation::NoOp | Operation::Batch { .. } | Operation::Drain => Ok(Record::new(Status::SUCCESS)),
            Operation::Move { source, destination, size } => self.memory_move(source, destination, size),
            Operation::Fill { pattern, destination, size } => self.fill(pattern, destination, size),
            Operation::Compare { first, second, size, expected } => {
                self.compare(first, second, size, expected)
            }
            Operation::ComparePattern { source, pattern, size, expected } => {
                self.compare_pattern(source, pattern, size, expected)
            }
            Operation::CreateDelta { first, second, size, record, max_record, expected } => {
                let output = delta::Output { address: record, max_size: max_record };
                self.create_delta(first, second, size, output, expected)
            }
            Operation::ApplyDelta { record, record_size, destination, size } => {
                self.apply_delta(record, record_size, destination, size)
            }
            Operation::Dualcast { source, destinations, size } => self.dualcast(source, destinations, size),
            Operation::Crc { source, size, setup } => self.crc(source, None, size, &setup),
            Operation::CopyCrc { source, destination, size, setup } => {
                self.crc(source, Some(destination), size, &setup)
            }
            Operation::CacheFlush { destination, size } => self.cache_flush(destination, size),
        }
    }

    /// There is no cache of the device's own and guest memory is coherent: what remains is that the range must be
    /// accessible.
    fn cache_flush(&mut self, destination: u64, size: u32) -> Result<Record, Aborted> {
        for (offset, length) in pieces(size) {
            let progress = self.dma.touch(at(destination, offset), length, self.on_fault)?;
            if let Some(fault) = progress.fault {
                return Ok(Record::partial(fault, advance(offset, progress.done)));
            }
        }
        Ok(Record::new(Status::SUCCESS))
    }
}
