// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How the unit reads and writes the memory its tables and queues lie in: aligned, atomic accesses, each checked
//! against what is memory at all.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};

use vm_memory::bitmap::{Bitmap, MS};
use vm_memory::{
    Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress, VolatileMemory,
    VolatileSlice,
};

/// There is no memory at the address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AccessError;

/// Loads an aligned quadword. \[S 9: 64-bit entries are read atomically\]
#[inline]
pub(crate) fn load_u64<M: GuestMemoryBackend + ?Sized>(memory: &M, address: u64) -> Result<u64, AccessError> {
    slice(memory, address, 8)?.load(0, Ordering::Acquire).map(u64::from_le).map_err(|_| AccessError)
}

/// The memory of a piece that lies in one region: the layer's own `get_slice` goes through all that the piece may touch,
/// and its `load` does so too, which takes several times as long.
#[inline]
pub(crate) fn slice<M: GuestMemoryBackend + ?Sized>(
    memory: &M,
    address: u64,
    count: usize,
) -> Result<VolatileSlice<'_, MS<'_, M>>, AccessError> {
    let region = memory.find_region(GuestAddress(address)).ok_or(AccessError)?;
    let offset = MemoryRegionAddress(address.wrapping_sub(region.start_addr().0));
    region.get_slice(offset, count).map_err(|_| AccessError)
}

/// Loads from memory that mostly lies in one region: looks for the region only where it is not the last load's.
pub(crate) struct Nearby<'a, M: GuestMemoryBackend + ?Sized> {
    memory: &'a M,
    last: Cell<Option<&'a M::R>>,
}

impl<'a, M: GuestMemoryBackend + ?Sized> Nearby<'a, M> {
    pub(crate) fn new(memory: &'a M) -> Self {
        Self { memory, last: Cell::new(None) }
    }

    /// As [`load_u64`].
    #[inline]
    pub(crate) fn load_u64(&self, address: u64) -> Result<u64, AccessError> {
        let holds = |region: &&M::R| address.wrapping_sub(region.start_addr().0) < region.len();
        let region = match self.last.get().filter(holds) {
            Some(region) => region,
            None => {
                let found = self.memory.find_region(GuestAddress(address)).ok_or(AccessError)?;
                self.last.set(Some(found));
                found
            }
        };
        let offset = MemoryRegionAddress(address.wrapping_sub(region.start_addr().0));
        let slice = region.get_slice(offset, 8).map_err(|_| AccessError)?;
        slice.load(0, Ordering::Acquire).map(u64::from_le).map_err(|_| AccessError)
    }
}

/// Loads `N` consecutive quadwords, 16-byte aligned, lowest first. What is larger than 128 bits may be torn between its
/// pieces of that size, as on hardware. \[S 9: 128-bit entries are read atomically\]
pub(crate) fn load_qwords<const N: usize, M: GuestMemoryBackend + ?Sized>(
    memory: &M,
    address: u64,
) -> Result<[u64; N], AccessError> {
    let mut qwords = [0; N];
    for (index, piece) in qwords.chunks_mut(2).enumerate() {
        load_piece(piece, |qword| load_u64(memory, address.wrapping_add(8 * (2 * index as u64 + qword))))?;
    }
    Ok(qwords)
}

/// How often a piece is read that software writes at the same time.
const PIECE_TRIES: usize = 64;

/// Fills one or two quadwords as they were at one time: there are no loads of 128 bits here, so what was read first is
/// read again after the rest, until it is the same.
fn load_piece(
    piece: &mut [u64],
    mut load: impl FnMut(u64) -> Result<u64, AccessError>,
) -> Result<(), AccessError> {
    let [low, rest @ ..] = piece else { return Ok(()) };
    *low = load(0)?;
    for _ in 0..PIECE_TRIES {
        for (high, index) in rest.iter_mut().zip(1..) {
            *high = load(index)?;
        }
        let before = std::mem::replace(low, load(0)?);
        if before == *low {
            break;
        }
    }
    Ok(())
}

/// Stores an aligned quadword.
pub(crate) fn store_u64<M: GuestMemoryBackend + ?Sized>(
    memory: &M,
    address: u64,
    value: u64,
) -> Result<(), AccessError> {
    memory.store(value.to_le(), GuestAddress(address), Ordering::Release).map_err(|_| AccessError)
}

