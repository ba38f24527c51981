// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Compare and compare pattern. \[D 8.3.6, 8.3.7\]

use super::task::{Task, advance, at, earlier, pieces};
use crate::bus::Bus;
use crate::dma::Aborted;
use crate::status::{Record, Status};

const EQUAL: u8 = 0;
const DIFFERENT: u8 = 1;

impl<B: Bus> Task<'_, B> {
    /// Compares two ranges. A difference counts even where a byte behind it cannot be read.
    pub(super) fn compare(
        &mut self,
        first: u64,
        second: u64,
        size: u32,
        expected: Option<u8>,
    ) -> Result<Record, Aborted> {
        for (offset, length) in pieces(size) {
            let Some(left) = self.scratch.first.get_mut(..length) else { break };
            let left_end = self.dma.read(at(first, offset), left, self.on_fault)?;
            // What lies behind a fault is not compared, so it is not read.
            let Some(right) = self.scratch.second.get_mut(..left_end.done) else { break };
            let right_end = self.dma.read(at(second, offset), right, self.on_fault)?;
            let (done, fault) = earlier(left_end, right_end);
            let (left, right) = (left.get(..done).unwrap_or_default(), right.get(..done).unwrap_or_default());
            // The comparison of slices is much faster than the search.
            if left != right
                && let Some(difference) = left.iter().zip(right).position(|(a, b)| a != b)
            {
                return Ok(outcome(DIFFERENT, advance(offset, difference), expected));
            }
            if let Some(fault) = fault {
                return Ok(Record::partial(fault, advance(offset, done)));
            }
        }
        Ok(outcome(EQUAL, 0, expected))
    }

    /// Compares a range with an 8-byte pattern that repeats from the start of the range, the lowest byte first.
    pub(super) fn compare_pattern(
        &mut self,
        source: u64,
        pattern: u64,
        size: u32,
        expected: Option<u8>,
    ) -> Result<Record, Aborted> {
        let pattern = pattern.to_le_bytes();
        for (offset, length) in pieces(size) {
            let Some(data) = self.scratch.first.get_mut(..length) else { break };
            let end = self.dma.read(at(source, offset), data, self.on_fault)?;
            let data = data.get(..end.done).unwrap_or_default();
            let (chunks, rest) = data.as_chunks();
            let whole = chunks.iter().position(|chunk| *chunk != pattern).unwrap_or(chunks.len());
            let suspect = chunks.get(whole).map_or(rest, |chunk| chunk.as_slice());
            if let Some(byte) = suspect.iter().zip(pattern).position(|(a, b)| *a != b) {
                let difference = whole * pattern.len() + byte;
                return Ok(outcome(DIFFERENT, advance(offset, difference), expected));
            }
            if let Some(fault) = end.fault {
                return Ok(Record::partial(fault, advance(offset, end.done)));
            }
        }
        Ok(outcome(EQUAL, 0, expected))
    }
}

fn outcome(result: u8, completed: u32, expected: Option<u8>) -> Record {
    let status = if expected.is_none_or(|expected| expected == result) {
        Status::SUCCESS
    } else {
        Status::FALSE_PREDICATE
    };
    Record { completed, ..Record::new(status).with_result(result) }
}
