// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the caches hold of context and PASID entries, and how they come to hold it.

use std::collections::HashSet;

use vm_memory::GuestMemoryBackend;
use vtd_spec::{Capabilities, FaultReason, Pasid, SourceId, TranslationTableMode};

use super::key::Key;
use super::pasid_translation::PasidTranslation;
use super::state::{Bound, Cache, Domain, MAX_SPACES, Miss, RequestKind};
use crate::outcome::{AddressType, Blocked};
use crate::request::Requester;
use crate::tables::{Context, read_context, read_legacy_context, read_pasid_entry};
use crate::unit_state::Remapping;

impl Cache {
    /// Whether a page request of this function and PASID may be queued.
    pub(crate) fn check_page_request(&self, requester: Requester) -> Result<(), Miss> {
        let context = self.context.as_ref().ok_or(Miss::Unresolved)?;
        admit(context, requester, RequestKind::PageRequest)
            .map_err(|blocked| Miss::Blocked(blocked, AddressType::Untranslated))?;
        if !self.remapping.enabled || !self.spaces.contains_key(&Key::new(requester.pasid)) {
            return Err(Miss::Unresolved);
        }
        Ok(())
    }

    /// Whether [`Self::resolve`] must come before [`Self::translate`].
    pub(crate) fn needs_resolving(&self, requester: Requester) -> bool {
        let resolved = self.spaces.contains_key(&Key::new(requester.pasid))
            && self.context.is_some()
            && (!self.ats_enabled || self.device_spaces.contains_key(&Key::device(requester)));
        !resolved && (self.remapping.enabled || self.ats_enabled)
    }

    /// Caches what a request needs: the context entry, the PASID entry and, with ATS, room in the device-TLB.
    pub(crate) fn resolve<M: GuestMemoryBackend + ?Sized>(
        &mut self,
        memory: &M,
        capabilities: &Capabilities,
        source_id: SourceId,
        requester: Requester,
        kind: RequestKind,
    ) -> Result<(), Blocked> {
        let context = match self.context {
            Some(context) => context,
            None => *self.context.insert(find_context(
                memory,
                capabilities,
                &self.remapping,
                source_id,
                requester,
                kind,
            )?),
        };
        admit(&context, requester, kind)?;
        let Some(host) = self.host_pasid(requester.pasid) else {
            // Its host has bound nothing to this PASID of the device.
            return Err(Blocked { reason: FaultReason::Spt2, suppressed: true });
        };
        let pasid = pasid_of(&context, capabilities, host)?;
        let key = Key::new(requester.pasid);
        if !self.spaces.contains_key(&key) {
            let address_space = match context.legacy {
                Some(space) => space,
                None => read_pasid_entry(memory, capabilities, &context, pasid)?,
            };
            if self.spaces.len() >= MAX_SPACES {
                self.forget_spaces();
            }
            self.tags.add(address_space.domain, address_space.pasid);
            let structures = self.structures.as_ref();
            let [tables, second] =
                structures.map_or_else(Default::default, |tlbs| [tlbs.first.space(), tlbs.second.space()]);
            let domain = self.domains.entry(address_space.domain);
            domain.or_insert_with(|| Domain { keys: HashSet::default(), second }).keys.insert(key);
            let privileged = context.rid_priv && requester.pasid.is_none();
            let bound = Bound { address_space, privileged, cached: self.iotlb.space(), tables };
            self.spaces.insert(key, bound);
        }
        if self.ats_enabled {
            if self.device_spaces.len() >= MAX_SPACES {
                self.device_spaces.clear();
            }
            let device_tlb = &mut self.device_tlb;
            self.device_spaces.entry(Key::device(requester)).or_insert_with(|| device_tlb.space());
        }
        Ok(())
    }

    /// From now on the device's PASIDs stand for others: at first for none.
    pub(crate) fn translate_pasids(&mut self) {
        self.translation = Some(PasidTranslation::default());
        self.forget_spaces();
    }

    /// Makes a PASID of the device stand for `host`, or for none.
    pub(crate) fn set_pasid_translation(&mut self, device: Pasid, host: Option<Pasid>) {
        let Some(translation) = &mut self.translation else { return };
        let stale = [Some(device), host.and_then(|host| translation.device(host))];
        match host {
            Some(host) => translation.map(device, host),
            None => translation.unmap(device),
        }
        for device in stale.into_iter().flatten() {
            let key = Key::new(Some(device));
            if let Some(bound) = self.spaces.remove(&key)
                && let Some(domain) = self.domains.get_mut(&bound.address_space.domain)
            {
                domain.keys.remove(&key);
            }
            self.forget_device_spaces(key);
        }
    }
}

/// Whether a function's context entry admits requests of this kind. \[Order as reference D.3\]
fn admit(context: &Context, requester: Requester, kind: RequestKind) -> Result<(), Blocked> {
    let reason = match kind {
        RequestKind::PageRequest if context.legacy.is_some() => FaultReason::Rta3,
        _ if context.legacy.is_some() && requester.pasid.is_some() => FaultReason::Rta2,
        RequestKind::Translation if context.legacy.is_some() && !context.dte => FaultReason::Lct5,
        _ if context.legacy.is_some() => return Ok(()),
        RequestKind::Translation if !context.dte => FaultReason::Sct5,
        _ if requester.pasid.is_some() && !context.paside => FaultReason::Sct6,
        RequestKind::PageRequest if !context.pre => FaultReason::Sct8,
        _ => return Ok(()),
    };
    Err(Blocked::new(reason, context.fpd))
}

/// The PASID whose entry requests with `pasid`, or without any, use.
pub(crate) fn pasid_of(
    context: &Context,
    capabilities: &Capabilities,
    pasid: Option<Pasid>,
) -> Result<Pasid, Blocked> {
    let blocked = |reason| Err(Blocked::new(reason, context.fpd));
    match pasid {
        None => Ok(context.rid_pasid),
        Some(pasid) if u64::from(pasid.get()) >= 2 << capabilities.ecap.pss() => blocked(FaultReason::Sgn10),
        Some(pasid) if pasid.get() >= context.pasid_limit => blocked(FaultReason::Sct7),
        // RID_PASID is for requests without PASID alone.
        Some(pasid) if pasid == context.rid_pasid => blocked(FaultReason::Sct9),
        Some(pasid) => Ok(pasid),
    }
}

/// The context entry of a function, in the mode that the unit is in.
pub(crate) fn find_context<M: GuestMemoryBackend + ?Sized>(
    memory: &M,
    capabilities: &Capabilities,
    remapping: &Remapping,
    source_id: SourceId,
    requester: Requester,
    kind: RequestKind,
) -> Result<Context, Blocked> {
    let blocked = |reason| Err(Blocked::new(reason, false));
    match remapping.mode {
        TranslationTableMode::Scalable if capabilities.ecap.smts() => {
            read_context(memory, capabilities, remapping.root_table, source_id)
        }
        TranslationTableMode::AbortDma if capabilities.ecap.adms() => blocked(FaultReason::Rta4),
        TranslationTableMode::Legacy if kind == RequestKind::PageRequest => blocked(FaultReason::Rta3),
        TranslationTableMode::Legacy if requester.pasid.is_some() => blocked(FaultReason::Rta2),
        TranslationTableMode::Legacy => {
            read_legacy_context(memory, capabilities, remapping.root_table, source_id)
        }
        _ => blocked(FaultReason::Rta1),
    }
}
