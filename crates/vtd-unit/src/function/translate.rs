// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Where an access goes: through the caches, or by a walk that fills them.

use vm_memory::GuestMemoryBackend;
use vtd_spec::{Capabilities, FaultReason};

use super::key::Key;
use super::state::{Bound, Cache, Miss};
use crate::address_space::{Stage, legacy_reason};
use crate::cache::{PageSize, Translation};
use crate::memory::{Nearby, slice};
use crate::outcome::{AddressType, Blocked};
use crate::request::{Access, Requester};
use crate::rights;
use crate::tables::{Cached, Purpose, Walker};
use crate::unit_state::Remapping;

impl Cache {
    /// Where an access to one byte (and the rest of its page of 4 KiB) goes.
    #[inline]
    pub(crate) fn translate<M: GuestMemoryBackend + ?Sized>(
        &self,
        memory: &M,
        capabilities: &Capabilities,
        requester: Requester,
        address: u64,
        access: Access,
    ) -> Result<u64, Miss> {
        match self.recent(requester, address, access) {
            Some(output) => Ok(output),
            None => self.translate_slowly(memory, capabilities, requester, address, access),
        }
    }

    /// The hot path: where an access goes to a page that was used a short while ago, and that is memory as a whole.
    #[inline]
    pub(crate) fn recent(&self, requester: Requester, address: u64, access: Access) -> Option<u64> {
        self.recent.lookup(Key::device(requester), address, access)
    }

    /// Keeps a cached translation for the hot path too, where the page is memory as a whole, and says where `address` goes.
    /// Canonical form and the interrupt range were checked when it was cached, and the cached rights can only be fewer
    /// than the tables'.
    fn keep_recent<M: GuestMemoryBackend + ?Sized>(
        &self,
        memory: &M,
        requester: Requester,
        address: u64,
        hit: Translation,
        needed: impl Fn(Access) -> u64,
    ) -> u64 {
        let output = hit.output(address);
        if slice(memory, output & !0xfff, 4096).is_ok() {
            let grants = |access| hit.rights() & needed(access) == needed(access);
            self.recent.fill(Key::device(requester), address, output, grants);
        }
        output
    }

    #[inline(never)]
    fn translate_slowly<M: GuestMemoryBackend + ?Sized>(
        &self,
        memory: &M,
        capabilities: &Capabilities,
        requester: Requester,
        address: u64,
        access: Access,
    ) -> Result<u64, Miss> {
        if self.ats_enabled {
            return self.translate_ats(memory, capabilities, requester, address, access);
        }
        let Remapping { enabled, interrupts, .. } = self.remapping;
        // Requests in the interrupt range are told apart before any translation, and whether or not there is one, by
        // whichever part of the unit is enabled: those that are no interrupts get no further. [S 3.14, 5.1.4]
        if is_interrupt_request(requester, address) && (enabled || interrupts) {
            if access == Access::ZeroLengthRead {
                return Ok(address);
            }
            let blocked = Blocked::new(FaultReason::Ir29, false);
            return Err(Miss::Blocked(blocked, AddressType::Untranslated));
        }
        if !enabled {
            return Ok(address);
        }
        let bound = self.spaces.get(&Key::new(requester.pasid)).ok_or(Miss::Unresolved)?;
        let space = &bound.address_space;
        let privileged = bound.privileged(requester);
        let hit = self.iotlb.lookup(&bound.cached, address);
        let needed = access.user_rights();
        if let Some(hit) = hit.filter(|hit| !privileged && hit.rights() & needed == needed) {
            return Ok(self.keep_recent(memory, requester, address, hit, Access::user_rights));
        }
        let (read, write) = (access.reads(), access.writes());
        let fault = |reason| Miss::Blocked(space.blocked(reason, write), AddressType::Untranslated);
        if privileged && !space.sre {
            return Err(fault(FaultReason::Spt6));
        }
        let output = match &space.stage {
            Stage::PassThrough => {
                if address > capabilities.max_host_address() {
                    return Err(fault(FaultReason::Sgn4_2));
                }
                address
            }
            stage => {
                let purpose = Purpose { read, write, privileged, all_or_nothing: true };
                let found =
                    self.translation(memory, capabilities, bound, hit, address, purpose).map_err(fault)?;
                stage.permits(found.rights(), read, write, privileged).map_err(fault)?;
                found.output(address)
            }
        };
        if is_interrupt_range(output) {
            return Err(fault(FaultReason::Sgn8_1));
        }
        Ok(output)
    }

