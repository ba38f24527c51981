// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Addresses that the process may not use: the descriptor ends with an error that names the address, and nothing is
//! written.

use std::fs::File;
use std::io::{BufRead, BufReader};

use anyhow::{Result, ensure};

use super::{all_bytes, faulted, files, same, succeeded};
use crate::completion::{Completion, status};
use crate::descriptor::{BLOCK_ON_FAULT, Descriptor, Opcode};
use crate::memory::{Mapping, PAGE};
use crate::pattern;
use crate::portal::Queue;
use crate::process::Findings;
use crate::runner::Lab;

/// With and without block on fault.
fn both(d: Descriptor) -> [(bool, Descriptor); 2] {
    [(true, d), (false, d.without(BLOCK_ON_FAULT))]
}

fn works(queue: &Queue) -> Result<()> {
    succeeded(&queue.run(Descriptor::new(Opcode::Noop))?, "no-op afterwards")
}

/// A destination that is mapped read-only, whole and from the middle on.
pub fn read_only(lab: &Lab, _: &mut Findings) -> Result<String> {
    let queue = lab.queue(0)?;
    let mut source = Mapping::touched(8 * PAGE)?;
    pattern::fill(source.bytes_mut(), lab.seed);
    let mut target = Mapping::touched(8 * PAGE)?;
    let mut progress = Vec::new();
    for border in [0, 5 * PAGE] {
        target.protect(0..8 * PAGE, libc::PROT_READ | libc::PROT_WRITE)?;
        target.bytes_mut().fill(0xa5);
        target.protect(border..8 * PAGE, libc::PROT_READ)?;
        let start = 100;
        let size = 7 * PAGE;
        let pages = target.at(border.max(start))..target.at(border + PAGE);
        for (blocking, d) in both(Descriptor::copy(source.address(), target.at(start), size)) {
            let c = queue.run(d)?;
            faulted(&c, blocking, &pages, true, "move to a read-only page")?;
            let done = c.completed as usize;
            ensure!(start + done <= border.max(start), "more is said to be done than was allowed: {c}");
            same(
                &target.bytes()[start..start + done],
                &source.bytes()[..done],
                "data before the read-only page",
            )?;
            all_bytes(&target.bytes()[border..], 0xa5, "read-only memory")?;
            all_bytes(&target.bytes()[..start.min(border)], 0xa5, "before the destination")?;
            progress.push(done);
        }
    }
    // Reading it is allowed.
    succeeded(&queue.run(Descriptor::crc(target.at(5 * PAGE), PAGE, 0))?, "CRC of read-only memory")?;
    works(&queue)?;
    Ok(format!(
        "4 moves refused with the right address, bytes completed {progress:?}, nothing written to read-only pages"
    ))
}

/// Memory that is not mapped at all, or without any access.
pub fn unmapped(lab: &Lab, _: &mut Findings) -> Result<String> {
    let queue = lab.queue(0)?;
    let room = Mapping::reserved(4 * PAGE)?;
    let mut memory = Mapping::touched(2 * PAGE)?;
    memory.bytes_mut().fill(0xa5);
    let gone = Mapping::reserved(4 * PAGE)?;
    let gone_at = gone.address();
    drop(gone);
    for (what, address) in [("a hole", gone_at), ("PROT_NONE", room.address()), ("address 0", 0)] {
        let pages = address..address + PAGE as u64;
        for (blocking, d) in both(Descriptor::copy(address, memory.address(), 64)) {
            faulted(&queue.run(d)?, blocking, &pages, false, &format!("read from {what}"))?;
        }
        for (blocking, d) in both(Descriptor::copy(memory.address(), address, 64)) {
            faulted(&queue.run(d)?, blocking, &pages, true, &format!("write to {what}"))?;
        }
    }
    all_bytes(memory.bytes(), 0xa5, "memory after refused moves")?;
    works(&queue)?;
    Ok("reads and writes of a hole, of PROT_NONE and of address 0 refused with the right address".into())
}

