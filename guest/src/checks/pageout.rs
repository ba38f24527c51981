// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Memory that was paged out with MADV_PAGEOUT: the device's page request brings it back.

use std::fs::OpenOptions;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::{same, succeeded};
use crate::descriptor::Descriptor;
use crate::memory::{Mapping, PAGE};
use crate::pattern;
use crate::process::Findings;
use crate::reference::filled;
use crate::rounds::Rounds;
use crate::runner::Lab;

/// More than a processor collects (31) before it hands pages to the lists of reclaim: what it keeps cannot be paged out.
const PAGES: usize = 32;

/// Anonymous memory in swap, as source and as partly overwritten destination.
pub fn anonymous(lab: &Lab, _: &mut Findings) -> Result<String> {
    let swap = Swap::enable()?;
    let queue = lab.queue(0)?;
    let length = PAGES * PAGE;
    let mut paged = Mapping::touched(length)?;
    let mut other = Mapping::touched(length)?;
    let mut swapped = 0;
    let mut rounds = Rounds::within(1..=3);
    while let Some(round) = rounds.begin() {
        let contents = pattern::bytes(length, lab.seed + 2 * round);
        paged.bytes_mut().copy_from_slice(&contents);
        // Hot in the device, so that the page-out has a translation to take away.
        succeeded(&queue.run(Descriptor::crc(paged.address(), length, 0))?, "CRC before the page-out")?;
        swapped += page_out(&paged)?;
        other.bytes_mut().fill(0);
        succeeded(&queue.run(Descriptor::copy(paged.at(9), other.at(2), length - 13))?, "move from swap")?;
        same(&other.bytes()[2..length - 11], &contents[9..length - 4], "data from swap")?;
        same(paged.bytes(), &contents, "memory after it was read from swap")?;

        swapped += page_out(&paged)?;
        let update = pattern::bytes(length, lab.seed + 2 * round + 1);
        other.bytes_mut().copy_from_slice(&update);
        let (at, size) = (PAGE + 1000, length - 3 * PAGE);
        succeeded(
            &queue.run(Descriptor::copy(other.address(), paged.at(at), size))?,
            "move to paged-out memory",
        )?;
        let mut expected = contents;
        expected[at..at + size].copy_from_slice(&update[..size]);
        same(paged.bytes(), &expected, "paged-out memory that was partly overwritten")?;

        // Pages that only the device has written since they came from swap: without a dirty bit they would come back
        // as they were.
        swapped += page_out(&paged)?;
        succeeded(&queue.run(Descriptor::crc(paged.address(), length, 0))?, "CRC of paged-out memory")?;
        let value = pattern::mix(lab.seed + round);
        succeeded(&queue.run(Descriptor::fill(value, paged.address(), length))?, "fill after it")?;
        swapped += page_out(&paged)?;
        same(paged.bytes(), &filled(length, value), "what the device wrote, back from swap")?;
    }
    let asked = 4 * PAGES * rounds.count() as usize;
    ensure!(2 * swapped >= asked, "only {swapped} of {asked} pages were swapped out");
    Ok(format!("{swapped} anonymous pages paged out to {} and brought back by the device", swap.what))
}

/// Pages `mapping` out and gives the number of pages that are in swap. What is still on a processor's way to the lists of
/// reclaim is left by MADV_PAGEOUT: it is asked again until all has gone, within reason.
fn page_out(mapping: &Mapping) -> Result<usize> {
    let length = mapping.bytes().len();
    let mut count = 0;
    for _ in 0..20 {
        mapping.advise(0..length, libc::MADV_PAGEOUT).context("madvise(MADV_PAGEOUT)")?;
        count = 0;
        for offset in (0..length).step_by(PAGE) {
            count += usize::from(mapping.page_state(offset)?.swapped);
        }
        if count == PAGES {
            break;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    ensure!(count > 0, "MADV_PAGEOUT left every page in memory");
    Ok(count)
}

/// A swap device that is in use while this lives.
struct Swap {
    what: String,
    path: Option<PathBuf>,
}

impl Swap {
    /// Uses the swap that the system has, or sets up zram or a RAM disk.
    fn enable() -> Result<Swap> {
        let swaps = std::fs::read_to_string("/proc/swaps").unwrap_or_default();
        if let Some(line) = swaps.lines().nth(1) {
            let name = line.split_whitespace().next().unwrap_or("swap");
            return Ok(Swap { what: format!("the system's {name}"), path: None });
        }
        let mut reasons = Vec::new();
        for (name, setup) in [("zram", zram as fn() -> Result<PathBuf>), ("RAM disk", ram_disk)] {
            match setup().and_then(|path| swap_on(&path).map(|()| path)) {
                Ok(path) => return Ok(Swap { what: format!("swap on a {name}"), path: Some(path) }),
                Err(error) => reasons.push(format!("{name}: {error:#}")),
            }
        }
        bail!("the guest has no swap (list zram.ko or brd.ko in /modules.list): {}", reasons.join("; "))
    }
}

impl Drop for Swap {
    fn drop(&mut self) {
        if let Some(path) = &self.path
            && let Ok(name) = std::ffi::CString::new(path.as_os_str().as_bytes())
        {
            // SAFETY: the name is a C string. A failure leaves the swap on, which does no harm.
            unsafe { libc::swapoff(name.as_ptr()) };
        }
    }
}

fn zram() -> Result<PathBuf> {
    let size = Path::new("/sys/block/zram0/disksize");
    ensure!(size.exists(), "no /dev/zram0");
    // Already set up by an earlier run: the size cannot be changed again, and need not be.
    if crate::sysfs::read(size)? == "0" {
        crate::sysfs::write(size, "67108864")?;
    }
    Ok("/dev/zram0".into())
}

fn ram_disk() -> Result<PathBuf> {
    ensure!(Path::new("/dev/ram0").exists(), "no /dev/ram0");
    Ok("/dev/ram0".into())
}

/// Writes a swap header [Linux include/linux/swap.h:union swap_header] and turns swapping on.
fn swap_on(path: &Path) -> Result<()> {
    let mut device = OpenOptions::new().read(true).write(true).open(path)?;
    let length = device.seek(SeekFrom::End(0))?;
    ensure!(length >= 4 << 20, "{} has only {length} bytes", path.display());
    let mut header = [0u8; PAGE];
    device.seek(SeekFrom::Start(0))?;
    device.read_exact(&mut header)?;
    ensure!(header.iter().all(|b| *b == 0), "{} is in use: it does not start with zeroes", path.display());
    header[1024..1028].copy_from_slice(&1u32.to_le_bytes());
    header[1028..1032].copy_from_slice(&((length / PAGE as u64 - 1) as u32).to_le_bytes());
    header[PAGE - 10..].copy_from_slice(b"SWAPSPACE2");
    device.seek(SeekFrom::Start(0))?;
    device.write_all(&header)?;
    device.sync_all()?;
    let name = std::ffi::CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: the name is a C string.
    let result = unsafe { libc::swapon(name.as_ptr(), 0) };
    ensure!(result == 0, "swapon {}: {}", path.display(), std::io::Error::last_os_error());
    Ok(())
}
