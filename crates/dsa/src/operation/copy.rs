// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Memory move and dualcast. \[D 8.3.4, 8.3.10\]

use super::task::{CHUNK, PAGE, Task, advance, at, pieces};
use crate::bus::Bus;
use crate::dma::{Aborted, Fault};
use crate::status::{Record, Status};

/// Result of a memory move that a fault ended early: the rest is at the end, not at the start.
const REVERSE: u8 = 1;

impl<B: Bus> Task<'_, B> {
    /// Copies as if through a temporary buffer of the whole size.
    pub(super) fn memory_move(
        &mut self,
        source: u64,
        destination: u64,
        size: u32,
    ) -> Result<Record, Aborted> {
        let distance = destination.wrapping_sub(source);
        if distance != 0 && distance < size.into() {
            return self.move_reverse(source, destination, size);
        }
        for (offset, length) in pieces(size) {
            let (done, fault) = self.copy_piece(at(source, offset), at(destination, offset), length)?;
            if let Some(fault) = fault {
                return Ok(Record::partial(fault, advance(offset, done)));
            }
        }
        Ok(Record::new(Status::SUCCESS))
    }

    /// Copies up to [`CHUNK`] bytes in ascending order; returns how many were written.
    fn copy_piece(
        &mut self,
        source: u64,
        destination: u64,
        length: usize,
    ) -> Result<(usize, Option<Fault>), Aborted> {
        let Some(buffer) = self.scratch.first.get_mut(..length) else { return Ok((length, None)) };
        let read = self.dma.read(source, buffer, self.on_fault)?;
        let Some(data) = buffer.get(..read.done) else { return Ok((0, read.fault)) };
        let written = self.dma.write(destination, data, self.on_fault)?;
        Ok((written.done, written.fault.or(read.fault)))
    }

    /// From the end, because the destination overlaps the end of the source. Accesses stay within a page, so that
    /// each happens whole or not at all and what has completed is always one range at the end.
    fn move_reverse(&mut self, source: u64, destination: u64, size: u32) -> Result<Record, Aborted> {
        let mut left = size;
        while left > 0 {
            let length = left.min(CHUNK as u32);
            let start = left - length;
            let mut have = 0;
            let mut read_fault = None;
            while have < length {
                let end = left - have;
                let part = page_tail(at(source, end)).min(length - have);
                let from = end - part;
                let range = (from - start) as usize..(end - start) as usize;
                let Some(buffer) = self.scratch.first.get_mut(range) else { break };
                let progress = self.dma.read(at(source, from), buffer, self.on_fault)?;
                if progress.fault.is_some() {
                    read_fault = progress.fault;
                    break;
                }
                have += part;
            }
            let stop = left - have;
            while left > stop {
                let part = page_tail(at(destination, left)).min(left - stop);
                let from = left - part;
                let range = (from - start) as usize..(left - start) as usize;
                let Some(data) = self.scratch.first.get(range) else { break };
                let progress = self.dma.write(at(destination, from), data, self.on_fault)?;
                if let Some(fault) = progress.fault {
                    return Ok(Record::partial(fault, size - left).with_result(REVERSE));
                }
                left = from;
            }
            if let Some(fault) = read_fault {
                return Ok(Record::partial(fault, size - left).with_result(REVERSE));
            }
        }
        Ok(Record::new(Status::SUCCESS))
    }

    /// Copies to two destinations, a page at a time, so that both get the same bytes up to the page that faults.
    pub(super) fn dualcast(
        &mut self,
        source: u64,
        destinations: [u64; 2],
        size: u32,
    ) -> Result<Record, Aborted> {
        let [first, second] = destinations;
        for (offset, length) in pieces(size) {
            let Some(buffer) = self.scratch.first.get_mut(..length) else { break };
            let read = self.dma.read(at(source, offset), buffer, self.on_fault)?;
            let mut done = 0;
            while done < read.done {
                let position = advance(offset, done);
                let part = page_head(at(first, position)).min(read.done - done);
                let Some(data) = buffer.get(done..done + part) else { break };
                for destination in [first, second] {
                    let written = self.dma.write(at(destination, position), data, self.on_fault)?;
                    if let Some(fault) = written.fault {
                        return Ok(Record::partial(fault, advance(position, written.done)));
                    }
                }
                done += part;
            }
            if let Some(fault) = read.fault {
                return Ok(Record::partial(fault, advance(offset, read.done)));
            }
        }
        Ok(Record::new(Status::SUCCESS))
    }
}

/// Bytes from `address` to the end of its page.
const fn page_head(address: u64) -> usize {
    (PAGE - (address & (PAGE - 1))) as usize
}

/// Bytes before `end` that lie in the same page as the last of them.
const fn page_tail(end: u64) -> u32 {
    ((end.wrapping_sub(1) & (PAGE - 1)) + 1) as u32
}
