// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A function's view of memory as vm-memory's [`GuestMemory`], for device models built on it (virtio-queue among
//! them): translated, and with invalidations held off for as long as the view lives.

use std::cell::RefCell;
use std::iter::FusedIterator;
use std::sync::Arc;

use vm_memory::bitmap::BS;
use vm_memory::guest_memory::{Error, GuestMemorySliceIterator, Result};
use vm_memory::{
    GuestAddress, GuestMemory, GuestMemoryBackend, GuestMemoryRegion, Permissions, VolatileSlice,
};

use crate::core::Core;
use crate::function::{Function, Held, Miss, Shared};
use crate::notify::{Message, Notify};
use crate::outcome::{Fault, is_recorded};
use crate::request::{Access, Requester};

/// Sends the messages that came up while the caches were locked, once they no longer are.
struct Deferred {
    notify: Arc<dyn Notify>,
    messages: RefCell<Vec<Message>>,
}

impl Drop for Deferred {
    fn drop(&mut self) {
        for message in self.messages.take() {
            self.notify.message(message);
        }
    }
}

/// Memory as one requester of a function sees it; made by [`Endpoint::pin`](crate::Endpoint::pin).
///
/// Every invalidation that concerns the function waits for its end, and the guest with it, but no thread that writes a
/// register. Whoever must keep a pin long ends it when it is recalled
/// ([`EndpointSink::pins_recalled`](crate::EndpointSink::pins_recalled)). An access that the unit blocks is recorded as a fault and reported as
/// [`Error::InvalidGuestAddress`] with the address that the device used.
pub struct Pinned<'a, M> {
    // Dropped in this order: unlock, then send.
    cache: Shared<'a>,
    _held: Held,
    deferred: Deferred,
    core: &'a Core<M>,
    function: &'a Function,
    requester: Requester,
}

impl<'a, M: GuestMemoryBackend + Send + Sync + 'static> Pinned<'a, M> {
    pub(crate) fn new(
        core: &'a Core<M>,
        function: &'a Function,
        cache: Shared<'a>,
        requester: Requester,
    ) -> Self {
        let deferred = Deferred { notify: Arc::clone(&core.notify), messages: RefCell::default() };
        Self { cache, _held: function.hold(), deferred, core, function, requester }
    }

    fn translate(&self, address: u64, access: Access) -> Result<u64> {
        let Core { memory, capabilities, .. } = self.core;
        let (source_id, requester) = (self.function.source_id, self.requester);
        let translated = match self.cache.translate(&**memory, capabilities, requester, address, access) {
            // A pin beside another, which keeps the caches from being filled.
            Err(Miss::Unresolved) => {
                self.cache.translate_apart(&**memory, capabilities, source_id, requester, address, access)
            }
            other => other,
        };
        translated.map_err(|miss| {
            self.deferred.messages.borrow_mut().extend(self.record(miss, address, access));
            Error::InvalidGuestAddress(GuestAddress(address))
        })
    }

    /// Records the fault of a request that is blocked; gives the message that announces it.
    fn record(&self, miss: Miss, address: u64, access: Access) -> Option<Message> {
        let Miss::Blocked(blocked, address_type) = miss else { return None };
        if blocked.suppressed || !is_recorded(blocked.reason, address_type) {
            return None;
        }
        let pasid = self.cache.host_pasid(self.requester.pasid).unwrap_or(self.requester.pasid);
        let requester = Requester { pasid, ..self.requester };
        let fault = Fault::of_access(
            self.function.source_id,
            blocked.reason,
            requester,
            address,
            access,
            address_type,
        );
        self.core.registers().record_fault(&fault)
    }
}

fn access_of(permissions: Permissions) -> Access {
    match permissions {
        Permissions::No | Permissions::Read => Access::Read,
        Permissions::Write => Access::Write,
        Permissions::ReadWrite => Access::Atomic,
    }
}

impl<M: GuestMemoryBackend + Send + Sync + 'static> GuestMemory for Pinned<'_, M> {
    type PhysicalMemory = M;
    type Bitmap = <M::R as GuestMemoryRegion>::B;

    fn check_range(&self, address: GuestAddress, count: usize, access: Permissions) -> bool {
        let mut slices = Slices::new(self, address, count, access);
        slices.all(|slice| slice.is_ok())
    }

    fn get_slices<'a>(
        &'a self,
        address: GuestAddress,
        count: usize,
        access: Permissions,
    ) -> Result<impl GuestMemorySliceIterator<'a, BS<'a, Self::Bitmap>>> {
        Ok(Slices::new(self, address, count, access))
    }
}

/// The memory behind a range, page by page; pages that lie together come as one slice.
struct Slices<'a, M> {
    pinned: &'a Pinned<'a, M>,
    address: u64,
    count: usize,
    access: Access,
    /// Where `address` goes, if that was found while the slice before it was put together: each page is translated, and
    /// a fault recorded, once.
    ahead: Option<Result<u64>>,
}

impl<'a, M> Slices<'a, M> {
    fn new(pinned: &'a Pinned<'a, M>, address: GuestAddress, count: usize, permissions: Permissions) -> Self {
        Self { pinned, address: address.0, count, access: access_of(permissions), ahead: None }
    }
}

impl<'a, M: GuestMemoryBackend + Send + Sync + 'static> Iterator for Slices<'a, M> {
    type Item = Result<VolatileSlice<'a, BS<'a, <M::R as GuestMemoryRegion>::B>>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.count == 0 {
            return None;
        }
        let slice = self.following();
        match &slice {
            Ok(slice) => {
                self.count -= slice.len();
                let next = self.address.checked_add(slice.len() as u64);
                if next.is_none() && self.count != 0 {
                    self.count = 0;
                    return Some(Err(Error::GuestAddressOverflow));
                }
                self.address = next.unwrap_or(0);
            }
            Err(_) => self.count = 0,
        }
        Some(slice)
    }
}

impl<'a, M: GuestMemoryBackend + Send + Sync + 'static> Slices<'a, M> {
    fn following(&mut self) -> Result<VolatileSlice<'a, BS<'a, <M::R as GuestMemoryRegion>::B>>> {
        let first = match self.ahead.take() {
            Some(found) => found?,
            None => self.pinned.translate(self.address, self.access)?,
        };
        let memory = &*self.pinned.core.memory;
        // Regions that touch in the address space need not touch in ours.
        let region = memory.find_region(GuestAddress(first));
        let region = region.ok_or(Error::InvalidGuestAddress(GuestAddress(self.address)))?;
        let room = (region.last_addr().0 - first).saturating_add(1);
        let most = self.count.min(usize::try_from(room).unwrap_or(usize::MAX));
        let mut length = most.min(4096 - (self.address & 0xfff) as usize);
        // What lies together in memory is one slice: atomic accesses and virtio rings want it so.
        while length < most {
            let Some(next) = self.address.checked_add(length as u64) else { break };
            let found = self.pinned.translate(next, self.access);
            if !matches!(found, Ok(output) if Some(output) == first.checked_add(length as u64)) {
                self.ahead = Some(found);
                break;
            }
            length = most.min(length + 4096);
        }
        memory.get_slice(GuestAddress(first), length)
    }
}

impl<M: GuestMemoryBackend + Send + Sync + 'static> FusedIterator for Slices<'_, M> {}

impl<'a, M: GuestMemoryBackend + Send + Sync + 'static>
    GuestMemorySliceIterator<'a, BS<'a, <M::R as GuestMemoryRegion>::B>> for Slices<'a, M>
{
}
