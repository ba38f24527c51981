// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Create delta and apply delta. A delta record is an array of entries: an offset in units of 8 bytes (16 bits), and
//! the 8 bytes that belong there. \[D 8.3.8, 8.3.9\]

use super::task::{Task, advance, at, earlier};
use crate::bus::Bus;
use crate::descriptor::DELTA_ENTRY;
use crate::dma::Aborted;
use crate::status::{Record, Status};

const UNIT: usize = 8;
/// Compared at once: what its entries need fits a buffer.
const PIECE: u32 = 0x1000;
/// Entries that are read at once.
const ENTRIES: u32 = 0x400;

const EQUAL: u8 = 0;
const DIFFERENT: u8 = 1;
const OVERFLOW: u8 = 2;

/// Where a delta record is written.
#[derive(Clone, Copy)]
pub(super) struct Output {
    pub address: u64,
    /// In bytes.
    pub max_size: u32,
}

impl<B: Bus> Task<'_, B> {
    /// Records where the second range differs from the first.
    pub(super) fn create_delta(
        &mut self,
        first: u64,
        second: u64,
        size: u32,
        output: Output,
        expected: Option<u8>,
    ) -> Result<Record, Aborted> {
        let mut recorded = 0;
        let mut entries: Vec<u8> = Vec::new();
        for offset in (0..size).step_by(PIECE as usize) {
            let length = PIECE.min(size - offset) as usize;
            let Some(left) = self.scratch.first.get_mut(..length) else { break };
            let left_end = self.dma.read(at(first, offset), left, self.on_fault)?;
            let Some(right) = self.scratch.second.get_mut(..left_end.done) else { break };
            let right_end = self.dma.read(at(second, offset), right, self.on_fault)?;
            let (done, fault) = earlier(left_end, right_end);
            let done = done / UNIT * UNIT;

            entries.clear();
            let mut overflow = None;
            let units = left.chunks_exact(UNIT).zip(right.chunks_exact(UNIT)).take(done / UNIT);
            for (index, (old, new)) in units.enumerate() {
                if old == new {
                    continue;
                }
                let position = advance(offset, index * UNIT);
                if advance(recorded, entries.len()).saturating_add(DELTA_ENTRY) > output.max_size {
                    overflow = Some(position);
                    break;
                }
                // Fits 16 bits: the size is at most 512 KiB.
                entries.extend_from_slice(&((position / UNIT as u32) as u16).to_le_bytes());
                entries.extend_from_slice(new);
            }

            let written = self.dma.write(at(output.address, recorded), &entries, self.on_fault)?;
            if let Some(fault) = written.fault {
                let whole = written.done / DELTA_ENTRY as usize * DELTA_ENTRY as usize;
                let completed = match entries.get(whole..whole + 2) {
                    Some(unit) => u32::from(u16::from_le_bytes([unit[0], unit[1]])) * UNIT as u32,
                    None => offset,
                };
                return Ok(Record::partial(fault, completed).with_extra(advance(recorded, whole).into()));
            }
            recorded = advance(recorded, entries.len());
            if let Some(position) = overflow {
                return Ok(outcome(OVERFLOW, position, recorded, expected));
            }
            if let Some(fault) = fault {
                return Ok(Record::partial(fault, advance(offset, done)).with_extra(recorded.into()));
            }
        }
        Ok(outcome(if recorded == 0 { EQUAL } else { DIFFERENT }, 0, recorded, expected))
    }

    /// Writes the entries of a delta record into the destination.
    pub(super) fn apply_delta(
        &mut self,
        record: u64,
        record_size: u32,
        destination: u64,
        size: u32,
    ) -> Result<Record, Aborted> {
        let mut last = None;
        for offset in (0..record_size).step_by((ENTRIES * DELTA_ENTRY) as usize) {
            let length = (ENTRIES * DELTA_ENTRY).min(record_size - offset) as usize;
            let Some(buffer) = self.scratch.first.get_mut(..length) else { break };
            let read = self.dma.read(at(record, offset), buffer, self.on_fault)?;
            let whole = buffer.get(..read.done).unwrap_or_default().chunks_exact(DELTA_ENTRY as usize);
            let applied = whole.len() * DELTA_ENTRY as usize;
            for (index, entry) in whole.enumerate() {
                let completed = advance(offset, index * DELTA_ENTRY as usize);
                let Some((unit, data)) = entry.split_first_chunk::<2>() else { break };
                let unit = u16::from_le_bytes(*unit);
                if last.is_some_and(|last| unit <= last) {
                    return Ok(Record { completed, ..Record::new(Status::DELTA_OFFSET_ORDER) });
                }
                let position = u32::from(unit) * UNIT as u32;
                if position >= size {
                    return Ok(Record { completed, ..Record::new(Status::DELTA_OFFSET_RANGE) });
                }
                let written = self.dma.write(at(destination, position), data, self.on_fault)?;
                if let Some(fault) = written.fault {
                    return Ok(Record::partial(fault, completed));
                }
                last = Some(unit);
            }
            if let Some(fault) = read.fault {
                return Ok(Record::partial(fault, advance(offset, applied)));
            }
        }
        Ok(Record::new(Status::SUCCESS))
    }
}

fn outcome(result: u8, completed: u32, recorded: u32, expected: Option<u8>) -> Record {
    let status = match expected {
        Some(mask) if mask >> result & 1 == 0 => Status::FALSE_PREDICATE,
        _ => Status::SUCCESS,
    };
    Record { completed, ..Record::new(status).with_result(result).with_extra(recorded.into()) }
}
