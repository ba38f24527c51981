// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a PCIe function has towards its root complex: DMA, address translation services (ATS) with a
//! translation cache of its own, page requests and messages. Device models see this and nothing more.

use std::sync::Arc;

use vm_memory::bitmap::MS;
use vm_memory::{GuestMemoryBackend, VolatileSlice};
use vtd_spec::{AtsResponse, FaultReason, Pasid, SourceId};

use crate::core::Core;
use crate::function::{Function, Miss, Shared, is_interrupt_range};
use crate::memory::{compare_exchange_u64, slice};
use crate::notify::Message;
use crate::outcome::{AddressType, Blocked, Fault, is_recorded};
use crate::pinned::Pinned;
use crate::request::{Access, DmaError, PageRequest, Requester};
use crate::worker::Worker;

/// A function's port into the unit. Cheap to clone; each clone is the same function.
///
/// ```
/// use std::sync::Arc;
/// use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
/// use vtd_unit::{EndpointSink, Message, Notify, PageGroupResponse, Requester, SourceId, Unit, UnitConfig};
///
/// struct Quiet;
/// impl Notify for Quiet {
///     fn message(&self, _: Message) {}
/// }
/// impl EndpointSink for Quiet {
///     fn page_group_response(&self, _: PageGroupResponse) {}
/// }
///
/// let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x10000)]).unwrap();
/// memory.write_obj(7u32, GuestAddress(0x1000)).unwrap();
/// let unit = Unit::new(&UnitConfig::default(), Arc::new(memory), Arc::new(Quiet)).unwrap();
/// let endpoint = unit.endpoint(SourceId::new(0, 2, 0), Arc::new(Quiet)).unwrap();
/// let mut data = [0; 4];
/// // Remapping is off after power-up: what the device names is a physical address.
/// endpoint.read(Requester::default(), 0x1000, &mut data).unwrap();
/// assert_eq!(data, [7, 0, 0, 0]);
/// ```
pub struct Endpoint<M> {
    core: Arc<Core<M>>,
    function: Arc<Function>,
}

impl<M> Clone for Endpoint<M> {
    fn clone(&self) -> Self {
        Self { core: Arc::clone(&self.core), function: Arc::clone(&self.function) }
    }
}

/// Times that caches may have to be filled again under an access before it shuts invalidations out.
const SHARED_TRIES: usize = 16;

