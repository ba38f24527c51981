// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a function may have cached, told without its lock: whoever looks for one tag passes most functions by, and takes
//! nothing from those that are at work.

use vtd_spec::{DomainId, Pasid};

use crate::sync::atomic::{AtomicU64, Ordering};

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
pub(crate) struct Tags {
    domains: Filter,
    pasids: Filter,
}

impl Tags {
    fn pasid(domain: DomainId, pasid: Pasid) -> u32 {
        pasid.get() ^ u32::from(domain.0) << 12
    }

    pub(crate) fn add(&self, domain: DomainId, pasid: Pasid) {
        self.domains.add(domain.0.into());
        self.pasids.add(Self::pasid(domain, pasid));
    }

    pub(crate) fn clear(&self) {
        self.domains.clear();
        self.pasids.clear();
    }

    pub(crate) fn may_hold_domain(&self, domain: DomainId) -> bool {
        self.domains.may_hold(domain.0.into())
    }

    pub(crate) fn may_hold_pasid(&self, domain: DomainId, pasid: Pasid) -> bool {
        self.pasids.may_hold(Self::pasid(domain, pasid))
    }
}
