// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! File-backed mappings, shared and private: what the device writes through a shared one is in the file, and what it
//! writes through a private one is not.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::{same, succeeded};
use crate::descriptor::Descriptor;
use crate::memory::{Mapping, PAGE, memory_file};
use crate::pattern;
use crate::process::Findings;
use crate::runner::Lab;

const LENGTH: usize = 20 * PAGE;

/// A file that exists only in memory.
pub fn memfd(lab: &Lab, _: &mut Findings) -> Result<String> {
    let file = memory_file(c"vsva", &pattern::bytes(LENGTH, lab.seed))?;
    shared_and_private(lab, &file)?;
    Ok("memfd: shared and private mappings as source and destination".into())
}

/// A file on a mounted tmpfs.
pub fn tmpfs(lab: &Lab, _: &mut Findings) -> Result<String> {
    on_disk(lab, &std::env::temp_dir())
}

/// A file of the root file system, which is the unpacked initramfs, and the running program itself.
pub fn root(lab: &Lab, _: &mut Findings) -> Result<String> {
    // The working directory of PID 1 and of its scripts is the root.
    let detail = on_disk(lab, &std::env::current_dir()?)?;

    let program = File::open("/proc/self/exe").context("/proc/self/exe")?;
    let length = (program.metadata()?.len() as usize).min(64 * PAGE);
    let mut contents = vec![0; length];
    program.read_exact_at(&mut contents, 0)?;
    let mapping = Mapping::file(&program, length.next_multiple_of(PAGE), false, false)?;
    let target = Mapping::untouched(length.next_multiple_of(PAGE))?;
    let queue = lab.queue(0)?;
    succeeded(
        &queue.run(Descriptor::copy(mapping.address(), target.address(), length))?,
        "move from the program",
    )?;
    same(&target.bytes()[..length], &contents, "contents of the program's file")?;
    Ok(format!("{detail}; {length} bytes of the program's own file"))
}

/// The disk itself: the device's page requests wait for reads of it, and what it writes must be marked dirty, or it is
/// never written back. Both ends are looked at past the page cache.
pub fn disk(lab: &Lab, _: &mut Findings) -> Result<String> {
    let path = lab.disk.as_deref().context("there is no disk")?;
    let open = |flags| {
        let mut options = OpenOptions::new();
        options
            .read(true)
            .write(true)
            .custom_flags(flags)
            .open(path)
            .with_context(|| path.display().to_string())
    };
    let (direct, cached) = (open(libc::O_DIRECT)?, open(0)?);
    let mut buffer = Mapping::touched(LENGTH)?;
    let queue = lab.queue(0)?;
    for round in 0..2 {
        let contents = pattern::bytes(LENGTH, lab.seed + round);
        buffer.bytes_mut().copy_from_slice(&contents);
        direct.write_all_at(buffer.bytes(), 0).context("writing the disk")?;
        let mapping = Mapping::file(&cached, LENGTH, true, true)?;
        let target = Mapping::untouched(LENGTH)?;
        succeeded(
            &queue.run(Descriptor::copy(mapping.at(3), target.at(1), LENGTH - 4))?,
            "move from the disk",
        )?;
        same(&target.bytes()[1..LENGTH - 3], &contents[3..LENGTH - 1], "data from the disk")?;

        // Twice: after the first time the pages are clean and protected again.
        for update in
            [pattern::bytes(LENGTH, !lab.seed ^ round), pattern::bytes(LENGTH, !lab.seed ^ round ^ 8)]
        {
            let mut source = Mapping::touched(LENGTH)?;
            source.bytes_mut().copy_from_slice(&update);
            let d = Descriptor::copy(source.address(), mapping.at(77), LENGTH - 100);
            succeeded(&queue.run(d)?, "move to the disk")?;
            cached.sync_all().context("writing the pages back")?;
            direct.read_exact_at(buffer.bytes_mut(), 0).context("reading the disk")?;
            let mut expected = contents.clone();
            expected[77..LENGTH - 23].copy_from_slice(&update[..LENGTH - 100]);
            same(buffer.bytes(), &expected, "the disk after what the device wrote was written back")?;
        }
    }
    Ok(format!("{} mapped: read from it by page requests, and written back twice", path.display()))
}

