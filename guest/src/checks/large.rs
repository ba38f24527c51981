// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Large transfers, split only if the queue demands it, with their throughput.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::{all_bytes, same, succeeded};
use crate::completion::Completion;
use crate::descriptor::Descriptor;
use crate::memory::{Mapping, PAGE};
use crate::pattern;
use crate::portal::Queue;
use crate::process::Findings;
use crate::reference::crc32c;
use crate::runner::Lab;

/// What is moved at least, and first, to see how fast that goes: what a level-2 entry of the page table spans.
const SMALLEST: usize = 2 << 20;
/// About how long the largest move may take.
const MOVE_TIME: Duration = Duration::from_millis(500);

/// The size that takes no longer than [`MOVE_TIME`] where `moved` bytes took `took`: doubled from there as often as that
/// allows, up to `largest`.
fn affordable(moved: usize, took: Duration, largest: usize) -> usize {
    let (mut size, mut time) = (moved, took);
    while size * 2 <= largest && time * 2 <= MOVE_TIME {
        (size, time) = (size * 2, time * 2);
    }
    size
}

/// How large a move this machine makes in reasonable time.
fn size_for(queue: &Queue, largest: usize) -> Result<usize> {
    let (source, target) = (Mapping::touched(SMALLEST)?, Mapping::touched(SMALLEST)?);
    let start = Instant::now();
    queue.copy(source.address(), target.address(), SMALLEST)?;
    Ok(affordable(SMALLEST, start.elapsed(), largest))
}

/// Move, compare, fill and CRC.
pub fn transfers(lab: &Lab, findings: &mut Findings) -> Result<String> {
    let queue = lab.queue(0)?;
    let size = size_for(&queue, lab.large)?;
    let (from, to) = (4095, 77);
    let needed = (2 * size + (64 << 20)) as u64;
    let available = available_memory()?;
    ensure!(
        available > needed,
        "{} MiB of memory are needed, {} MiB are available",
        needed >> 20,
        available >> 20
    );
    let mut source = Mapping::touched(size + 2 * PAGE)?;
    let mut target = Mapping::touched(size + 2 * PAGE)?;
    pattern::fill(source.bytes_mut(), lab.seed);
    target.bytes_mut()[..to].fill(0xa5);
    target.bytes_mut()[to + size..].fill(0xa5);
    let chunks = queue.chunks(size);
    let mut throughput = |name: &str, start: Instant| {
        let seconds = start.elapsed().as_secs_f64();
        findings.figure(&format!("{name}-{}MiB", size >> 20), size as f64 / seconds / 1e6, "MB/s");
    };
    let all = |name: &str, descriptors: Vec<Descriptor>| -> Result<Vec<Completion>> {
        let completions = queue.run_all(&descriptors)?;
        for completion in &completions {
            succeeded(completion, name)?;
        }
        Ok(completions)
    };
    let (first, second) = (source.at(from), target.at(to));
    let (s, t) = (|o: usize| first + o as u64, |o: usize| second + o as u64);

    let start = Instant::now();
    all("move", chunks.iter().map(|(o, n)| Descriptor::copy(s(*o), t(*o), *n)).collect())?;
    throughput("move", start);
    same(&target.bytes()[to..to + size], &source.bytes()[from..from + size], "moved data")?;
    all_bytes(&target.bytes()[..to], 0xa5, "before the destination")?;
    all_bytes(&target.bytes()[to + size..], 0xa5, "behind the destination")?;

    target.bytes_mut()[to + size - 1] ^= 1;
    let start = Instant::now();
    let compared =
        all("compare", chunks.iter().map(|(o, n)| Descriptor::compare(s(*o), t(*o), *n)).collect())?;
    throughput("compare", start);
    let (last, rest) = compared.split_last().ok_or_else(|| anyhow::anyhow!("nothing was compared"))?;
    ensure!(rest.iter().all(|c| c.result == 0), "equal parts were found different");
    let last_size = chunks[chunks.len() - 1].1;
    ensure!(
        last.result == 1 && last.completed as usize == last_size - 1,
        "difference in the last byte: {last}"
    );

    // A CRC is continued from chunk to chunk, so it cannot be pipelined.
    let start = Instant::now();
    let mut crc = 0;
    for (offset, length) in &chunks {
        let c = queue.run(Descriptor::crc(s(*offset), *length, crc))?;
        succeeded(&c, "crc")?;
        crc = c.value as u32;
    }
    throughput("crc", start);
    let expected = crc32c(&source.bytes()[from..from + size], 0);
    ensure!(crc == expected, "CRC {crc:#010x} instead of {expected:#010x}");

    let value = 0x8877_6655_4433_2211_u64;
    let start = Instant::now();
    all("fill", chunks.iter().map(|(o, n)| Descriptor::fill(value, t(*o), *n)).collect())?;
    throughput("fill", start);
    for (offset, length) in &chunks {
        // Each chunk starts with the pattern's first byte.
        let part = &target.bytes()[to + offset..to + offset + length];
        let words = part.chunks_exact(8);
        same(words.remainder(), &value.to_le_bytes()[..words.remainder().len()], "end of the filled data")?;
        ensure!(words.into_iter().all(|word| word == value.to_le_bytes()), "filled data are wrong");
    }
    all_bytes(&target.bytes()[..to], 0xa5, "before the filled data")?;
    all_bytes(&target.bytes()[to + size..], 0xa5, "behind the filled data")?;

    let start = Instant::now();
    target.bytes_mut()[..size].copy_from_slice(&source.bytes()[..size]);
    throughput("cpu-copy", start);
    Ok(format!(
        "move, compare, CRC and fill of {} MiB at odd offsets in {} descriptors each",
        size >> 20,
        chunks.len()
    ))
}

fn available_memory() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:")).unwrap_or_default();
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().unwrap_or(0);
    Ok(kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_machine_moves_less_and_none_less_than_was_measured() {
        let largest = 64 << 20;
        let size = |ms| affordable(SMALLEST, Duration::from_millis(ms), largest);
        assert_eq!(size(1), largest);
        assert_eq!(size(100), 8 << 20);
        assert_eq!(size(1000), SMALLEST);
        assert_eq!(size(60_000), SMALLEST);
    }
}
