// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A queue without a device, for tests of the checks on any machine: executes a descriptor at once, in the submitting
//! process, through process_vm_readv and process_vm_writev on itself, which fault as a device's accesses do. It is
//! also made to do wrong things, to see that the checks notice.

use std::cell::Cell;

use crate::completion::{RECORD_SIZE, status};
use crate::descriptor::{BLOCK_ON_FAULT, Descriptor};
use crate::memory::PAGE;
use crate::portal::Limits;
use crate::reference::{DELTA_ENTRY, crc, create_delta, filled};

/// The path that opens this queue.
pub const PATH: &str = "/vsva/soft-queue";

/// What the queue claims to be.
pub const LIMITS: Limits = Limits { max_transfer: 2 << 20, max_batch: 512, depth: 16 };

/// A defect of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Defect {
    /// None.
    None,
    /// The last byte of every transfer that writes is left out.
    ShortWrite,
    /// One byte too much is written.
    LongWrite,
    /// A fault is reported one page too high.
    WrongAddress,
    /// Faults are reported as reads.
    WrongDirection,
    /// Results are always 0, CRCs included.
    NoResult,
    /// Refused addresses are reported as success.
    NoFaults,
}

thread_local! {
    static DEFECT: Cell<Defect> = const { Cell::new(Defect::None) };
}

/// Sets the defect of this thread's queues (and of processes that it forks).
pub fn set_defect(defect: Defect) {
    DEFECT.set(defect);
}

#[derive(Default)]
struct Outcome {
    status: u8,
    result: u8,
    completed: u32,
    fault: Option<(u64, bool)>,
    value: u64,
}

impl Outcome {
    fn code(status: u8) -> Outcome {
        Outcome { status, ..Outcome::default() }
    }
}

/// Executes a descriptor and writes its completion record.
pub fn execute(descriptor: &Descriptor, limits: Limits) {
    let outcome = perform(descriptor.bytes(), limits, false);
    write_record(descriptor.bytes(), &outcome);
}

fn write_record(d: &[u8; 64], outcome: &Outcome) {
    if d[4] & 4 == 0 {
        return;
    }
    let mut record = [0u8; RECORD_SIZE];
    record[1] = outcome.result;
    record[4..8].copy_from_slice(&outcome.completed.to_le_bytes());
    record[16..24].copy_from_slice(&outcome.value.to_le_bytes());
    record[0] = outcome.status;
    if let Some((address, write)) = outcome.fault {
        let defect = DEFECT.get();
        let address = if defect == Defect::WrongAddress { address + PAGE as u64 } else { address };
        record[8..16].copy_from_slice(&(address & !0xfff).to_le_bytes());
        record[0] |= u8::from(write && defect != Defect::WrongDirection) << 7;
    }
    if DEFECT.get() == Defect::NoResult {
        record[1] = 0;
        record[16..24].fill(0);
    }
    let _ = write_memory(u64_at(d, 8), &record, true);
}

fn u64_at(d: &[u8; 64], at: usize) -> u64 {
    u64::from_le_bytes(d[at..at + 8].try_into().unwrap())
}

fn u32_at(d: &[u8; 64], at: usize) -> u32 {
    u32::from_le_bytes(d[at..at + 4].try_into().unwrap())
}

fn reserved_start(opcode: u8) -> usize {
    match opcode {
        0x00..=0x04 => 38,
        0x05 | 0x06 => 41,
        0x07 => 57,
        0x08 => 44,
        0x09 => 48,
        0x10 | 0x11 => 56,
        _ => 38,
    }
}

