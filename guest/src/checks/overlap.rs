// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Moves whose source and destination overlap: as if through a temporary buffer [D 8.3.4, GENCAP bit 1].

use anyhow::Result;

use super::{same, succeeded};
use crate::descriptor::Descriptor;
use crate::memory::{Mapping, PAGE};
use crate::pattern;
use crate::process::Findings;
use crate::runner::Lab;

/// Forwards and backwards, by less and more than a page.
pub fn moves(lab: &Lab, _: &mut Findings) -> Result<String> {
    let queue = lab.queue(0)?;
    let length = 40 * PAGE;
    let mut memory = Mapping::touched(length)?;
    let mut count = 0;
    for size in [2usize, 100, 4096, 30_001, 100_003] {
        for distance in [1usize, 7, 64, 4095, 4096, 9001] {
            if distance >= size {
                continue;
            }
            for (from, to) in [(3, 3 + distance), (3 + distance, 3)] {
                pattern::fill(memory.bytes_mut(), lab.seed + count);
                let mut expected = memory.bytes().to_vec();
                expected.copy_within(from..from + size, to);
                let what = format!("move of {size} bytes from {from} to {to}");
                succeeded(&queue.run(Descriptor::copy(memory.at(from), memory.at(to), size))?, &what)?;
                same(memory.bytes(), &expected, &what)?;
                count += 1;
            }
        }
    }
    Ok(format!("{count} overlapping moves in both directions"))
}
