// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The host memory of a soft host: tables of its own, and the guest's memory in pieces at addresses that are not the
//! guest's, so that a missing stage of translation cannot go unnoticed.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use vm_allocator::{AddressAllocator, AllocPolicy, RangeInclusive};
use vm_memory::bitmap::Bitmap;
use vm_memory::{
    Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
    MmapRegion, VolatileMemory,
};

use super::config::SoftHostError;

/// Memory of a soft host: what its unit sees as physical.
pub type HostMemory = GuestMemoryMmap<()>;

/// Where tables lie, and how much room they have.
const TABLES: u64 = 0x10_0000;
/// Where the guest's pieces begin.
const PIECES: u64 = 0x20_0000_0000;
/// Pieces are a multiple of this: the largest page that maps them.
const PIECE_ALIGN: u64 = 2 << 20;
/// Pieces that a guest's memory is cut into, about.
const PIECE_COUNT: u64 = 12;

/// A piece of guest memory, and where it lies in the host's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub guest: u64,
    pub host: u64,
    pub length: u64,
}

/// Maps the guest's memory a second time, in pieces and out of order. Every region of it must be shared and backed by a
/// file (a memfd).
pub(crate) fn lay_out(
    guest: &GuestMemoryMmap<()>,
    table_bytes: u64,
) -> Result<(HostMemory, Vec<Piece>), SoftHostError> {
    let total: u64 = guest.iter().map(GuestMemoryRegion::len).sum();
    let piece_bytes = (total / PIECE_COUNT).next_multiple_of(PIECE_ALIGN).max(PIECE_ALIGN);
    let mut pieces = Vec::new();
    let mut backing = Vec::new();
    for region in guest.iter() {
        let file = region.file_offset().ok_or(SoftHostError::NotShared)?;
        let mut offset = 0;
        while offset < region.len() {
            let length = piece_bytes.min(region.len() - offset);
            pieces.push(Piece { guest: region.start_addr().0 + offset, host: 0, length });
            backing.push(FileOffset::from_arc(Arc::clone(file.arc()), file.start() + offset));
            offset += length;
        }
    }
    let map = |address: u64, bytes: u64, file: Option<FileOffset>| {
        let region = match file {
            Some(file) => MmapRegion::from_file(file, bytes as usize),
            None => MmapRegion::new(bytes as usize),
        };
        let region = region.map_err(|error| SoftHostError::Map(error.to_string()))?;
        GuestRegionMmap::new(region, GuestAddress(address)).ok_or(SoftHostError::Layout)
    };
    let mut regions = vec![map(TABLES, table_bytes, None)?];
    // The last piece of the guest comes first, and each has a hole behind it.
    let mut next = PIECES;
    for (piece, file) in pieces.iter_mut().zip(backing).rev() {
        piece.host = next;
        regions.push(map(next, piece.length, Some(file))?);
        next += (piece.length + PIECE_ALIGN).next_multiple_of(PIECE_ALIGN);
    }
    let memory = HostMemory::from_regions(regions).map_err(|_| SoftHostError::Layout)?;
    Ok((memory, pieces))
}

/// Where tables of the host's driver come from.
pub(crate) struct Tables {
    memory: Arc<HostMemory>,
    free: Mutex<AddressAllocator>,
}

impl Tables {
    pub(crate) fn new(memory: Arc<HostMemory>, bytes: u64) -> Result<Self, SoftHostError> {
        let free = AddressAllocator::new(TABLES, bytes).map_err(|_| SoftHostError::Layout)?;
        Ok(Self { memory, free: Mutex::new(free) })
    }
}

impl vtd_driver::Memory for Tables {
    fn allocate(&self, pages: usize) -> Option<u64> {
        let bytes = pages as u64 * 4096;
        // Tables of several pages are aligned to their size, as the structures want them.
        let align = bytes.next_power_of_two();
        let range = {
            let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
            free.allocate(bytes, align, AllocPolicy::FirstMatch).ok()?
        };
        let zero = [0; 4096];
        (0..pages as u64)
            .try_for_each(|page| self.memory.write_slice(&zero, GuestAddress(range.start() + page * 4096)))
            .ok()?;
        Some(range.start())
    }

    fn free(&self, address: u64, pages: usize) {
        let last = address + pages as u64 * 4096 - 1;
        let Ok(range) = RangeInclusive::new(address, last) else { return };
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        if free.free(&range).is_err() {
            tracing::error!(address, pages, "a table was freed that was not allocated");
        }
    }

    fn load(&self, address: u64) -> u64 {
        // The driver loads what it has allocated, nothing else.
        self.memory.load(GuestAddress(address), Ordering::Acquire).map_or(0, u64::from_le)
    }

    fn store(&self, address: u64, value: u64) {
        if self.memory.store(value.to_le(), GuestAddress(address), Ordering::Release).is_err() {
            tracing::error!(address, "the driver stores outside its tables");
        }
    }

    fn compare_exchange(&self, address: u64, current: u64, new: u64) -> Result<(), u64> {
        let exchange = || {
            let slice = self.memory.get_slice(GuestAddress(address), 8).ok()?;
            let cell = slice.get_atomic_ref::<AtomicU64>(0).ok()?;
            let (current, new) = (current.to_le(), new.to_le());
            let result = cell.compare_exchange(current, new, Ordering::AcqRel, Ordering::Acquire);
            slice.bitmap().mark_dirty(0, 8);
            Some(result.map(|_| ()).map_err(u64::from_le))
        };
        exchange().unwrap_or(Err(!current))
    }
}
