// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Guest RAM: one memory file, so that whoever else stands behind the guest's devices can map the same pages again.

use std::fs::{self, File};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd};
use std::sync::Arc;

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use crate::layout;

/// The guest's RAM, mapped into this process.
pub type Memory = GuestMemoryMmap<()>;

/// Why there is no guest RAM.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The host gives no memory file, or none of that size.
    #[error("cannot create a memory file of {0} MiB: {1} (less --memory may do)")]
    File(u64, io::Error),
    /// More than the host has.
    #[error(
        "{0} MiB of memory are more than this machine has with its swap space ({1} MiB): give less --memory"
    )]
    TooMuch(u64, u64),
    /// The host does not give that much.
    #[error("cannot map {0} MiB of guest memory: {1} (less --memory may do)")]
    Map(u64, vm_memory::mmap::FromRangesError),
    /// The host's pool of huge pages does not have so many.
    #[error(
        "cannot take {wanted} huge pages of 2 MiB, {free} are free: set vm.nr_hugepages higher (sudo sysctl \
         vm.nr_hugepages={needed}), or leave out hugepages=on"
    )]
    HugePages {
        /// Pages of the guest's memory.
        wanted: u64,
        /// Free pages of the pool.
        free: u64,
        /// What the pool's size would have to be.
        needed: u64,
    },
    /// The host has no pool of them, or does not let this process take any.
    #[error("cannot use huge pages of 2 MiB: {0} (leave out hugepages=on)")]
    NoHugePages(io::Error),
    /// KVM refused a range.
    #[error("KVM refuses guest memory at {0:#x}: {1}")]
    Slot(u64, kvm_ioctls::Error),
}

/// Refuses what the host can never give. Less than that may still be more than is free: pages are taken as the guest
/// touches them.
pub fn check(size: u64) -> Result<(), Error> {
    let mut info = MaybeUninit::<libc::sysinfo>::uninit();
    // SAFETY: sysinfo fills the structure or fails.
    if unsafe { libc::sysinfo(info.as_mut_ptr()) } != 0 {
        return Ok(());
    }
    // SAFETY: filled above.
    let info = unsafe { info.assume_init() };
    let host = info.totalram.saturating_add(info.totalswap).saturating_mul(info.mem_unit.into());
    if size > host { Err(Error::TooMuch(size >> 20, host >> 20)) } else { Ok(()) }
}

/// Guest RAM as the command line asks for it: `SIZE[,hugepages=on|off]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryOptions {
    /// Bytes, a multiple of 4 KiB, and with huge pages of [`HUGE_PAGE`].
    pub size: u64,
    /// Pages of 2 MiB from the host's pool, all of them taken at the start. Without, the host gives pages as they are
    /// touched, huge ones where it likes (see [`shmem_huge_pages`]).
    pub huge_pages: bool,
}

impl MemoryOptions {
    /// So many bytes of ordinary pages.
    pub const fn ordinary(size: u64) -> Self {
        Self { size, huge_pages: false }
    }
}

/// Size of a huge page in bytes.
pub const HUGE_PAGE: u64 = 2 << 20;

/// What the host does about huge pages for memory files that ask for them, as guest RAM does: the value chosen in
/// `/sys/kernel/mm/transparent_hugepage/shmem_enabled`. \[Linux Documentation/admin-guide/mm/transhuge.rst\]
pub fn shmem_huge_pages() -> io::Result<String> {
    let text = fs::read_to_string("/sys/kernel/mm/transparent_hugepage/shmem_enabled")?;
    let chosen = text.split_once('[').and_then(|(_, rest)| rest.split_once(']'));
    Ok(chosen.map_or("never", |(chosen, _)| chosen).to_owned())
}

fn pool_of_huge_pages(count: &str) -> u64 {
    let file = format!("/sys/kernel/mm/hugepages/hugepages-2048kB/{count}");
    fs::read_to_string(file).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

/// Maps RAM, in the ranges of [`layout::ram`]. Each region is a shared mapping of one memory file and
/// knows its place there ([`GuestMemoryRegion::file_offset`]); pages are taken from the host as they are touched.
///
/// # Errors
///
/// The host does not have that much address space or that many huge pages, or refuses the file.
pub fn allocate(options: MemoryOptions) -> Result<Arc<Memory>, Error> {
    let MemoryOptions { size, huge_pages } = options;
    let no_file = |e| if huge_pages { Error::NoHugePages(e) } else { Error::File(size >> 20, e) };
    let file = Arc::new(memory_file(size, huge_pages).map_err(no_file)?);
    if huge_pages {
        take_huge_pages(&file, size)?;
    }
    let mut start = 0;
    let mut ranges = Vec::new();
    for window in layout::ram(size) {
        let place = FileOffset::from_arc(Arc::clone(&file), start);
        ranges.push((GuestAddress(window.base), window.size as usize, Some(place)));
        start += window.size;
    }
    let memory = Memory::from_ranges_with_files(&ranges).map_err(|e| Error::Map(size >> 20, e))?;
    for region in memory.iter() {
        prefer_huge_pages(region);
    }
    Ok(Arc::new(memory))
}

/// An unnamed file in memory that keeps its size: a mapping of it always has pages behind it.
fn memory_file(size: u64, huge_pages: bool) -> io::Result<File> {
    let huge = if huge_pages { libc::MFD_HUGETLB | libc::MFD_HUGE_2MB } else { 0 };
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING | huge;
    // SAFETY: the name is a string with its terminator; the call touches no other memory.
    let fd = unsafe { libc::memfd_create(c"guest-memory".as_ptr(), flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just made and nobody else has it.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(size)?;
    let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
    // SAFETY: the descriptor is open; the command takes an integer.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(file)
}

/// Takes all pages now: one that the pool lacks would kill the process where the guest touches it.
fn take_huge_pages(file: &File, size: u64) -> Result<(), Error> {
    let length = i64::try_from(size).map_err(|e| Error::File(size >> 20, io::Error::other(e)))?;
    let error = loop {
        // SAFETY: the descriptor is open; the call takes integers.
        if unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, length) } == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            break error;
        }
    };
    if ![Some(libc::ENOSPC), Some(libc::ENOMEM)].contains(&error.raw_os_error()) {
        return Err(Error::NoHugePages(error));
    }
    let reserved = pool_of_huge_pages("resv_hugepages");
    let (wanted, free) = (size / HUGE_PAGE, pool_of_huge_pages("free_hugepages").saturating_sub(reserved));
    let needed = pool_of_huge_pages("nr_hugepages") + wanted.saturating_sub(free);
    Err(Error::HugePages { wanted, free, needed })
}

