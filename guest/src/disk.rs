// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The disk: written and read back past the page cache, so that every byte goes through the IOMMU by source-id.

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::checks::same;
use crate::memory::Mapping;
use crate::pattern::{self, Random};
use crate::process::Findings;
use crate::progress::{self, Patience};
use crate::report::Report;
use crate::rounds::Rounds;
use crate::runner::watched;

/// ioctl numbers [Linux include/uapi/linux/fs.h].
const BLKFLSBUF: libc::c_ulong = 0x1261;
const BLKGETSIZE64: libc::c_ulong = 0x8008_1272;

/// Largest single request of these checks.
const LARGEST: usize = 1 << 20;

/// All checks of a disk.
pub fn run(report: &mut Report, path: &str, seed: u64) {
    type Work = fn(&Path, u64, &mut Findings) -> Result<String>;
    let checks: [(&str, Work); 3] = [
        ("disk-present", present),
        ("disk-write-read-compare", write_read),
        ("disk-many-requests", many_requests),
    ];
    for (name, work) in checks {
        let outcome = watched(name, |findings| work(Path::new(path), seed, findings));
        match outcome {
            Ok((findings, detail)) => {
                for (figure, value, unit) in findings.figures() {
                    report.figure(figure, *value, unit);
                }
                report.check(name, true, &detail);
            }
            Err(error) => report.check(name, false, &format!("{error:#}")),
        }
    }
}

fn present(path: &Path, _: u64, _: &mut Findings) -> Result<String> {
    let mut patience = Patience::of_a_check();
    while !path.exists() {
        patience.sleep(Duration::from_millis(20), &format!("{} to appear", path.display()))?;
    }
    let disk = open(path)?;
    Ok(format!("{} has {} MiB", path.display(), size(&disk)? >> 20))
}

fn open(path: &Path) -> Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_DIRECT)
        .open(path)
        .with_context(|| format!("opening {} for direct reads and writes", path.display()))
}

fn size(disk: &File) -> Result<u64> {
    let mut bytes = 0u64;
    // SAFETY: the call writes eight bytes.
    let result = unsafe { libc::ioctl(disk.as_raw_fd(), BLKGETSIZE64 as _, &mut bytes) };
    ensure!(result == 0, "BLKGETSIZE64: {}", std::io::Error::last_os_error());
    ensure!(bytes >= 8 << 20, "the disk has only {bytes} bytes, 8 MiB are needed");
    Ok(bytes)
}

/// Offsets and sizes: first and last sector, odd sectors, large ones.
fn extents(size: u64) -> Vec<(u64, usize)> {
    let end = size & !511;
    let mut extents = vec![
        (0, 512),
        (512, 4096),
        (9 * 512, 3 * 512),
        (64 << 10, 64 << 10),
        ((1 << 20) + 512, LARGEST),
        (end - 512, 512),
        (end - 512 - 130 * 512, 130 * 512),
    ];
    extents.push(((size / 2) & !511, 256 << 10));
    extents
}