fn perform(d: &[u8; 64], limits: Limits, in_batch: bool) -> Outcome {
    let opcode = d[7];
    let flags = u32::from(d[4]) | u32::from(d[5]) << 8 | u32::from(d[6]) << 16;
    let known = matches!(opcode, 0x00..=0x09 | 0x10 | 0x11 | 0x20);
    if !known || (in_batch && matches!(opcode, 1 | 2)) {
        return Outcome::code(status::OPCODE);
    }
    if (flags & 1 != 0 && !in_batch) || flags & (1 << 6) != 0 || (opcode < 3 && flags & 2 != 0) {
        return Outcome::code(status::FLAGS);
    }
    if d[reserved_start(opcode)..].iter().any(|b| *b != 0) {
        return Outcome::code(status::RESERVED_FIELD);
    }
    let (a, b, size) = (u64_at(d, 16), u64_at(d, 24), u32_at(d, 32) as usize);
    let c = u64_at(d, 40);
    if opcode >= 3 && (size == 0 || size as u64 > limits.max_transfer) {
        return Outcome::code(status::TRANSFER_SIZE);
    }
    let overlaps = |x: u64, y: u64| x < y.saturating_add(size as u64) && y < x.saturating_add(size as u64);
    let bof = flags & BLOCK_ON_FAULT != 0;
    match opcode {
        0 | 2 => Outcome::code(status::SUCCESS),
        1 => batch(a, size, limits),
        3 => transfer(&[a], &[b], size, bof, |s, _| Some(s[0].to_vec()), |_, _| {}),
        4 => {
            let pattern = filled(size + 8, a);
            transfer(&[], &[b], size, bof, |_, at| Some(pattern[at..].to_vec()), |_, _| {})
        }
        5 | 6 => {
            let pattern = filled(size, b);
            let mut difference = None;
            let sources: &[u64] = if opcode == 5 { &[a, b] } else { &[a] };
            let mut o = transfer(
                sources,
                &[],
                size,
                bof,
                |_, _| None,
                |s, at| {
                    let other = if opcode == 5 { s[1] } else { &pattern[at..at + s[0].len()] };
                    if difference.is_none() {
                        difference = s[0].iter().zip(other).position(|(x, y)| x != y).map(|n| n + at);
                    }
                },
            );
            if let Some(at) = difference {
                o = Outcome {
                    status: status::SUCCESS,
                    result: 1,
                    completed: at as u32,
                    ..Outcome::default()
                };
            }
            if flags & 0x80 != 0 && o.status == status::SUCCESS && o.result != d[40] & 1 {
                o.status = status::FALSE_PREDICATE;
            }
            o
        }
        7 => {
            if (a | b | c | size as u64) & 7 != 0 {
                return Outcome::code(status::MISALIGNED);
            }
            let (Ok(x), Ok(y)) = (read_memory(a, size, bof), read_memory(b, size, bof)) else {
                return Outcome::code(status::READ_ERROR);
            };
            let delta = create_delta(&x, &y, u32_at(d, 48) as usize);
            if write_memory(c, &delta.record, bof).is_err() {
                return Outcome::code(status::WRITE_ERROR);
            }
            let unexpected = flags & 0x80 != 0 && d[56] >> delta.result & 1 == 0;
            Outcome {
                status: if unexpected { status::FALSE_PREDICATE } else { status::SUCCESS },
                result: delta.result,
                completed: delta.bytes_completed,
                value: delta.record.len() as u64,
                fault: None,
            }
        }
        8 => apply(a, u32_at(d, 40) as usize, b, size, bof),
        9 => {
            if (b ^ c) & 0xfff != 0 {
                return Outcome::code(status::DUALCAST_ALIGNMENT);
            }
            if overlaps(a, b) || overlaps(a, c) || overlaps(b, c) {
                return Outcome::code(status::OVERLAP);
            }
            transfer(&[a], &[b, c], size, bof, |s, _| Some(s[0].to_vec()), |_, _| {})
        }
        0x10 | 0x11 => {
            if opcode == 0x11 && overlaps(a, b) {
                return Outcome::code(status::OVERLAP);
            }
            let mut value = c as u32;
            if flags & 1 << 16 != 0 {
                let seed = read_memory(u64_at(d, 48), 4, true).unwrap_or(vec![0; 4]);
                value = u32::from_le_bytes(seed.try_into().unwrap());
            }
            let targets: &[u64] = if opcode == 0x11 { &[b] } else { &[] };
            let (raw_seed, raw_data) = (flags & 1 << 17 != 0, flags & 1 << 18 != 0);
            let mut o = transfer(
                &[a],
                targets,
                size,
                bof,
                |s, _| Some(s[0].to_vec()),
                |s, _| value = crc(s[0], value, raw_seed, raw_data),
            );
            o.value = u64::from(value);
            o
        }
        _ => transfer(&[b], &[], size, bof, |_, _| None, |_, _| {}),
    }
}

fn batch(list: u64, count: usize, limits: Limits) -> Outcome {
    if !list.is_multiple_of(64) {
        return Outcome::code(status::LIST_ALIGNMENT);
    }
    if count < 2 || count as u64 > limits.max_batch {
        return Outcome::code(status::DESCRIPTOR_COUNT);
    }
    let mut failed = false;
    for n in 0..count {
        let Ok(bytes) = read_memory(list + n as u64 * 64, 64, true) else {
            return Outcome { status: 6, completed: n as u32, ..Outcome::default() };
        };
        let d: [u8; 64] = bytes.try_into().unwrap();
        if failed && d[4] & 1 != 0 {
            return Outcome { status: status::BATCH_FAILED, completed: n as u32, ..Outcome::default() };
        }
        let outcome = perform(&d, limits, true);
        failed |= outcome.status != status::SUCCESS;
        write_record(&d, &outcome);
    }
    let status = if failed { status::BATCH_FAILED } else { status::SUCCESS };
    Outcome { status, completed: count as u32, ..Outcome::default() }
}

