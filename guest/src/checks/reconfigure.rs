// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A queue disabled, configured anew and enabled, while the device and the other queues stay enabled.

use anyhow::{Context, Result, ensure};

use super::{all_bytes, has_status, same, succeeded};
use crate::completion::status;
use crate::descriptor::{BLOCK_ON_FAULT, Descriptor};
use crate::memory::{Mapping, PAGE};
use crate::pattern;
use crate::process::Findings;
use crate::runner::Lab;

/// The last queue without block on fault: the flag is refused, and faults end in partial completions.
pub fn without_block_on_fault(lab: &Lab, _: &mut Findings) -> Result<String> {
    let device = lab.device()?;
    let last = device.queue_count() - 1;
    ensure!(last > 0, "needs a second queue");
    let other = device.open(0).context("another queue, in use meanwhile")?;
    device.disable(last)?;
    device.configure(last, false)?;
    device.enable(last)?;
    let outcome = (|| {
        let queue = device.open(last)?;
        let mut source = Mapping::touched(2 * PAGE)?;
        pattern::fill(source.bytes_mut(), lab.seed);
        let mut target = Mapping::untouched(2 * PAGE)?;
        let d = Descriptor::copy(source.address(), target.address(), 2 * PAGE);
        has_status(&queue.run(d)?, status::FLAGS, "block on fault in a queue without it")?;
        let d = d.without(BLOCK_ON_FAULT);
        has_status(&queue.run(d)?, status::PAGE_FAULT, "untouched destination")?;
        all_bytes(target.bytes(), 0, "destination of the failed move")?;
        target.touch()?;
        succeeded(&queue.run(d)?, "touched destination")?;
        same(target.bytes(), source.bytes(), "moved data")?;
        let elsewhere = Mapping::untouched(2 * PAGE)?;
        let d = Descriptor::copy(source.address(), elsewhere.address(), 2 * PAGE);
        succeeded(&other.run(d)?, "the other queue, opened before")?;
        same(elsewhere.bytes(), source.bytes(), "data moved by the other queue")
    })();
    let restored =
        device.disable(last).and_then(|()| device.configure(last, true)).and_then(|()| device.enable(last));
    outcome?;
    restored.context("back to block on fault")?;
    let queue = device.open(last)?;
    let target = Mapping::untouched(PAGE)?;
    succeeded(&queue.run(Descriptor::fill(u64::MAX, target.address(), PAGE))?, "block on fault again")?;
    all_bytes(target.bytes(), 0xff, "filled data")?;
    Ok(format!("queue {last} disabled, changed and enabled twice while queue 0 was in use"))
}
