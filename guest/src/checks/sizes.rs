// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Sizes from 1 byte to 8 MiB at odd offsets; `large` has 64 MiB.

use anyhow::{Result, ensure};

use super::{all_bytes, batch::Batch, same, succeeded};
use crate::descriptor::Descriptor;
use crate::memory::{Mapping, PAGE};
use crate::pattern::{self, Random};
use crate::process::Findings;
use crate::reference::{crc32c, filled};
use crate::runner::Lab;

const SIZES: [usize; 32] = [
    1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 63, 64, 65, 127, 255, 511, 1000, 2047, 4095, 4096, 4097, 8191,
    8193, 12_289, 65_535, 65_537, 262_145, 1_048_577, 2_097_151, 8_388_611,
];

/// Moves of every size at three pairs of offsets.
pub fn moves(lab: &Lab, _: &mut Findings) -> Result<String> {
    let queue = lab.queue(0)?;
    let length = SIZES[SIZES.len() - 1] + 3 * PAGE;
    let mut source = Mapping::touched(length)?;
    let mut target = Mapping::touched(length)?;
    pattern::fill(source.bytes_mut(), lab.seed);
    let mut random = Random::new(lab.seed);
    let mut count = 0;
    for size in SIZES {
        // Offsets just below and above page borders, and anywhere.
        for _ in 0..if size > 100_000 { 1 } else { 3 } {
            let from = (random.below(2 * PAGE as u64) | 1) as usize;
            let to = (random.below(2 * PAGE as u64) | 1) as usize;
            let guard = 64.min(to);
            target.bytes_mut()[to - guard..to + size + 64].fill(0xa5);
            for (offset, part) in queue.chunks(size) {
                let d = Descriptor::copy(source.at(from + offset), target.at(to + offset), part);
                succeeded(&queue.run(d)?, &format!("move of {size} bytes"))?;
            }
            let what = format!("move of {size} bytes from offset {from} to {to}");
            same(&target.bytes()[to..to + size], &source.bytes()[from..from + size], &what)?;
            all_bytes(&target.bytes()[to - guard..to], 0xa5, "guard before the destination")?;
            all_bytes(&target.bytes()[to + size..to + size + 64], 0xa5, "guard behind the destination")?;
            count += 1;
        }
    }
    Ok(format!("{count} moves of {} sizes from 1 byte to 8 MiB + 3 at odd offsets", SIZES.len()))
}

/// All operations with a size, as batches.
pub fn all_operations(lab: &Lab, _: &mut Findings) -> Result<String> {
    let queue = lab.queue(0)?;
    let sizes: Vec<usize> = SIZES
        .into_iter()
        .filter(|size| *size < 100_000 && *size as u64 <= queue.limits().max_transfer)
        .collect();
    let area = (sizes.iter().max().copied().unwrap_or(0) + 2 * PAGE).next_multiple_of(PAGE);
    let mut source = Mapping::touched(2 * area)?;
    let mut target = Mapping::touched(5 * area)?;
    pattern::fill(&mut source.bytes_mut()[..area], lab.seed);
    let mut random = Random::new(lab.seed ^ 77);
    for size in &sizes {
        let size = *size;
        let from = (random.below(PAGE as u64) | 1) as usize;
        let to = (random.below(PAGE as u64) | 1) as usize;
        let data = source.bytes()[from..from + size].to_vec();
        // The other half of the source holds a copy that differs in its last byte.
        source.bytes_mut()[area + to..area + to + size].copy_from_slice(&data);
        source.bytes_mut()[area + to + size - 1] ^= 1;
        target.bytes_mut().fill(0xa5);
        let place = |n: usize| target.at(n * area + to);
        let s = source.at(from);
        let value = random.next();
        let mut batch = Batch::new(&[
            Descriptor::copy(s, place(0), size),
            Descriptor::fill(value, place(1), size),
            Descriptor::dualcast(s, place(2), place(3), size),
            Descriptor::copy_crc(s, place(4), size, 1),
            Descriptor::crc(s, size, 2),
            Descriptor::compare(s, source.at(area + to), size),
            Descriptor::compare(s, s, size),
            Descriptor::cache_flush(place(0), size),
        ])?;
        succeeded(&batch.run(&queue)?, &format!("batch with operations of {size} bytes"))?;
        let mut expected = vec![0xa5; 5 * area];
        for n in [0, 2, 3, 4] {
            expected[n * area + to..n * area + to + size].copy_from_slice(&data);
        }
        expected[area + to..area + to + size].copy_from_slice(&filled(size, value));
        same(target.bytes(), &expected, &format!("destinations of {size} bytes and all around them"))?;
        let member = |n| batch.member(n);
        ensure!(member(3)?.value as u32 == crc32c(&data, 1), "CRC of copy with CRC of {size} bytes");
        ensure!(member(4)?.value as u32 == crc32c(&data, 2), "CRC of {size} bytes");
        let (different, equal) = (member(5)?, member(6)?);
        ensure!(
            different.result == 1 && different.completed as usize == size - 1,
            "compare of {size} bytes that differ in the last one: {different}"
        );
        ensure!(equal.result == 0, "compare of {size} equal bytes: {equal}");
    }
    Ok(format!("7 operations with each of {} sizes at odd offsets, in batches", sizes.len()))
}
