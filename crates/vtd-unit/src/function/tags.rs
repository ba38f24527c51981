// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a function may have cached, told without its lock: whoever looks for one tag passes most functions by, and takes
//! nothing from those that are at work.

use std::sync::atomic::{AtomicU64, Ordering};

use vtd_spec::{DomainId, Pasid};

const WORDS: usize = 8;

/// A set of numbers that may hold more than was put in. Written when an address space is cached, which is rare.
#[derive(Debug, Default)]
struct Filter([AtomicU64; WORDS]);

impl Filter {
    fn place(number: u32) -> (usize, u64) {
        let bit = number.wrapping_mul(0x9e37_79b9) >> 23;
        (bit as usize / 64, 1 << (bit % 64))
    }

    fn add(&self, number: u32) {
        let (word, bit) = Self::place(number);
        self.0[word].fetch_or(bit, Ordering::Relaxed);
    }

    fn may_hold(&self, number: u32) -> bool {
        let (word, bit) = Self::place(number);
        self.0[word].load(Ordering::Relaxed) & bit != 0
    }

    fn clear(&self) {
        self.0.iter().for_each(|word| word.store(0, Ordering::Relaxed));
    }
}

/// The domain-ids, and the PASIDs within them, that a function has cached, and maybe others.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(super) struct Tags {
    domains: Filter,
    pasids: Filter,
}

impl Tags {
    fn pasid(domain: DomainId, pasid: Pasid) -> u32 {
        pasid.get() ^ u32::from(domain.0) << 12
    }

    pub(super) fn add(&self, domain: DomainId, pasid: Pasid) {
        self.domains.add(domain.0.into());
        self.pasids.add(Self::pasid(domain, pasid));
    }

    pub(super) fn clear(&self) {
        self.domains.clear();
        self.pasids.clear();
    }

    pub(super) fn may_hold_domain(&self, domain: DomainId) -> bool {
        self.domains.may_hold(domain.0.into())
    }

    pub(super) fn may_hold_pasid(&self, domain: DomainId, pasid: Pasid) -> bool {
        self.pasids.may_hold(Self::pasid(domain, pasid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_put_in_is_held_and_most_else_is_not() {
        let tags = Tags::default();
        let pasids = || (0..20).map(|number| (DomainId(1 + number % 2), Pasid::truncated(number.into())));
        pasids().for_each(|(domain, pasid)| tags.add(domain, pasid));
        assert!(pasids().all(|(domain, pasid)| tags.may_hold_pasid(domain, pasid)));
        assert!([1, 2].iter().all(|domain| tags.may_hold_domain(DomainId(*domain))));
        let others = |domain| (100..1100).filter(move |n| tags_hold(domain, *n));
        fn tags_hold(domain: &Tags, number: u32) -> bool {
            domain.may_hold_pasid(DomainId(1), Pasid::truncated(number))
        }
        assert!(others(&tags).count() < 100, "{}", others(&tags).count());
        assert!((3..1000).filter(|domain| tags.may_hold_domain(DomainId(*domain))).count() < 20);
        tags.clear();
        assert!(!pasids().any(|(domain, pasid)| tags.may_hold_pasid(domain, pasid)));
    }
}