    /// What the IOTLB has (`hit`) where that suffices, else by a walk that fills it.
    fn translation<M: GuestMemoryBackend + ?Sized>(
        &self,
        memory: &M,
        capabilities: &Capabilities,
        bound: &Bound,
        hit: Option<Translation>,
        address: u64,
        purpose: Purpose,
    ) -> Result<Translation, FaultReason> {
        let Purpose { write, privileged, .. } = purpose;
        let space = &bound.address_space;
        if let Stage::First(first) | Stage::Nested(first, _) = &space.stage
            && !first.canonical(address)
        {
            return Err(FaultReason::Sgn1);
        }
        if let Some(hit) = hit
            && space.stage.permits(hit.rights(), true, write, privileged).is_ok()
            && (!write || hit.rights() & rights::DIRTY != 0)
        {
            return Ok(hit);
        }
        let structures = self.structures.as_ref();
        let walk = |refresh| {
            let walker = Walker {
                memory,
                first_tables: Nearby::new(memory),
                second_tables: Nearby::new(memory),
                capabilities,
                structures: structures.map(|both| Cached { tlb: &both.first, space: &bound.tables }),
                second: structures
                    .zip(self.domains.get(&space.domain))
                    .map(|(both, domain)| Cached { tlb: &both.second, space: &domain.second }),
                refresh,
            };
            match &space.stage {
                Stage::First(first) => walker.first_stage(first, None, address, purpose),
                Stage::Nested(first, second) => walker.first_stage(first, Some(second), address, purpose),
                Stage::Second(second) => {
                    let found = walker.second_stage(second, address, write, true)?;
                    Ok(found.with_rights(found.rights() | rights::NO_FIRST_STAGE))
                }
                Stage::PassThrough => Ok(Translation::new(
                    address,
                    PageSize::Size4K,
                    rights::NO_FIRST_STAGE | rights::NO_SECOND_STAGE | rights::DIRTY,
                )),
            }
        };
        // What is cached may be older than the tables, of pages and of tables alike: only a walk of all refuses.
        let mut found = walk(false);
        let suffices =
            |found: &Translation| space.stage.permits(found.rights(), true, write, privileged).is_ok();
        if structures.is_some() && !found.as_ref().is_ok_and(suffices) {
            found = walk(true);
        }
        // After the walk: an atomic addition waits for the IOTLB's line, and holds up the loads behind it.
        match &space.stage {
            Stage::First(_) => self.counters.first_stage_walks.add(),
            Stage::Nested(..) => self.counters.nested_walks.add(),
            Stage::Second(_) => self.counters.second_stage_walks.add(),
            Stage::PassThrough => {}
        }
        let found = found?;
        if !touches_interrupt_range(found.page(), found.size()) {
            self.iotlb.fill(&bound.cached, address, found);
        }
        Ok(found)
    }

    /// As [`Self::translate`] for a function with ATS: its device-TLB, else a translation request, whose answer the
    /// device-TLB keeps; then a translated request.
    fn translate_ats<M: GuestMemoryBackend + ?Sized>(
        &self,
        memory: &M,
        capabilities: &Capabilities,
        requester: Requester,
        address: u64,
        access: Access,
    ) -> Result<u64, Miss> {
        if !self.remapping.enabled {
            return Err(Miss::Unresolved);
        }
        // Where the context is cached and denies it, resolving says so.
        let context = self.context.as_ref().filter(|context| context.dte).ok_or(Miss::Unresolved)?;
        let cached = self.device_spaces.get(&Key::device(requester)).ok_or(Miss::Unresolved)?;
        if is_interrupt_request(requester, address) {
            // A request that will not write is granted nothing; one that may is told to come untranslated (U=1), which
            // only an interrupt may. [S 4.1.2: S.1, S.2]
            let blocked = Blocked::new(FaultReason::Ir29, false);
            return match access {
                Access::ZeroLengthRead => Ok(address),
                Access::Read => Err(Miss::PageFault),
                _ => Err(Miss::Blocked(blocked, AddressType::Untranslated)),
            };
        }
        let wanted = access.device_rights();
        let granted = match self.device_tlb.lookup(cached, address) {
            Some(hit) if hit.rights() & wanted == wanted => {
                return Ok(self.keep_recent(memory, requester, address, hit, Access::device_rights));
            }
            _ => {
                let bound = self.spaces.get(&Key::new(requester.pasid)).ok_or(Miss::Unresolved)?;
                // No Write is honoured where the unit can, so that reading does not make pages dirty.
                let write = access.writes() || !capabilities.ecap.nwfs();
                let granted = self
                    .translation_request(memory, capabilities, bound, requester, address, write)
                    .map_err(|reason| {
                        Miss::Blocked(bound.address_space.blocked(reason, write), AddressType::Translation)
                    })?;
                if granted.rights() & wanted != wanted || granted.rights() == 0 {
                    return Err(Miss::PageFault);
                }
                if !touches_interrupt_range(granted.page(), granted.size()) {
                    self.device_tlb.fill(cached, address, granted);
                }
                granted
            }
        };
        let output = granted.output(address);
        let translated = |reason| {
            let reason = if context.legacy.is_some() { legacy_reason(reason, false) } else { reason };
            Miss::Blocked(Blocked::new(reason, context.fpd), AddressType::Translated)
        };
        if output > capabilities.max_host_address() {
            return Err(translated(FaultReason::Sgn4_1));
        }
        if is_interrupt_range(output) {
            return Err(translated(FaultReason::Sgn8_3));
        }
        Ok(output)
    }

