// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The second-stage walk: EPT-like tables of 3, 4 and 5 levels. \[S 3.7, 9.8\]

use vm_memory::GuestMemoryBackend;
use vtd_spec::{FaultReason, SecondStageEntry};

use super::walk::{UpdateFaults, Walker};
use crate::address_space::SecondStage;
use crate::cache::{PageSize, Translation};
use crate::rights;

/// A right that marks what is cached for 2 MiB or 1 GiB as the table of the level below rather than a page.
const IS_TABLE: u64 = 1 << 11;

const UPDATE: UpdateFaults = UpdateFaults { not_snooped: FaultReason::Sss5, failed: FaultReason::Sss6 };

impl<M: GuestMemoryBackend + ?Sized> Walker<'_, M> {
    /// Translates through the second stage. Sets accessed bits, and the dirty bit of the leaf where `write` is asked
    /// for and permitted; lacking permission is not a fault here, but seen in the rights that are returned. `keep` says
    /// whether the table of the last level is worth a place in the cache.
    pub(crate) fn second_stage(
        &self,
        second: &SecondStage,
        address: u64,
        write: bool,
        keep: bool,
    ) -> Result<Translation, FaultReason> {
        if address > second.max_input(self.capabilities) {
            return Err(FaultReason::Sgn5);
        }
        let mut start = (second.width.levels(), second.table, rights::READ | rights::SECOND_WRITE);
        let cached = self.second.filter(|_| !self.refresh);
        if let Some(hit) = cached.and_then(|cached| cached.tlb.lookup(cached.space, address)) {
            // A write that owes a dirty bit walks.
            let enough = rights::SECOND_WRITE | rights::DIRTY;
            if hit.rights() & IS_TABLE != 0 {
                start = (hit.size().table_level(), hit.page(), hit.rights() & !IS_TABLE);
            } else if !write || hit.rights() & enough == enough {
                return Ok(hit);
            }
        }
        let (first_level, mut table, mut granted) = start;
        for level in (1..=first_level).rev() {
            let at = table | (address >> (12 + 9 * (u32::from(level) - 1)) & 0x1ff) << 3;
            let top = level == second.width.levels();
            let bits = self
                .second_tables
                .load_u64(at)
                .map_err(|_| if top { FaultReason::Sss4 } else { FaultReason::Sss1 })?;
            let (entry, here) = self.settle(at, bits, second.snooped, UPDATE, |bits| {
                let entry = SecondStageEntry::from_bits(bits);
                if !entry.present(false) {
                    return Err(FaultReason::Sss2);
                }
                if entry.reserved(level, false, self.capabilities) {
                    return Err(FaultReason::Sss3);
                }
                let mut here = granted;
                if !entry.read(false) {
                    here &= !rights::READ;
                }
                if !entry.write(false) {
                    here &= !rights::SECOND_WRITE;
                }
                if here == 0 {
                    return Err(FaultReason::Sss2);
                }
                let mut owed = entry;
                if second.ade {
                    owed = owed.with_a(true);
                    if entry.is_leaf(level) && write && here & rights::SECOND_WRITE != 0 {
                        owed = owed.with_d(true);
                    }
                }
                Ok((owed.into_bits(), (owed, here)))
            })?;
            granted = here;
            if entry.is_leaf(level) {
                let size = PageSize::of_level(level);
                if !second.ade || entry.d() {
                    granted |= rights::DIRTY;
                }
                let found = Translation::new(entry.address(level), size, granted);
                // Pages of 4 KiB are many, and with their table cached one load away.
                if let Some(cached) = self.second.filter(|_| size != PageSize::Size4K) {
                    cached.tlb.fill(cached.space, address, found);
                }
                return Ok(found);
            }
            table = entry.address(level);
            // Tables of 2 MiB are as many as what is mapped, those of 1 GiB are few.
            if let Some(cached) = self.second.filter(|_| level == 3 || keep && level == 2) {
                let (size, rights) = (PageSize::of_level(level), granted | IS_TABLE);
                cached.tlb.fill(cached.space, address, Translation::new(table, size, rights));
            }
        }
        // The last level always is a leaf.
        Err(FaultReason::Sss1)
    }
}
