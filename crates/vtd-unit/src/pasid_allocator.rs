// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Who allocates PASIDs for the guest.

use vtd_spec::Pasid;

/// Allocates PASIDs for the guest. Called with no lock of the unit held.
pub trait PasidAllocator: Send + Sync {
    /// A PASID that is the caller's until it is freed; `None` where there is none left.
    fn allocate(&self) -> Option<Pasid>;

    /// Gives a PASID back, wherever it is still in use; false where it was not the caller's. Called on the executor: it may
    /// wait.
    fn free(&self, pasid: Pasid) -> bool;
}