fn on_disk(lab: &Lab, directory: &Path) -> Result<String> {
    let path = directory.join(format!("vsva-{}", std::process::id()));
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)
        .with_context(|| format!("{}", path.display()))?;
    std::fs::remove_file(&path)?;
    file.write_all(&pattern::bytes(LENGTH, lab.seed))?;
    let kind = file_system(&file);
    shared_and_private(lab, &file).with_context(|| format!("file on {kind}"))?;
    Ok(format!(
        "file in {} ({kind}): shared and private mappings as source and destination",
        directory.display()
    ))
}

fn shared_and_private(lab: &Lab, file: &File) -> Result<()> {
    let queue = lab.queue(0)?;
    let mut contents = pattern::bytes(LENGTH, lab.seed);
    let in_file = || -> Result<Vec<u8>> {
        let mut bytes = vec![0; LENGTH];
        file.read_exact_at(&mut bytes, 0)?;
        Ok(bytes)
    };
    same(&in_file()?, &contents, "file before the device")?;
    for shared in [true, false] {
        let what = if shared { "shared" } else { "private" };
        let target = Mapping::untouched(LENGTH)?;
        let mapping = Mapping::file(file, LENGTH, shared, true)?;
        let d = Descriptor::copy(mapping.at(5), target.at(1), LENGTH - 11);
        succeeded(&queue.run(d)?, &format!("move from the {what} mapping"))?;
        same(
            &target.bytes()[1..LENGTH - 10],
            &contents[5..LENGTH - 6],
            &format!("data from the {what} mapping"),
        )?;
    }

    // Private first: the file must keep what it has. Pages of three kinds: never touched, read, written.
    let mut private = Mapping::file(file, LENGTH, false, true)?;
    private.bytes_mut()[LENGTH - 1] ^= 0xff;
    let _ = std::hint::black_box(private.bytes()[4 * PAGE]);
    let size = LENGTH - PAGE - 100;
    let fresh = pattern::bytes(size, lab.seed ^ 0xabc);
    let mut source = Mapping::touched(LENGTH)?;
    source.bytes_mut()[..size].copy_from_slice(&fresh);
    succeeded(
        &queue.run(Descriptor::copy(source.address(), private.at(33), size))?,
        "move to the private mapping",
    )?;
    let mut expected = contents.clone();
    expected[33..33 + size].copy_from_slice(&fresh);
    expected[LENGTH - 1] ^= 0xff;
    same(private.bytes(), &expected, "private mapping after the device wrote to it")?;
    same(&in_file()?, &contents, "file after the device wrote to its private mapping")?;

    let shared = Mapping::file(file, LENGTH, true, true)?;
    succeeded(
        &queue.run(Descriptor::copy(source.address(), shared.at(65), size))?,
        "move to the shared mapping",
    )?;
    contents[65..65 + size].copy_from_slice(&fresh);
    same(shared.bytes(), &contents, "shared mapping after the device wrote to it")?;
    same(&in_file()?, &contents, "file after the device wrote to its shared mapping")?;

    // Written through the file, read by the device through the mapping.
    let update = pattern::bytes(3 * PAGE, lab.seed ^ 0xdef);
    file.write_all_at(&update, 2 * PAGE as u64)?;
    contents[2 * PAGE..5 * PAGE].copy_from_slice(&update);
    let target = Mapping::untouched(LENGTH)?;
    succeeded(
        &queue.run(Descriptor::copy(shared.address(), target.address(), LENGTH))?,
        "move of updated file data",
    )?;
    same(target.bytes(), &contents, "data that were written to the file")?;
    Ok(())
}

/// The file system's name, by its magic number [Linux include/uapi/linux/magic.h].
fn file_system(file: &File) -> String {
    use std::os::fd::AsRawFd;
    // SAFETY: a zeroed statfs is valid and filled by the call.
    let (result, info) = unsafe {
        let mut info: libc::statfs = std::mem::zeroed();
        (libc::fstatfs(file.as_raw_fd(), &mut info), info)
    };
    match info.f_type {
        _ if result != 0 => "unknown file system".into(),
        0x0102_1994 => "tmpfs".into(),
        0x8584_58f6 => "ramfs".into(),
        0xef53 => "ext4".into(),
        0x794c_7630 => "overlayfs".into(),
        other => format!("file system {other:#x}"),
    }
}

/// A file of one page whose mapping is two pages long, for accesses beyond its end.
pub fn one_page_file() -> Result<(File, Mapping)> {
    let file = memory_file(c"vsva-short", &[7; PAGE])?;
    let mapping = Mapping::file(&file, 2 * PAGE, true, true)?;
    ensure!(file.metadata()?.len() == PAGE as u64, "the file has the wrong length");
    Ok((file, mapping))
}
