// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A virtio 1.x block device on PCI. Its DMA goes through the remapping unit by source-id, without PASID, so it asks
//! for VIRTIO_F_ACCESS_PLATFORM: a driver that would hand it plain physical addresses is refused.
//!
//! - `common`: the common configuration registers and the status state machine;
//! - `function`: the PCI function with its capabilities, BAR and interrupts;
//! - `worker`: the thread that serves the queue;
//! - `request`: descriptor chains taken apart and checked;
//! - `disk`: the file behind the disk;
//! - `dma`: the port to guest memory.
//!
//! Sources are cited as `[V n]`: section n of the VIRTIO specification, version 1.2.
//!
//! Locks, in order: the function's configuration space, then the worker's state, then the memory guard, which is
//! held for a bounded copy and never across file I/O: the unit waits for it when the guest invalidates.

mod common;
mod disk;
mod dma;
mod function;
mod request;
mod worker;

pub use disk::{Disk, DiskError, DiskOptions, ParseDiskError, SECTOR_SIZE};
pub use dma::{Dma, Routed};
pub use function::{AttachError, VirtioBlock};

#[cfg(test)]
mod tests;
