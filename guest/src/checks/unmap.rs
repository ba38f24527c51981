// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! munmap while the device works: what was unmapped may belong to somebody else the moment munmap returns.

use std::fs::File;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::{faulted, same, succeeded};
use crate::completion::status;
use crate::descriptor::Descriptor;
use crate::memory::{Mapping, PAGE, memory_file};
use crate::pattern::{self, Random};
use crate::portal::Queue;
use crate::process::Findings;
use crate::rounds::Rounds;
use crate::runner::Lab;

/// Bytes of a move that is disturbed.
pub const LENGTH: usize = 1 << 20;
const HALF: usize = LENGTH / 2;
/// So much at the beginning is brought in by page requests where a move is to be slow: time enough for what disturbs it.
const SLOW: usize = 16 * PAGE;

/// A mapping of `file`, whose first pages the device has to fault in.
pub fn slow_source(file: &File) -> Result<Mapping> {
    let mapping = Mapping::file(file, LENGTH, true, false)?;
    mapping.advise(SLOW..LENGTH, libc::MADV_POPULATE_READ)?;
    Ok(mapping)
}

/// Moves to memory that the device has already written (so that it holds translations); half of that is unmapped
/// meanwhile and its pages get new owners. In even rounds the source is a file mapping that the device has to fault
/// in, so that munmap always comes first; in odd ones it is hot, and munmap comes at any point of the move.
pub fn in_flight(lab: &Lab, _: &mut Findings) -> Result<String> {
    let queue = lab.queue(0)?;
    let contents = pattern::bytes(LENGTH, lab.seed);
    let of_owner = pattern::bytes(HALF, !lab.seed);
    let file = memory_file(c"vsva-slow", &contents)?;
    let mut random = Random::new(lab.seed);
    let (mut complete, mut stopped) = (0, 0);
    let mut hot = Mapping::touched(LENGTH)?;
    hot.bytes_mut().copy_from_slice(&contents);
    let mut rounds = Rounds::within(8..=24);
    while let Some(round) = rounds.begin() {
        let slow = slow_source(&file)?;
        let mut target = Mapping::touched(LENGTH)?;
        // Mapped over later: so that nothing new is put into the hole, where the device may rightly write.
        let mut owner = Mapping::reserved(HALF)?;
        succeeded(&queue.run(Descriptor::fill(0, target.address(), LENGTH))?, "fill before")?;
        let (source, delay) = source_of(round, &queue, &slow, &hot, &target, &mut random)?;

        let pending = queue.start(Descriptor::copy(source.address(), target.address(), LENGTH));
        linger(delay);
        target.unmap(HALF..LENGTH)?;
        owner.replace_with_fresh(0..HALF)?;
        owner.bytes_mut().copy_from_slice(&of_owner);
        let c = queue.wait(pending)?;
        target.map_hole(HALF..LENGTH).context("something else was mapped into the hole")?;

        let done = if c.status == status::SUCCESS {
            complete += 1;
            HALF
        } else {
            stopped += 1;
            faulted(&c, true, &(target.at(HALF)..target.at(LENGTH)), true, "move into unmapped memory")?;
            let first = target.at((c.completed as usize).max(HALF)) & !(PAGE as u64 - 1);
            ensure!(
                c.fault_address & !(PAGE as u64 - 1) >= first,
                "what is complete lies beyond the fault: {c}"
            );
            (c.completed as usize).min(HALF)
        };
        rounds.want_more(stopped == 0);
        same(&target.bytes_mut()[..done], &contents[..done], "the half that stayed mapped")?;
        same(owner.bytes(), &of_owner, &format!("round {round}: memory that got the pages after munmap"))?;
    }
    ensure!(stopped > 0, "no move of {} was stopped by munmap: none was in flight", rounds.count());
    Ok(format!(
        "{} rounds: {stopped} moves stopped with the right fault address, {complete} were complete; the pages' new \
         owner never saw the device's data",
        rounds.count()
    ))
}

