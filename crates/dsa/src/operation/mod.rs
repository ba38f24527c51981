// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The operations on memory. Each works through its range in pieces, looks at the abort flag between them, and
//! returns the completion record that is due. \[D 8.3\]

mod compare;
mod copy;
mod crc;
mod delta;
mod fill;
#[cfg(test)]
mod tests;

use crate::bus::Bus;
use crate::descriptor::Operation;
use crate::dma::{Aborted, Dma, Fault, OnFault};
use crate::status::{Record, Status};

/// How much is moved at once.
pub(crate) const CHUNK: usize = 64 << 10;
const PAGE: u64 = 0x1000;

/// An engine's buffers.
pub(crate) struct Scratch {
    first: Vec<u8>,
    second: Vec<u8>,
}

impl Scratch {
    pub fn new() -> Self {
        Self { first: vec![0; CHUNK], second: vec![0; CHUNK] }
    }
}

/// What an operation works with.
pub(crate) struct Task<'a, B> {
    pub dma: Dma<'a, B>,
    pub on_fault: OnFault,
    pub scratch: &'a mut Scratch,
}

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

/// The pieces of a transfer in ascending order: offset and length.
fn pieces(size: u32) -> impl Iterator<Item = (u32, usize)> {
    (0..size).step_by(CHUNK).map(move |offset| (offset, CHUNK.min((size - offset) as usize)))
}

/// The address `offset` bytes behind `base`; addresses wrap, as the hardware's adders do.
const fn at(base: u64, offset: u32) -> u64 {
    base.wrapping_add(offset as u64)
}

/// `offset` advanced by a part of a piece: never beyond the transfer size, which is 32 bits wide.
const fn advance(offset: u32, done: usize) -> u32 {
    offset.saturating_add(done as u32)
}

/// The earlier of two ends of parallel accesses: the bytes that both reached, and the fault that stopped there.
fn earlier(first: crate::dma::Progress, second: crate::dma::Progress) -> (usize, Option<Fault>) {
    if second.done < first.done {
        (second.done, second.fault)
    } else {
        (first.done, first.fault.or(second.fault))
    }
}
