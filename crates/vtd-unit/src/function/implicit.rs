// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a page request takes out of the caches on its way, of every function that has the same tags. \[S 6.5.3.1\]
//!
//! Nobody waits for it, so it needs the locks shared alone: an access that has found something before goes on with that, as
//! one that was a moment earlier. What it takes out is not needed for the access that is to be tried again: no cached
//! translation refuses one.

use vtd_spec::{DomainId, Pasid};

use super::key::Key;
use super::state::Cache;
use super::tags::Tags;
use crate::address_space::{Stage, sign_extended};
use crate::request::Requester;

/// What is implied by a page request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Implied {
    domain: DomainId,
    address: u64,
    scope: Scope,
}

/// By the type of translation (PGTT).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scope {
    /// First stage: the page, of one PASID.
    PasidPage(Pasid),
    /// Second stage and pass-through: the page, of the domain.
    DomainPage,
    /// Nested: the domain.
    Domain,
}

impl Implied {
    /// Whether a function with these tags may have something of it.
    pub(super) fn concerns(&self, tags: &Tags) -> bool {
        match self.scope {
            Scope::PasidPage(pasid) => tags.may_hold_pasid(self.domain, pasid),
            Scope::DomainPage | Scope::Domain => tags.may_hold_domain(self.domain),
        }
    }
}

impl Cache {
    /// What a page request implies, if what it takes is cached.
    pub(crate) fn implied(&self, requester: Requester, address: u64) -> Option<Implied> {
        let space = &self.spaces.get(&Key::new(requester.pasid))?.address_space;
        let (address, scope) = match &space.stage {
            Stage::First(first) => (sign_extended(address, first.levels), Scope::PasidPage(space.pasid)),
            Stage::Second(_) | Stage::PassThrough => (address, Scope::DomainPage),
            Stage::Nested(..) => (address, Scope::Domain),
        };
        Some(Implied { domain: space.domain, address, scope })
    }

    /// Forgets it.
    pub(crate) fn forget_implied(&self, implied: Implied) {
        let Implied { domain: id, address, scope } = implied;
        if let Scope::PasidPage(pasid) = scope {
            for key in self.keys_of(id, pasid).into_iter().flatten() {
                self.forget_page(key, address);
            }
            return;
        }
        let Some(domain) = self.domains.get(&id) else { return };
        let mut all_recent = false;
        for key in &domain.keys {
            let Some(bound) = self.spaces.get(key) else { continue };
            match (scope, &bound.address_space.stage) {
                (Scope::DomainPage, Stage::Second(_) | Stage::PassThrough) => self.forget_page(*key, address),
                _ => {
                    bound.forget(&self.iotlb, self.structures.as_ref());
                    all_recent = true;
                }
            }
        }
        match (&self.structures, scope) {
            (Some(structures), Scope::DomainPage) => structures.second.forget_page(&domain.second, address),
            (Some(structures), _) => structures.second.renew(&domain.second),
            (None, _) => {}
        }
        if all_recent {
            self.recent.forget_all();
        }
    }

    fn forget_page(&self, key: Key, address: u64) {
        for device_key in key.of_device() {
            self.recent.forget(device_key, address);
        }
        if let Some(bound) = self.spaces.get(&key) {
            self.iotlb.forget_page(&bound.cached, address);
            if let Some(structures) = &self.structures {
                structures.first.forget_page(&bound.tables, address);
            }
        }
    }
}
