// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The first-stage walk: the processor's 4- and 5-level page tables, with accessed and dirty bits, alone or nested on
//! a second stage. \[S 3.6, 3.8, 9.7\]

use vm_memory::GuestMemoryBackend;
use vtd_spec::{FaultReason, FirstStageEntry};

use super::walk::{Purpose, UpdateFaults, Walker};
use crate::address_space::{FirstStage, SecondStage, Stage};
use crate::cache::{PageSize, Translation};
use crate::rights;

/// A table as a walk has reached it: its host address, and whether a second stage lets entries in it be updated.
#[derive(Clone, Copy)]
struct Table {
    page: u64,
    writable: bool,
}

const UPDATE: UpdateFaults = UpdateFaults { not_snooped: FaultReason::Sfs9, failed: FaultReason::Sfs10 };

impl<M: GuestMemoryBackend + ?Sized> Walker<'_, M> {
    /// Translates a canonical `address` through the first stage and, with `second`, through the second. Sets the
    /// accessed bit of each entry used, and the dirty bit of the leaf where a write is asked for and permitted by all
    /// stages. \[Order of checks as reference D.6\]
    pub(crate) fn first_stage(
        &self,
        first: &FirstStage,
        second: Option<&SecondStage>,
        address: u64,
        purpose: Purpose,
    ) -> Result<Translation, FaultReason> {
        let (mut level, mut table, mut granted) = match self.cached_table(address) {
            Some(cached) => cached,
            None => {
                (first.levels, self.table(second, first.table, FaultReason::Sfs6)?, rights::NO_FIRST_STAGE)
            }
        };
        loop {
            let at = table.page | (address >> (12 + 9 * (u32::from(level) - 1)) & 0x1ff) << 3;
            let top = level == first.levels;
            let bits = self
                .first_tables
                .load_u64(at)
                .map_err(|_| if top { FaultReason::Sfs4 } else { FaultReason::Sfs1 })?;
            let (entry, here, page) = self.settle(at, bits, first.snooped, UPDATE, |bits| {
                let entry = FirstStageEntry::from_bits(bits);
                if !entry.p() {
                    return Err(FaultReason::Sfs2);
                }
                if entry.reserved(level, self.capabilities) {
                    return Err(FaultReason::Sfs3);
                }
                let mut here = granted;
                if !entry.us() {
                    here &= !rights::USER;
                }
                if !entry.rw() {
                    here &= !rights::WRITE;
                }
                let mut owed = entry.with_a(true);
                if first.eafe {
                    owed = owed.with_ea(true);
                }
                if second.is_some_and(|second| entry.address(level) > second.max_input(self.capabilities)) {
                    return Err(FaultReason::Sfs5);
                }
                let updatable = |owed| {
                    if owed == entry || first.snooped && table.writable {
                        Ok(())
                    } else {
                        Err(if first.snooped { FaultReason::Sfs8 } else { FaultReason::Sfs9 })
                    }
                };
                updatable(owed)?;
                let mut page = None;
                if entry.is_leaf(level) {
                    let Purpose { read, write, privileged, all_or_nothing } = purpose;
                    first.permits(here, write && all_or_nothing, privileged)?;
                    let write = write && first.permits(here, true, privileged).is_ok();
                    let found = self.page(second, entry, level, address, write)?;
                    if all_or_nothing {
                        Stage::second_permits(found.rights(), read, write)?;
                    }
                    if write && found.rights() & rights::SECOND_WRITE != 0 {
                        owed = owed.with_d(true);
                    }
                    updatable(owed)?;
                    page = Some(found);
                }
                Ok((owed.into_bits(), (owed, here, page)))
            })?;
            granted = here;
            if let Some(page) = page {
                let dirty = if entry.d() { page.rights() & rights::DIRTY } else { 0 };
                let rights = granted | page.rights() & !rights::DIRTY | dirty;
                return Ok(page.with_rights(rights));
            }
            table = self.table(second, entry.address(level), FaultReason::Sfs7)?;
            level -= 1;
            self.cache_table(address, level, table, granted);
        }
    }

    /// Where the table at `address` lies. \[S 3.8: `unreadable` is SFS.6 for the top table, SFS.7 for others\]
    fn table(
        &self,
        second: Option<&SecondStage>,
        address: u64,
        unreadable: FaultReason,
    ) -> Result<Table, FaultReason> {
        let Some(second) = second else { return Ok(Table { page: address, writable: true }) };
        // With accessed and dirty bits, reading a first-stage table counts as a write: its entries may be updated.
        let found = self.second_stage(second, address, second.ade, true)?;
        let writable = found.rights() & rights::SECOND_WRITE != 0;
        if found.rights() & rights::READ == 0 || second.ade && !writable {
            return Err(unreadable);
        }
        Ok(Table { page: found.output(address), writable })
    }

    /// The page that a leaf entry stands for around `address`, in host addresses and of the size that both stages
    /// share.
    fn page(
        &self,
        second: Option<&SecondStage>,
        entry: FirstStageEntry,
        level: u8,
        address: u64,
        write: bool,
    ) -> Result<Translation, FaultReason> {
        let size = PageSize::of_level(level);
        let page = entry.address(level);
        let Some(second) = second else {
            return Ok(Translation::new(page, size, rights::NO_SECOND_STAGE | rights::DIRTY));
        };
        let guest_physical = page | address & size.offset_mask();
        // Pages lie anywhere, their second-stage tables would put those of the first stage's tables out.
        let found = self.second_stage(second, guest_physical, write, false)?;
        let size = size.min(found.size());
        Ok(Translation::new(found.output(guest_physical) & !size.offset_mask(), size, found.rights()))
    }

    /// The lowest table for `address` that is cached: its level, itself, and the rights on the way to it.
    fn cached_table(&self, address: u64) -> Option<(u8, Table, u64)> {
        let cached = self.structures.filter(|_| !self.refresh)?;
        let hit = cached.tlb.lookup(cached.space, address)?;
        let table = Table { page: hit.page(), writable: hit.rights() & rights::SECOND_WRITE != 0 };
        Some((hit.size().table_level(), table, hit.rights() & rights::NO_FIRST_STAGE))
    }

    /// Caches the table of `level` for the 2 MiB or 1 GiB around `address`.
    fn cache_table(&self, address: u64, level: u8, table: Table, granted: u64) {
        let size = match level {
            1 => PageSize::Size2M,
            2 => PageSize::Size1G,
            _ => return,
        };
        if let Some(cached) = self.structures {
            let rights = granted | if table.writable { rights::SECOND_WRITE } else { 0 };
            cached.tlb.fill(cached.space, address, Translation::new(table.page, size, rights));
        }
    }
}
