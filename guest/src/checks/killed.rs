// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A process killed with work in flight: its pages get new owners at once, and its queue serves the next process.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{same, succeeded};
use crate::descriptor::{Descriptor, Opcode};
use crate::memory::{Mapping, PAGE, memory_file};
use crate::pattern::{self, Random};
use crate::process::{Findings, Meeting, spawn};
use crate::progress::Patience;
use crate::rounds::Rounds;
use crate::runner::Lab;

const LENGTH: usize = 1 << 20;

/// The check.
pub fn in_flight(lab: &Lab, _: &mut Findings) -> Result<String> {
    let mut rounds = Rounds::within(3..=6);
    let mut unfinished = 0;
    let mut random = Random::new(lab.seed);
    let contents = pattern::bytes(LENGTH, lab.seed);
    let of_owner = pattern::bytes(2 * LENGTH, !lab.seed);
    while let Some(round) = rounds.begin() {
        let meeting = Meeting::new()?;
        let mut victim = spawn(true, |_| {
            let queue = lab.queue(0)?;
            let file = memory_file(c"vsva-slow", &contents)?;
            let source = Mapping::file(&file, LENGTH, true, false)?;
            // Half of the moves go to memory that is present, half make page requests.
            let targets = [Mapping::touched(LENGTH)?, Mapping::untouched(LENGTH)?];
            let count = queue.limits().depth.clamp(2, 8) - 1;
            let pending: Vec<_> = (0..count)
                .map(|n| queue.start(Descriptor::copy(source.address(), targets[n % 2].address(), LENGTH)))
                .collect();
            meeting.meet(0, 1)?;
            // Counts what is complete until it is killed.
            loop {
                let left = pending.iter().filter(|p| !queue.is_complete(**p)).count();
                meeting.counter(1).store(1 + left as u32, std::sync::atomic::Ordering::SeqCst);
                std::thread::yield_now();
            }
        })?;
        let ready = meeting.wait(0, 1);
        if round % 2 == 1 {
            std::thread::sleep(Duration::from_micros(random.below(3000)));
        }
        ensure!(victim.kill(), "the killed process is stuck in the kernel");
        if let Err(error) = ready {
            // It did not get so far: its own words say why.
            victim.join_with(Patience::none(), || {})?;
            return Err(error);
        }
        unfinished += u32::from(meeting.counter(1).load(std::sync::atomic::Ordering::SeqCst) != 1);
        rounds.want_more(unfinished == 0);

        // Memory that gets the victim's pages, while what is left of its work must have ended.
        let mut owner = Mapping::touched(2 * LENGTH)?;
        owner.bytes_mut().copy_from_slice(&of_owner);
        let queue = lab.queue(0).context("the queue of the killed process")?;
        succeeded(&queue.run(Descriptor::new(Opcode::Noop))?, "no-op in the queue of the killed process")?;
        let mut source = Mapping::touched(8 * PAGE)?;
        pattern::fill(source.bytes_mut(), lab.seed + round);
        let target = Mapping::untouched(8 * PAGE)?;
        succeeded(&queue.run(Descriptor::copy(source.address(), target.address(), 8 * PAGE))?, "move")?;
        same(target.bytes(), source.bytes(), "moved data")?;
        same(owner.bytes(), &of_owner, "memory that got the killed process's pages")?;
    }
    ensure!(unfinished > 0, "no process of {} was killed with work in flight", rounds.count());
    Ok(format!(
        "{} processes killed, {unfinished} with work in flight; the queue served the next one each time",
        rounds.count()
    ))
}
