// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Names of domains: a driver's, and a unit's.

use alloc::vec::Vec;

use vtd_spec::{AddressWidth, Capabilities, DomainId, FirstStagePagingMode};

use crate::error::Error;

/// Domain-id of all first-stage tables that are not a domain's own, and of pass-through (Linux
/// pasid.h:FLPT_DEFAULT_DID).
pub(crate) const FIRST_STAGE_DID: DomainId = DomainId(1);

/// The stage that a domain's table is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stage {
    /// First stage: the processor's format.
    First(FirstStagePagingMode),
    /// Second stage. The width may exceed the unit's: the levels that it lacks are skipped, and what only they could reach
    /// is out of range.
    Second(AddressWidth),
}

/// A domain of one unit. Never used again for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DomainHandle(pub(crate) u64);

/// Domain-ids: 0 belongs to hardware in caching mode, 1 to tables that are no domain's.
pub(crate) struct DomainIds {
    pub(crate) used: Vec<u64>,
    pub(crate) limit: u32,
}

impl DomainIds {
    pub(crate) fn new(capabilities: &Capabilities) -> Self {
        let used = alloc::vec![1 | 1 << FIRST_STAGE_DID.0];
        Self { used, limit: u32::from(capabilities.did_mask()) + 1 }
    }

    pub(crate) fn allocate(&mut self) -> Result<DomainId, Error> {
        let word = match self.used.iter().position(|word| *word != u64::MAX) {
            Some(word) => word,
            None => {
                self.used.push(0);
                self.used.len() - 1
            }
        };
        let bit = self.used[word].trailing_ones();
        let id = word as u32 * 64 + bit;
        if id >= self.limit {
            return Err(Error::NoDomainId);
        }
        self.used[word] |= 1 << bit;
        Ok(DomainId(id as u16))
    }

    pub(crate) fn free(&mut self, id: DomainId) {
        if let Some(word) = self.used.get_mut(usize::from(id.0 / 64)) {
            *word &= !(1 << (id.0 % 64));
        }
    }
}
