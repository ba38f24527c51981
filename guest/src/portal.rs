// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A dedicated user work queue: opens it (which binds this process's page table to a PASID), submits descriptors
//! through the mapped portal and waits for completion records.

use std::arch::x86_64::{__m128i, _mm_set_epi64x};
use std::cell::Cell;
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicU8, Ordering, compiler_fence};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::completion::{Completion, RECORD_SIZE};
use crate::descriptor::Descriptor;
use crate::memory::{Mapping, PAGE};
use crate::progress::{self, Patience};

const RECORDS: usize = PAGE / RECORD_SIZE;

/// What of a queue's configuration its users need.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Largest transfer of one descriptor, in bytes.
    pub max_transfer: u64,
    /// Largest number of descriptors in a batch.
    pub max_batch: u64,
    /// Entries of the queue.
    pub depth: usize,
}

/// An open queue.
pub struct Queue {
    sink: Sink,
    records: Mapping,
    next_record: Cell<usize>,
    limits: Limits,
}

enum Sink {
    Portal {
        _file: std::fs::File,
        portal: Mapping,
        slot: Cell<usize>,
    },
    #[cfg(test)]
    Soft,
}

/// A submitted descriptor that completes into a record of the queue.
#[derive(Clone, Copy)]
pub struct Pending {
    record: usize,
}

impl Queue {
    /// Opens the character device. A queue that another process is just closing is waited for.
    pub fn open(path: &Path, limits: Limits) -> Result<Queue> {
        let records = Mapping::touched(PAGE)?;
        #[cfg(test)]
        if path == Path::new(crate::soft::PATH) {
            return Ok(Queue { sink: Sink::Soft, records, next_record: Cell::new(0), limits });
        }
        let mut patience = Patience::of_a_check();
        let file = loop {
            match OpenOptions::new().read(true).write(true).custom_flags(libc::O_CLOEXEC).open(path) {
                Ok(file) => break file,
                Err(e)
                    if e.raw_os_error() == Some(libc::EBUSY)
                        && patience.sleep(Duration::from_millis(2), "the queue").is_ok() => {}
                Err(e) => {
                    let hint = open_hint(path, &e);
                    return Err(e).context(hint);
                }
            }
        };
        let portal = Mapping::portal(&file).context(
            "mmap of the portal (needs CAP_SYS_RAWIO; Linux drivers/dma/idxd/cdev.c:idxd_cdev_mmap)",
        )?;
        let sink = Sink::Portal { _file: file, portal, slot: Cell::new(0) };
        Ok(Queue { sink, records, next_record: Cell::new(0), limits })
    }

    /// The queue's configuration.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Submits a descriptor as it is.
    pub fn submit(&self, descriptor: &Descriptor) {
        // Everything written so far must be in memory before the device is told.
        compiler_fence(Ordering::SeqCst);
        match &self.sink {
            Sink::Portal { portal, slot, .. } => {
                let base = portal.pointer();
                let offset = slot.replace((slot.get() + 64) % PAGE);
                // As wide as KVM's instruction emulator stores at a time: each store is an exit.
                for (n, [low, high]) in descriptor.words().as_chunks().0.iter().enumerate() {
                    // SAFETY: slot and words lie inside the portal's page, aligned; the device takes the stores in
                    // order as one descriptor. Every processor of this target has SSE2.
                    unsafe {
                        let words = _mm_set_epi64x(high.cast_signed(), low.cast_signed());
                        base.add(offset + n * 16).cast::<__m128i>().write_volatile(words);
                    }
                }
            }
            #[cfg(test)]
            Sink::Soft => crate::soft::execute(descriptor, self.limits),
        }
        compiler_fence(Ordering::SeqCst);
    }

    /// Submits a descriptor with a completion record of this queue.
    pub fn start(&self, descriptor: Descriptor) -> Pending {
        let record = self.next_record.replace((self.next_record.get() + 1) % RECORDS);
        for n in 0..RECORD_SIZE {
            // SAFETY: inside the page of records.
            unsafe { self.record(record).add(n).write_volatile(0) };
        }
        let address = self.records.at(record * RECORD_SIZE);
        self.submit(&descriptor.record(address));
        Pending { record }
    }

    /// Waits for a descriptor that [`Self::start`] submitted.
    pub fn wait(&self, pending: Pending) -> Result<Completion> {
        // SAFETY: inside the page of records.
        unsafe { wait_for_record(self.record(pending.record), Patience::of_a_check()) }
    }

    /// Whether a descriptor that [`Self::start`] submitted has completed.
    pub fn is_complete(&self, pending: Pending) -> bool {
        // SAFETY: inside the page of records; the device writes the status as one byte of the record.
        unsafe { AtomicU8::from_ptr(self.record(pending.record)).load(Ordering::Acquire) != 0 }
    }

    /// Submits and waits.
    pub fn run(&self, descriptor: Descriptor) -> Result<Completion> {
        self.wait(self.start(descriptor))
    }

