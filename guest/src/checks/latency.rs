// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Figures: how long single descriptors take, from the first store to the portal until the record is seen.

use std::time::Instant;

use anyhow::{Result, ensure};

use super::{batch::Batch, same, succeeded};
use crate::descriptor::{Descriptor, Opcode};
use crate::memory::{Mapping, PAGE};
use crate::pattern;
use crate::portal::Queue;
use crate::process::Findings;
use crate::runner::Lab;

const SAMPLES: usize = 100;
const FAULTS: usize = 48;

/// No-op, hot move, move with a page request for its destination, batch.
pub fn figures(lab: &Lab, findings: &mut Findings) -> Result<String> {
    let queue = lab.queue(0)?;
    let mut source = Mapping::touched(PAGE)?;
    pattern::fill(source.bytes_mut(), lab.seed);
    let target = Mapping::touched(64 * PAGE)?;
    let noop = sample(&queue, (0..SAMPLES).map(|_| Descriptor::new(Opcode::Noop)))?;
    let hot =
        sample(&queue, (0..SAMPLES).map(|_| Descriptor::copy(source.address(), target.address(), PAGE)))?;
    let fresh = Mapping::untouched(FAULTS * PAGE)?;
    let fault =
        sample(&queue, (0..FAULTS).map(|n| Descriptor::copy(source.address(), fresh.at(n * PAGE), PAGE)))?;
    for page in fresh.bytes().chunks(PAGE) {
        same(page, source.bytes(), "page that was faulted in")?;
    }
    let count = (queue.limits().max_batch as usize).min(64);
    let members: Vec<_> =
        (0..count).map(|n| Descriptor::copy(source.address(), target.at(n * PAGE), PAGE)).collect();
    let mut batch = Batch::new(&members)?;
    let mut per_member = Vec::new();
    for _ in 0..8 {
        let start = Instant::now();
        succeeded(&batch.run(&queue)?, "batch")?;
        per_member.push(start.elapsed().as_secs_f64() * 1e6 / count as f64);
    }
    ensure!(!noop.is_empty() && !hot.is_empty() && !fault.is_empty(), "no samples");
    findings.figure("no-op-median", median(noop), "us");
    let hot = median(hot);
    findings.figure("move-4KiB-hot-median", hot, "us");
    let fault = median(fault);
    findings.figure("move-4KiB-page-request-median", fault, "us");
    findings.figure("page-request-round-trip", fault - hot, "us");
    findings.figure("batch-move-4KiB-per-member-median", median(per_member), "us");
    Ok(format!(
        "{SAMPLES} no-ops, {SAMPLES} hot moves, {FAULTS} moves with a page request, 8 batches of {count}"
    ))
}

fn sample(queue: &Queue, descriptors: impl Iterator<Item = Descriptor>) -> Result<Vec<f64>> {
    let mut times = Vec::new();
    for descriptor in descriptors {
        let start = Instant::now();
        let completion = queue.run(descriptor)?;
        times.push(start.elapsed().as_secs_f64() * 1e6);
        succeeded(&completion, "sample")?;
    }
    Ok(times)
}

/// The middle one; 0 of none.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_one() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![]), 0.0);
    }
}
