// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the accelerator needs from the function around it: memory, page requests, interrupts and the state of the
//! PCI capabilities. The function gives it an endpoint of the remapping unit, tests a memory of their own.

use vtd_unit::{Access, DmaError, PageRequest, Requester};

/// The bits of configuration space that the accelerator obeys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct PciState {
    /// Bus Master Enable.
    pub bus_master: bool,
    /// PASID Enable.
    pub pasid: bool,
    /// Privileged Mode Enable of the PASID capability.
    pub privileged: bool,
    /// ATS Enable.
    pub ats: bool,
    /// Page requests can be sent: PRI Enable, and no Response Failure since.
    pub pri: bool,
    /// Outstanding Page Request Allocation.
    pub pri_allocation: u32,
    /// Outstanding Page Request Capacity.
    pub pri_capacity: u32,
}

/// The accelerator's way out. Called with no lock of the accelerator held, but for [`Bus::pci`], which is also called
/// with its state locked and so must not call back.
pub(crate) trait Bus: Send + Sync + 'static {
    /// Reads memory; see [`vtd_unit::Endpoint::read`].
    fn read(&self, requester: Requester, address: u64, data: &mut [u8]) -> Result<(), DmaError>;

    /// Writes memory; see [`vtd_unit::Endpoint::write`].
    fn write(&self, requester: Requester, address: u64, data: &[u8]) -> Result<(), DmaError>;

    /// Checks that memory can be accessed; see [`vtd_unit::Endpoint::probe`].
    fn probe(
        &self,
        requester: Requester,
        address: u64,
        length: usize,
        access: Access,
    ) -> Result<(), DmaError>;

    /// Sends a page request; the answer comes to [`crate::page_request::PageRequests`].
    fn page_request(&self, request: PageRequest);

    /// Raises an MSI-X vector.
    fn interrupt(&self, vector: u16);

    /// What software has enabled.
    fn pci(&self) -> PciState;
}
