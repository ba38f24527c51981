// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! mprotect and mremap under a device that holds translations.

use anyhow::{Result, ensure};

use super::unmap::{LENGTH, linger, slow_source, source_of};
use super::{all_bytes, faulted, same, succeeded};
use crate::completion::status;
use crate::descriptor::{BLOCK_ON_FAULT, Descriptor};
use crate::memory::{Mapping, PAGE, memory_file};
use crate::pattern::{self, Random};
use crate::process::Findings;
use crate::reference::filled;
use crate::rounds::Rounds;
use crate::runner::Lab;

const READ_WRITE: i32 = libc::PROT_READ | libc::PROT_WRITE;

/// mprotect while the device writes: once it has returned, not one more byte may land.
pub fn in_flight(lab: &Lab, _: &mut Findings) -> Result<String> {
    const HALF: usize = LENGTH / 2;
    let queue = lab.queue(0)?;
    let contents = pattern::bytes(LENGTH, lab.seed);
    let file = memory_file(c"vsva-slow", &contents)?;
    let target = Mapping::touched(LENGTH)?;
    let mut snapshot = Mapping::touched(HALF)?;
    let mut random = Random::new(lab.seed ^ 1);
    let (mut complete, mut stopped) = (0, 0);
    let mut hot = Mapping::touched(LENGTH)?;
    hot.bytes_mut().copy_from_slice(&contents);
    let mut rounds = Rounds::within(8..=24);
    while let Some(round) = rounds.begin() {
        target.protect(0..LENGTH, READ_WRITE)?;
        let slow = slow_source(&file)?;
        succeeded(&queue.run(Descriptor::fill(0, target.address(), LENGTH))?, "fill before")?;
        let (source, delay) = source_of(round, &queue, &slow, &hot, &target, &mut random)?;
        let pending = queue.start(Descriptor::copy(source.address(), target.address(), LENGTH));
        linger(delay);
        target.protect(HALF..LENGTH, libc::PROT_READ)?;
        snapshot.bytes_mut().copy_from_slice(&target.bytes()[HALF..]);
        let c = queue.wait(pending)?;
        same(&target.bytes()[HALF..], snapshot.bytes(), "memory after mprotect had returned")?;
        let done = if c.status == status::SUCCESS {
            complete += 1;
            LENGTH
        } else {
            stopped += 1;
            faulted(&c, true, &(target.at(HALF)..target.at(LENGTH)), true, "move into protected memory")?;
            c.completed as usize
        };
        rounds.want_more(stopped == 0);
        same(&target.bytes()[..done], &contents[..done], "what was moved")?;
    }
    ensure!(stopped > 0, "no move of {} was stopped by mprotect: none was in flight", rounds.count());
    Ok(format!(
        "{} rounds: {stopped} moves stopped, {complete} were complete; nothing was written after mprotect returned",
        rounds.count()
    ))
}

/// The protection changed between uses, many times.
pub fn between_uses(lab: &Lab, _: &mut Findings) -> Result<String> {
    let queue = lab.queue(0)?;
    let memory = Mapping::touched(4 * PAGE)?;
    let mut copy = Mapping::touched(4 * PAGE)?;
    let pages = memory.address()..memory.at(4 * PAGE);
    let mut rounds = Rounds::within(8..=25);
    while let Some(round) = rounds.begin() {
        let value = pattern::mix(round);
        let fill = Descriptor::fill(value, memory.address(), 4 * PAGE);
        let read = Descriptor::copy(memory.address(), copy.address(), 4 * PAGE);
        let blocking = round % 2 == 0;
        let choose = |d: Descriptor| if blocking { d } else { d.without(BLOCK_ON_FAULT) };
        memory.protect(0..4 * PAGE, READ_WRITE)?;
        succeeded(&queue.run(fill)?, "fill of writable memory")?;
        memory.protect(0..4 * PAGE, libc::PROT_READ)?;
        let wrong = Descriptor::fill(!value, memory.address(), 4 * PAGE);
        faulted(&queue.run(choose(wrong))?, blocking, &pages, true, "fill of read-only memory")?;
        succeeded(&queue.run(read)?, "read of read-only memory")?;
        same(copy.bytes(), &filled(4 * PAGE, value), "read-only memory")?;
        memory.protect(0..4 * PAGE, libc::PROT_NONE)?;
        copy.bytes_mut().fill(0xa5);
        faulted(&queue.run(choose(read))?, blocking, &pages, false, "read of inaccessible memory")?;
        all_bytes(copy.bytes(), 0xa5, "destination of the refused read")?;
    }
    memory.protect(0..4 * PAGE, READ_WRITE)?;
    same(memory.bytes(), &filled(4 * PAGE, pattern::mix(rounds.count() - 1)), "memory at the end")?;
    Ok(format!("{} rounds of writable, read-only and inaccessible memory", rounds.count()))
}

/// mremap between uses: the old address is gone, the new one has the data.
pub fn moved(lab: &Lab, _: &mut Findings) -> Result<String> {
    let queue = lab.queue(0)?;
    let length = 4 * PAGE;
    let here = Mapping::touched(length)?;
    let there = Mapping::reserved(length)?;
    let mut copy = Mapping::touched(length)?;
    let mut rounds = Rounds::within(8..=24);
    while let Some(round) = rounds.begin() {
        let (from, to) = if round % 2 == 0 { (&here, &there) } else { (&there, &here) };
        let value = pattern::mix(round ^ lab.seed);
        succeeded(&queue.run(Descriptor::fill(value, from.address(), length))?, "fill before mremap")?;
        from.move_to(to)?;
        let pages = from.address()..from.at(length);
        let c = queue.run(Descriptor::fill(!value, from.address(), length))?;
        faulted(&c, true, &pages, true, "fill of the old address")?;
        let c = queue.run(Descriptor::copy(from.address(), copy.address(), length))?;
        faulted(&c, true, &pages, false, "read of the old address")?;
        copy.bytes_mut().fill(0);
        succeeded(
            &queue.run(Descriptor::copy(to.address(), copy.address(), length))?,
            "read of the new address",
        )?;
        same(copy.bytes(), &filled(length, value), "data at the new address")?;
    }
    Ok(format!("{} moves of the pages to another address and back", rounds.count()))
}