impl<M: GuestMemoryBackend + Send + Sync + 'static> Endpoint<M> {
    pub(crate) fn new(core: Arc<Core<M>>, function: Arc<Function>) -> Self {
        Self { core, function }
    }

    /// The function's source-id.
    pub fn source_id(&self) -> SourceId {
        self.function.source_id
    }

    /// The function's ATS Enable: with it, accesses go through the endpoint's translation cache and translation
    /// requests; without it they are untranslated. Turning it off empties the cache. In effect when this returns, or when
    /// the accesses in flight have ended: a configuration register's writer does not wait for them.
    pub fn set_ats_enabled(&self, enabled: bool) {
        self.function.set_ats_enabled(enabled);
        let function = Arc::clone(&self.function);
        if !Worker::Processor.with(&function, |cache| function.settle_ats(cache)) {
            self.core.executor.execute(Box::new(move || {
                Worker::Executor.with(&function, |cache| function.settle_ats(cache));
            }));
        }
    }

    /// Reads `data.len()` bytes at `address`. May cross pages. A read of nothing is a zero-length read: it is translated, and
    /// faults, as one of a byte would, but needs no right to read where there is one to write. \[S 11.4.2: CAP.ZLR\]
    ///
    /// # Errors
    ///
    /// Why and where it stopped; the bytes before that address have been read.
    pub fn read(&self, requester: Requester, address: u64, data: &mut [u8]) -> Result<(), DmaError> {
        self.each_slice(requester, address, data.len(), Access::Read, |offset, slice| {
            slice.copy_to(&mut data[offset..offset + slice.len()]);
        })
    }

    /// Writes `data` at `address`. May cross pages. One doubleword without PASID in the interrupt range is a message.
    ///
    /// # Errors
    ///
    /// Why and where it stopped; the bytes before that address have been written.
    pub fn write(&self, requester: Requester, address: u64, data: &[u8]) -> Result<(), DmaError> {
        if requester.pasid.is_none()
            && is_interrupt_range(address)
            && address.is_multiple_of(4)
            && let Ok(dword) = <[u8; 4]>::try_from(data)
        {
            self.message(Message { address, data: u32::from_le_bytes(dword) });
            return Ok(());
        }
        self.each_slice(requester, address, data.len(), Access::Write, |offset, slice| {
            slice.copy_from(&data[offset..offset + slice.len()]);
        })
    }

    /// Shows `f` the memory behind `length` bytes at `address`, a piece at a time, in order: each call gets the
    /// offset of the piece in the range and the piece (at most one page of 4 KiB). No invalidation that concerns the
    /// translation completes while `f` runs, so `f` must not block for long. It may use the endpoint.
    ///
    /// # Errors
    ///
    /// Why and where it stopped; `f` has seen everything before that address.
    pub fn access(
        &self,
        requester: Requester,
        address: u64,
        length: usize,
        access: Access,
        f: &mut dyn FnMut(usize, VolatileSlice<'_, MS<'_, M>>),
    ) -> Result<(), DmaError> {
        self.each_slice(requester, address, length, access, |offset, slice| {
            let _held = self.function.hold();
            f(offset, slice);
        })
    }

    /// As [`Self::access`], for an `f` that does not come back here.
    #[inline]
    fn each_slice(
        &self,
        requester: Requester,
        address: u64,
        length: usize,
        access: Access,
        mut f: impl FnMut(usize, VolatileSlice<'_, MS<'_, M>>),
    ) -> Result<(), DmaError> {
        self.each_page(self.function.read(), requester, address, length, access, |offset, output, count| {
            f(offset, slice(&*self.core.memory, output, count).map_err(|_| ())?);
            Ok(())
        })
    }

    /// Checks that the whole range can be accessed, without touching the data (the page tables' accessed and dirty
    /// bits are set as for the access).
    ///
    /// # Errors
    ///
    /// Why and where the access would stop.
    pub fn probe(
        &self,
        requester: Requester,
        address: u64,
        length: usize,
        access: Access,
    ) -> Result<(), DmaError> {
        let in_one_page = length <= 4096 - (address & 0xfff) as usize;
        let cache = self.function.read();
        if in_one_page && cache.recent(requester, address, access).is_some() {
            return Ok(());
        }
        self.each_page(cache, requester, address, length, access, |_, output, count| {
            slice(&*self.core.memory, output, count).map(drop).map_err(|_| ())
        })
    }

    /// Replaces the naturally aligned quadword at `address` by `new` if it is `current`; returns what was found. An
    /// AtomicOp: needs both rights.
    ///
    /// # Errors
    ///
    /// Why it did not happen; an unaligned address is [`DmaError::Refused`].
    pub fn compare_and_swap(
        &self,
        requester: Requester,
        address: u64,
        current: u64,
        new: u64,
    ) -> Result<u64, DmaError> {
        if !address.is_multiple_of(8) {
            return Err(DmaError::Refused { address });
        }
        let mut found = current;
        self.each_page(self.function.read(), requester, address, 8, Access::Atomic, |_, output, _| {
            if let Err(other) =
                compare_exchange_u64(&*self.core.memory, output, current, new).map_err(|_| ())?
            {
                found = other;
            }
            Ok(())
        })?;
        Ok(found)
    }

    /// Holds this function's invalidations off and shows memory as `requester` sees it, for device models that work on
    /// vm-memory's traits. `first` is an address that is about to be accessed: what the fault record names where the
    /// requester has no address space at all.
    ///
    /// # Errors
    ///
    /// Why the requester has none.
    pub fn pin(&self, requester: Requester, first: u64) -> Result<Pinned<'_, M>, DmaError> {
        for _ in 0..SHARED_TRIES {
            let cache = self.function.read();
            if !cache.needs_resolving(requester) {
                return Ok(Pinned::new(&self.core, &self.function, cache, requester));
            }
            if self.function.is_held() {
                let resolved = cache.resolve_apart(
                    &*self.core.memory,
                    &self.core.capabilities,
                    self.source_id(),
                    requester,
                    cache.kind(),
                );
                return match resolved {
                    Ok(()) => Ok(Pinned::new(&self.core, &self.function, cache, requester)),
                    Err(blocked) => {
                        let miss = Miss::Blocked(blocked, cache.address_type());
                        drop(cache);
                        Err(self.refuse(miss, requester, first, Access::Read))
                    }
                };
            }
            drop(cache);
            self.miss(Miss::Unresolved, requester, first, Access::Read)?;
        }
        Err(DmaError::Refused { address: first })
    }

    /// Translates page by page, with the function's caches, and calls `f` with the offset in the range, the output address
    /// and the length of each piece, with invalidations held off. `f` fails where there is no memory.
    #[inline]
    fn each_page<'a>(
        &'a self,
        mut cache: Shared<'a>,
        requester: Requester,
        address: u64,
        length: usize,
        access: Access,
        mut f: impl FnMut(usize, u64, usize) -> Result<(), ()>,
    ) -> Result<(), DmaError> {
        let (memory, capabilities) = (&*self.core.memory, &self.core.capabilities);
        // A read of nothing is a request as well; it is answered without memory.
        let (access, length) = match (access, length) {
            (Access::ZeroLengthRead, _) | (Access::Read, 0) => (Access::ZeroLengthRead, 1),
            other => other,
        };
        let mut reach = |offset, at, output, count| match access {
            Access::ZeroLengthRead => Ok(()),
            _ => f(offset, output, count).map_err(|()| DmaError::Refused { address: at }),
        };
        let mut offset = 0;
        let mut misses = 0;
        while offset < length {
            let at = address.wrapping_add(offset as u64);
            if at < address {
                return Err(DmaError::Refused { address: at });
            }
            let count = (length - offset).min(4096 - (at & 0xfff) as usize);
            match cache.translate(memory, capabilities, requester, at, access) {
                Ok(output) => {
                    reach(offset, at, output, count)?;
                    offset += count;
                }
                // This thread holds the caches already: nobody can fill them now.
                Err(Miss::Unresolved) if self.function.is_held() => {
                    let source_id = self.source_id();
                    match cache.translate_apart(memory, capabilities, source_id, requester, at, access) {
                        Ok(output) => {
                            reach(offset, at, output, count)?;
                            offset += count;
                        }
                        Err(Miss::Unresolved) => {
                            // Unsupported Request, and not logged. [S 4.2.1]
                            return Err(DmaError::TranslationRefused { address: at, completer_abort: false });
                        }
                        Err(miss) => {
                            drop(cache);
                            return Err(self.refuse(miss, requester, at, access));
                        }
                    }
                }
                Err(miss) => {
                    drop(cache);
                    misses += 1;
                    if misses > SHARED_TRIES {
                        // The guest invalidates as fast as this fills: one piece with the guest shut out.
                        let mut exclusive = self.function.write();
                        let kind = exclusive.kind();
                        let result = exclusive
                            .resolve(memory, capabilities, self.source_id(), requester, kind)
                            .map_err(|blocked| Miss::Blocked(blocked, exclusive.address_type()))
                            .and_then(|()| exclusive.translate(memory, capabilities, requester, at, access));
                        match result {
                            Ok(output) => {
                                reach(offset, at, output, count)?;
                                offset += count;
                            }
                            Err(miss) => {
                                drop(exclusive);
                                return Err(self.refuse(miss, requester, at, access));
                            }
                        }
                    } else {
                        self.miss(miss, requester, at, access)?;
                    }
                    cache = self.function.read();
                }
            }
        }
        Ok(())
    }

    /// After a miss, with no lock held: fills what was missing, or says why the access fails.
    #[cold]
    fn miss(&self, miss: Miss, requester: Requester, address: u64, access: Access) -> Result<(), DmaError> {
        let Miss::Unresolved = miss else { return Err(self.refuse(miss, requester, address, access)) };
        let resolved = {
            let mut cache = self.function.write();
            if cache.ats_enabled() && !cache.remapping.enabled {
                // Unsupported Request, and not logged. [S 4.2.1]
                return Err(DmaError::TranslationRefused { address, completer_abort: false });
            }
            let kind = cache.kind();
            let (memory, capabilities) = (&*self.core.memory, &self.core.capabilities);
            cache
                .resolve(memory, capabilities, self.source_id(), requester, kind)
                .map_err(|blocked| Miss::Blocked(blocked, cache.address_type()))
        };
        resolved.map_err(|miss| self.refuse(miss, requester, address, access))
    }

    /// What the function is told of a request that is not carried out; records the fault where one is due.
    #[cold]
    fn refuse(&self, miss: Miss, requester: Requester, address: u64, access: Access) -> DmaError {
        let write = access.writes();
        let Miss::Blocked(blocked, address_type) = miss else {
            return DmaError::PageFault { address, write };
        };
        let response = match address_type {
            AddressType::Translation => Some(blocked.reason.ats_response()),
            _ => None,
        };
        let recoverable = matches!(response, Some(AtsResponse::Success0 | AtsResponse::Effective));
        if is_recorded(blocked.reason, address_type) {
            let host = self.function.read().host_pasid(requester.pasid);
            match host {
                Some(pasid) => {
                    let requester = Requester { pasid, ..requester };
                    let fault = Fault::of_access(
                        self.source_id(),
                        blocked.reason,
                        requester,
                        address,
                        access,
                        address_type,
                    );
                    self.core.record_fault(blocked, &fault);
                }
                None => self.function.sink.pasid_refused(requester, address, access),
            }
        }
        match response {
            None => DmaError::Refused { address },
            Some(_) if recoverable => DmaError::PageFault { address, write },
            Some(response) => DmaError::TranslationRefused {
                address,
                completer_abort: response == AtsResponse::CompleterAbort,
            },
        }
    }

    /// From now on the PASIDs that the device uses stand for PASIDs of the unit's tables that need not be the same, at
    /// first for none: the port of a mediated function. The sink hears PASIDs of the unit's tables. Waits for accesses in
    /// flight, so not to be called with one.
    pub fn translate_pasids(&self) {
        self.function.write().translate_pasids();
    }

    /// Makes a PASID of the device stand for `host` of the unit's tables, or for none. One to one: whatever stood for
    /// `host` before no longer does. No access by the former meaning is in flight when this returns: it waits for them, so it
    /// is not to be called with one.
    pub fn set_pasid_translation(&self, device: Pasid, host: Option<Pasid>) {
        self.function.write().set_pasid_translation(device, host);
    }

    /// Sends a page request. Its group's response comes to the sink.
    pub fn page_request(&self, request: PageRequest) {
        self.core.page_request(&self.function, request);
    }

    /// Sends a message-signalled interrupt: a DWORD write without PASID. In the interrupt range it is an interrupt, remapped
    /// where that is enabled; elsewhere it is a write like any other, whose fate the function does not learn. \[S 3.14\]
    pub fn message(&self, message: Message) {
        if is_interrupt_range(message.address) {
            self.core.interrupt(&self.function, message);
        } else {
            // Posted: recorded where that is due.
            let _ = self.write(Requester::default(), message.address, &message.data.to_le_bytes());
        }
    }

    /// Records a fault that whoever really translates for this function has reported, with the ids of this unit's
    /// software. What the tables' FPD bits say was the reporter's to honour.
    pub fn report_fault(&self, reason: FaultReason, requester: Requester, address: u64, access: Access) {
        let fault =
            Fault::of_access(self.source_id(), reason, requester, address, access, AddressType::Untranslated);
        self.core.record_fault(Blocked::new(reason, false), &fault);
    }

    /// Sends an invalidation completion that answers nothing: what a broken function does. The unit reports an
    /// Invalidation Completion Error. \[S 6.5.2.10\]
    pub fn unsolicited_invalidation_completion(&self) {
        self.core.invalidation_completion_error(self.source_id());
    }
}