    /// Submits all, keeping the queue filled without overflowing it (a dedicated queue drops what does not fit).
    pub fn run_all(&self, descriptors: &[Descriptor]) -> Result<Vec<Completion>> {
        let depth = self.limits.depth.clamp(1, RECORDS / 2).saturating_sub(1).max(1);
        let mut pending = std::collections::VecDeque::new();
        let mut completions = Vec::with_capacity(descriptors.len());
        for descriptor in descriptors {
            if pending.len() == depth
                && let Some(oldest) = pending.pop_front()
            {
                completions.push(self.wait(oldest)?);
            }
            pending.push_back(self.start(*descriptor));
        }
        for last in pending {
            completions.push(self.wait(last)?);
        }
        Ok(completions)
    }

    /// Copies, in as many descriptors as the queue demands.
    pub fn copy(&self, source: u64, destination: u64, size: usize) -> Result<()> {
        for (offset, length) in self.chunks(size) {
            let offset = offset as u64;
            let completion = self.run(Descriptor::copy(source + offset, destination + offset, length))?;
            ensure!(completion.status == crate::completion::status::SUCCESS, "move: {completion}");
        }
        Ok(())
    }

    /// The sizes of the descriptors that a transfer of `size` bytes needs, with their offsets.
    pub fn chunks(&self, size: usize) -> Vec<(usize, usize)> {
        chunks(size, self.limits.max_transfer)
    }

    fn record(&self, n: usize) -> *mut u8 {
        // SAFETY: `n` is below RECORDS, which fill the page.
        unsafe { self.records.pointer().add((n % RECORDS) * RECORD_SIZE) }
    }
}

fn chunks(size: usize, max_transfer: u64) -> Vec<(usize, usize)> {
    let step = usize::try_from(max_transfer).unwrap_or(usize::MAX).max(1);
    let mut chunks = Vec::new();
    let mut offset = 0;
    while offset < size {
        let length = step.min(size - offset);
        chunks.push((offset, length));
        offset += length;
    }
    chunks
}

/// Waits until the status byte of the record at `record` is not zero, and decodes it.
///
/// # Safety
/// `record` must point to 32 bytes that stay mapped.
unsafe fn wait_for_record(record: *mut u8, mut patience: Patience) -> Result<Completion> {
    // SAFETY: given by the caller; the device writes the status as one byte of the record.
    let status = unsafe { AtomicU8::from_ptr(record) };
    let mut rounds = 0u32;
    let mut pause = Duration::from_micros(20);
    while status.load(Ordering::Acquire) == 0 {
        rounds += 1;
        // The device's threads need a CPU too: look a few times, then give way, then sleep.
        match rounds {
            0..20 => std::hint::spin_loop(),
            20..100 => std::thread::yield_now(),
            _ => {
                // Ever longer: each wake-up costs a virtual machine exits, and the faults' handler needs the CPU.
                patience.sleep(pause, "a completion record")?;
                pause = (pause * 2).min(Duration::from_millis(4));
            }
        }
    }
    progress::made();
    compiler_fence(Ordering::SeqCst);
    let mut bytes = [0; RECORD_SIZE];
    for (n, byte) in bytes.iter_mut().enumerate() {
        // SAFETY: given by the caller.
        *byte = unsafe { record.add(n).read_volatile() };
    }
    Ok(Completion::decode(&bytes))
}

/// A completion record in memory of the caller's choice.
pub fn wait_at(mapping: &Mapping, offset: usize) -> Result<Completion> {
    ensure!(offset + RECORD_SIZE <= mapping.bytes().len(), "record outside its mapping");
    // SAFETY: inside the mapping, as just checked.
    unsafe { wait_for_record(mapping.pointer().add(offset), Patience::of_a_check()) }
}

fn open_hint(path: &Path, error: &std::io::Error) -> String {
    let hint = match error.raw_os_error() {
        Some(libc::EOPNOTSUPP) => {
            "SVA is not available: needs intel_iommu=on, scalable mode and kernel 7.2 or newer"
        }
        Some(libc::ENODEV) => "the IOMMU does not support SVA: see the kernel's log",
        Some(libc::EINVAL) => "PASID, ATS or PRI is not enabled for the device",
        Some(libc::EBUSY) => "a dedicated queue has one client, and there is one already",
        Some(libc::ENOENT) => "the queue is not enabled",
        _ => "see the kernel's log",
    };
    format!("open {} ({hint})", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transfers_are_split_as_the_queue_demands() {
        assert_eq!(chunks(10, 4), [(0, 4), (4, 4), (8, 2)]);
        assert_eq!(chunks(4, 4), [(0, 4)]);
        assert_eq!(chunks(64 << 20, 1 << 31).len(), 1);
        assert_eq!(chunks(64 << 20, 2 << 20).len(), 32);
    }

    #[test]
    fn a_record_that_never_comes_is_an_error() {
        let page = Mapping::touched(PAGE).unwrap();
        // SAFETY: the page stays mapped.
        let result = unsafe { wait_for_record(page.pointer(), Patience::none()) };
        assert!(result.unwrap_err().to_string().contains("waited for a completion record"));
    }
}
