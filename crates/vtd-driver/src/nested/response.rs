// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A guest's answers to page requests.

use ioasid::SetId;
use vtd_spec::ResponseCode;

use crate::address_space::{Pasids, bindable};
use crate::error::Error;
use crate::iommu::Iommu;
use crate::memory::Memory;
use crate::registers::Registers;
use crate::state::PageRequest;

/// Answers a page request for the guest that owns the PASID (svm.c:intel_svm_page_response).
///
/// # Errors
///
/// [`Error::PasidMissing`] for a request without PASID; [`Error::InvalidPasid`]; [`Error::Pasid`], [`Error::NotBound`]
/// where the PASID is not the set's or not bound to the device; the queue's.
pub fn respond<R: Registers, M: Memory>(
    iommu: &mut Iommu<R, M>,
    pasids: &Pasids,
    set: SetId,
    request: &PageRequest,
    code: ResponseCode,
) -> Result<(), Error> {
    let source_id = request.source_id;
    let pasid = bindable(request.pasid.ok_or(Error::PasidMissing)?.get().into())?;
    let space = pasids.find(Some(set), pasid.get())?;
    if space.and_then(|space| space.device(source_id)).is_none() {
        return Err(Error::NotBound { source_id, pasid });
    }
    iommu.respond(request, code)
}