fn apply(record: u64, record_size: usize, target: u64, size: usize, bof: bool) -> Outcome {
    let Ok(record) = read_memory(record, record_size, bof) else { return Outcome::code(status::READ_ERROR) };
    let mut last = None;
    for entry in record.chunks_exact(DELTA_ENTRY) {
        let offset = u16::from_le_bytes([entry[0], entry[1]]);
        if last.is_some_and(|last| offset <= last) {
            return Outcome::code(status::DELTA_NOT_INCREASING);
        }
        if usize::from(offset) * 8 >= size {
            return Outcome::code(status::DELTA_OFFSET);
        }
        last = Some(offset);
        if write_memory(target + u64::from(offset) * 8, &entry[2..], bof).is_err() {
            return Outcome::code(status::WRITE_ERROR);
        }
    }
    Outcome::code(status::SUCCESS)
}

/// Goes through the ranges in steps that end at page borders: reads all sources, writes what `make` gives to all
/// targets, then lets `see` look at the sources. Overlapping moves are done through a copy of the whole source.
fn transfer(
    sources: &[u64],
    targets: &[u64],
    size: usize,
    bof: bool,
    make: impl Fn(&[&[u8]], usize) -> Option<Vec<u8>>,
    mut see: impl FnMut(&[&[u8]], usize),
) -> Outcome {
    let defect = DEFECT.get();
    let whole: Option<Vec<u8>> = match (sources, targets) {
        ([s], [t]) if s.abs_diff(*t) < size as u64 => read_memory(*s, size, true).ok(),
        _ => None,
    };
    let mut done = 0;
    while done < size {
        let step = sources
            .iter()
            .chain(targets)
            .map(|address| PAGE - (address.wrapping_add(done as u64) as usize) % PAGE)
            .min()
            .unwrap_or(PAGE)
            .min(size - done);
        let mut parts = Vec::new();
        let mut fault = None;
        for source in sources {
            match (&whole, read_memory(source.wrapping_add(done as u64), step, bof)) {
                (Some(copy), _) => parts.push(copy[done..done + step].to_vec()),
                (None, Ok(part)) => parts.push(part),
                (None, Err(())) => fault = fault.or(Some((source.wrapping_add(done as u64), false))),
            }
        }
        let views: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
        if fault.is_none()
            && let Some(data) = make(&views, done)
        {
            for target in targets {
                let mut length = step;
                if defect == Defect::ShortWrite && done + step == size {
                    length -= 1;
                }
                let address = target.wrapping_add(done as u64);
                if write_memory(address, &data[..length], bof).is_err() {
                    fault = fault.or(Some((address, true)));
                } else if defect == Defect::LongWrite && done + step == size {
                    let _ = write_memory(address + step as u64, &[0x5c], true);
                }
            }
        }
        if let Some((address, write)) = fault {
            if defect == Defect::NoFaults {
                return Outcome::code(status::SUCCESS);
            }
            let status = if bof { status::PAGE_REQUEST_REFUSED } else { status::PAGE_FAULT };
            return Outcome {
                status,
                completed: done as u32,
                fault: Some((address, write)),
                ..Outcome::default()
            };
        }
        see(&views, done);
        done += step;
    }
    Outcome::code(status::SUCCESS)
}

fn vector(address: u64, length: usize) -> libc::iovec {
    libc::iovec { iov_base: address as *mut libc::c_void, iov_len: length }
}

/// Without block on fault a page must be present already, as in a device's translation request.
fn present(address: u64, length: usize) -> bool {
    use std::os::unix::fs::FileExt;
    let pagemap = std::fs::File::open("/proc/self/pagemap").unwrap();
    let last = address.wrapping_add(length as u64 - 1) / PAGE as u64;
    (address / PAGE as u64..=last).all(|page| {
        let mut entry = [0; 8];
        page < 1 << 35 && pagemap.read_exact_at(&mut entry, page * 8).is_ok() && entry[7] & 0x80 != 0
    })
}

fn read_memory(address: u64, length: usize, bof: bool) -> Result<Vec<u8>, ()> {
    let mut bytes = vec![0; length];
    if length == 0 {
        return Ok(bytes);
    }
    if !bof && !present(address, length) {
        return Err(());
    }
    let (local, remote) = (vector(bytes.as_mut_ptr() as u64, length), vector(address, length));
    // SAFETY: the local vector is `bytes`; the kernel checks the remote one.
    let n = unsafe { libc::process_vm_readv(libc::getpid(), &local, 1, &remote, 1, 0) };
    if n == length as isize { Ok(bytes) } else { Err(()) }
}

