// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the unit holds for one function: its caches, and translation through them.
//!
//! The specification tags the context cache, the PASID cache and the IOTLB by source-id, so each function has its
//! own, behind its own lock: functions never wait for each other. An access holds the lock shared from the look-up to
//! the last byte; an invalidation takes it exclusively. So when an invalidation returns, every access that used
//! what it removed has ended, and a fill can not bring back what was removed while it walked.

mod apart;
mod held;
mod implicit;
mod invalidate;
mod key;
mod pasid_translation;
mod recent;
mod resolve;
mod state;
mod tags;
mod translate;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam_utils::CachePadded;
pub(crate) use held::Held;
pub(crate) use implicit::Implied;
use parking_lot::{RwLock, RwLockReadGuard, RwLockWriteGuard};
pub(crate) use resolve::{find_context, pasid_of};
pub(crate) use state::{Cache, Miss, RequestKind};
pub(crate) use tags::Tags;
pub(crate) use translate::is_interrupt_range;
use vtd_spec::SourceId;

use crate::config::Entries;
use crate::endpoint_sink::EndpointSink;
use crate::notify::Notify;
use crate::unit_state::Remapping;

/// The caches for an access.
pub(crate) type Shared<'a> = RwLockReadGuard<'a, Cache>;

/// How often someone who must not wait looks whether an access has ended: most take no longer than that.
const LOOKS: usize = 64;

/// One function behind the unit.
pub(crate) struct Function {
    pub source_id: SourceId,
    pub sink: Arc<dyn EndpointSink>,
    /// Where its interrupts go.
    pub messages: Arc<dyn Notify>,
    /// ATS Enable as last set; the caches follow.
    ats_enabled: AtomicBool,
    tags: Arc<Tags>,
    /// Apart from what others look at: each access writes the lock's word.
    cache: CachePadded<RwLock<Cache>>,
}

impl Function {
    pub(crate) fn new(
        source_id: SourceId,
        sink: Arc<dyn EndpointSink>,
        messages: Arc<dyn Notify>,
        remapping: Remapping,
        entries: Entries,
    ) -> Self {
        let cache = Cache::new(remapping, entries);
        let (tags, ats_enabled) = (Arc::clone(&cache.tags), AtomicBool::new(false));
        Self { source_id, sink, messages, ats_enabled, tags, cache: RwLock::new(cache).into() }
    }

    /// The caches, for an access.
    #[inline]
    pub(crate) fn read(&self) -> Shared<'_> {
        match self.cache.try_read() {
            Some(cache) => cache,
            None => self.read_behind_another(),
        }
    }

    /// Somebody changes the caches, or waits to do so; then accesses wait in turn, unless the one who waits does so for this
    /// very thread.
    #[cold]
    fn read_behind_another(&self) -> Shared<'_> {
        if self.is_held() { self.cache.read_recursive() } else { self.cache.read() }
    }

    /// Forgets what a page request of any function implies. Waits for whoever changes the caches at the moment, and never for
    /// those who hold them.
    pub(crate) fn forget_implied(&self, implied: Implied) {
        if implied.concerns(&self.tags) {
            self.cache.read_recursive().forget_implied(implied);
        }
    }

    /// The caches, for an invalidation: waits for the accesses in flight. Not on a thread that holds them.
    pub(crate) fn write(&self) -> RwLockWriteGuard<'_, Cache> {
        let mut cache = self.cache.write();
        cache.recent.begin_epoch();
        cache
    }

    /// As [`Self::write`] for someone who must not wait; `None` where there are accesses in flight.
    pub(crate) fn try_write(&self) -> Option<RwLockWriteGuard<'_, Cache>> {
        for _ in 0..LOOKS {
            if let Some(mut cache) = self.cache.try_write() {
                cache.recent.begin_epoch();
                return Some(cache);
            }
            std::hint::spin_loop();
        }
        None
    }

    /// As [`Self::write`]; the function is told that somebody waits, so that it ends what it does not have to hold.
    pub(crate) fn write_recalling(&self) -> RwLockWriteGuard<'_, Cache> {
        if let Some(cache) = self.try_write() {
            return cache;
        }
        self.sink.pins_recalled();
        self.write()
    }

    /// Says that this thread holds the caches shared while code runs that may come back here.
    pub(crate) fn hold(&self) -> Held {
        Held::new(self.id())
    }

    /// Whether this thread does.
    pub(crate) fn is_held(&self) -> bool {
        held::holds(self.id())
    }

    fn id(&self) -> usize {
        std::ptr::from_ref(self).addr()
    }

    /// ATS Enable, which the caches learn by [`Self::settle_ats`].
    pub(crate) fn set_ats_enabled(&self, enabled: bool) {
        self.ats_enabled.store(enabled, Ordering::Release);
    }

    /// Whoever comes last brings the newest state.
    pub(crate) fn settle_ats(&self, cache: &mut Cache) {
        cache.set_ats_enabled(self.ats_enabled.load(Ordering::Acquire));
    }
}
