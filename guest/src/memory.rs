// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Mappings that a device works on. Slices of one are taken only while no descriptor that writes to it is in
//! flight; reads of a slice that is unmapped or protected kill the check's process, which the runner reports.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, RawFd};

use anyhow::{Context, Result, ensure};

/// Size of a base page.
pub const PAGE: usize = 4096;
/// Size of a huge page.
pub const HUGE: usize = 2 << 20;

const RW: i32 = libc::PROT_READ | libc::PROT_WRITE;
const ANONYMOUS: i32 = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;

/// A mapping of this process, removed when dropped.
pub struct Mapping {
    base: *mut u8,
    length: usize,
}

impl Mapping {
    /// Private anonymous memory that nobody has touched, in base pages.
    pub fn untouched(length: usize) -> Result<Mapping> {
        let mapping = map(None, length, RW, ANONYMOUS, None)?;
        // Fails only on kernels without huge pages, which do the same.
        let _ = mapping.advise(0..length, libc::MADV_NOHUGEPAGE);
        Ok(mapping)
    }

    /// As [`Self::untouched`], at a given address where nothing is mapped yet.
    pub fn untouched_at(address: u64, length: usize) -> Result<Mapping> {
        let mapping = map(Some(address), length, RW, ANONYMOUS | libc::MAP_FIXED_NOREPLACE, None)?;
        let _ = mapping.advise(0..length, libc::MADV_NOHUGEPAGE);
        Ok(mapping)
    }

    /// Private anonymous memory, every page present and writable.
    pub fn touched(length: usize) -> Result<Mapping> {
        let mut mapping = Mapping::untouched(length)?;
        mapping.touch()?;
        Ok(mapping)
    }

    /// Anonymous memory that stays shared over fork.
    pub fn shared(length: usize) -> Result<Mapping> {
        map(None, length, RW, libc::MAP_SHARED | libc::MAP_ANONYMOUS, None)
    }

    /// Address space without access: a place where later mappings go, and where nothing else goes.
    pub fn reserved(length: usize) -> Result<Mapping> {
        map(None, length, libc::PROT_NONE, ANONYMOUS, None)
    }

    /// Memory whose start is aligned to a huge page, with huge pages asked for; untouched.
    pub fn huge(length: usize) -> Result<Mapping> {
        let room = map(None, length + HUGE, libc::PROT_NONE, ANONYMOUS, None)?;
        let start = room.address().next_multiple_of(HUGE as u64);
        std::mem::forget(room);
        let mapping = map(Some(start), length, RW, ANONYMOUS | libc::MAP_FIXED, None)?;
        mapping.advise(0..length, libc::MADV_HUGEPAGE).context("madvise(MADV_HUGEPAGE)")?;
        Ok(mapping)
    }

    /// Memory from the pool of persistent huge pages.
    pub fn hugetlb(length: usize) -> Result<Mapping> {
        map(None, length, RW, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_HUGETLB, None)
    }

    /// The start of a file.
    pub fn file(file: &File, length: usize, shared: bool, writable: bool) -> Result<Mapping> {
        let protection = if writable { RW } else { libc::PROT_READ };
        let flags = if shared { libc::MAP_SHARED } else { libc::MAP_PRIVATE };
        map(None, length, protection, flags, Some(file.as_raw_fd()))
    }

    /// The page of a work queue through which descriptors go in [Linux drivers/dma/idxd/cdev.c:idxd_cdev_mmap].
    pub fn portal(queue: &File) -> Result<Mapping> {
        map(None, PAGE, libc::PROT_WRITE, libc::MAP_SHARED, Some(queue.as_raw_fd()))
    }

    /// The start of a file, shared, replacing whatever this mapping has in `range`.
    pub fn replace_with_file(&self, range: Range<usize>, file: &File) -> Result<()> {
        let address = self.address_of(&range)?;
        let mapping =
            map(Some(address), range.len(), RW, libc::MAP_SHARED | libc::MAP_FIXED, Some(file.as_raw_fd()))?;
        std::mem::forget(mapping);
        Ok(())
    }

    /// Fresh anonymous memory, replacing whatever this mapping has in `range`.
    pub fn replace_with_fresh(&self, range: Range<usize>) -> Result<()> {
        let address = self.address_of(&range)?;
        let mapping = map(Some(address), range.len(), RW, ANONYMOUS | libc::MAP_FIXED, None)?;
        let _ = mapping.advise(0..mapping.length, libc::MADV_NOHUGEPAGE);
        std::mem::forget(mapping);
        Ok(())
    }

    /// Fresh anonymous memory in a hole of this mapping; an error if something else is there by now.
    pub fn map_hole(&self, range: Range<usize>) -> Result<()> {
        let mapping = Mapping::untouched_at(self.address_of(&range)?, range.len())?;
        std::mem::forget(mapping);
        Ok(())
    }

    /// Removes `range` from this mapping; its address space may be reused by the kernel.
    pub fn unmap(&self, range: Range<usize>) -> Result<()> {
        let address = self.address_of(&range)?;
        // SAFETY: the range lies in this mapping, and callers do not use it afterwards.
        check(unsafe { libc::munmap(address as *mut libc::c_void, range.len()) }).context("munmap")
    }

