// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Guests' PASIDs: the uAPI of the series "Nested Shared Virtual Address (SVA) VT-d support" (V9 patches 03, 04, 06, 10)
//! and of the VFIO set on top of it.
//!
//! A guest's first stage (GVA to GPA) is bound to a host PASID of a device, nested on the second-stage domain (GPA to HPA)
//! of the machine. Everything that comes from the user is checked here, each mistake with an error of its own. A PASID
//! is found only in the set it belongs to, which is what keeps machines apart.

mod bind;
mod bind_data;
mod information;
mod invalidate;
mod response;

pub use bind::{bind_gpasid, bind_gpasid_group, rebind_gpasid, release_set, unbind_gpasid};
pub use bind_data::{BindData, FLAG_GUEST_PASID, vtd_flag};
pub use information::NestingInfo;
pub use invalidate::{Invalidate, cache_type, granularity, invalidate, invalidate_flag};
pub use response::respond;

/// The version of all structures here (`IOMMU_GPASID_BIND_VERSION_1` and its siblings).
pub const VERSION: u32 = 1;
/// The PASID table format: Intel VT-d (`IOMMU_PASID_FORMAT_INTEL_VTD`).
pub const FORMAT_INTEL_VTD: u32 = 1;

#[cfg(test)]
mod tests;
