// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The port of a device to guest memory and to the interrupt controllers.

use std::sync::Arc;

use crate::irqfd::IrqfdRouter;
use crate::memory::Memory;
use vm_memory::{GuestMemory, GuestMemoryBackend};
use vtd_unit::{Endpoint, Message, Pinned, Requester, SourceId, SourceIdInUse, Unit};

/// Where a device's memory requests and messages go.
pub trait Dma: Send + Sync + 'static {
    /// Memory at the addresses that the device uses. While it lives, no invalidation that takes back a translation
    /// completes: hold it for a bounded copy, never across blocking or [`Self::message`].
    type Memory<'a>: GuestMemory
    where
        Self: 'a;

    /// Memory for one short access that starts at `first`; `None` where the device has no address space, which is
    /// reported as a fault of `first`.
    fn pin(&self, first: u64) -> Option<Self::Memory<'_>>;

    /// Sends a message-signalled interrupt. Must not call back into the device.
    fn message(&self, message: Message);
}

/// Requests carry the function's source-id and no PASID.
impl<M: GuestMemoryBackend + Send + Sync + 'static> Dma for Endpoint<M> {
    type Memory<'a> = Pinned<'a, M>;

    fn pin(&self, first: u64) -> Option<Pinned<'_, M>> {
        self.pin(Requester::default(), first).ok()
    }

    fn message(&self, message: Message) {
        self.message(message);
    }
}

/// A port of a function whose messages KVM delivers by itself, where they have a route.
pub struct Routed {
    endpoint: Endpoint<Memory>,
    router: Arc<IrqfdRouter>,
}

impl Routed {
    /// The port of the function with this source-id, behind the unit.
    ///
    /// # Errors
    ///
    /// There is one already.
    pub fn new(
        unit: &Unit<Memory>,
        source_id: SourceId,
        router: Arc<IrqfdRouter>,
    ) -> Result<Self, SourceIdInUse> {
        // The device has no ATS: it keeps no translations and asks for no pages.
        Ok(Self { endpoint: unit.endpoint(source_id, Arc::new(()))?, router })
    }
}

impl Dma for Routed {
    type Memory<'a> = Pinned<'a, Memory>;

    fn pin(&self, first: u64) -> Option<Pinned<'_, Memory>> {
        Dma::pin(&self.endpoint, first)
    }

    fn message(&self, message: Message) {
        if !self.router.signal(self.endpoint.source_id(), message) {
            self.endpoint.message(message);
        }
    }
}
