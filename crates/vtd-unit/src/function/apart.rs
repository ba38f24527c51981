// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Requests of a thread that holds the caches and so cannot have them filled: translated apart from them.

use vm_memory::GuestMemoryBackend;
use vtd_spec::{Capabilities, SourceId};

use super::implicit::Implied;
use super::pasid_translation::PasidTranslation;
use super::state::{Cache, Miss, RequestKind};
use crate::config::Entries;
use crate::outcome::Blocked;
use crate::request::{Access, Requester};

impl Cache {
    /// Caches of nothing, for one requester.
    fn apart(&self, requester: Requester) -> Self {
        let mut apart = Self::new(self.remapping, Entries { iotlb: 1, structures: 0 });
        apart.set_ats_enabled(self.ats_enabled());
        apart.translation = self.translation.as_ref().map(|all| {
            let mut translation = PasidTranslation::default();
            if let Some((device, host)) = requester.pasid.and_then(|device| Some((device, all.host(device)?)))
            {
                translation.map(device, host);
            }
            translation
        });
        apart
    }

    /// As [`Self::resolve`], which only says whether that can be done.
    pub(crate) fn resolve_apart<M: GuestMemoryBackend + ?Sized>(
        &self,
        memory: &M,
        capabilities: &Capabilities,
        source_id: SourceId,
        requester: Requester,
        kind: RequestKind,
    ) -> Result<(), Blocked> {
        self.apart(requester).resolve(memory, capabilities, source_id, requester, kind)
    }

    /// As [`Self::implied`] of a requester that is not resolved.
    pub(crate) fn implied_apart<M: GuestMemoryBackend + ?Sized>(
        &self,
        memory: &M,
        capabilities: &Capabilities,
        source_id: SourceId,
        requester: Requester,
        address: u64,
    ) -> Result<Option<Implied>, Blocked> {
        let mut apart = self.apart(requester);
        apart.resolve(memory, capabilities, source_id, requester, RequestKind::PageRequest)?;
        Ok(apart.implied(requester, address))
    }

    /// As [`Self::translate`] of a requester that is not resolved.
    pub(crate) fn translate_apart<M: GuestMemoryBackend + ?Sized>(
        &self,
        memory: &M,
        capabilities: &Capabilities,
        source_id: SourceId,
        requester: Requester,
        address: u64,
        access: Access,
    ) -> Result<u64, Miss> {
        if self.ats_enabled() && !self.remapping.enabled {
            return Err(Miss::Unresolved);
        }
        let mut apart = self.apart(requester);
        apart
            .resolve(memory, capabilities, source_id, requester, self.kind())
            .map_err(|blocked| Miss::Blocked(blocked, self.address_type()))?;
        apart.translate(memory, capabilities, requester, address, access)
    }
}