fn write_memory(address: u64, bytes: &[u8], bof: bool) -> Result<(), ()> {
    if bytes.is_empty() {
        return Ok(());
    }
    if !bof && !present(address, bytes.len()) {
        return Err(());
    }
    let (local, remote) = (vector(bytes.as_ptr() as u64, bytes.len()), vector(address, bytes.len()));
    // SAFETY: the local vector is `bytes` and only read; the kernel checks the remote one. It lies in mappings that
    // the checks access through raw pointers only while a descriptor is in flight.
    let n = unsafe { libc::process_vm_writev(libc::getpid(), &local, 1, &remote, 1, 0) };
    if n == bytes.len() as isize { Ok(()) } else { Err(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks;
    use crate::runner::{Check, Lab, run_isolated};

    /// Need a device that works on its own, a kernel with special settings, or sysfs.
    const NEED_DEVICE: [&str; 10] = [
        "file-disk",
        "munmap-source-in-flight",
        "queue-without-block-on-fault",
        "munmap-in-flight",
        "mprotect-in-flight",
        "killed-with-work-in-flight",
        "paged-out",
        "huge-pages-transparent",
        "huge-pages-hugetlb",
        "large-transfers",
    ];

    fn lab() -> Lab {
        Lab { device: None, seed: 42, disk: None, large: 4 << 20, first_queue: 0 }
    }

    fn outcome(check: &Check, defect: Defect) -> Result<String, String> {
        set_defect(defect);
        let result = run_isolated(&lab(), check);
        set_defect(Defect::None);
        result.map(|(_, detail)| detail).map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn every_check_passes_on_a_device_without_defects() {
        let mut failed = Vec::new();
        for check in checks::all().iter().filter(|check| !NEED_DEVICE.contains(&check.name)) {
            if let Err(error) = outcome(check, Defect::None) {
                failed.push(format!("{}: {error}", check.name));
            }
        }
        assert!(failed.is_empty(), "{}", failed.join("\n"));
    }

    #[test]
    fn checks_notice_a_device_with_defects() {
        let all = checks::all();
        let expectations: [(Defect, &[&str]); 6] = [
            (
                Defect::ShortWrite,
                &[
                    "operation-move",
                    "operation-fill",
                    "operation-dualcast",
                    "operation-copy-crc",
                    "operation-batch",
                    "sizes-move",
                    "sizes-all-operations",
                    "overlapping-moves",
                    "untouched-destination",
                    "file-memfd",
                    "fork-copy-on-write",
                    "partial-completion-move",
                    "remap-same-address-anonymous",
                    "remap-same-address-files",
                    "discarded-pages",
                    "eight-processes-eight-queues",
                    "mremap-between-uses",
                    "large-transfers",
                ],
            ),
            (
                Defect::LongWrite,
                &["operation-move", "operation-fill", "operation-copy-crc", "sizes-move", "large-transfers"],
            ),
            (
                Defect::WrongAddress,
                &[
                    "invalid-unmapped",
                    "invalid-kernel-address",
                    "invalid-read-only-destination",
                    "partial-completion-move",
                ],
            ),
            (
                Defect::WrongDirection,
                &[
                    "invalid-unmapped",
                    "invalid-kernel-address",
                    "invalid-read-only-destination",
                    "mprotect-between-uses",
                ],
            ),
            (
                Defect::NoResult,
                &[
                    "operation-compare",
                    "operation-compare-pattern",
                    "operation-create-delta",
                    "operation-crc",
                    "operation-copy-crc",
                    "operation-batch",
                    "large-transfers",
                ],
            ),
            (
                Defect::NoFaults,
                &[
                    "invalid-unmapped",
                    "invalid-kernel-address",
                    "invalid-non-canonical-address",
                    "invalid-beyond-end-of-file",
                    "mprotect-between-uses",
                    "mremap-between-uses",
                    "eight-processes-eight-queues",
                    "partial-completion-move",
                ],
            ),
        ];
        for (defect, names) in expectations {
            for name in names {
                let check = all.iter().find(|check| check.name == *name).unwrap();
                assert!(outcome(check, defect).is_err(), "{name} does not notice {defect:?}");
            }
        }
    }

    #[test]
    fn large_transfers_are_split_and_pass() {
        let check = checks::all().into_iter().find(|check| check.name == "large-transfers").unwrap();
        let detail = outcome(&check, Defect::None).unwrap();
        assert!(detail.contains("in 2 descriptors each"), "{detail}");
    }
}
