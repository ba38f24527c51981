// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The PCI function of the block device: modern virtio capabilities, one BAR, MSI-X. \[V 4.1, 5.2\]

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use pci::{
    Bar, BarRanges, BuildError, CapabilityId, ConfigSpace, ConfigSpaceBuilder, Identity, MsixLayout,
    MsixTable, PciFunction, PcieCapability,
};
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX,
};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use super::common::{COMMON_SIZE, CommonConfig};
use super::disk::{Disk, SECTOR_SIZE};
use super::dma::Dma;
use super::worker::{MAX_QUEUE_SIZE, Shared};
use crate::sandbox::{self, Role};

const VENDOR_VIRTIO: u16 = 0x1af4;
/// PCI device ids of modern devices count from here. \[V 4.1.2\]
const DEVICE_BASE: u16 = 0x1040;
/// Subsystem ids of modern devices are at least this. \[V 4.1.2.1\]
const SUBSYSTEM: u16 = 0x40;
/// Mass storage, other.
const CLASS: u32 = 0x01_8000;

const BAR: usize = 0;
const BAR_SIZE: u64 = 0x8000;
const COMMON: u64 = 0x0000;
const ISR: u64 = 0x1000;
const ISR_SIZE: u64 = 1;
const DEVICE: u64 = 0x2000;
const DEVICE_SIZE: u64 = 0x40;
const NOTIFY: u64 = 0x3000;
const NOTIFY_SIZE: u64 = 4;
const MSIX_TABLE: u32 = 0x4000;
const MSIX_PBA: u32 = 0x5000;
/// One for configuration changes, one for the queue.
const VECTORS: u16 = 2;

/// Types of the vendor-specific capability. \[V 4.1.4\]
const CAP_COMMON: u8 = 1;
const CAP_NOTIFY: u8 = 2;
const CAP_ISR: u8 = 3;
const CAP_DEVICE: u8 = 4;
const CAP_PCI_CFG: u8 = 5;
/// Offsets inside that capability.
const CAP_BAR: u16 = 4;
const CAP_OFFSET: u16 = 8;
const CAP_LENGTH: u16 = 12;
const CAP_PCI_CFG_DATA: u16 = 16;

/// A virtio block device as a PCI function, with a thread of its own for the work. Dropping it ends the thread.
pub struct VirtioBlock<D: Dma> {
    config: Mutex<ConfigSpace>,
    /// Where configuration accesses reach into the BAR. \[V 4.1.4.9\]
    window: u16,
    shared: Arc<Shared<D>>,
    worker: Option<JoinHandle<()>>,
}

/// Why a disk cannot be attached.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The system has no thread for it.
    #[error("cannot start the disk's thread: {0}")]
    Thread(#[from] io::Error),
    /// The configuration space is a fixed one: not seen in practice.
    #[error("virtio-blk configuration space: {0}")]
    Config(#[from] BuildError),
}

impl<D: Dma> VirtioBlock<D> {
    /// The device with `disk` behind it. `dma` carries the function's own source-id.
    ///
    /// # Errors
    ///
    /// [`AttachError`] where the thread cannot be started.
    pub fn new(dma: D, disk: Disk) -> Result<Self, AttachError> {
        let mut features = 1 << VIRTIO_BLK_F_SEG_MAX
            | 1 << VIRTIO_BLK_F_BLK_SIZE
            | 1 << VIRTIO_BLK_F_FLUSH
            | 1 << VIRTIO_RING_F_INDIRECT_DESC
            | 1 << VIRTIO_RING_F_EVENT_IDX;
        if disk.read_only() {
            features |= 1 << VIRTIO_BLK_F_RO;
        }
        let layout = MsixLayout::in_bar(BAR, VECTORS, MSIX_TABLE, MSIX_PBA);
        let config = config_space(layout)?;
        let window = config.capabilities(CapabilityId::VENDOR).last().unwrap_or_default();
        let common = CommonConfig::new(features, MAX_QUEUE_SIZE, VECTORS);
        let shared = Arc::new(Shared::new(dma, disk, common, MsixTable::new(layout)));
        let worker = {
            let shared = Arc::clone(&shared);
            thread::Builder::new().name("virtio-blk".into()).spawn(move || {
                sandbox::narrow(Role::Disk);
                shared.run();
            })?
        };
        Ok(Self { config: Mutex::new(config), window, shared, worker: Some(worker) })
    }

    fn config(&self) -> MutexGuard<'_, ConfigSpace> {
        self.config.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        self.shared.kick();
        if let Some(worker) = &self.worker {
            worker.thread().unpark();
        }
    }

    /// The part of the BAR that the configuration window shows now, if it is one that may be shown.
    fn window_target(&self) -> Option<(u64, usize)> {
        let mut bar = [0];
        let mut offset = [0; 4];
        let mut length = [0; 4];
        let config = self.config();
        config.read(self.window + CAP_BAR, &mut bar);
        config.read(self.window + CAP_OFFSET, &mut offset);
        config.read(self.window + CAP_LENGTH, &mut length);
        let offset = u32::from_le_bytes(offset);
        let length = u32::from_le_bytes(length);
        let valid = usize::from(bar[0]) == BAR
            && matches!(length, 1 | 2 | 4)
            && offset.is_multiple_of(length)
            && u64::from(offset) < BAR_SIZE;
        valid.then_some((offset.into(), length as usize))
    }

    /// The device configuration. \[V 5.2.4\]
    fn device_config(&self) -> [u8; DEVICE_SIZE as usize] {
        let mut image = [0; DEVICE_SIZE as usize];
        image[0..8].copy_from_slice(&self.shared.disk().sectors().to_le_bytes());
        // Header and status take a descriptor each.
        image[12..16].copy_from_slice(&u32::from(MAX_QUEUE_SIZE - 2).to_le_bytes());
        image[20..24].copy_from_slice(&(SECTOR_SIZE as u32).to_le_bytes());
        image
    }
}

