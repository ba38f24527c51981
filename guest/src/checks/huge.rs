// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Huge pages: transparent ones, also when they are split under the device, and those of hugetlbfs.

use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::{all_bytes, faulted, same, succeeded};
use crate::descriptor::{BLOCK_ON_FAULT, Descriptor};
use crate::memory::{HUGE, Mapping, PAGE};
use crate::pattern;
use crate::process::Findings;
use crate::runner::Lab;
use crate::sysfs::{read, write};

/// Transparent huge pages, from madvise.
pub fn transparent(lab: &Lab, _: &mut Findings) -> Result<String> {
    let setting = Path::new("/sys/kernel/mm/transparent_hugepage/enabled");
    if read(setting)?.contains("[never]") {
        write(setting, "madvise")?;
    }
    let queue = lab.queue(0)?;
    let mut source = Mapping::huge(2 * HUGE)?;
    pattern::fill(source.bytes_mut(), lab.seed);
    let of_cpu = huge_bytes(&source)?;
    ensure!(of_cpu >= HUGE as u64, "the kernel gave no transparent huge page to the CPU");
    // Untouched: the device's page request allocates it.
    let target = Mapping::huge(2 * HUGE)?;
    let (from, to, size) = (HUGE - 5003, 4097, HUGE + 3333);
    queue.copy(source.at(from), target.at(to), size)?;
    same(
        &target.bytes()[to..to + size],
        &source.bytes()[from..from + size],
        "data moved between huge pages",
    )?;
    all_bytes(&target.bytes()[..to], 0, "before the destination")?;
    all_bytes(&target.bytes()[to + size..], 0, "behind the destination")?;
    let of_device = huge_bytes(&target)?;
    ensure!(of_device >= HUGE as u64, "the kernel gave no transparent huge page to the device");

    // Split while the device's translations of the huge page are hot.
    let hole = 100 * PAGE;
    let expected = source.bytes().to_vec();
    succeeded(&queue.run(Descriptor::crc(source.address(), HUGE, 0))?, "CRC of a huge page")?;
    source.advise(hole..hole + PAGE, libc::MADV_DONTNEED)?;
    queue.copy(source.address(), target.address(), HUGE)?;
    same(&target.bytes()[..hole], &expected[..hole], "before the discarded page")?;
    all_bytes(&target.bytes()[hole..hole + PAGE], 0, "discarded page")?;
    same(&target.bytes()[hole + PAGE..HUGE], &expected[hole + PAGE..HUGE], "behind the discarded page")?;

    let read_only = 200 * PAGE;
    source.protect(read_only..read_only + PAGE, libc::PROT_READ)?;
    let pages = source.at(read_only)..source.at(read_only + PAGE);
    let d = Descriptor::fill(0, source.at(read_only - PAGE), 3 * PAGE).without(BLOCK_ON_FAULT);
    faulted(&queue.run(d)?, false, &pages, true, "write to a page protected inside a huge page")?;
    same(
        &source.bytes()[read_only..read_only + 2 * PAGE],
        &expected[read_only..read_only + 2 * PAGE],
        "protected page",
    )?;
    Ok(format!(
        "{} KiB of huge pages from the CPU, {} KiB from the device's page requests; moved at odd offsets, split, protected",
        of_cpu >> 10,
        of_device >> 10
    ))
}

/// Bytes of transparent huge pages in a mapping.
fn huge_bytes(mapping: &Mapping) -> Result<u64> {
    let smaps = std::fs::read_to_string("/proc/self/smaps").context("/proc/self/smaps")?;
    let range = mapping.address()..mapping.at(mapping.bytes().len());
    let mut inside = false;
    let mut kib = 0;
    for line in smaps.lines() {
        let first = line.split_whitespace().next().unwrap_or("");
        if let Some((start, _)) = first.split_once('-')
            && let Ok(start) = u64::from_str_radix(start, 16)
        {
            inside = range.contains(&start);
        } else if inside && first == "AnonHugePages:" {
            kib += line.split_whitespace().nth(1).and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
        }
    }
    Ok(kib << 10)
}

/// Persistent huge pages.
pub fn hugetlb(lab: &Lab, _: &mut Findings) -> Result<String> {
    let pool = Path::new("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages");
    ensure!(pool.exists(), "the kernel has no hugetlb pages of 2 MiB");
    let before = read(pool)?;
    write(pool, "6")?;
    let got: usize = read(pool)?.parse().unwrap_or(0);
    let result = hugetlb_moves(lab).with_context(|| format!("the pool has {got} pages"));
    // Best effort: the memory is the next checks'.
    let _ = write(pool, &before);
    result
}

fn hugetlb_moves(lab: &Lab) -> Result<String> {
    let queue = lab.queue(0)?;
    let mut source = Mapping::hugetlb(2 * HUGE)?;
    pattern::fill(source.bytes_mut(), lab.seed);
    let target = Mapping::hugetlb(2 * HUGE)?;
    let (from, to, size) = (1, HUGE - 4099, HUGE + 17);
    queue.copy(source.at(from), target.at(to), size)?;
    same(
        &target.bytes()[to..to + size],
        &source.bytes()[from..from + size],
        "data moved between hugetlb pages",
    )?;
    all_bytes(&target.bytes()[..to], 0, "before the destination")?;
    all_bytes(&target.bytes()[to + size..], 0, "behind the destination")?;
    Ok("4 pages of 2 MiB, the destination's untouched before".into())
}