/// Addresses of the kernel, which are in the page table but not for users.
pub fn kernel(lab: &Lab, _: &mut Findings) -> Result<String> {
    let queue = lab.queue(0)?;
    let mut memory = Mapping::touched(2 * PAGE)?;
    memory.bytes_mut().fill(0xa5);
    let mut addresses = vec![0xffff_8880_0000_0000, 0xffff_ffff_8100_0000];
    let text = kernel_text();
    ensure!(
        text.is_some() || lab.device.is_none(),
        "/proc/kallsyms does not tell where the kernel's text is"
    );
    addresses.extend(text);
    for address in &addresses {
        let pages = *address..address + PAGE as u64;
        for (blocking, d) in both(Descriptor::copy(*address, memory.address(), 64)) {
            faulted(
                &queue.run(d)?,
                blocking,
                &pages,
                false,
                &format!("read from kernel address {address:#x}"),
            )?;
        }
        for (blocking, d) in both(Descriptor::fill(0, *address, 8)) {
            faulted(
                &queue.run(d)?,
                blocking,
                &pages,
                true,
                &format!("write to kernel address {address:#x}"),
            )?;
        }
    }
    all_bytes(memory.bytes(), 0xa5, "memory after refused moves")?;
    works(&queue)?;
    Ok(format!(
        "reads and writes of {} kernel addresses refused{}",
        addresses.len(),
        if text.is_some() { ", the running kernel's own text among them" } else { "" }
    ))
}

/// Where the running kernel's text is: it is certainly present. Read only as far as that line, which is among the first:
/// the kernel makes up each of its 200,000 lines when it is read.
fn kernel_text() -> Option<u64> {
    let symbols = BufReader::new(File::open("/proc/kallsyms").ok()?);
    let line = symbols
        .lines()
        .take(100_000)
        .map_while(Result::ok)
        .find(|line| line.ends_with(" T _text") || line.ends_with(" T _stext"))?;
    let address = u64::from_str_radix(line.split_whitespace().next()?, 16).ok()?;
    (address != 0).then_some(address & !(PAGE as u64 - 1))
}

/// An address that is not canonical, in 4- and in 5-level paging.
pub fn non_canonical(lab: &Lab, _: &mut Findings) -> Result<String> {
    let queue = lab.queue(0)?;
    let mut memory = Mapping::touched(PAGE)?;
    memory.bytes_mut().fill(0xa5);
    let mut seen = Vec::new();
    for address in [0x4141_0000_0000_0000_u64, 0x8000_0000_0000_1000, 0xbfff_ffff_ffff_f000] {
        for (blocking, d) in both(Descriptor::copy(address, memory.address(), 64)) {
            seen.push(refused(&queue.run(d)?, blocking, address, false)?);
        }
        for (blocking, d) in both(Descriptor::copy(memory.address(), address, 64)) {
            seen.push(refused(&queue.run(d)?, blocking, address, true)?);
        }
    }
    all_bytes(memory.bytes(), 0xa5, "memory after refused moves")?;
    works(&queue)?;
    seen.sort_unstable();
    seen.dedup();
    Ok(format!("reads and writes of 3 addresses refused, statuses {seen:02x?}"))
}

/// A fault, or the error of an endpoint whose translation request was not answered with a translation.
fn refused(c: &Completion, blocking: bool, address: u64, write: bool) -> Result<u8> {
    let endpoint = [status::READ_ERROR, status::WRITE_ERROR, status::TRANSLATION_ERROR];
    if !endpoint.contains(&c.status) {
        let what = format!("access to {address:#x}");
        faulted(c, blocking, &(address..address + PAGE as u64), write, &what)?;
    }
    Ok(c.status)
}

/// A page of a mapping beyond the end of its file, where the CPU would get SIGBUS.
pub fn beyond_file(lab: &Lab, _: &mut Findings) -> Result<String> {
    let queue = lab.queue(0)?;
    let mut memory = Mapping::touched(2 * PAGE)?;
    memory.bytes_mut().fill(0xa5);
    let (_file, mapping) = files::one_page_file()?;
    let pages = mapping.at(PAGE)..mapping.at(2 * PAGE);
    for (blocking, d) in both(Descriptor::copy(mapping.at(PAGE), memory.address(), 64)) {
        faulted(&queue.run(d)?, blocking, &pages, false, "read beyond the end of the file")?;
    }
    for (blocking, d) in both(Descriptor::copy(memory.address(), mapping.at(PAGE), 64)) {
        faulted(&queue.run(d)?, blocking, &pages, true, "write beyond the end of the file")?;
    }
    all_bytes(memory.bytes(), 0xa5, "memory after refused moves")?;
    succeeded(
        &queue.run(Descriptor::copy(mapping.address(), memory.address(), PAGE))?,
        "read inside the file",
    )?;
    all_bytes(&memory.bytes()[..PAGE], 7, "data from inside the file")?;
    Ok("reads and writes beyond the end of a mapped file refused with the right address".into())
}
