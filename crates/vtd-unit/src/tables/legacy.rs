// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Legacy mode: one second-stage table, or none, for all requests of a function. \[S 3.4.1, 9.1, 9.3\]

use vm_memory::GuestMemoryBackend;
use vtd_spec::tables::LegacyTranslationType;
use vtd_spec::{Capabilities, FaultReason, LegacyContextEntry, Pasid, RootEntry, SourceId};

use super::context::Context;
use crate::address_space::{AddressSpace, SecondStage, Stage};
use crate::memory::load_qwords;
use crate::outcome::Blocked;

/// Reads the root and the context entry of a function. \[Order of checks as reference D.2\]
pub(crate) fn read_legacy_context<M: GuestMemoryBackend + ?Sized>(
    memory: &M,
    capabilities: &Capabilities,
    root_table: u64,
    source_id: SourceId,
) -> Result<Context, Blocked> {
    let unqualified = |reason| Blocked::new(reason, false);
    let address = root_table + u64::from(source_id.bus()) * 16;
    let qwords = load_qwords(memory, address).map_err(|_| unqualified(FaultReason::Lrt1))?;
    let root = RootEntry::from_qwords(qwords);
    if !root.p() {
        return Err(unqualified(FaultReason::Lrt2));
    }
    if root.reserved(capabilities) {
        return Err(unqualified(FaultReason::Lrt3));
    }
    let address = root.ctp() + u64::from(source_id.devfn()) * 16;
    let qwords = load_qwords(memory, address).map_err(|_| unqualified(FaultReason::Lct1))?;
    let entry = LegacyContextEntry::from_qwords(qwords);
    let blocked = |reason| Err(Blocked::new(reason, entry.fpd()));
    if !entry.p() {
        return blocked(FaultReason::Lct2);
    }
    if entry.reserved(capabilities) {
        return blocked(FaultReason::Lct3);
    }
    let Some(kind) = entry.translation_type().filter(|kind| kind.is_supported(capabilities)) else {
        return blocked(FaultReason::Lct4_2);
    };
    let stage = if kind == LegacyTranslationType::PassThrough {
        Stage::PassThrough
    } else {
        let Some(width) = entry.address_width().filter(|width| width.is_supported(capabilities.cap)) else {
            return blocked(FaultReason::Lct4_1);
        };
        Stage::Second(SecondStage { table: entry.ssptptr(), width, ade: false, snooped: false })
    };
    let (pasid, domain, fpd) = (Pasid::ZERO, entry.did(), entry.fpd());
    Ok(Context {
        fpd,
        dte: kind == LegacyTranslationType::WithDeviceTlb,
        paside: false,
        pre: false,
        pasid_limit: 0,
        directory: 0,
        rid_pasid: Pasid::ZERO,
        rid_priv: false,
        legacy: Some(AddressSpace { pasid, domain, fpd, sre: false, legacy: true, stage }),
    })
}
