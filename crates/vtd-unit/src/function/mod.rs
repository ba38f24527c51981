// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the unit holds for one function: its caches, and translation through them.
//!
//! The specification tags the context cache, the PASID cache and the IOTLB by source-id, so each function has its
//! own, behind its own lock: functions never wait for each other. An access holds the lock shared from the look-up to
//! the last byte; an invalidation takes it exclusively. So when an invalidation returns, every access that used
//! what it removed has ended, and a fill can not bring back what was removed while it walked.

mod invalidate;
mod key;
mod pasid_translation;
mod recent;
mod resolve;
mod state;
mod translate;

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

pub(crate) use resolve::{find_context, pasid_of};
pub(crate) use state::{Cache, Miss, RequestKind};
pub(crate) use translate::is_interrupt_range;
use vtd_spec::SourceId;

use crate::config::Entries;
use crate::endpoint_sink::EndpointSink;
use crate::notify::Notify;
use crate::unit_state::Remapping;

/// One function behind the unit.
#[repr(align(128))]
pub(crate) struct Function {
    pub source_id: SourceId,
    pub sink: Arc<dyn EndpointSink>,
    /// Where its interrupts go.
    pub messages: Arc<dyn Notify>,
    cache: RwLock<Cache>,
}

impl Function {
    pub(crate) fn new(
        source_id: SourceId,
        sink: Arc<dyn EndpointSink>,
        messages: Arc<dyn Notify>,
        remapping: Remapping,
        entries: Entries,
    ) -> Self {
        Self { source_id, sink, messages, cache: RwLock::new(Cache::new(remapping, entries)) }
    }

    /// The caches, for an access.
    pub(crate) fn read(&self) -> RwLockReadGuard<'_, Cache> {
        self.cache.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The caches, for an invalidation: waits for the accesses in flight.
    pub(crate) fn write(&self) -> RwLockWriteGuard<'_, Cache> {
        let mut cache = self.cache.write().unwrap_or_else(PoisonError::into_inner);
        cache.recent.begin_epoch();
        cache
    }
}