    /// The completion of a translation request: rights are READ and WRITE as granted. \[S 4.1.2\]
    fn translation_request<M: GuestMemoryBackend + ?Sized>(
        &self,
        memory: &M,
        capabilities: &Capabilities,
        bound: &Bound,
        requester: Requester,
        address: u64,
        write: bool,
    ) -> Result<Translation, FaultReason> {
        let space = &bound.address_space;
        let privileged = bound.privileged(requester);
        if privileged && !space.sre {
            return Err(FaultReason::Spt6);
        }
        if matches!(space.stage, Stage::PassThrough) && address > capabilities.max_host_address() {
            return Err(FaultReason::Sgn4_2);
        }
        let purpose = Purpose { read: true, write, privileged, all_or_nothing: false };
        let hit = self.iotlb.lookup(&bound.cached, address);
        let found = self.translation(memory, capabilities, bound, hit, address, purpose)?;
        let mut granted = 0;
        if space.stage.permits(found.rights(), true, false, privileged).is_ok() {
            granted |= rights::READ;
        }
        if write
            && found.rights() & rights::DIRTY != 0
            && space.stage.permits(found.rights(), false, true, privileged).is_ok()
        {
            granted |= rights::WRITE;
        }
        // What is passed through is granted, and blocked as a translated request.
        if !matches!(space.stage, Stage::PassThrough) && is_interrupt_range(found.output(address)) {
            return Err(FaultReason::Sgn8_2);
        }
        Ok(found.with_rights(granted))
    }
}

impl Access {
    /// What a cached translation must grant to a user request.
    const fn user_rights(self) -> u64 {
        match self {
            Self::Read => rights::USER | rights::READ,
            Self::Write => rights::USER | rights::WRITE | rights::SECOND_WRITE | rights::DIRTY,
            Self::Atomic => Self::Read.user_rights() | Self::Write.user_rights(),
            // What is cached grants something.
            Self::ZeroLengthRead => rights::USER,
        }
    }

    /// What a device-TLB entry must grant.
    const fn device_rights(self) -> u64 {
        match self {
            Self::Read => rights::READ,
            Self::Write => rights::WRITE,
            Self::Atomic => rights::READ | rights::WRITE,
            Self::ZeroLengthRead => 0,
        }
    }
}

/// `0xFEEx_xxxx`: the interrupt range. \[S 3.14\]
pub(crate) fn is_interrupt_range(address: u64) -> bool {
    address >> 20 == 0xfee
}

/// Whether a request without PASID is decoded as an interrupt before any translation: other than the doubleword write
/// that is one, it is blocked. \[S 3.14\]
fn is_interrupt_request(requester: Requester, address: u64) -> bool {
    is_interrupt_range(address) && requester.pasid.is_none()
}

/// Whether a page holds part of the interrupt range: such pages are not cached, so that hits need no check.
fn touches_interrupt_range(page: u64, size: PageSize) -> bool {
    let first = page & !size.offset_mask();
    is_interrupt_range(first) || first <= 0xfee0_0000 && 0xfee0_0000 <= first | size.offset_mask()
}
