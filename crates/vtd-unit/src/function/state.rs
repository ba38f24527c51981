// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The caches of one function, and what names the things in them.

use std::collections::{HashMap, HashSet};
use std::hash::BuildHasherDefault;
use std::sync::Arc;

use vtd_spec::{DomainId, Pasid};

use super::key::{Key, Map, PasidHasher};
use super::pasid_translation::PasidTranslation;
use super::recent::Recent;
use super::tags::Tags;
use crate::address_space::AddressSpace;
use crate::cache::{Space, Tlb};
use crate::config::Entries;
use crate::outcome::{AddressType, Blocked};
use crate::request::Requester;
use crate::statistics::Counters;
use crate::tables::Context;
use crate::unit_state::Remapping;

/// PASIDs a function may have cached at a time; the cache starts afresh beyond them.
pub(super) const MAX_SPACES: usize = 1 << 16;

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

pub(super) struct Bound {
    pub(super) address_space: AddressSpace,
    /// RID_PRIV of the context, for requests without PASID.
    pub(super) privileged: bool,
    /// Its translations in the IOTLB.
    pub(super) cached: Space,
    /// Its first-stage tables in the paging-structure cache.
    pub(super) tables: Space,
}

/// What is cached for a domain-id.
pub(super) struct Domain {
    /// The spaces that carry it.
    pub(super) keys: HashSet<Key, BuildHasherDefault<PasidHasher>>,
    /// Its second-stage tables and large pages in the paging-structure cache.
    pub(super) second: Space,
}

/// The paging-structure caches. Apart from each other, so that the tables of one stage do not push out the other's, however
/// many it has. \[S 6.2.5\]
pub(super) struct Structures {
    /// Tables of the last two levels of the first stage.
    pub(super) first: Tlb,
    /// Tables of the last two levels of the second stage, and its large pages.
    pub(super) second: Tlb,
}

impl Structures {
    pub(super) fn new(entries: usize) -> Self {
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
    pub(super) ats_enabled: bool,
    pub(super) context: Option<Context>,
    pub(super) spaces: Map<Bound>,
    pub(super) domains: HashMap<DomainId, Domain, BuildHasherDefault<PasidHasher>>,
    pub(super) iotlb: Tlb,
    /// None if the unit is to walk every time.
    pub(super) structures: Option<Structures>,
    pub(super) device_tlb: Tlb,
    /// The device-TLB's, of PASIDs that are in `spaces` alone.
    pub(super) device_spaces: Map<Space>,
    /// What was used last of either of the two.
    pub(super) recent: Recent,
    /// Where the device's PASIDs are not the tables'.
    pub(super) translation: Option<PasidTranslation>,
    /// The tags of `spaces`, for those who look without the lock.
    pub(super) tags: Arc<Tags>,
    pub(crate) counters: Counters,
}

impl Cache {
    pub(super) fn new(remapping: Remapping, entries: Entries) -> Self {
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
            tags: Arc::default(),
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

    /// Forgets every PASID, and what the device-TLB has of it: it may be gone from its table, and software that was told
    /// of caching mode need not invalidate the device-TLB then. \[Linux before 6.10: intel_pasid_tear_down_entry\]
    pub(super) fn forget_spaces(&mut self) {
        self.spaces.clear();
        self.domains.clear();
        self.tags.clear();
        self.device_spaces.clear();
    }

    /// What the device-TLB has of one PASID goes, for the same reason. Nothing is in there of a PASID that is not cached.
    pub(super) fn forget_device_spaces(&mut self, key: Key) {
        for key in key.of_device() {
            self.device_spaces.remove(&key);
        }
    }

    /// The PASID of the unit's tables that a PASID of the device stands for; `None` where it stands for none.
    pub(crate) fn host_pasid(&self, device: Option<Pasid>) -> Option<Option<Pasid>> {
        match (&self.translation, device) {
            (Some(translation), Some(pasid)) => translation.host(pasid).map(Some),
            _ => Some(device),
        }
    }

    /// The reverse of [`Self::host_pasid`].
    pub(super) fn device_pasid(&self, host: Pasid) -> Option<Pasid> {
        self.translation.as_ref().map_or(Some(host), |translation| translation.device(host))
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
    pub(super) fn privileged(&self, requester: Requester) -> bool {
        if requester.pasid.is_some() { requester.privileged } else { self.privileged }
    }
}
