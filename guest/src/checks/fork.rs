// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Copy on write after fork: both sides keep the right data, also when the device still had a writable translation.

use anyhow::{Context, Result};

use super::{same, succeeded};
use crate::descriptor::Descriptor;
use crate::memory::{Mapping, PAGE};
use crate::pattern;
use crate::process::{Findings, Meeting, spawn};
use crate::rounds::Rounds;
use crate::runner::Lab;

const PAGES: usize = 12;

/// Rounds of: the device writes (its translations are hot), fork, both sides' devices write, both sides compare.
pub fn copy_on_write(lab: &Lab, _: &mut Findings) -> Result<String> {
    let queue = lab.queue(0)?;
    let length = PAGES * PAGE;
    let mut source = Mapping::touched(length)?;
    let memory = Mapping::touched(length)?;
    let mut rounds = Rounds::within(2..=4);
    while let Some(round) = rounds.begin() {
        let before = pattern::bytes(length, lab.seed + 3 * round);
        let of_parent = pattern::bytes(length, lab.seed + 3 * round + 1);
        let of_child = pattern::bytes(length, lab.seed + 3 * round + 2);
        source.bytes_mut().copy_from_slice(&before);
        succeeded(&queue.run(Descriptor::copy(source.address(), memory.address(), length))?, "before fork")?;
        let meeting = Meeting::new()?;
        let mut child = spawn(false, |_| {
            // 1: the parent's device has written.
            meeting.wait(1, 1)?;
            same(memory.bytes(), &before, "child's memory after the parent's device wrote")?;
            let own = lab.queue(1).context("the child's queue")?;
            let mut child_source = Mapping::touched(length)?;
            // The device of the child reads the pages that are still shared, then writes to them.
            succeeded(
                &own.run(Descriptor::copy(memory.address(), child_source.address(), length))?,
                "child reads",
            )?;
            same(child_source.bytes(), &before, "what the child's device read")?;
            child_source.bytes_mut().copy_from_slice(&of_child);
            succeeded(
                &own.run(Descriptor::copy(child_source.address(), memory.address(), length))?,
                "child writes",
            )?;
            same(memory.bytes(), &of_child, "child's memory after its device wrote")?;
            meeting.meet(2, 1)?;
            // 3: the parent's device has written once more.
            meeting.wait(3, 1)?;
            same(memory.bytes(), &of_child, "child's memory at the end")?;
            Ok(String::new())
        })?;
        source.bytes_mut().copy_from_slice(&of_parent);
        let d = Descriptor::copy(source.address(), memory.address(), length);
        let outcome = (|| {
            succeeded(&queue.run(d)?, "parent writes")?;
            same(memory.bytes(), &of_parent, "parent's memory after its device wrote")?;
            meeting.meet(1, 1)?;
            meeting.wait(2, 1)?;
            same(memory.bytes(), &of_parent, "parent's memory after the child's device wrote")?;
            let d = Descriptor::fill(round, memory.at(PAGE), PAGE);
            succeeded(&queue.run(d)?, "parent writes again")?;
            meeting.meet(3, 1)
        })();
        // The child's own finding explains more than the parent's timeout.
        child.join().with_context(|| format!("round {round}, child"))?;
        outcome.with_context(|| format!("round {round}, parent"))?;
    }
    Ok(format!(
        "{} forks with {PAGES} pages: parent and child wrote through two queues and kept their own data",
        rounds.count()
    ))
}
