// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Each simple operation once or a few times, at odd offsets, with guard bytes around what it may write.

use anyhow::{Result, ensure};

use super::{all_bytes, has_status, same, succeeded};
use crate::completion::status;
use crate::descriptor::{CHECK_RESULT, Descriptor, Opcode};
use crate::memory::{Mapping, PAGE};
use crate::pattern;
use crate::process::Findings;
use crate::reference::filled;
use crate::runner::Lab;

/// No-op: a completion record and nothing else.
pub fn noop(lab: &Lab, _: &mut Findings) -> Result<String> {
    let queue = lab.queue(0)?;
    for n in 0..4 {
        succeeded(&queue.run(Descriptor::new(Opcode::Noop))?, &format!("no-op {n}"))?;
    }
    Ok("4 no-ops completed".into())
}

/// Move.
pub fn copy(lab: &Lab, _: &mut Findings) -> Result<String> {
    let queue = lab.queue(0)?;
    let mut source = Mapping::touched(4 * PAGE)?;
    let mut target = Mapping::touched(4 * PAGE)?;
    pattern::fill(source.bytes_mut(), lab.seed);
    let expected = source.bytes().to_vec();
    for (from, to, size) in [(0, 0, PAGE), (1, 3, 8191), (4095, 4097, 4099), (17, 17, 1)] {
        target.bytes_mut().fill(0xa5);
        succeeded(&queue.run(Descriptor::copy(source.at(from), target.at(to), size))?, "move")?;
        same(&target.bytes()[to..to + size], &expected[from..from + size], "moved data")?;
        all_bytes(&target.bytes()[..to], 0xa5, "bytes before the destination")?;
        all_bytes(&target.bytes()[to + size..], 0xa5, "bytes behind the destination")?;
        same(source.bytes(), &expected, "source after the move")?;
    }
    Ok("4 moves across pages, guards untouched".into())
}

/// Fill.
pub fn fill(lab: &Lab, _: &mut Findings) -> Result<String> {
    let queue = lab.queue(0)?;
    let mut target = Mapping::touched(4 * PAGE)?;
    let value = 0x0123_4567_89ab_cdef;
    for (to, size) in [(0, 8), (5, 4099), (4093, 8191), (1, 3)] {
        target.bytes_mut().fill(0xa5);
        succeeded(&queue.run(Descriptor::fill(value, target.at(to), size))?, "fill")?;
        same(&target.bytes()[to..to + size], &filled(size, value), "filled data")?;
        all_bytes(&target.bytes()[..to], 0xa5, "bytes before the destination")?;
        all_bytes(&target.bytes()[to + size..], 0xa5, "bytes behind the destination")?;
    }
    Ok("4 fills, sizes that are no multiple of the pattern included".into())
}

/// Compare: equal, different, and with an expected result.
pub fn compare(lab: &Lab, _: &mut Findings) -> Result<String> {
    let queue = lab.queue(0)?;
    let size = 2 * PAGE + 13;
    let mut memory = Mapping::touched(8 * PAGE)?;
    let (first, second) = (3, 4 * PAGE + 7);
    let data = pattern::bytes(size, lab.seed);
    memory.bytes_mut()[first..first + size].copy_from_slice(&data);
    memory.bytes_mut()[second..second + size].copy_from_slice(&data);
    let compare = Descriptor::compare(memory.at(first), memory.at(second), size);

    let equal = queue.run(compare)?;
    succeeded(&equal, "compare of equal data")?;
    ensure!(equal.result == 0, "equal data: {equal}");
    for at in [0, 1, 4095, size - 1] {
        memory.bytes_mut()[second + at] ^= 1;
        let different = queue.run(compare)?;
        succeeded(&different, "compare of different data")?;
        ensure!(different.result == 1, "data that differ at {at}: {different}");
        ensure!(different.completed as usize == at, "first difference at {at}: {different}");
        has_status(
            &queue.run(compare.flags(CHECK_RESULT))?,
            status::FALSE_PREDICATE,
            "expected equal, was different",
        )?;
        succeeded(
            &queue.run(compare.flags(CHECK_RESULT).u8_at(40, 1))?,
            "expected different, was different",
        )?;
        memory.bytes_mut()[second + at] ^= 1;
    }
    succeeded(&queue.run(compare.flags(CHECK_RESULT))?, "expected equal, was equal")?;
    let wrong = queue.run(compare.flags(CHECK_RESULT).u8_at(40, 1))?;
    has_status(&wrong, status::FALSE_PREDICATE, "expected different, was equal")?;
    Ok("equal and different data, offset of the first difference, check-result both ways".into())
}

