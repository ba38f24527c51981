// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Fill. \[D 8.3.5\]

use super::task::{CHUNK, Task, advance, at, pieces};
use crate::bus::Bus;
use crate::dma::Aborted;
use crate::status::{Record, Status};

impl<B: Bus> Task<'_, B> {
    /// Repeats the 8 bytes of `pattern`, the lowest first, from the start of the destination.
    pub(super) fn fill(&mut self, pattern: u64, destination: u64, size: u32) -> Result<Record, Aborted> {
        // Pieces start at multiples of the pattern's size, so that one buffer serves all of them.
        for chunk in self.scratch.first.chunks_exact_mut(8).take((size as usize).min(CHUNK).div_ceil(8)) {
            chunk.copy_from_slice(&pattern.to_le_bytes());
        }
        for (offset, length) in pieces(size) {
            let Some(data) = self.scratch.first.get(..length) else { break };
            let written = self.dma.write(at(destination, offset), data, self.on_fault)?;
            if let Some(fault) = written.fault {
                return Ok(Record::partial(fault, advance(offset, written.done)));
            }
        }
        Ok(Record::new(Status::SUCCESS))
    }
}