fn write_read(path: &Path, seed: u64, findings: &mut Findings) -> Result<String> {
    let disk = open(path)?;
    let extents = extents(size(&disk)?);
    // Page-aligned, and at an odd sector inside the page for odd requests.
    let mut buffer = Mapping::touched(LARGEST + 4096)?;
    let mut bytes = 0;
    let start = Instant::now();
    for (n, (offset, length)) in extents.iter().enumerate() {
        let at = n % 2 * 512;
        let part = &mut buffer.bytes_mut()[at..at + length];
        pattern::fill(part, seed + n as u64);
        disk.write_all_at(part, *offset).with_context(|| format!("writing {length} bytes at {offset}"))?;
        progress::made();
        bytes += length;
    }
    disk.sync_all()?;
    findings.figure("disk-write", bytes as f64 / start.elapsed().as_secs_f64() / 1e6, "MB/s");
    drop_caches(&disk)?;
    let start = Instant::now();
    let mut elapsed = Duration::ZERO;
    for (n, (offset, length)) in extents.iter().enumerate() {
        let at = (n + 1) % 2 * 512;
        let part = &mut buffer.bytes_mut()[at..at + length];
        part.fill(0);
        let one = Instant::now();
        disk.read_exact_at(part, *offset).with_context(|| format!("reading {length} bytes at {offset}"))?;
        elapsed += one.elapsed();
        progress::made();
        same(part, &pattern::bytes(*length, seed + n as u64), &format!("{length} bytes at {offset}"))?;
    }
    findings.figure("disk-read", bytes as f64 / elapsed.as_secs_f64() / 1e6, "MB/s");
    // Once more through the page cache.
    let cached = File::open(path)?;
    for (n, (offset, length)) in extents.iter().enumerate() {
        let part = &mut buffer.bytes_mut()[..*length];
        cached.read_exact_at(part, *offset)?;
        same(
            part,
            &pattern::bytes(*length, seed + n as u64),
            &format!("{length} bytes at {offset}, cached"),
        )?;
    }
    Ok(format!(
        "{} extents, {bytes} bytes, direct and cached, {:.1} s",
        extents.len(),
        start.elapsed().as_secs_f64()
    ))
}

/// Many single-sector to 32-KiB requests at pseudo-random places, so that the DMA mappings are made and torn down.
fn many_requests(path: &Path, seed: u64, _: &mut Findings) -> Result<String> {
    const BLOCK: usize = 32 << 10;
    let disk = open(path)?;
    let mut buffer = Mapping::touched(BLOCK)?;
    let mut random = Random::new(seed);
    let slots = (size(&disk)? / BLOCK as u64).min(64);
    let mut lengths = vec![0usize; slots as usize];
    let mut requests = Rounds::within(75..=150);
    while let Some(request) = requests.begin() {
        let slot = random.below(slots);
        let length = (1 + random.below(BLOCK as u64 / 512) as usize) * 512;
        let known = lengths[slot as usize];
        if known > 0 {
            let part = &mut buffer.bytes_mut()[..known];
            disk.read_exact_at(part, slot * BLOCK as u64)?;
            let expected = pattern::bytes(known, seed ^ slot << 32 ^ known as u64);
            same(part, &expected, &format!("request {request}: slot {slot}"))?;
        }
        let part = &mut buffer.bytes_mut()[..length];
        pattern::fill(part, seed ^ slot << 32 ^ length as u64);
        disk.write_all_at(part, slot * BLOCK as u64)?;
        lengths[slot as usize] = length;
    }
    disk.sync_all()?;
    drop_caches(&disk)?;
    for (slot, length) in lengths.iter().enumerate().filter(|(_, length)| **length > 0) {
        let part = &mut buffer.bytes_mut()[..*length];
        disk.read_exact_at(part, (slot * BLOCK) as u64)?;
        let expected = pattern::bytes(*length, seed ^ (slot as u64) << 32 ^ *length as u64);
        same(part, &expected, &format!("slot {slot} at the end"))?;
    }
    Ok(format!(
        "{} writes of 512 bytes to 32 KiB in {slots} places, read back and compared",
        requests.count()
    ))
}

fn drop_caches(disk: &File) -> Result<()> {
    // SAFETY: no memory is passed.
    unsafe {
        libc::sync();
        libc::ioctl(disk.as_raw_fd(), BLKFLSBUF as _, 0);
    }
    std::fs::write("/proc/sys/vm/drop_caches", "3").context("/proc/sys/vm/drop_caches")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extents_are_whole_sectors_inside_the_disk_and_apart() {
        for size in [8u64 << 20, (64 << 20) + 512, 10 << 30] {
            let mut all = extents(size);
            all.sort_unstable();
            for pair in all.windows(2) {
                assert!(pair[0].0 + pair[0].1 as u64 <= pair[1].0, "{pair:?}");
            }
            assert!(
                all.iter()
                    .all(|(o, l)| o % 512 == 0 && l % 512 == 0 && o + *l as u64 <= size && *l <= LARGEST)
            );
        }
    }
}
