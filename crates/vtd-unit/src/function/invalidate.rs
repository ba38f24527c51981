// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What leaves the caches, by each kind of invalidation. The caller holds them exclusively.

use vtd_spec::{AddressRange, DomainId, Pasid, TranslationTableMode};

use super::key::Key;
use super::state::{Bound, Cache, Structures};
use crate::address_space::{Stage, sign_extended};
use crate::cache::Tlb;
use crate::unit_state::Remapping;

/// Address spaces that one invalidation looks at, and pages in all of them together. Their product is the guest's to
/// choose, and the processor that rings waits for it. Beyond, more is forgotten than was asked for: that costs but once.
const MAX_PROBES: usize = 1 << 10;

impl Cache {
    /// Takes over new unit-wide state and forgets everything.
    pub(crate) fn set_remapping(&mut self, remapping: Remapping) {
        self.remapping = remapping;
        self.invalidate_context();
    }

    /// The function is gone: its ports reach nothing.
    pub(crate) fn retire(&mut self) {
        let mode = TranslationTableMode::Reserved;
        self.set_remapping(Remapping { enabled: true, mode, root_table: 0, interrupts: false });
    }

    /// Context-cache invalidation: also what was found through the context. Guests have been seen to rely on it
    /// (Linux 6.7-rc2 omitted the PASID-cache invalidation after one).
    pub(crate) fn invalidate_context(&mut self) {
        self.context = None;
        self.forget_spaces();
    }

    /// PASID-cache invalidation, global.
    pub(crate) fn invalidate_pasids(&mut self) {
        self.forget_spaces();
    }

    /// PASID-cache invalidation, domain-selective.
    pub(crate) fn invalidate_pasids_of_domain(&mut self, domain: DomainId) {
        for key in self.domains.remove(&domain).into_iter().flat_map(|domain| domain.keys) {
            self.spaces.remove(&key);
            self.forget_device_spaces(key);
        }
    }

    /// PASID-cache invalidation, PASID-selective within domain.
    pub(crate) fn invalidate_pasid(&mut self, domain: DomainId, pasid: Pasid) {
        for key in self.keys_of(domain, pasid).into_iter().flatten() {
            self.spaces.remove(&key);
            self.forget_device_spaces(key);
            if let Some(domain) = self.domains.get_mut(&domain) {
                domain.keys.remove(&key);
            }
        }
    }

    /// The spaces cached for a PASID in a domain: that of requests with it, and that of requests without PASID where
    /// it is RID_PASID.
    pub(super) fn keys_of(&self, domain: DomainId, pasid: Pasid) -> [Option<Key>; 2] {
        let with_pasid = self.device_pasid(pasid).map(|pasid| Key::new(Some(pasid)));
        [with_pasid, Some(Key::WITHOUT_PASID)].map(|key| {
            let key = key?;
            let space = &self.spaces.get(&key)?.address_space;
            (space.domain == domain && space.pasid == pasid).then_some(key)
        })
    }

    /// IOTLB invalidation, global. \[S tables 23, 24 for this and those below\]
    pub(crate) fn invalidate_iotlb(&mut self) {
        if self.spaces.len() + self.domains.len() > MAX_PROBES {
            return self.forget_spaces();
        }
        for bound in self.spaces.values() {
            bound.forget(&self.iotlb, self.structures.as_ref());
        }
        if let Some(structures) = &self.structures {
            for domain in self.domains.values() {
                structures.second.renew(&domain.second);
            }
        }
    }

    /// IOTLB invalidation of a domain: all of it, or of second-stage and pass-through translations only the pages of a
    /// range; everything that a first stage has a part in goes in either case.
    pub(crate) fn invalidate_iotlb_of_domain(&mut self, domain_id: DomainId, range: Option<AddressRange>) {
        let Some(domain) = self.domains.get_mut(&domain_id) else { return };
        if domain.keys.len() > MAX_PROBES {
            return self.invalidate_pasids_of_domain(domain_id);
        }
        let range = range.filter(|range| domain.keys.len() << range.order().min(16) <= MAX_PROBES);
        match (range, &mut self.structures) {
            (_, None) => {}
            (Some(range), Some(structures)) => structures.second.invalidate_pages(&mut domain.second, range),
            (None, Some(structures)) => structures.second.renew(&domain.second),
        }
        for key in &domain.keys {
            let Some(bound) = self.spaces.get_mut(key) else { continue };
            match (range, bound.address_space.stage) {
                (Some(range), Stage::PassThrough | Stage::Second(_)) => {
                    self.iotlb.invalidate_pages(&mut bound.cached, range);
                }
                _ => bound.forget(&self.iotlb, self.structures.as_ref()),
            }
        }
    }

    /// PASID-based IOTLB invalidation: all of the PASID, or the pages of a range; with `leaf_only` the tables on the
    /// way to them stay.
    pub(crate) fn invalidate_pasid_iotlb(
        &mut self,
        domain: DomainId,
        pasid: Pasid,
        range: Option<AddressRange>,
        leaf_only: bool,
    ) {
        for key in self.keys_of(domain, pasid).into_iter().flatten() {
            let Some(bound) = self.spaces.get_mut(&key) else { continue };
            match (range, bound.address_space.stage) {
                (Some(_), Stage::PassThrough | Stage::Second(_)) => {}
                (Some(range), Stage::First(first) | Stage::Nested(first, _)) => {
                    let range = AddressRange::new(sign_extended(range.base(), first.levels), range.order());
                    self.iotlb.invalidate_pages(&mut bound.cached, range);
                    if let Some(structures) = self.structures.as_mut().filter(|_| !leaf_only) {
                        structures.first.invalidate_pages(&mut bound.tables, range);
                    }
                }
                (None, _) => bound.forget(&self.iotlb, self.structures.as_ref()),
            }
        }
    }

    /// Device-TLB invalidation: of one PASID's translations, of those of requests without PASID, or of all.
    pub(crate) fn invalidate_device_tlb(&mut self, scope: Option<Option<Pasid>>, range: AddressRange) {
        match scope {
            // All of it, whatever the range, for the reason that MAX_PROBES has.
            None => self.device_spaces.clear(),
            Some(pasid) => {
                // A PASID that no device PASID stands for has nothing in the device's cache.
                let Some(pasid) = pasid.map_or(Some(None), |host| self.device_pasid(host).map(Some)) else {
                    return;
                };
                let device_tlb = &mut self.device_tlb;
                // As the descriptor has it, and as a device that was told another number of levels would.
                let forms = [range.base(), sign_extended(range.base(), 4), sign_extended(range.base(), 5)];
                for key in Key::new(pasid).of_device() {
                    let Some(space) = self.device_spaces.get_mut(&key) else { continue };
                    for (index, base) in forms.into_iter().enumerate() {
                        if !forms[..index].contains(&base) {
                            device_tlb.invalidate_pages(space, AddressRange::new(base, range.order()));
                        }
                    }
                }
            }
        }
    }
}

impl Bound {
    /// Forgets what both caches have of the space.
    pub(super) fn forget(&self, iotlb: &Tlb, structures: Option<&Structures>) {
        iotlb.renew(&self.cached);
        if let Some(structures) = structures {
            structures.first.renew(&self.tables);
        }
    }
}
