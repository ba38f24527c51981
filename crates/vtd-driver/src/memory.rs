// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The memory that tables and queues lie in.

/// Physical memory as the unit sees it.
///
/// Addresses are host physical ones and aligned to 8 bytes; every address that is loaded or stored lies in pages that
/// [`allocate`](Self::allocate) gave. Memory is little-endian; values here are the processor's.
pub trait Memory {
    /// Zeroed pages that lie together, below the host address width, aligned to 4 KiB; their address.
    fn allocate(&self, pages: usize) -> Option<u64>;

    /// Takes pages back, as they were allocated.
    fn free(&self, address: u64, pages: usize);

    /// Loads a quadword in one piece; what is loaded later is not older (acquire).
    fn load(&self, address: u64) -> u64;

    /// Stores a quadword in one piece, behind the stores before it (release).
    fn store(&self, address: u64, value: u64);

    /// Replaces a quadword by `new` if it is `current`.
    ///
    /// # Errors
    ///
    /// What it is instead.
    fn compare_exchange(&self, address: u64, current: u64, new: u64) -> Result<(), u64>;

    /// Writes processor caches back, for a unit that does not snoop them. Called only for such.
    fn flush(&self, _address: u64, _bytes: u64) {}
}

impl<T: Memory + ?Sized> Memory for &T {
    fn allocate(&self, pages: usize) -> Option<u64> {
        (**self).allocate(pages)
    }

    fn free(&self, address: u64, pages: usize) {
        (**self).free(address, pages);
    }

    fn load(&self, address: u64) -> u64 {
        (**self).load(address)
    }

    fn store(&self, address: u64, value: u64) {
        (**self).store(address, value);
    }

    fn compare_exchange(&self, address: u64, current: u64, new: u64) -> Result<(), u64> {
        (**self).compare_exchange(address, current, new)
    }

    fn flush(&self, address: u64, bytes: u64) {
        (**self).flush(address, bytes);
    }
}

#[cfg(target_has_atomic = "ptr")]
impl<T: Memory + ?Sized> Memory for alloc::sync::Arc<T> {
    fn allocate(&self, pages: usize) -> Option<u64> {
        (**self).allocate(pages)
    }

    fn free(&self, address: u64, pages: usize) {
        (**self).free(address, pages);
    }

    fn load(&self, address: u64) -> u64 {
        (**self).load(address)
    }

    fn store(&self, address: u64, value: u64) {
        (**self).store(address, value);
    }

    fn compare_exchange(&self, address: u64, current: u64, new: u64) -> Result<(), u64> {
        (**self).compare_exchange(address, current, new)
    }

    fn flush(&self, address: u64, bytes: u64) {
        (**self).flush(address, bytes);
    }
}
