// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Eight processes on eight queues at once. All use the same addresses with different contents, and each reaches for
//! memory that only the others have.

use std::sync::atomic::Ordering;

use anyhow::{Context, Result, ensure};

use super::{all_bytes, faulted, same, succeeded};
use crate::descriptor::Descriptor;
use crate::facts;
use crate::memory::{Mapping, PAGE};
use crate::pattern;
use crate::process::{Findings, Meeting, spawn};
use crate::reference::crc32c;
use crate::rounds::Rounds;
use crate::runner::Lab;

const PROCESSES: u64 = 8;
/// Mapped in every process, with contents of its own.
const COMMON: u64 = 0x2000_0000_0000;
/// Where the device writes to in every process; fresh in every round.
const RESULT: u64 = 0x2080_0000_0000;
/// Process n alone maps its secret at n times this distance behind the first.
const SECRET: u64 = 0x2100_0000_0000;
const DISTANCE: u64 = 0x4000_0000;
const LENGTH: usize = 6 * PAGE;
/// The counter of the [`Meeting`] that sums up the rounds of all.
const SUM: usize = 3;

/// The check.
pub fn eight_processes(lab: &Lab, _: &mut Findings) -> Result<String> {
    if let Some(device) = &lab.device {
        let queues = device.queue_count();
        ensure!(queues >= PROCESSES as usize, "needs {PROCESSES} queues, the device has {queues}");
    }
    let meeting = Meeting::new()?;
    let mut children = Vec::new();
    for n in 0..PROCESSES {
        children.push(spawn(false, |_| one(lab, &meeting, n).with_context(|| format!("process {n}")))?);
    }
    let mut pasids = String::new();
    let mut errors = Vec::new();
    for mut child in children {
        match child.join() {
            Ok((_, detail)) if !detail.is_empty() => pasids = detail,
            Ok(_) => {}
            Err(error) => errors.push(format!("{error:#}")),
        }
    }
    ensure!(errors.is_empty(), "{}", errors.join("; "));
    let rounds = meeting.counter(SUM).load(Ordering::SeqCst);
    Ok(format!(
        "{PROCESSES} processes, {rounds} rounds in all at the same addresses; {} reads and writes of others' memory refused; {pasids}",
        2 * rounds
    ))
}

fn one(lab: &Lab, meeting: &Meeting, n: u64) -> Result<String> {
    let everyone = PROCESSES as u32;
    let queue = lab.queue(n as usize)?;
    let mut common = Mapping::untouched_at(COMMON, LENGTH)?;
    let mut secret = Mapping::untouched_at(SECRET + n * DISTANCE, 4 * PAGE)?;
    let of_secret = pattern::bytes(4 * PAGE, lab.seed ^ (0x5ec0 + n));
    secret.bytes_mut().copy_from_slice(&of_secret);
    // Hot in the device before the others reach for it.
    ensure!(
        queue.run(Descriptor::crc(secret.address(), 4 * PAGE, 0))?.value as u32 == crc32c(&of_secret, 0),
        "CRC of the own secret"
    );
    meeting.meet(0, everyone)?;
    let pasids = if n == 0 { distinct_pasids(lab)? } else { String::new() };
    meeting.meet(1, everyone)?;
    let mut rounds = Rounds::within(2..=8);
    while let Some(round) = rounds.begin() {
        let what = format!("round {round}");
        pattern::fill(common.bytes_mut(), lab.seed + 1000 * n + round);
        let mut result = Mapping::untouched_at(RESULT, LENGTH)?;
        let (from, to, size) = (1 + n as usize, 9, LENGTH - 40);
        let c = queue.run(Descriptor::copy_crc(common.at(from), result.at(to), size, 0))?;
        succeeded(&c, &what)?;
        let data = &common.bytes()[from..from + size];
        same(&result.bytes()[to..to + size], data, &format!("{what}: moved data"))?;
        all_bytes(&result.bytes()[..to], 0, &format!("{what}: before the destination"))?;
        all_bytes(&result.bytes()[to + size..], 0, &format!("{what}: behind the destination"))?;
        ensure!(c.value as u32 == crc32c(data, 0), "{what}: CRC");

        let other = SECRET + (n + 1 + round % (PROCESSES - 1)) % PROCESSES * DISTANCE;
        let pages = other..other + PAGE as u64;
        result.bytes_mut().fill(0xa5);
        let c = queue.run(Descriptor::copy(other, result.address(), PAGE))?;
        faulted(&c, true, &pages, false, &format!("{what}: read of another's secret"))?;
        all_bytes(result.bytes(), 0xa5, &format!("{what}: after the refused read"))?;
        let c = queue.run(Descriptor::fill(u64::MAX, other, PAGE))?;
        faulted(&c, true, &pages, true, &format!("{what}: write to another's secret"))?;
    }
    meeting.counter(SUM).fetch_add(rounds.count() as u32, Ordering::SeqCst);
    meeting.meet(2, everyone)?;
    same(secret.bytes(), &of_secret, "the secret at the end")?;
    let mut last = vec![0; LENGTH];
    pattern::fill(&mut last, lab.seed + 1000 * n + rounds.count() - 1);
    same(common.bytes(), &last, "the common address at the end")?;
    Ok(pasids)
}

/// The PASIDs of the queues, read from the device's registers while all eight are open.
fn distinct_pasids(lab: &Lab) -> Result<String> {
    let Ok(device) = lab.device() else { return Ok("no device registers".into()) };
    match facts::queue_pasids(device) {
        Err(error) => Ok(format!("PASIDs not visible ({error:#})")),
        Ok(pasids) => {
            let mut unique: Vec<u32> = pasids.iter().flatten().copied().collect();
            unique.sort_unstable();
            unique.dedup();
            ensure!(
                unique.len() == PROCESSES as usize && unique[0] != 0,
                "{PROCESSES} different PASIDs are expected in the queues' registers, there are {pasids:?}"
            );
            Ok(format!("PASIDs {unique:?}"))
        }
    }
}
