// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What walks of both stages share: where they read, what they cache on the way, how they set accessed and dirty
//! bits.

use vm_memory::GuestMemoryBackend;
use vtd_spec::{Capabilities, FaultReason};

use crate::cache::{Space, Tlb};
use crate::memory::{AccessError, Nearby, compare_exchange_u64};

/// A cache that a walk may use, as one address space sees it.
#[derive(Clone, Copy)]
pub(crate) struct Cached<'a> {
    pub tlb: &'a Tlb,
    pub space: &'a Space,
}

/// What a walk is for.
#[derive(Clone, Copy)]
pub(crate) struct Purpose {
    /// Reads; meaningful where it is all or nothing.
    pub read: bool,
    /// Writes, or asks for the right to.
    pub write: bool,
    /// A privileged request: U/S does not concern it.
    pub privileged: bool,
    /// An access that cannot do with fewer rights, unlike a translation request: what it lacks ends the walk, in the
    /// specification's order.
    pub all_or_nothing: bool,
}

/// One walk: the memory it reads and the caches that shorten it.
pub(crate) struct Walker<'a, M: GuestMemoryBackend + ?Sized> {
    pub memory: &'a M,
    /// Where first-stage entries are read, and where second-stage entries are: each mostly lie together.
    pub first_tables: Nearby<'a, M>,
    pub second_tables: Nearby<'a, M>,
    pub capabilities: &'a Capabilities,
    /// First-stage paging-structure cache: tables of the last two levels, by input address.
    pub structures: Option<Cached<'a>>,
    /// Second-stage tables of the last level and large pages of the domain, by guest physical address.
    pub second: Option<Cached<'a>>,
    /// What is cached is only refreshed, not used: before a request is refused, the tables themselves have the word.
    pub refresh: bool,
}

/// How often an accessed or dirty bit is tried when another processor changes the entry at the same time.
const UPDATE_TRIES: usize = 64;

/// Why an accessed or dirty bit cannot be set.
#[derive(Clone, Copy)]
pub(crate) struct UpdateFaults {
    /// Walks are not coherent.
    pub not_snooped: FaultReason,
    /// The update itself failed.
    pub failed: FaultReason,
}

impl<M: GuestMemoryBackend + ?Sized> Walker<'_, M> {
    /// Reads the entry at `at` with `load`, has `check` say what is to become of it (the entry with the bits that this
    /// walk owes it) and what it means, and writes it back if it is to change. Repeats when the entry changes
    /// meanwhile, so that what was checked is what was marked.
    pub(crate) fn settle<T>(
        &self,
        at: u64,
        mut bits: u64,
        snooped: bool,
        faults: UpdateFaults,
        mut check: impl FnMut(u64) -> Result<(u64, T), FaultReason>,
    ) -> Result<T, FaultReason> {
        for _ in 0..UPDATE_TRIES {
            let (owed, meaning) = check(bits)?;
            if owed == bits {
                return Ok(meaning);
            }
            if !snooped {
                return Err(faults.not_snooped);
            }
            match compare_exchange_u64(self.memory, at, bits, owed) {
                Ok(Ok(())) => return Ok(meaning),
                Ok(Err(found)) => bits = found,
                Err(AccessError) => break,
            }
        }
        Err(faults.failed)
    }
}
