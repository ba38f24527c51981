// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Batches: all operations at once, fences, and batches of which a member fails.

use anyhow::{Result, ensure};

use super::{all_bytes, has_status, same, succeeded};
use crate::completion::{Completion, RECORD_SIZE, status};
use crate::descriptor::{Descriptor, FENCE, Opcode};
use crate::memory::{Mapping, PAGE};
use crate::pattern;
use crate::portal::{Queue, wait_at};
use crate::process::Findings;
use crate::reference::{crc32c, filled};
use crate::runner::Lab;

/// A list of descriptors in memory, with a completion record for each.
pub struct Batch {
    list: Mapping,
    records: Mapping,
    count: usize,
}

impl Batch {
    /// Writes the list. `members` get their records here.
    pub fn new(members: &[Descriptor]) -> Result<Batch> {
        let mut list = Mapping::touched((members.len() * 64).next_multiple_of(PAGE))?;
        let records = Mapping::touched((members.len() * RECORD_SIZE).next_multiple_of(PAGE))?;
        for (n, member) in members.iter().enumerate() {
            let member = member.record(records.at(n * RECORD_SIZE));
            list.bytes_mut()[n * 64..(n + 1) * 64].copy_from_slice(member.bytes());
        }
        Ok(Batch { list, records, count: members.len() })
    }

    /// Runs the list and gives the batch's own completion.
    pub fn run(&mut self, queue: &Queue) -> Result<Completion> {
        self.records.bytes_mut().fill(0);
        queue.run(Descriptor::batch(self.list.address(), self.count))
    }

    /// The completion of a member; an error if it has no record.
    pub fn member(&self, n: usize) -> Result<Completion> {
        ensure!(!self.is_untouched(n), "member {n} of the batch has no completion record");
        wait_at(&self.records, n * RECORD_SIZE)
    }

    /// Whether a member's record has not been written.
    pub fn is_untouched(&self, n: usize) -> bool {
        self.records.bytes()[n * RECORD_SIZE..(n + 1) * RECORD_SIZE].iter().all(|b| *b == 0)
    }
}

/// One batch with every operation that may be in one, and one as long as the queue allows.
pub fn all_operations(lab: &Lab, _: &mut Findings) -> Result<String> {
    let queue = lab.queue(0)?;
    let mut source = Mapping::touched(2 * PAGE)?;
    pattern::fill(source.bytes_mut(), lab.seed);
    let target = Mapping::touched(16 * PAGE)?;
    let (s, size) = (source.at(3), 5001);
    let place = |n: usize| target.at(n * 2 * PAGE);
    let mut batch = Batch::new(&[
        Descriptor::new(Opcode::Noop),
        Descriptor::copy(s, place(0), size),
        Descriptor::fill(0x1122_3344_5566_7788, place(1), size),
        Descriptor::compare(s, s, size),
        Descriptor::compare_pattern(s, 0, size),
        Descriptor::dualcast(s, place(2), place(3), size),
        Descriptor::crc(s, size, 0),
        Descriptor::copy_crc(s, place(4), size, 0),
        Descriptor::create_delta(source.address(), source.at(PAGE), PAGE, place(5), 80),
        Descriptor::cache_flush(place(7), 100),
    ])?;
    let whole = batch.run(&queue)?;
    succeeded(&whole, "batch")?;
    let members = (0..10).map(|n| batch.member(n)).collect::<Result<Vec<_>>>()?;
    for (n, member) in members.iter().enumerate() {
        succeeded(member, &format!("member {n}"))?;
    }
    let data = &source.bytes()[3..3 + size];
    for (n, what) in [(0, "moved"), (2, "first dualcast"), (3, "second dualcast"), (4, "copied with CRC")] {
        same(&target.bytes()[n * 2 * PAGE..n * 2 * PAGE + size], data, what)?;
    }
    same(&target.bytes()[2 * PAGE..2 * PAGE + size], &filled(size, 0x1122_3344_5566_7788), "filled")?;
    let crc = crc32c(data, 0);
    ensure!(members[6].value as u32 == crc && members[7].value as u32 == crc, "a CRC of the batch is wrong");
    ensure!(
        (members[3].result, members[4].result, members[8].result) == (0, 1, 2),
        "a result of the batch is wrong"
    );

    let count = (queue.limits().max_batch as usize).min(256);
    let targets = Mapping::touched(count * 64)?;
    let members: Vec<_> =
        (0..count).map(|n| Descriptor::copy(source.at(n), targets.at(n * 64), 61)).collect();
    let mut long = Batch::new(&members)?;
    succeeded(&long.run(&queue)?, "long batch")?;
    for n in 0..count {
        succeeded(&long.member(n)?, "member of the long batch")?;
        same(&targets.bytes()[n * 64..n * 64 + 61], &source.bytes()[n..n + 61], "long batch")?;
        all_bytes(&targets.bytes()[n * 64 + 61..(n + 1) * 64], 0, "guard in the long batch")?;
    }
    Ok(format!("a batch of 10 different operations and one of {count} moves"))
}

/// Fences order the members, and a failed member stops what is behind the next fence.
pub fn fence(lab: &Lab, _: &mut Findings) -> Result<String> {
    let queue = lab.queue(0)?;
    let size = 48 << 10;
    let steps = 6;
    let mut memory = Mapping::touched((steps + 1) * size)?;
    // Each member copies what the one before it copied.
    let members: Vec<_> = (0..steps)
        .map(|n| Descriptor::copy(memory.at(n * size), memory.at((n + 1) * size), size))
        .map(|d| d.flags(FENCE))
        .collect();
    let mut chain = Batch::new(&members)?;
    for round in 0..3 {
        memory.bytes_mut().fill(0);
        pattern::fill(&mut memory.bytes_mut()[..size], lab.seed + round);
        succeeded(&chain.run(&queue)?, "fenced chain")?;
        let (first, copies) = memory.bytes().split_at(size);
        for (n, copy) in copies.chunks(size).enumerate() {
            same(copy, first, &format!("copy {n} of the fenced chain"))?;
        }
    }

    let target = Mapping::touched(4 * PAGE)?;
    let mut failing = Batch::new(&[
        Descriptor::fill(u64::MAX, target.address(), PAGE),
        Descriptor::new(Opcode::Noop).opcode(0x7f),
        Descriptor::fill(u64::MAX, target.at(PAGE), PAGE).flags(FENCE),
        Descriptor::fill(u64::MAX, target.at(2 * PAGE), PAGE),
    ])?;
    let whole = failing.run(&queue)?;
    has_status(&whole, status::BATCH_FAILED, "batch with a failing member")?;
    succeeded(&failing.member(0)?, "member before the failing one")?;
    has_status(&failing.member(1)?, status::OPCODE, "failing member")?;
    ensure!(
        failing.is_untouched(2) && failing.is_untouched(3),
        "a member behind the fence has a completion record"
    );
    ensure!(whole.completed == 2, "2 descriptors were processed, the batch says {whole}");
    all_bytes(&target.bytes()[..PAGE], 0xff, "filled before the failure")?;
    all_bytes(&target.bytes()[PAGE..], 0, "behind the fence")?;
    Ok(format!(
        "3 chains of {steps} fenced copies in order; a failed member stopped what was behind the fence"
    ))
}