/// Stores an aligned doubleword.
pub(crate) fn store_u32<M: GuestMemoryBackend + ?Sized>(
    memory: &M,
    address: u64,
    value: u32,
) -> Result<(), AccessError> {
    memory.store(value.to_le(), GuestAddress(address), Ordering::Release).map_err(|_| AccessError)
}

/// Replaces the quadword at `address` by `new` if it still is `current`; `Ok(Err(found))` otherwise.
pub(crate) fn compare_exchange_u64<M: GuestMemoryBackend + ?Sized>(
    memory: &M,
    address: u64,
    current: u64,
    new: u64,
) -> Result<Result<(), u64>, AccessError> {
    let slice = slice(memory, address, 8)?;
    let cell = slice.get_atomic_ref::<AtomicU64>(0).map_err(|_| AccessError)?;
    let exchanged = cell.compare_exchange(current.to_le(), new.to_le(), Ordering::AcqRel, Ordering::Acquire);
    if exchanged.is_ok() {
        slice.bitmap().mark_dirty(0, 8);
    }
    Ok(exchanged.map(|_| ()).map_err(u64::from_le))
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::GuestMemoryMmap;

    fn memory() -> GuestMemoryMmap<()> {
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0x1000), 0x1000)]).unwrap()
    }

    #[test]
    fn loads_and_stores_stay_within_memory() {
        let m = memory();
        store_u64(&m, 0x1ff8, 7).unwrap();
        assert_eq!(load_u64(&m, 0x1ff8), Ok(7));
        assert_eq!(load_u64(&m, 0x2000), Err(AccessError));
        assert_eq!(load_u64(&m, u64::MAX - 7), Err(AccessError));
        assert_eq!(load_qwords::<2, _>(&m, 0x1ff8), Err(AccessError));
        assert_eq!(load_qwords::<2, _>(&m, u64::MAX - 7), Err(AccessError));
        store_u32(&m, 0x1004, 9).unwrap();
        assert_eq!(load_u64(&m, 0x1000), Ok(9 << 32));
        assert_eq!(store_u32(&m, 0xffc, 9), Err(AccessError));
    }

    #[test]
    fn nearby_loads_find_every_region_and_nothing_between() {
        let ranges = [(GuestAddress(0x1000), 0x1000), (GuestAddress(0x8000), 0x1000)];
        let m = GuestMemoryMmap::<()>::from_ranges(&ranges).unwrap();
        store_u64(&m, 0x1ff8, 7).unwrap();
        store_u64(&m, 0x8000, 8).unwrap();
        let nearby = Nearby::new(&m);
        for _ in 0..2 {
            assert_eq!(nearby.load_u64(0x1ff8), Ok(7));
            assert_eq!(nearby.load_u64(0x2000), Err(AccessError));
            assert_eq!(nearby.load_u64(0x8000), Ok(8));
            assert_eq!(nearby.load_u64(0xff8), Err(AccessError));
            assert_eq!(nearby.load_u64(0x1ffc), Err(AccessError), "across the end");
            assert_eq!(nearby.load_u64(u64::MAX - 7), Err(AccessError));
        }
    }

    #[test]
    fn two_quadwords_are_of_one_time() {
        // Software replaces both at once, between any two loads.
        let states = [[1, 10], [2, 20], [3, 30], [4, 40]];
        for changes in 0..1u32 << 9 {
            let mut loads = 0;
            let mut piece = [0; 2];
            load_piece(&mut piece, |qword| {
                let state = (changes & ((1 << loads) - 1)).count_ones() as usize;
                loads += 1;
                Ok(states[state.min(3)][qword as usize])
            })
            .unwrap();
            assert!(states.contains(&piece), "{piece:?} after changes {changes:#b}");
        }
    }

    #[test]
    fn compare_exchange_reports_what_it_found() {
        let m = memory();
        assert_eq!(compare_exchange_u64(&m, 0x1000, 0, 5), Ok(Ok(())));
        assert_eq!(compare_exchange_u64(&m, 0x1000, 0, 6), Ok(Err(5)));
        assert_eq!(compare_exchange_u64(&m, 0x3000, 0, 6), Err(AccessError));
    }
}