impl<D: Dma> Drop for VirtioBlock<D> {
    fn drop(&mut self) {
        self.shared.end();
        if let Some(worker) = self.worker.take() {
            worker.thread().unpark();
            // A worker that panicked has nothing more to say.
            let _ = worker.join();
        }
    }
}

impl<D: Dma> PciFunction for VirtioBlock<D> {
    fn config_read(&self, offset: u16, data: &mut [u8]) {
        self.config().read(offset, data);
        let window = self.window + CAP_PCI_CFG_DATA;
        if offset & !3 == window
            && let Some((target, length)) = self.window_target()
        {
            let mut value = [0; 4];
            self.bar_read(BAR, target, &mut value[..length]);
            for (byte, value) in data.iter_mut().zip(value.iter().skip(usize::from(offset - window))) {
                *byte = *value;
            }
        }
    }

    fn config_write(&self, offset: u16, data: &[u8]) {
        let changed = {
            let mut config = self.config();
            let changes = config.write(offset, data);
            // With the configuration space locked, so that of two writers the last one wins here, too.
            if changes.function_level_reset {
                self.shared.reset();
            }
            if let Some(enabled) = changes.bus_master {
                self.shared.set_bus_master(enabled);
            }
            if let Some(control) = changes.msix {
                self.shared.send(&self.shared.msix.set_control(control));
            }
            changes
        };
        if changed.bus_master == Some(true) {
            self.wake();
        }
        if offset == self.window + CAP_PCI_CFG_DATA
            && let Some((target, length)) = self.window_target()
            && let Some(data) = data.get(..length)
        {
            self.bar_write(BAR, target, data);
        }
    }

    fn bar_read(&self, _bar: usize, offset: u64, data: &mut [u8]) {
        if self.shared.msix.bar_read(BAR, offset, data) {
            return;
        }
        data.fill(0);
        match offset {
            COMMON.. if offset < COMMON + COMMON_SIZE => self.shared.common_read(offset - COMMON, data),
            ISR => {
                if let Some(byte) = data.first_mut() {
                    *byte = self.shared.take_isr();
                }
            }
            DEVICE.. if offset < DEVICE + DEVICE_SIZE => {
                let image = self.device_config();
                let at = (offset - DEVICE) as usize;
                for (byte, value) in data.iter_mut().zip(image.iter().skip(at)) {
                    *byte = *value;
                }
            }
            _ => {}
        }
    }

    fn bar_write(&self, _bar: usize, offset: u64, data: &[u8]) {
        if let Some(messages) = self.shared.msix.bar_write(BAR, offset, data) {
            self.shared.send(&messages);
            return;
        }
        let wake = match offset {
            COMMON.. if offset < COMMON + COMMON_SIZE => self.shared.common_write(offset - COMMON, data),
            // The queue's index is written; there is one queue.
            NOTIFY => data.starts_with(&[0, 0]),
            _ => false,
        };
        if wake {
            self.wake();
        }
    }

    fn bars(&self) -> BarRanges {
        self.config().bars()
    }

    fn reset(&self) {
        let mut config = self.config();
        config.reset();
        self.shared.reset();
    }
}

fn config_space(msix: MsixLayout) -> Result<ConfigSpace, BuildError> {
    let identity = Identity {
        vendor: VENDOR_VIRTIO,
        device: DEVICE_BASE + VIRTIO_ID_BLOCK as u16,
        revision: 1,
        class: CLASS,
        subsystem_vendor: VENDOR_VIRTIO,
        subsystem: SUBSYSTEM,
    };
    // Of the window's capability the driver writes bar, offset and length.
    let mut window_mask = [0; CAP_PCI_CFG_DATA as usize - 2];
    window_mask[usize::from(CAP_BAR) - 2] = u8::MAX;
    window_mask[usize::from(CAP_OFFSET) - 2..].fill(u8::MAX);
    ConfigSpaceBuilder::new(identity)
        .bar(BAR, Bar::memory64(BAR_SIZE))
        .pcie(PcieCapability { function_level_reset: true, end_end_prefix: false })
        .msix(msix)
        .capability(CapabilityId::VENDOR, &capability(CAP_COMMON, COMMON, COMMON_SIZE, &[]), &[])
        .capability(CapabilityId::VENDOR, &capability(CAP_ISR, ISR, ISR_SIZE, &[]), &[])
        .capability(CapabilityId::VENDOR, &capability(CAP_DEVICE, DEVICE, DEVICE_SIZE, &[]), &[])
        // Notify offsets count in units of 4 bytes; the one queue's offset is 0.
        .capability(
            CapabilityId::VENDOR,
            &capability(CAP_NOTIFY, NOTIFY, NOTIFY_SIZE, &4_u32.to_le_bytes()),
            &[],
        )
        // The window comes last: it is found as the last vendor-specific capability.
        .capability(CapabilityId::VENDOR, &capability(CAP_PCI_CFG, 0, 0, &[0; 4]), &window_mask)
        .build()
}

/// The body of a virtio capability: all after identifier and next pointer. \[V 4.1.4\]
fn capability(kind: u8, offset: u64, length: u64, rest: &[u8]) -> Vec<u8> {
    let size = usize::from(CAP_PCI_CFG_DATA) + rest.len();
    let mut body = vec![size as u8, kind, BAR as u8, 0, 0, 0];
    body.extend_from_slice(&(offset as u32).to_le_bytes());
    body.extend_from_slice(&(length as u32).to_le_bytes());
    body.extend_from_slice(rest);
    body
}
