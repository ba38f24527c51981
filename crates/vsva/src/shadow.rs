// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What is attached for one function: the guest's PASID entries as they were last read, and the host's PASIDs that
//! stand for them.

use std::collections::{BTreeMap, HashMap, HashSet};

use vtd_spec::{DomainId, Pasid};
use vtd_unit::{Binding, FirstStageTable, RequestsWithoutPasid, Translation};

use crate::host::Attachment;

/// One PASID of the guest that is bound on the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bound {
    /// The host's PASID.
    pub host: Pasid,
    /// The guest's domain-id, which its invalidations name.
    pub domain: DomainId,
    /// What it is attached to.
    pub attachment: Attachment,
}

/// What requests without PASID are attached to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WithoutPasid {
    /// Nothing: blocked.
    Blocked,
    /// An attachment; with the guest's RID_PASID and domain-id where an entry of the guest stands behind it.
    Attached(Attachment, Option<(Pasid, DomainId)>),
}

impl WithoutPasid {
    pub(crate) fn attachment(self) -> Option<Attachment> {
        match self {
            Self::Blocked => None,
            Self::Attached(to, _) => Some(to),
        }
    }

    /// RID_PASID and domain-id of the entry behind it.
    pub(crate) fn entry(self) -> Option<(Pasid, DomainId)> {
        match self {
            Self::Blocked => None,
            Self::Attached(_, entry) => entry,
        }
    }
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Shadow {
    pub without_pasid: WithoutPasid,
    bound: BTreeMap<Pasid, Bound>,
    guests: HashMap<Pasid, Pasid>,
    /// Page request groups that wait for the guest's answer.
    outstanding: HashMap<(Option<Pasid>, u16), Outstanding>,
    /// PASIDs of the guest that are no longer bound while groups of theirs still wait for its answer, and how often: the
    /// host's PASID must not stand for another before they have it.
    lingering: HashMap<Pasid, usize>,
    /// Those of them whose device-TLB was invalidated since the last wait descriptor: a drain, if the next one says so.
    draining: HashSet<Pasid>,
}

/// What the host calls a page request group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Outstanding {
    /// Its PASID.
    pub host: Option<Pasid>,
    /// What came with the last request.
    pub cookie: u64,
}

/// Page request groups that may wait for a guest at a time: as many as there are group indices.
const MAX_OUTSTANDING: usize = 512;

impl Shadow {
    pub(crate) fn new() -> Self {
        Self {
            without_pasid: WithoutPasid::Blocked,
            bound: BTreeMap::new(),
            guests: HashMap::new(),
            outstanding: HashMap::new(),
            lingering: HashMap::new(),
            draining: HashSet::new(),
        }
    }

    pub(crate) fn bound(&self, guest: Pasid) -> Option<Bound> {
        self.bound.get(&guest).copied()
    }

    /// The guest's PASIDs that are bound, those from `first` on, in order.
    pub(crate) fn guests_from(&self, first: Pasid) -> impl Iterator<Item = (Pasid, &Bound)> {
        self.bound.range(first..).map(|(guest, bound)| (*guest, bound))
    }

    pub(crate) fn len(&self) -> usize {
        self.bound.len()
    }

    /// The guest's PASID that one of the host stands for.
    pub(crate) fn guest(&self, host: Pasid) -> Option<Pasid> {
        self.guests.get(&host).copied()
    }

    pub(crate) fn insert(&mut self, guest: Pasid, bound: Bound) {
        self.guests.insert(bound.host, guest);
        self.bound.insert(guest, bound);
    }

    pub(crate) fn remove(&mut self, guest: Pasid) -> Option<Bound> {
        let bound = self.bound.remove(&guest)?;
        self.guests.remove(&bound.host);
        Some(bound)
    }

    /// Notes that a group waits for the guest; false where too many do, or this one does already.
    pub(crate) fn open_group(&mut self, guest: Option<Pasid>, group: u16, host: Outstanding) -> bool {
        if self.outstanding.len() >= MAX_OUTSTANDING || self.outstanding.contains_key(&(guest, group)) {
            return false;
        }
        self.outstanding.insert((guest, group), host);
        true
    }

    /// A group that the guest has answered; `None` where none waits under these numbers.
    pub(crate) fn close_group(&mut self, guest: Option<Pasid>, group: u16) -> Option<Outstanding> {
        self.outstanding.remove(&(guest, group))
    }

    /// A PASID is no longer bound: whether groups of it still wait for the guest's answer, as they do on a device whose
    /// process dies.
    pub(crate) fn linger(&mut self, guest: Pasid) -> bool {
        let waits = self.waits(guest);
        if waits {
            *self.lingering.entry(guest).or_default() += 1;
        }
        waits
    }

    fn waits(&self, guest: Pasid) -> bool {
        self.outstanding.keys().any(|(pasid, _)| *pasid == Some(guest))
    }

    /// After a group was closed: how often the host's PASID is to be given back, with the last one answered.
    pub(crate) fn settled(&mut self, guest: Pasid) -> usize {
        if self.lingering.is_empty() || self.waits(guest) {
            return 0;
        }
        self.draining.remove(&guest);
        self.lingering.remove(&guest).unwrap_or(0)
    }

    /// The device-TLB of a PASID is invalidated.
    pub(crate) fn note_drain(&mut self, guest: Pasid) {
        if self.lingering.contains_key(&guest) {
            self.draining.insert(guest);
        }
    }

    /// A wait descriptor follows: the PASIDs that it drains, if it does.
    pub(crate) fn take_drained(&mut self, page_request_drain: bool) -> Vec<Pasid> {
        let drained = self.draining.drain().collect();
        if page_request_drain { drained } else { Vec::new() }
    }

    /// All PASIDs that linger.
    pub(crate) fn lingering(&self) -> Vec<Pasid> {
        self.lingering.keys().copied().collect()
    }

    /// Forgets the groups of a PASID that will not be answered any more; all of them for `None`.
    pub(crate) fn close_groups_of(&mut self, guest: Option<Option<Pasid>>) -> Vec<(u16, Outstanding)> {
        let mut closed = Vec::new();
        self.outstanding.retain(|(pasid, group), host| {
            let close = guest.is_none_or(|guest| guest == *pasid);
            if close {
                closed.push((*group, *host));
            }
            !close
        });
        closed
    }
}

/// What an entry of the guest asks the host for; `None` for one that no host can stand in for.
pub(crate) fn attachment(binding: &Binding) -> Option<Attachment> {
    match binding.translation {
        Translation::PassThrough => Some(Attachment::SecondStage),
        Translation::FirstStage(table) => Some(Attachment::Nested(FirstStageTable { ..table })),
        // A unit that offers its guest second stages of its own keeps them to itself.
        Translation::SecondStage => None,
    }
}

/// What the guest's state asks for requests without PASID.
pub(crate) fn without_pasid(requests: &RequestsWithoutPasid) -> WithoutPasid {
    match requests {
        RequestsWithoutPasid::NotRemapped => WithoutPasid::Attached(Attachment::SecondStage, None),
        RequestsWithoutPasid::Blocked => WithoutPasid::Blocked,
        RequestsWithoutPasid::Remapped(binding) => match attachment(binding) {
            Some(to) => WithoutPasid::Attached(to, Some((binding.pasid, binding.domain))),
            None => WithoutPasid::Blocked,
        },
    }
}
