// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! CRC generation and copy with CRC, with all flags that change the result.

use anyhow::{Result, ensure};

use super::{same, succeeded};
use crate::descriptor::{CRC_RAW_DATA, CRC_RAW_SEED, CRC_SEED_FROM_MEMORY, Descriptor};
use crate::memory::{Mapping, PAGE};
use crate::pattern;
use crate::process::Findings;
use crate::reference;
use crate::runner::Lab;

const FLAGS: [u32; 4] = [0, CRC_RAW_SEED, CRC_RAW_DATA, CRC_RAW_SEED | CRC_RAW_DATA];
const RANGES: [(usize, usize); 5] = [(0, PAGE), (1, 9), (4095, 2), (3, 1), (77, 9999)];

/// CRC generation.
pub fn generate(lab: &Lab, _: &mut Findings) -> Result<String> {
    let queue = lab.queue(0)?;
    let mut memory = Mapping::touched(4 * PAGE)?;
    pattern::fill(memory.bytes_mut(), lab.seed);
    let mut seed_memory = Mapping::touched(PAGE)?;
    let mut count = 0;
    for (at, size) in RANGES {
        for flags in FLAGS {
            for seed in [0, 0xffff_ffff, 0x1357_9bdf] {
                let data = &memory.bytes()[at..at + size];
                let expected =
                    reference::crc(data, seed, flags & CRC_RAW_SEED != 0, flags & CRC_RAW_DATA != 0);
                let c = queue.run(Descriptor::crc(memory.at(at), size, seed).flags(flags))?;
                check(&c, expected, &format!("CRC of {size} bytes, seed {seed:#x}, flags {flags:#x}"))?;
                count += 1;
            }
        }
    }
    // The seed in memory, at an address that is aligned to 4 but not to 8.
    seed_memory.bytes_mut()[12..16].copy_from_slice(&0xcafe_f00d_u32.to_le_bytes());
    let d = Descriptor::crc(memory.at(5), 5000, 0).flags(CRC_SEED_FROM_MEMORY).u64_at(48, seed_memory.at(12));
    let expected = reference::crc32c(&memory.bytes()[5..5005], 0xcafe_f00d);
    check(&queue.run(d)?, expected, "CRC with its seed in memory")?;
    Ok(format!("{} CRCs: 4 combinations of flags, 3 seeds, and a seed in memory", count + 1))
}

/// Copy with CRC.
pub fn copy(lab: &Lab, _: &mut Findings) -> Result<String> {
    let queue = lab.queue(0)?;
    let mut source = Mapping::touched(4 * PAGE)?;
    let mut target = Mapping::touched(4 * PAGE)?;
    pattern::fill(source.bytes_mut(), lab.seed);
    for (n, (at, size)) in RANGES.into_iter().enumerate() {
        let flags = FLAGS[n % FLAGS.len()];
        let seed = 0x1000_0001_u32.wrapping_mul(n as u32);
        let to = at + 1;
        target.bytes_mut().fill(0xa5);
        let data = &source.bytes()[at..at + size];
        let expected = reference::crc(data, seed, flags & CRC_RAW_SEED != 0, flags & CRC_RAW_DATA != 0);
        let c = queue.run(Descriptor::copy_crc(source.at(at), target.at(to), size, seed).flags(flags))?;
        check(&c, expected, &format!("copy with CRC of {size} bytes"))?;
        let mut whole = vec![0xa5; 4 * PAGE];
        whole[to..to + size].copy_from_slice(data);
        same(target.bytes(), &whole, "destination of copy with CRC")?;
    }
    Ok("5 copies with CRC, guards untouched".into())
}

fn check(completion: &crate::completion::Completion, expected: u32, what: &str) -> Result<()> {
    succeeded(completion, what)?;
    let got = completion.value as u32;
    ensure!(got == expected, "{what}: {got:#010x} instead of {expected:#010x}");
    Ok(())
}