    /// Moves the pages of this whole mapping to the place that `target` has reserved.
    pub fn move_to(&self, target: &Mapping) -> Result<()> {
        ensure!(target.length == self.length, "mremap needs a place of the same size");
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        // SAFETY: both ranges are mappings of their owners and of the same length.
        let moved = unsafe {
            libc::mremap(
                self.base.cast(),
                self.length,
                self.length,
                flags,
                target.base.cast::<libc::c_void>(),
            )
        };
        ensure!(moved != libc::MAP_FAILED, "mremap: {}", io::Error::last_os_error());
        Ok(())
    }

    /// Changes the protection of `range`.
    pub fn protect(&self, range: Range<usize>, protection: i32) -> Result<()> {
        let address = self.address_of(&range)?;
        // SAFETY: the range lies in this mapping.
        check(unsafe { libc::mprotect(address as *mut libc::c_void, range.len(), protection) })
            .context("mprotect")
    }

    /// madvise on `range`.
    pub fn advise(&self, range: Range<usize>, advice: i32) -> Result<()> {
        let address = self.address_of(&range)?;
        // SAFETY: the range lies in this mapping; its contents belong to the checks.
        check(unsafe { libc::madvise(address as *mut libc::c_void, range.len(), advice) })
    }

    /// Makes every page present and writable, keeping the contents. Not by reading and writing: a page that is read first
    /// is the zero page, and each write would take it out of the device's caches by an invalidation of its own.
    pub fn touch(&mut self) -> Result<()> {
        self.advise(0..self.length, libc::MADV_POPULATE_WRITE).context("madvise(MADV_POPULATE_WRITE)")
    }

    /// The address that the device gets.
    pub fn address(&self) -> u64 {
        self.base as u64
    }

    /// The address of a byte in it.
    pub fn at(&self, offset: usize) -> u64 {
        self.base as u64 + offset as u64
    }

    /// The contents.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the mapping is `length` bytes long and initialised by the kernel; see the module's header.
        unsafe { std::slice::from_raw_parts(self.base, self.length) }
    }

    /// The contents, to write.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`; `self` is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.base, self.length) }
    }

    /// Where this mapping's memory starts, for volatile and atomic access.
    pub fn pointer(&self) -> *mut u8 {
        self.base
    }

    /// The flags that /proc/self/pagemap has for the page at `offset`.
    pub fn page_state(&self, offset: usize) -> Result<PageState> {
        use std::os::unix::fs::FileExt;
        let pagemap = File::open("/proc/self/pagemap").context("/proc/self/pagemap")?;
        let mut entry = [0; 8];
        pagemap.read_exact_at(&mut entry, self.at(offset) / PAGE as u64 * 8).context("/proc/self/pagemap")?;
        let entry = u64::from_le_bytes(entry);
        Ok(PageState { present: entry >> 63 & 1 == 1, swapped: entry >> 62 & 1 == 1 })
    }

    fn address_of(&self, range: &Range<usize>) -> Result<u64> {
        ensure!(range.start < range.end && range.end <= self.length, "range {range:?} outside the mapping");
        Ok(self.at(range.start))
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range belongs to this mapping; parts that are already gone do not matter.
        unsafe { libc::munmap(self.base.cast(), self.length) };
    }
}

/// What a page table entry says (Documentation/admin-guide/mm/pagemap.rst).
pub struct PageState {
    /// The page is in memory and mapped.
    pub present: bool,
    /// The page is in swap.
    pub swapped: bool,
}

fn map(
    address: Option<u64>,
    length: usize,
    protection: i32,
    flags: i32,
    file: Option<RawFd>,
) -> Result<Mapping> {
    let hint = address.unwrap_or(0) as *mut libc::c_void;
    // SAFETY: a fixed address is either inside a mapping of the caller or refused by the kernel when it is taken.
    let base = unsafe { libc::mmap(hint, length, protection, flags, file.unwrap_or(-1), 0) };
    if base == libc::MAP_FAILED {
        return Err(io::Error::last_os_error()).with_context(|| format!("mmap of {length} bytes"));
    }
    let mapping = Mapping { base: base.cast(), length };
    ensure!(address.is_none_or(|a| a == mapping.address()), "mmap did not give the address asked for");
    Ok(mapping)
}

/// An anonymous file in memory with the given contents.
pub fn memory_file(name: &std::ffi::CStr, contents: &[u8]) -> Result<File> {
    use std::io::Write;
    use std::os::fd::FromRawFd;
    // SAFETY: the name is a C string.
    let fd = unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC) };
    ensure!(fd >= 0, "memfd_create: {}", io::Error::last_os_error());
    // SAFETY: the descriptor was just made and nobody else owns it.
    let mut file = unsafe { File::from_raw_fd(fd) };
    file.write_all(contents).context("writing a memfd")?;
    Ok(file)
}

fn check(result: i32) -> Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error().into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn untouched_memory_is_not_present_until_touched() {
        let mut mapping = Mapping::untouched(2 * PAGE).unwrap();
        assert!(!mapping.page_state(0).unwrap().present);
        mapping.touch().unwrap();
        assert!(mapping.page_state(PAGE).unwrap().present);
    }

    #[test]
    fn a_taken_address_is_not_replaced() {
        let mapping = Mapping::touched(PAGE).unwrap();
        assert!(Mapping::untouched_at(mapping.address(), PAGE).is_err());
    }

    #[test]
    fn ranges_outside_are_refused() {
        let mapping = Mapping::reserved(PAGE).unwrap();
        assert!(mapping.unmap(0..2 * PAGE).is_err());
        assert!(mapping.protect(1..1, libc::PROT_READ).is_err());
    }
}
