// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The same address with ever new pages behind it: a single stale translation shows as old contents, or as data in
//! a page that no longer belongs there.

use std::os::unix::fs::FileExt;

use anyhow::{Result, ensure};

use super::{all_bytes, same, succeeded};
use crate::descriptor::Descriptor;
use crate::memory::{Mapping, PAGE, memory_file};
use crate::pattern;
use crate::process::Findings;
use crate::reference::filled;
use crate::rounds::Rounds;
use crate::runner::Lab;

/// Anonymous memory, read by the device.
pub fn anonymous(lab: &Lab, _: &mut Findings) -> Result<String> {
    let queue = lab.queue(0)?;
    let length = 2 * PAGE;
    let mut place = Mapping::reserved(length)?;
    let mut target = Mapping::touched(length)?;
    let mut rounds = Rounds::within(50..=200);
    while let Some(round) = rounds.begin() {
        place.replace_with_fresh(0..length)?;
        pattern::fill(place.bytes_mut(), lab.seed + round);
        succeeded(&queue.run(Descriptor::copy(place.address(), target.address(), length))?, "read")?;
        same(target.bytes(), place.bytes(), &format!("round {round}: data from the remapped address"))?;
        if round % 4 == 3 {
            // Written by the device too, and gone with the next mapping.
            succeeded(&queue.run(Descriptor::fill(u64::MAX, place.at(PAGE), PAGE))?, "write")?;
            all_bytes(&place.bytes()[PAGE..], 0xff, "filled page")?;
            same(&place.bytes()[..PAGE], &target.bytes()[..PAGE], "page beside the filled one")?;
        }
        target.bytes_mut().fill(0);
    }
    Ok(format!("{} rounds of map, use and unmap at one address", rounds.count()))
}

/// File mappings, written by the device: what it writes must land in the file that is mapped now.
pub fn files(lab: &Lab, _: &mut Findings) -> Result<String> {
    let queue = lab.queue(0)?;
    let length = 2 * PAGE;
    let place = Mapping::reserved(length)?;
    let mut files = Vec::new();
    let mut values = [0u64; 3];
    for _ in &values {
        files.push(memory_file(c"vsva-stale", &vec![0; length])?);
    }
    let mut rounds = Rounds::within(30..=120);
    let mut bytes = vec![0; length];
    while let Some(round) = rounds.begin() {
        let current = round as usize % files.len();
        place.replace_with_file(0..length, &files[current])?;
        values[current] = pattern::mix(lab.seed + round);
        succeeded(&queue.run(Descriptor::fill(values[current], place.address(), length))?, "write")?;
        for (n, (file, value)) in files.iter().zip(values).enumerate() {
            file.read_exact_at(&mut bytes, 0)?;
            same(
                &bytes,
                &filled(length, value),
                &format!("round {round}: file {n}, file {current} is mapped"),
            )?;
        }
    }
    Ok(format!("{} rounds with 3 files in turn at one address", rounds.count()))
}

/// Pages given back with MADV_DONTNEED, and holes punched into a file.
pub fn discarded(lab: &Lab, _: &mut Findings) -> Result<String> {
    use std::os::fd::AsRawFd;
    let queue = lab.queue(0)?;
    let length = 2 * PAGE;
    let memory = Mapping::touched(length)?;
    let target = Mapping::touched(length)?;
    let mut discarded = Rounds::within(8..=30);
    while let Some(round) = discarded.begin() {
        let value = pattern::mix(lab.seed + round) | 1;
        succeeded(&queue.run(Descriptor::fill(value, memory.address(), length))?, "write")?;
        memory.advise(0..length, libc::MADV_DONTNEED)?;
        succeeded(&queue.run(Descriptor::fill(value, memory.at(PAGE), 8))?, "write after MADV_DONTNEED")?;
        succeeded(&queue.run(Descriptor::copy(memory.address(), target.address(), length))?, "read")?;
        let mut expected = vec![0; length];
        expected[PAGE..PAGE + 8].copy_from_slice(&value.to_le_bytes());
        same(
            target.bytes(),
            &expected,
            &format!("round {round}: what the device reads after MADV_DONTNEED"),
        )?;
        same(memory.bytes(), &expected, &format!("round {round}: what the CPU reads after MADV_DONTNEED"))?;
    }
    let file = memory_file(c"vsva-holes", &vec![0; length])?;
    let mapping = Mapping::file(&file, length, true, true)?;
    let mut holes = Rounds::within(8..=30);
    while let Some(round) = holes.begin() {
        succeeded(&queue.run(Descriptor::fill(u64::MAX, mapping.address(), length))?, "write")?;
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        // SAFETY: no memory is passed.
        let punched = unsafe { libc::fallocate(file.as_raw_fd(), mode, 0, PAGE as i64) };
        ensure!(punched == 0, "fallocate: {}", std::io::Error::last_os_error());
        succeeded(&queue.run(Descriptor::copy(mapping.address(), target.address(), length))?, "read")?;
        all_bytes(&target.bytes()[..PAGE], 0, &format!("round {round}: hole in the file"))?;
        all_bytes(&target.bytes()[PAGE..], 0xff, &format!("round {round}: beside the hole"))?;
    }
    let (discarded, holes) = (discarded.count(), holes.count());
    Ok(format!("{discarded} rounds of MADV_DONTNEED and {holes} of holes punched into a file"))
}