/// A wish: it is granted where the host's `shmem_enabled` says `advise`, and costs nothing elsewhere.
fn prefer_huge_pages(region: &vm_memory::GuestRegionMmap<()>) {
    // SAFETY: the range is a whole mapping that `region` owns; the advice changes no contents.
    let result = unsafe { libc::madvise(region.as_ptr().cast(), region.size(), libc::MADV_HUGEPAGE) };
    if result < 0 {
        let error = io::Error::last_os_error();
        tracing::debug!(%error, "no huge pages for guest memory");
    }
}

/// Makes `memory` the RAM of `vm`. The memory must live as long as a processor of `vm` can run.
pub fn register(vm: &VmFd, memory: &Memory) -> Result<(), Error> {
    for (slot, region) in memory.iter().enumerate() {
        let start = region.start_addr();
        let slot = kvm_userspace_memory_region {
            slot: slot as u32,
            guest_phys_addr: start.0,
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
            flags: 0,
        };
        // SAFETY: the range is a mapping of its whole length that `Memory` owns; the machine drops the memory
        // after the VM (field order of `Machine`), and accesses to it are volatile everywhere.
        unsafe { vm.set_user_memory_region(slot) }.map_err(|e| Error::Slot(start.0, e))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestRegionMmap};

    use super::*;

    fn ordinary(size: u64) -> Arc<Memory> {
        allocate(MemoryOptions::ordinary(size)).unwrap()
    }

    #[test]
    fn huge_pages_that_the_pool_lacks_are_told_with_the_remedy() {
        // More than any pool has.
        let error = allocate(MemoryOptions { size: 1 << 44, huge_pages: true }).unwrap_err();
        let line = error.to_string();
        assert!(line.contains("8388608 huge pages") && line.contains("vm.nr_hugepages="), "{line}");
    }

    #[test]
    fn each_range_of_a_machine_with_huge_pages_is_made_of_whole_ones() {
        for size in [HUGE_PAGE, 1 << 30, layout::HOLE_START + HUGE_PAGE] {
            for window in layout::ram(size) {
                assert_eq!((window.base % HUGE_PAGE, window.size % HUGE_PAGE), (0, 0), "{window:?}");
            }
        }
    }

    /// The pages of a region once more, elsewhere.
    fn again(region: &GuestRegionMmap<()>, at: u64) -> Memory {
        let place = region.file_offset().cloned();
        Memory::from_ranges_with_files([(GuestAddress(at), region.size(), place)]).unwrap()
    }

    #[test]
    fn the_same_pages_can_be_mapped_at_other_addresses() {
        let memory = ordinary(0x10_0000);
        let region = memory.iter().next().unwrap();
        let other = again(region, 0x40_0000_0000);
        memory.write_obj(0x1122_3344_u32, GuestAddress(0x1_2340)).unwrap();
        assert_eq!(other.read_obj::<u32>(GuestAddress(0x40_0001_2340)).unwrap(), 0x1122_3344);
        other.write_obj(7u8, GuestAddress(0x40_000f_ffff)).unwrap();
        assert_eq!(memory.read_obj::<u8>(GuestAddress(0xf_ffff)).unwrap(), 7);
    }

    #[test]
    fn ranges_on_both_sides_of_the_hole_have_pages_of_their_own() {
        let memory = ordinary(layout::HOLE_START + 0x20_0000);
        let places: Vec<_> = memory
            .iter()
            .map(|region| (region.start_addr().0, region.file_offset().unwrap().start()))
            .collect();
        assert_eq!(places, [(0, 0), (layout::HIGH_RAM_START, layout::HOLE_START)]);
        memory.write_obj(1u8, GuestAddress(0)).unwrap();
        assert_eq!(memory.read_obj::<u8>(GuestAddress(layout::HIGH_RAM_START)).unwrap(), 0);
        let high = again(memory.iter().nth(1).unwrap(), 0);
        memory.write_obj(2u8, GuestAddress(layout::HIGH_RAM_START + 0x1f_ffff)).unwrap();
        assert_eq!(high.read_obj::<u8>(GuestAddress(0x1f_ffff)).unwrap(), 2);
    }

    #[test]
    fn nobody_can_take_the_pages_away() {
        let memory = ordinary(0x1_0000);
        let file = memory.iter().next().unwrap().file_offset().unwrap().arc().clone();
        assert_eq!(file.metadata().unwrap().len(), 0x1_0000);
        assert!(file.set_len(0x1000).is_err());
    }

    #[test]
    fn too_much_memory_is_one_line() {
        for error in [allocate(MemoryOptions::ordinary(1 << 60)).unwrap_err(), check(1 << 60).unwrap_err()] {
            let line = error.to_string();
            assert!(line.contains("MiB") && !line.contains('\n'), "{line}");
        }
        assert!(check(64 << 20).is_ok());
    }
}
