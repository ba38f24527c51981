// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The thread that serves the queue, and the state that it shares with the processors' accesses.
//!
//! The worker takes the state's lock for one step at a time: take a request from the ring, move at most
//! [`BOUNCE_SIZE`] bytes, put a request into the used ring. So a reset on a processor waits for one such step at
//! the most, and afterwards no access of the old queue happens: each step checks that its queue still runs. File I/O
//! happens between steps, with no lock held.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use pci::{Message, MsixTable};
use tracing::debug;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_ID_BYTES, VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP,
};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress};

use super::common::{Action, CommonConfig, NO_VECTOR, QueueSetup};
use super::disk::Disk;
use super::dma::Dma;
use super::request::{ChainError, Kind, Request, Segments};

/// Data moves between file and guest memory in pieces of this many bytes.
pub const BOUNCE_SIZE: usize = 64 << 10;
/// The largest queue, and with it the most descriptors in a chain.
pub const MAX_QUEUE_SIZE: u16 = 256;
/// What VIRTIO_BLK_T_GET_ID answers, filled up with zeroes.
const DISK_ID: &[u8] = b"vsva-disk";

const ISR_QUEUE: u8 = 1;
const ISR_CONFIG: u8 = 2;

/// What makes a queue unusable until the driver resets the device.
#[derive(Debug, thiserror::Error)]
enum QueueError {
    #[error("queue registers make no queue: {0:x?}")]
    Setup(QueueSetup),
    #[error("the device has no address space at {0:#x}")]
    NoMemory(u64),
    #[error("ring: {0}")]
    Ring(#[from] virtio_queue::Error),
    #[error(transparent)]
    Chain(#[from] ChainError),
}

/// The queue of the request is gone: reset, or the function may not send memory requests.
struct Gone;

/// Why a request is not carried out.
enum Failure {
    Gone,
    /// With this status, after so many bytes were written to memory.
    Status(u32, u64),
}

impl From<Gone> for Failure {
    fn from(_: Gone) -> Self {
        Self::Gone
    }
}

/// What processors and the worker both touch.
pub struct State {
    common: CommonConfig,
    queue: Option<Queue>,
    /// Counts the queues that ran; a request belongs to one of them.
    generation: u64,
    bus_master: bool,
}

impl State {
    fn stop(&mut self) {
        self.queue = None;
        self.generation = self.generation.wrapping_add(1);
    }

    fn start(&mut self) -> Result<(), QueueError> {
        let setup = *self.common.queue();
        let queue = queue(&setup, self.common.negotiated(VIRTIO_RING_F_EVENT_IDX));
        self.stop();
        self.queue = Some(queue.ok_or(QueueError::Setup(setup))?);
        Ok(())
    }
}

/// A queue of the driver's making, if its size and alignments are valid. \[V 2.7\]
fn queue(setup: &QueueSetup, event_index: bool) -> Option<Queue> {
    let mut queue = Queue::new(MAX_QUEUE_SIZE).ok()?;
    queue.try_set_size(setup.size).ok()?;
    queue.try_set_desc_table_address(GuestAddress(setup.descriptors)).ok()?;
    queue.try_set_avail_ring_address(GuestAddress(setup.driver)).ok()?;
    queue.try_set_used_ring_address(GuestAddress(setup.device)).ok()?;
    queue.set_event_idx(event_index);
    queue.set_ready(true);
    Some(queue)
}

/// The device behind the PCI function.
pub struct Shared<D> {
    dma: D,
    disk: Disk,
    /// The interrupts.
    pub msix: MsixTable,
    isr: AtomicU8,
    state: Mutex<State>,
    kicked: AtomicBool,
    ending: AtomicBool,
}

impl<D: Dma> Shared<D> {
    pub fn new(dma: D, disk: Disk, common: CommonConfig, msix: MsixTable) -> Self {
        Self {
            dma,
            disk,
            msix,
            isr: AtomicU8::new(0),
            state: Mutex::new(State { common, queue: None, generation: 0, bus_master: false }),
            kicked: AtomicBool::new(false),
            ending: AtomicBool::new(false),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn disk(&self) -> &Disk {
        &self.disk
    }

    /// Reads the common configuration registers.
    pub fn common_read(&self, offset: u64, data: &mut [u8]) {
        self.state().common.read(offset, data);
    }

    /// Writes the common configuration registers. Returns whether the worker has to look.
    pub fn common_write(&self, offset: u64, data: &[u8]) -> bool {
        let mut state = self.state();
        match state.common.write(offset, data) {
            Action::None => return false,
            Action::Reset => {
                state.stop();
                self.isr.store(0, Ordering::Relaxed);
                return false;
            }
            Action::Stop => state.stop(),
            Action::Start => match state.start() {
                Ok(()) => return true,
                Err(error) => self.needs_reset(&mut state, &error),
            },
        }
        false
    }

    /// The interrupt status register: read clears. \[V 4.1.4.5\]
    pub fn take_isr(&self) -> u8 {
        self.isr.swap(0, Ordering::Relaxed)
    }

    /// Bus Master Enable: without it there are neither memory requests nor messages.
    pub fn set_bus_master(&self, enabled: bool) {
        self.state().bus_master = enabled;
    }

    /// Back to the state after power-on. No access of the queue happens any more once this returns.
    pub fn reset(&self) {
        let mut state = self.state();
        state.common.reset();
        state.stop();
        state.bus_master = false;
        self.isr.store(0, Ordering::Relaxed);
        self.msix.reset();
    }

    /// Sends messages that were held back.
    pub fn send(&self, messages: &[Message]) {
        if messages.is_empty() {
            return;
        }
        let state = self.state();
        for message in messages.iter().filter(|_| state.bus_master) {
            self.dma.message(*message);
        }
    }

    /// Notes that the worker has to look; the caller wakes it.
    pub fn kick(&self) {
        self.kicked.store(true, Ordering::Release);
    }

    /// Notes that the worker has to end; the caller wakes it.
    pub fn end(&self) {
        self.ending.store(true, Ordering::Release);
    }

    /// The worker: serves the queue whenever it is kicked, until it has to end.
    pub fn run(&self) {
        let mut bounce = vec![0; BOUNCE_SIZE];
        while !self.ending.load(Ordering::Acquire) {
            if self.kicked.swap(false, Ordering::AcqRel) {
                self.serve_all(&mut bounce);
            } else {
                std::thread::park();
            }
        }
    }

    /// Serves requests until the ring is empty.
    pub fn serve_all(&self, bounce: &mut [u8]) {
        while !self.ending.load(Ordering::Acquire) {
            let Some((request, generation)) = self.take() else { return };
            let (status, written) = match self.serve(&request, generation, bounce) {
                // The status byte follows the data.
                Ok(written) => (VIRTIO_BLK_S_OK, written + 1),
                // Only what was written without a gap counts. [V 2.7.8.2]
                Err(Failure::Status(status, written)) => {
                    let complete = written == request.written_length();
                    (status, if complete { written + 1 } else { written })
                }
                Err(Failure::Gone) => continue,
            };
            self.complete(&request, generation, status, written);
        }
    }

    /// Takes the next request from the ring.
    fn take(&self) -> Option<(Request, u64)> {
        let mut guard = self.state();
        let state = &mut *guard;
        if !state.bus_master {
            return None;
        }
        let queue = state.queue.as_mut()?;
        match next_request(queue, &self.dma) {
            Ok(request) => Some((request?, state.generation)),
            Err(error) => {
                self.needs_reset(state, &error);
                None
            }
        }
    }

    /// Carries a request out. Returns how many bytes of data were written to memory.
    fn serve(&self, request: &Request, generation: u64, bounce: &mut [u8]) -> Result<u64, Failure> {
        let failed = |written| Failure::Status(VIRTIO_BLK_S_IOERR, written);
        let mut data = request.data.clone();
        let length = data.len();
        match request.kind {
            Kind::In => {
                let start = self.disk.offset(request.sector, length).ok_or(failed(0))?;
                let mut done = 0;
                while done < length {
                    let piece = data.split_front(bounce.len());
                    let part = bounce.get_mut(..piece.len() as usize).ok_or(failed(done))?;
                    self.disk.read_at(start + done, part).map_err(|error| self.io_failure(&error, done))?;
                    self.to_memory(generation, &piece, part)?.map_err(|()| failed(done))?;
                    done += piece.len();
                }
                Ok(length)
            }
            Kind::Out => {
                if self.disk.read_only() {
                    return Err(failed(0));
                }
                let start = self.disk.offset(request.sector, length).ok_or(failed(0))?;
                let mut done = 0;
                while done < length {
                    let piece = data.split_front(bounce.len());
                    let part = bounce.get_mut(..piece.len() as usize).ok_or(failed(0))?;
                    self.from_memory(generation, &piece, part)?.map_err(|()| failed(0))?;
                    self.disk.write_at(start + done, part).map_err(|error| self.io_failure(&error, 0))?;
                    done += piece.len();
                }
                if !self.state().common.negotiated(VIRTIO_BLK_F_FLUSH) {
                    // A driver that cannot flush gets a write-through disk. [V 5.2.6.2]
                    self.disk.flush().map_err(|error| self.io_failure(&error, 0))?;
                }
                Ok(0)
            }
            Kind::Flush => {
                self.disk.flush().map_err(|error| self.io_failure(&error, 0))?;
                Ok(0)
            }
            Kind::GetId => {
                let mut id = [0; VIRTIO_BLK_ID_BYTES as usize];
                id[..DISK_ID.len()].copy_from_slice(DISK_ID);
                let piece = data.split_front(id.len());
                self.to_memory(generation, &piece, &id)?.map_err(|()| failed(0))?;
                Ok(piece.len())
            }
            Kind::Unknown(kind) => {
                debug!(kind, "unknown virtio-blk request");
                Err(Failure::Status(VIRTIO_BLK_S_UNSUPP, 0))
            }
        }
    }

    fn io_failure(&self, error: &std::io::Error, written: u64) -> Failure {
        debug!(%error, "disk image");
        Failure::Status(VIRTIO_BLK_S_IOERR, written)
    }

    /// Locks the state for one step of a request.
    fn step(&self, generation: u64) -> Result<MutexGuard<'_, State>, Gone> {
        let state = self.state();
        if state.generation == generation && state.bus_master && state.queue.is_some() {
            Ok(state)
        } else {
            Err(Gone)
        }
    }

    fn to_memory(&self, generation: u64, piece: &Segments, data: &[u8]) -> Result<Result<(), ()>, Gone> {
        let Some(first) = piece.first() else { return Ok(Ok(())) };
        let _state = self.step(generation)?;
        let Some(memory) = self.dma.pin(first) else { return Ok(Err(())) };
        Ok(piece.write(&memory, data).map_err(|error| debug!(%error, "virtio-blk data")))
    }

    #[expect(clippy::wrong_self_convention, reason = "moves data from guest memory; nothing is constructed")]
    fn from_memory(
        &self,
        generation: u64,
        piece: &Segments,
        data: &mut [u8],
    ) -> Result<Result<(), ()>, Gone> {
        let Some(first) = piece.first() else { return Ok(Ok(())) };
        let _state = self.step(generation)?;
        let Some(memory) = self.dma.pin(first) else { return Ok(Err(())) };
        Ok(piece.read(&memory, data).map(drop).map_err(|error| debug!(%error, "virtio-blk data")))
    }

    /// Writes the status, then the used ring, then interrupts if the driver wants it.
    fn complete(&self, request: &Request, generation: u64, status: u32, written: u64) {
        let Ok(mut guard) = self.step(generation) else { return };
        let state = &mut *guard;
        let Some(queue) = state.queue.as_mut() else { return };
        // A chain has less than 2^32 bytes.
        let written = u32::try_from(written).unwrap_or(u32::MAX);
        match complete(queue, &self.dma, request, status as u8, written) {
            Ok(true) => {
                let vector = state.common.queue().vector;
                self.interrupt(state, ISR_QUEUE, vector);
            }
            Ok(false) => {}
            Err(error) => self.needs_reset(state, &error),
        }
    }

    fn needs_reset(&self, state: &mut State, error: &QueueError) {
        debug!(%error, "virtio-blk needs a reset");
        state.stop();
        if state.common.set_needs_reset() {
            let vector = state.common.config_vector();
            self.interrupt(state, ISR_CONFIG, vector);
        }
    }

    /// Sent with the state locked, so that none follows a reset.
    fn interrupt(&self, state: &State, cause: u8, vector: u16) {
        self.isr.fetch_or(cause, Ordering::Relaxed);
        if vector == NO_VECTOR || !state.bus_master {
            return;
        }
        if let Some(message) = self.msix.trigger(vector) {
            self.dma.message(message);
        }
    }
}

/// The next request, or `None` after asking the driver to notify of the next one.
fn next_request<D: Dma>(queue: &mut Queue, dma: &D) -> Result<Option<Request>, QueueError> {
    let ring = queue.avail_ring();
    let memory = dma.pin(ring).ok_or(QueueError::NoMemory(ring))?;
    let size = queue.size();
    if queue.avail_idx(&memory, Ordering::Acquire)?.0 == queue.next_avail()
        && !queue.enable_notification(&memory)?
    {
        return Ok(None);
    }
    // There is an entry: none means that it cannot be read.
    let chain = queue.iter(&memory)?.next().ok_or(QueueError::NoMemory(ring))?;
    Ok(Some(Request::parse(chain, size)?))
}

/// Gives a request back. Returns whether the driver wants an interrupt.
fn complete<D: Dma>(
    queue: &mut Queue,
    dma: &D,
    request: &Request,
    status: u8,
    written: u32,
) -> Result<bool, QueueError> {
    let memory = dma.pin(request.status).ok_or(QueueError::NoMemory(request.status))?;
    memory
        .write_obj(status, GuestAddress(request.status))
        .map_err(|_| QueueError::NoMemory(request.status))?;
    queue.add_used(&memory, request.head, written)?;
    Ok(queue.needs_notification(&memory)?)
}