/// Compare with a pattern.
pub fn compare_pattern(lab: &Lab, _: &mut Findings) -> Result<String> {
    let queue = lab.queue(0)?;
    let value = 0xfeed_f00d_dead_beef;
    let size = PAGE + 21;
    let mut memory = Mapping::touched(3 * PAGE)?;
    let start = 4090;
    memory.bytes_mut()[start..start + size].copy_from_slice(&filled(size, value));
    let compare = Descriptor::compare_pattern(memory.at(start), value, size);
    let equal = queue.run(compare)?;
    succeeded(&equal, "compare pattern")?;
    ensure!(equal.result == 0, "memory with the pattern: {equal}");
    for at in [0, 9, size - 1] {
        memory.bytes_mut()[start + at] ^= 0x80;
        let different = queue.run(compare)?;
        succeeded(&different, "compare pattern")?;
        ensure!(different.result == 1, "memory that differs at {at}: {different}");
        ensure!(different.completed as usize <= at, "first difference at {at}: {different}");
        let checked = queue.run(compare.flags(CHECK_RESULT))?;
        has_status(&checked, status::FALSE_PREDICATE, "expected equal, was different")?;
        memory.bytes_mut()[start + at] ^= 0x80;
    }
    Ok("equal, and different at the first, a middle and the last byte".into())
}

/// Dualcast.
pub fn dualcast(lab: &Lab, _: &mut Findings) -> Result<String> {
    let queue = lab.queue(0)?;
    let mut source = Mapping::touched(3 * PAGE)?;
    let mut targets = Mapping::touched(8 * PAGE)?;
    pattern::fill(source.bytes_mut(), lab.seed);
    for (from, to, size) in [(0, 0, 2 * PAGE), (1, 77, 5000), (4095, 4095, 2)] {
        targets.bytes_mut().fill(0xa5);
        let second = to + 4 * PAGE;
        let d = Descriptor::dualcast(source.at(from), targets.at(to), targets.at(second), size);
        succeeded(&queue.run(d)?, "dualcast")?;
        same(&targets.bytes()[to..to + size], &source.bytes()[from..from + size], "first destination")?;
        same(
            &targets.bytes()[second..second + size],
            &source.bytes()[from..from + size],
            "second destination",
        )?;
        all_bytes(&targets.bytes()[..to], 0xa5, "before the first destination")?;
        all_bytes(&targets.bytes()[to + size..second], 0xa5, "between the destinations")?;
        all_bytes(&targets.bytes()[second + size..], 0xa5, "behind the second destination")?;
    }
    Ok("3 dualcasts, guards untouched".into())
}

/// Cache flush: succeeds and changes nothing.
pub fn cache_flush(lab: &Lab, _: &mut Findings) -> Result<String> {
    let queue = lab.queue(0)?;
    let mut memory = Mapping::touched(4 * PAGE)?;
    pattern::fill(memory.bytes_mut(), lab.seed);
    let expected = memory.bytes().to_vec();
    for (at, size) in [(0, 4 * PAGE), (63, 1), (100, 9000)] {
        succeeded(&queue.run(Descriptor::cache_flush(memory.at(at), size))?, "cache flush")?;
    }
    same(memory.bytes(), &expected, "flushed memory")?;
    Ok("3 ranges flushed, contents unchanged".into())
}

/// Drain: when it completes, everything submitted before has.
pub fn drain(lab: &Lab, _: &mut Findings) -> Result<String> {
    let queue = lab.queue(0)?;
    let size = 64 << 10;
    let mut source = Mapping::touched(size)?;
    let moves = queue.limits().depth.saturating_sub(2).clamp(1, 6);
    let mut target = Mapping::touched(moves * size)?;
    for round in 0..4 {
        pattern::fill(source.bytes_mut(), lab.seed + round);
        target.bytes_mut().fill(0);
        let earlier: Vec<_> = (0..moves)
            .map(|n| queue.start(Descriptor::copy(source.address(), target.at(n * size), size)))
            .collect();
        succeeded(&queue.run(Descriptor::new(Opcode::Drain))?, "drain")?;
        for (n, pending) in earlier.into_iter().enumerate() {
            ensure!(
                queue.is_complete(pending),
                "round {round}: move {n} was not complete when the drain was"
            );
            succeeded(&queue.wait(pending)?, "move before the drain")?;
            same(&target.bytes()[n * size..(n + 1) * size], source.bytes(), "data moved before the drain")?;
        }
    }
    Ok(format!("4 drains, each after {moves} moves of 64 KiB"))
}
