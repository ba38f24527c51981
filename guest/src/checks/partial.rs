// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Block on fault off: a descriptor ends with status 03, says how far it came and where it stopped; software touches
//! the page and resumes until all is done [D 8.2, 8.3].

use anyhow::{Result, ensure};

use super::{all_bytes, faulted, has_status, same};
use crate::completion::{Completion, status};
use crate::descriptor::{BLOCK_ON_FAULT, Descriptor};
use crate::memory::{Mapping, PAGE};
use crate::pattern;
use crate::portal::Queue;
use crate::process::Findings;
use crate::reference::{crc32c, filled};
use crate::runner::Lab;

const PAGES: usize = 8;
const SIZE: usize = (PAGES - 1) * PAGE - 50;
/// Bound of the resumptions: each one makes at least one page present.
const ROUNDS: usize = 4 * PAGES;

/// Resumes an operation until it is done. `make` builds the descriptor for what is left from an offset on, with the
/// completion before it, if any. Gives the last completion, all bytes done before it, and the number of faults.
fn resume(
    queue: &Queue,
    untouched: &Mapping,
    write: bool,
    make: impl Fn(usize, Option<&Completion>) -> Descriptor,
) -> Result<(Completion, usize, usize)> {
    let mut done = 0;
    let mut last = None;
    for round in 0..ROUNDS {
        let c = queue.run(make(done, last.as_ref()).without(BLOCK_ON_FAULT))?;
        if c.status != status::PAGE_FAULT {
            has_status(&c, status::SUCCESS, "resumed operation")?;
            return Ok((c, done, round));
        }
        let range = untouched.address()..untouched.at(untouched.bytes().len());
        faulted(&c, false, &range, write, "partial completion")?;
        let page = (c.fault_address - untouched.address()) as usize / PAGE * PAGE;
        ensure!(!untouched.page_state(page)?.present, "the page of the fault is present: {c}");
        done += c.completed as usize;
        ensure!(done < SIZE, "all is done, and yet a fault: {c}");
        // SAFETY: a byte of the mapping, which nobody else uses now.
        unsafe {
            let byte = untouched.pointer().add(page);
            if write {
                byte.write_volatile(0)
            } else {
                let _ = byte.read_volatile();
            }
        }
        last = Some(c);
    }
    anyhow::bail!("not done after {ROUNDS} resumptions")
}

/// Moves to and from untouched memory.
pub fn moves(lab: &Lab, _: &mut Findings) -> Result<String> {
    let queue = lab.queue(0)?;
    let mut source = Mapping::touched(PAGES * PAGE)?;
    pattern::fill(source.bytes_mut(), lab.seed);
    let target = Mapping::untouched(PAGES * PAGE)?;
    let make =
        |o: usize, _: Option<&Completion>| Descriptor::copy(source.at(7 + o), target.at(1000 + o), SIZE - o);
    let (_, _, writes) = resume(&queue, &target, true, make)?;
    ensure!(writes > 0, "no fault, although the destination was untouched");
    same(&target.bytes()[1000..1000 + SIZE], &source.bytes()[7..7 + SIZE], "data moved in parts")?;
    all_bytes(&target.bytes()[..1000], 0, "before the destination")?;
    all_bytes(&target.bytes()[1000 + SIZE..], 0, "behind the destination")?;

    let fresh = Mapping::untouched(PAGES * PAGE)?;
    source.bytes_mut().fill(0xa5);
    let make =
        |o: usize, _: Option<&Completion>| Descriptor::copy(fresh.at(9 + o), source.at(3 + o), SIZE - o);
    let (_, _, reads) = resume(&queue, &fresh, false, make)?;
    ensure!(reads > 0, "no fault, although the source was untouched");
    all_bytes(&source.bytes()[3..3 + SIZE], 0, "zeroes moved in parts")?;
    all_bytes(&source.bytes()[3 + SIZE..], 0xa5, "behind the destination")?;
    Ok(format!(
        "{writes} write faults and {reads} read faults with right addresses, resumed to complete moves"
    ))
}

/// Fill, compare, CRC and copy with CRC.
pub fn others(lab: &Lab, _: &mut Findings) -> Result<String> {
    let queue = lab.queue(0)?;
    let mut counts = Vec::new();
    let mut memory = Mapping::touched(PAGES * PAGE)?;
    pattern::fill(memory.bytes_mut(), lab.seed);

    let value = 0x1122_3344_5566_7788_u64;
    let target = Mapping::untouched(PAGES * PAGE)?;
    // The pattern starts anew at the new destination, so it is rotated by what is done.
    let make = |o: usize, _: Option<&Completion>| {
        Descriptor::fill(value.rotate_right((o % 8 * 8) as u32), target.at(13 + o), SIZE - o)
    };
    counts.push(resume(&queue, &target, true, make)?.2);
    same(&target.bytes()[13..13 + SIZE], &filled(SIZE, value), "memory filled in parts")?;
    all_bytes(&target.bytes()[13 + SIZE..], 0, "behind the destination")?;

    // Compare with untouched memory: equal to zeroes up to one byte near the end.
    let fresh = Mapping::untouched(PAGES * PAGE)?;
    memory.bytes_mut().fill(0);
    memory.bytes_mut()[5 + SIZE - 10] = 1;
    let make =
        |o: usize, _: Option<&Completion>| Descriptor::compare(memory.at(5 + o), fresh.at(5 + o), SIZE - o);
    let (c, done, faults) = resume(&queue, &fresh, false, make)?;
    counts.push(faults);
    ensure!(
        c.result == 1 && done + c.completed as usize == SIZE - 10,
        "compare in parts: {done} done, then {c}"
    );

    // The partial CRC is the seed of the next part.
    let fresh = Mapping::untouched(PAGES * PAGE)?;
    let make = |o: usize, last: Option<&Completion>| {
        Descriptor::crc(fresh.at(17 + o), SIZE - o, last.map_or(0x55, |c| c.value as u32))
    };
    let (c, _, faults) = resume(&queue, &fresh, false, make)?;
    counts.push(faults);
    ensure!(c.value as u32 == crc32c(&vec![0; SIZE], 0x55), "CRC in parts: {:#x}", c.value);

    pattern::fill(memory.bytes_mut(), lab.seed ^ 3);
    let target = Mapping::untouched(PAGES * PAGE)?;
    let make = |o: usize, last: Option<&Completion>| {
        let seed = last.map_or(0, |c| c.value as u32);
        Descriptor::copy_crc(memory.at(1 + o), target.at(19 + o), SIZE - o, seed)
    };
    let (c, _, faults) = resume(&queue, &target, true, make)?;
    counts.push(faults);
    let data = &memory.bytes()[1..1 + SIZE];
    same(&target.bytes()[19..19 + SIZE], data, "copied with CRC in parts")?;
    ensure!(c.value as u32 == crc32c(data, 0), "CRC of the copy in parts: {:#x}", c.value);
    ensure!(counts.iter().all(|n| *n > 0), "an operation met no fault: {counts:?}");
    Ok(format!("fill, compare, CRC, copy with CRC: {counts:?} faults, resumed to the right results"))
}