/// The other direction: half of a source that the device reads is unmapped meanwhile, and its pages get a new owner,
/// whose contents must not show in what was moved.
pub fn source_in_flight(lab: &Lab, _: &mut Findings) -> Result<String> {
    let queue = lab.queue(0)?;
    let contents = pattern::bytes(LENGTH, lab.seed);
    let of_owner = pattern::bytes(HALF, !lab.seed);
    let mut random = Random::new(lab.seed);
    let (mut complete, mut stopped) = (0, 0);
    let mut usual = Duration::ZERO;
    let mut rounds = Rounds::within(4..=16);
    while let Some(round) = rounds.begin() {
        let mut source = Mapping::touched(LENGTH)?;
        source.bytes_mut().copy_from_slice(&contents);
        let mut owner = Mapping::reserved(HALF)?;
        // Even rounds: the device has to fault the destination in, so that munmap comes first.
        let target = Mapping::untouched(LENGTH)?;
        let present = if round % 2 == 0 { SLOW } else { 0 };
        target.advise(present..LENGTH, libc::MADV_POPULATE_WRITE)?;
        // The device's translations of the source are hot.
        succeeded(&queue.run(Descriptor::crc(source.address(), LENGTH, 0))?, "CRC before")?;
        if round % 2 == 1 {
            let start = Instant::now();
            succeeded(
                &queue.run(Descriptor::copy(source.address(), target.address(), LENGTH))?,
                "move before",
            )?;
            usual = start.elapsed();
            succeeded(&queue.run(Descriptor::fill(0, target.address(), LENGTH))?, "fill before")?;
        }

        let pending = queue.start(Descriptor::copy(source.address(), target.address(), LENGTH));
        if round % 2 == 1 {
            linger(usual.mul_f64(random.below(600) as f64 / 1000.0));
        }
        source.unmap(HALF..LENGTH)?;
        owner.replace_with_fresh(0..HALF)?;
        owner.bytes_mut().copy_from_slice(&of_owner);
        let c = queue.wait(pending)?;
        source.map_hole(HALF..LENGTH).context("something else was mapped into the hole")?;

        let done = if c.status == status::SUCCESS {
            complete += 1;
            LENGTH
        } else {
            stopped += 1;
            faulted(&c, true, &(source.at(HALF)..source.at(LENGTH)), false, "move from unmapped memory")?;
            c.completed as usize
        };
        rounds.want_more(stopped == 0);
        same(&target.bytes()[..done], &contents[..done], &format!("round {round}: what was moved"))?;
        // Behind that there may be more of the source, or nothing.
        for at in (done..LENGTH).step_by(PAGE) {
            let (got, moved) =
                (&target.bytes()[at..LENGTH.min(at + PAGE)], &contents[at..LENGTH.min(at + PAGE)]);
            // Whole pages of either kind are quickly seen, which matters where each byte costs.
            if got == moved || got.iter().all(|byte| *byte == 0) {
                continue;
            }
            let foreign = got.iter().zip(moved).position(|(byte, moved)| byte != moved && *byte != 0);
            ensure!(foreign.is_none(), "round {round}: foreign data at {}", at + foreign.unwrap_or(0));
        }
        same(owner.bytes(), &of_owner, &format!("round {round}: memory that got the pages after munmap"))?;
    }
    ensure!(stopped > 0, "no move of {} was stopped by munmap: none was in flight", rounds.count());
    Ok(format!(
        "{} rounds: {stopped} moves stopped with the right fault address, {complete} were complete; the new owner's \
         data never showed",
        rounds.count()
    ))
}

/// What a move to `target` is to read, and how long after its start it is to be disturbed: in even rounds a mapping that is
/// `slow`, at once; in odd ones one that is `hot`, at a point in the middle of the move. `target` is filled with zeroes
/// again.
pub fn source_of<'a>(
    round: u64,
    queue: &Queue,
    slow: &'a Mapping,
    hot: &'a Mapping,
    target: &Mapping,
    random: &mut Random,
) -> Result<(&'a Mapping, Duration)> {
    if round.is_multiple_of(2) {
        return Ok((slow, Duration::ZERO));
    }
    let start = Instant::now();
    let c = queue.run(Descriptor::copy(hot.address(), target.address(), LENGTH))?;
    succeeded(&c, "move before")?;
    let duration = start.elapsed();
    succeeded(&queue.run(Descriptor::fill(0, target.address(), LENGTH))?, "fill before")?;
    Ok((hot, duration.mul_f64(random.below(600) as f64 / 1000.0)))
}

/// Waits without sleeping, which would take longer than the move; others may run meanwhile.
pub fn linger(delay: Duration) {
    let start = Instant::now();
    while start.elapsed() < delay {
        std::thread::yield_now();
    }
}
