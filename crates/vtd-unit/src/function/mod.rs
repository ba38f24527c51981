// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the unit holds for one function: its caches, and translation through them.
//!
//! The specification tags the context cache, the PASID cache and the IOTLB by source-id, so each function has its
//! own, behind its own lock: functions never wait for each other. An access holds the lock shared from the look-up to
//! the last byte; an invalidation takes it exclusively. So when an invalidation returns, every access that used
//! what it removed has ended, and a fill can not bring back what was removed while it walked.

mod invalidate;
mod recent;
mod resolve;
mod translate;

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use vtd_spec::{DomainId, Pasid, SourceId, TranslationTableMode};

pub(crate) use resolve::{find_context, pasid_of};
pub(crate) use translate::is_interrupt_range;

use crate::context::Context;
use crate::endpoint::{EndpointSink, Requester};
use crate::fault::{AddressType, Blocked};
use crate::notify::Notify;
use crate::pasid::AddressSpace;
use crate::pasid_translation::PasidTranslation;
use crate::statistics::Counters;
use crate::tlb::{Space, Tlb};
use recent::Recent;

/// PASIDs a function may have cached at a time; the cache starts afresh beyond them.
const MAX_SPACES: usize = 1 << 16;

/// The unit-wide state that decides how a request is treated, as each function sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Remapping {
    /// DMA remapping is enabled (GSTS.TES).
    pub enabled: bool,
    /// The latched translation table mode.
    pub mode: TranslationTableMode,
    /// Address of the latched root table.
    pub root_table: u64,
}

/// Sizes of a function's caches.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entries {
    /// Of the IOTLB, and again of the device-TLB.
    pub iotlb: usize,
    /// Of each stage's paging-structure cache.
    pub structures: usize,
}

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

/// PASIDs and domain-ids are small numbers that software hands out in order: spreading them needs one multiplication.
#[derive(Default)]
pub(crate) struct PasidHasher(u64);

impl Hasher for PasidHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u32(u32::from(*byte) ^ (self.0 as u32));
        }
    }

    fn write_u16(&mut self, value: u16) {
        self.write_u32(u32::from(value));
    }

    fn write_u32(&mut self, value: u32) {
        self.0 = u64::from(value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

type Map<V> = HashMap<Key, V, BuildHasherDefault<PasidHasher>>;

/// Names an address space within a function: a PASID, or requests without one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Key(u32);

impl std::hash::Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u32(self.0);
    }
}

impl Key {
    const WITHOUT_PASID: Self = Self(1 << 20);
    const PRIVILEGED: u32 = 1 << 21;

    fn new(pasid: Option<Pasid>) -> Self {
        pasid.map_or(Self::WITHOUT_PASID, |pasid| Self(pasid.get()))
    }

    /// The device-TLB keeps what privileged requests were granted apart.
    fn device(requester: Requester) -> Self {
        let privilege = if requester.privileged { Self::PRIVILEGED } else { 0 };
        Self(Self::new(requester.pasid).0 | privilege)
    }
}

/// What a request is, towards the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RequestKind {
    Untranslated,
    Translation,
    PageRequest,
}

/// Why an access can not go on with what is cached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Miss {
    /// Context or PASID entry are not cached: [`Cache::resolve`] them, then try again.
    Unresolved,
    /// The request is blocked.
    Blocked(Blocked, AddressType),
    /// The translation request succeeded, without the right that is needed.
    PageFault,
}

struct Bound {
    address_space: AddressSpace,
    /// RID_PRIV of the context, for requests without PASID.
    privileged: bool,
    /// Its translations in the IOTLB.
    cached: Space,
    /// Its first-stage tables in the paging-structure cache.
    tables: Space,
}

/// What is cached for a domain-id.
struct Domain {
    /// The spaces that carry it.
    keys: HashSet<Key, BuildHasherDefault<PasidHasher>>,
    /// Its second-stage tables and large pages in the paging-structure cache.
    second: Space,
}

/// The paging-structure caches. Apart from each other, so that the tables of one stage do not push out the other's, however
/// many it has. \[S 6.2.5\]
struct Structures {
    /// Tables of the last two levels of the first stage.
    first: Tlb,
    /// Tables of the last two levels of the second stage, and its large pages.
    second: Tlb,
}

impl Structures {
    fn new(entries: usize) -> Self {
        // What covers 1 GiB is rare.
        let new = || Tlb::new([1, entries, entries / 2]);
        Self { first: new(), second: new() }
    }
}

/// How many translations of each size a cache for `entries` pages of 4 KiB holds.
fn sizes(entries: usize) -> [usize; 3] {
    [entries, entries / 4, entries / 32]
}

/// The caches of one function.
pub(crate) struct Cache {
    pub(crate) remapping: Remapping,
    ats_enabled: bool,
    context: Option<Context>,
    spaces: Map<Bound>,
    domains: HashMap<DomainId, Domain, BuildHasherDefault<PasidHasher>>,
    iotlb: Tlb,
    /// None if the unit is to walk every time.
    structures: Option<Structures>,
    device_tlb: Tlb,
    device_spaces: Map<Space>,
    /// What was used last of either of the two.
    recent: Recent,
    /// Where the device's PASIDs are not the tables'.
    translation: Option<PasidTranslation>,
    pub(crate) counters: Counters,
}

impl Cache {
    fn new(remapping: Remapping, entries: Entries) -> Self {
        Self {
            remapping,
            ats_enabled: false,
            context: None,
            spaces: Map::default(),
            domains: HashMap::default(),
            iotlb: Tlb::new(sizes(entries.iotlb)),
            structures: (entries.structures > 0).then(|| Structures::new(entries.structures)),
            device_tlb: Tlb::new(sizes(entries.iotlb)),
            device_spaces: Map::default(),
            recent: Recent::new(),
            translation: None,
            counters: Counters::default(),
        }
    }

    /// ATS Enable of the function.
    pub(crate) fn set_ats_enabled(&mut self, enabled: bool) {
        self.ats_enabled = enabled;
        self.device_spaces.clear();
    }

    pub(crate) fn ats_enabled(&self) -> bool {
        self.ats_enabled
    }

    /// What an access of the function asks of the tables.
    pub(crate) fn kind(&self) -> RequestKind {
        if self.ats_enabled { RequestKind::Translation } else { RequestKind::Untranslated }
    }

    /// The address type that goes with [`Self::kind`].
    pub(crate) fn address_type(&self) -> AddressType {
        if self.ats_enabled { AddressType::Translation } else { AddressType::Untranslated }
    }
}

impl Bound {
    fn privileged(&self, requester: Requester) -> bool {
        if requester.pasid.is_some() { requester.privileged } else { self.privileged }
    }
}
