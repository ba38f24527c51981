// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! From a source-id to its context entry. \[S 3.4, 9.2, 9.4\]

use vm_memory::GuestMemoryBackend;
use vtd_spec::{Capabilities, FaultReason, Pasid, ScalableContextEntry, ScalableRootEntry, SourceId};

use crate::address_space::AddressSpace;
use crate::memory::load_qwords;
use crate::outcome::Blocked;

/// A valid context entry, read once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Context {
    /// FPD of the entry.
    pub fpd: bool,
    /// Device-TLB enable: translation and translated requests are allowed.
    pub dte: bool,
    /// Requests with PASID are allowed.
    pub paside: bool,
    /// Page requests are allowed.
    pub pre: bool,
    /// First PASID beyond the directory.
    pub pasid_limit: u32,
    /// Address of the PASID directory.
    pub directory: u64,
    /// What requests without PASID use.
    pub rid_pasid: Pasid,
    /// Their privilege.
    pub rid_priv: bool,
    /// In legacy mode: how all requests are translated.
    pub legacy: Option<AddressSpace>,
}

/// Reads the root and the context entry of a function. \[S 9.2, 9.4; order of checks as reference D.3\]
pub(crate) fn read_context<M: GuestMemoryBackend + ?Sized>(
    memory: &M,
    capabilities: &Capabilities,
    root_table: u64,
    source_id: SourceId,
) -> Result<Context, Blocked> {
    let unqualified = |reason| Blocked::new(reason, false);
    let address = root_table + u64::from(source_id.bus()) * 16;
    let qwords = load_qwords(memory, address).map_err(|_| unqualified(FaultReason::Srt1))?;
    let root = ScalableRootEntry::from_qwords(qwords);
    let half = root.half(source_id.devfn());
    if !half.present() {
        return Err(unqualified(FaultReason::Srt2));
    }
    if half.reserved(capabilities) {
        return Err(unqualified(FaultReason::Srt3));
    }
    let address = half.context_table() + u64::from(source_id.devfn() & 0x7f) * 32;
    let qwords = load_qwords(memory, address).map_err(|_| unqualified(FaultReason::Sct1))?;
    let entry = ScalableContextEntry::from_qwords(qwords);
    let blocked = |reason| Err(Blocked::new(reason, entry.fpd()));
    if !entry.present() {
        return blocked(FaultReason::Sct2);
    }
    if entry.reserved(capabilities) {
        return blocked(FaultReason::Sct3);
    }
    if entry.pre() && !entry.dte() {
        return blocked(FaultReason::Sct4_1);
    }
    let pasid_limit = entry.pasid_limit();
    let rid_pasid = if capabilities.ecap.rps() { entry.rid_pasid() } else { Pasid::ZERO };
    if rid_pasid.get() >= pasid_limit {
        return blocked(FaultReason::Sct4_2);
    }
    if entry.eptr() && !entry.paside() {
        return blocked(FaultReason::Sct4_3);
    }
    Ok(Context {
        fpd: entry.fpd(),
        dte: entry.dte(),
        paside: entry.paside(),
        pre: entry.pre(),
        pasid_limit,
        directory: entry.pasid_dir_ptr(),
        rid_pasid,
        rid_priv: capabilities.ecap.rprivs() && entry.rid_priv(),
        legacy: None,
    })
}
