// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the joint asks of a host: the uAPI of the Linux series "Nested Shared Virtual Address (SVA) VT-d support", in
//! today's terms.
//!
//! The rules a host keeps:
//!
//! - An attachment replaces what was there, atomically; when it fails, what was there stays, unless the host says otherwise
//!   ([`HostError::Lost`]). A host that is merely busy ([`HostError::Busy`]) is asked again at the guest's next wait.
//! - Blocking, invalidating and freeing cannot fail.
//! - Capabilities do not change while a machine runs.
//! - Domain-ids and the PASID cache are the host's own: a guest's PASID-cache invalidation is resolved above, and never
//!   reaches a host.

use std::sync::Weak;

use vtd_spec::{AddressRange, Capabilities, FaultReason, Pasid};
use vtd_unit::{Access, FirstStageTable, PageGroupResponse, PageRequest, UnitConfig};

/// How a host names a function that it has assigned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceId(pub u32);

/// What a host offers for nesting: the masked capabilities of its units. \[Linux uapi: struct iommu_nesting_info,
/// VTD_CAP_MASK, VTD_ECAP_MASK\]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NestingInfo {
    /// CAP.FS1GP: 1 GiB pages in a guest's first stage.
    pub fs1gp: bool,
    /// CAP.FS5LP: five levels in a guest's first stage.
    pub fs5lp: bool,
    /// ECAP.PRS: page requests reach the guest.
    pub prs: bool,
    /// ECAP.SRS: supervisor requests.
    pub srs: bool,
    /// ECAP.EAFS: the extended-accessed flag.
    pub eafs: bool,
    /// Width of PASIDs in bits.
    pub pasid_bits: u32,
    /// Width in bits of the guest physical addresses that the second stage takes.
    pub address_width: u32,
    /// A PASID of the guest is always bound under the same number: PASID tables are the device's own.
    pub identical_pasids: bool,
    /// PASID 0 stands for the function itself, as on Linux's iommufd: the guest cannot choose another for requests without
    /// PASID. \[Linux include/linux/iommu.h: IOMMU_NO_PASID\]
    pub pasid_zero_is_rid: bool,
    /// The host answers the page request groups of a PASID that it blocks or attaches anew by itself.
    pub ends_groups: bool,
}

impl NestingInfo {
    /// Whether a guest's unit promises only what this host keeps.
    ///
    /// # Errors
    ///
    /// Everything that the host lacks.
    pub fn check(&self, guest: &Capabilities) -> Result<(), Unsupported> {
        let (cap, ecap) = (guest.cap, guest.ecap);
        let lacking = [
            (cap.fs1gp() && !self.fs1gp, "1 GiB pages in the first stage (fs1gp)"),
            (cap.fs5lp() && !self.fs5lp, "5-level paging in the first stage (fs5lp)"),
            (ecap.prs() && !self.prs, "page requests (prs)"),
            (ecap.srs() && !self.srs, "supervisor requests (srs)"),
            (ecap.eafs() && !self.eafs, "the extended-accessed flag (eafs)"),
            (ecap.pasid() && guest.pasid_bits() > self.pasid_bits, "PASIDs of that width (pss)"),
            (ecap.rps() && self.pasid_zero_is_rid, "another PASID than 0 for requests without one (rps)"),
            (u32::from(guest.haw) > self.address_width, "guest physical addresses of that width (haw)"),
        ];
        let capabilities: Vec<_> =
            lacking.into_iter().filter(|(lacks, _)| *lacks).map(|(_, capability)| capability).collect();
        if capabilities.is_empty() { Ok(()) } else { Err(Unsupported { capabilities }) }
    }

    /// Turns off what a guest's unit cannot promise on this host, so that [`Self::check`] finds nothing lacking.
    ///
    /// ```
    /// # use vsva::NestingInfo;
    /// # use vtd_unit::UnitConfig;
    /// let host = NestingInfo { pasid_bits: 16, address_width: 48, ..NestingInfo::default() };
    /// let mut config = UnitConfig::default();
    /// host.restrict(&mut config);
    /// assert!(host.check(&config.capabilities().unwrap()).is_ok());
    /// ```
    pub fn restrict(&self, guest: &mut UnitConfig) {
        guest.fs1gp &= self.fs1gp;
        guest.fs5lp &= self.fs5lp;
        guest.prs &= self.prs;
        // What drains page requests, and says what becomes of stop markers, is for those who have any.
        guest.pds &= self.prs;
        guest.sms &= self.prs;
        guest.srs &= self.srs;
        guest.eafs &= self.eafs;
        guest.rps &= !self.pasid_zero_is_rid;
        guest.pasid &= self.pasid_bits > 0;
        guest.pss = guest.pss.min(self.pasid_bits.saturating_sub(1) as u8);
        guest.haw = guest.haw.min(self.address_width as u8);
    }
}

/// The guest's unit promises what the host does not have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the host does not have {}: turn that off for the guest's IOMMU", capabilities.join(", "))]
pub struct Unsupported {
    /// What is lacking.
    pub capabilities: Vec<&'static str>,
}

/// What a function's requests, or those with one PASID, are attached to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attachment {
    /// The host's second stage alone: addresses are guest physical ones.
    SecondStage,
    /// A first stage of the guest nested on it: addresses are the guest's own.
    Nested(FirstStageTable),
}

/// Why a host refuses an attachment or a PASID.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HostError {
    /// No function of this name is assigned.
    #[error("no device {0:?}")]
    NoDevice(DeviceId),
    /// The PASID is not one that this owner holds.
    #[error("PASID {0} is not allocated")]
    NotAllocated(Pasid),
    /// No PASID is left, or the owner's quota is used up.
    #[error("no PASID left")]
    NoPasid,
    /// The table's address lies outside the guest's memory.
    #[error("first-stage table at {0:#x} is beyond the second stage")]
    TableAddress(u64),
    /// The host's unit does not walk as many levels.
    #[error("{0}-level paging is not supported")]
    Levels(u8),
    /// The host's unit does not honour a flag of the entry.
    #[error("{0} is not supported")]
    Flag(&'static str),
    /// Not now: it may be asked again.
    #[error("the host is busy")]
    Busy,
    /// The replacement failed, and what was attached before is gone, too: requests are blocked.
    #[error("host: {0}; what was attached before is gone")]
    Lost(String),
    /// The host failed for reasons of its own.
    #[error("host: {0}")]
    Host(String),
}

impl HostError {
    /// What the guest sees: the fault that its entry would have raised on a unit with the host's capabilities.
    pub fn fault_reason(&self) -> FaultReason {
        match self {
            Self::Flag(_) => FaultReason::Spt3,
            Self::Levels(_) => FaultReason::Spt4_3,
            Self::TableAddress(_) => FaultReason::Sfs4,
            Self::NoDevice(_)
            | Self::NotAllocated(_)
            | Self::NoPasid
            | Self::Busy
            | Self::Lost(_)
            | Self::Host(_) => FaultReason::Spt2,
        }
    }
}

/// What an invalidation empties.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InvalidationKind {
    /// The first stage's translations in the host's unit, and with them what the function has cached of them.
    Iotlb {
        /// Tables on the way to the pages stay.
        leaf_only: bool,
    },
    /// What the function has cached itself.
    DeviceTlb,
}

/// One invalidation of a guest's first stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Invalidation {
    /// The function.
    pub device: DeviceId,
    /// The host's PASID; `None` for requests without PASID.
    pub pasid: Option<Pasid>,
    /// The addresses.
    pub range: AddressRange,
    /// The caches.
    pub kind: InvalidationKind,
}

/// An unrecoverable fault that a host has met on behalf of a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostFault {
    /// The unit's reason.
    pub reason: FaultReason,
    /// PASID of the request.
    pub pasid: FaultPasid,
    /// The address of the request.
    pub address: u64,
    /// What the request was to do.
    pub access: Access,
    /// Privileged mode was requested.
    pub privileged: bool,
}

/// Whose PASID a fault names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultPasid {
    /// The request had none.
    None,
    /// One of the host.
    Host(Pasid),
    /// One of the device, to which the host has bound nothing.
    Device(Pasid),
}

/// What a host tells. Called with no lock of the host held.
pub trait HostEvents: Send + Sync {
    /// The function asks for a page; the PASID is the host's. The last request of a group waits for
    /// [`HostIommu::respond`], to which its `cookie` comes back: a number that means something to the host alone.
    fn page_request(&self, device: DeviceId, request: PageRequest, cookie: u64);

    /// A request of the function was blocked.
    fn fault(&self, device: DeviceId, fault: HostFault);
}

/// A host's side of nested translation.
pub trait HostIommu: Send + Sync {
    /// What the host offers. Does not change while a machine runs.
    fn nesting_info(&self) -> NestingInfo;

    /// What it offers for one function, where that is less: units of a host differ, and so do functions.
    fn nesting_info_of(&self, _device: DeviceId) -> NestingInfo {
        self.nesting_info()
    }

    /// Has `events` hear of `device`, for as long as somebody else keeps it.
    fn listen(&self, device: DeviceId, events: Weak<dyn HostEvents>);

    /// A PASID for the machine that this host serves.
    ///
    /// # Errors
    ///
    /// [`HostError::NoPasid`] where none is left or the quota is used up.
    fn allocate_pasid(&self) -> Result<Pasid, HostError>;

    /// Takes a particular PASID for the machine: what a host with identical PASIDs needs, and guests that chose it
    /// themselves.
    ///
    /// # Errors
    ///
    /// [`HostError::NoPasid`] where it is not free.
    fn allocate_this_pasid(&self, pasid: Pasid) -> Result<(), HostError>;

    /// Gives a PASID back that nothing is attached to.
    fn free_pasid(&self, pasid: Pasid);

    /// Attaches requests of a function, those with `pasid` or those without any, in place of what they were attached
    /// to.
    ///
    /// # Errors
    ///
    /// Why not; everything is as before then.
    fn attach(&self, device: DeviceId, pasid: Option<Pasid>, to: Attachment) -> Result<(), HostError>;

    /// Blocks requests of a function, those with `pasid` or those without any. None is in flight when this returns.
    fn block(&self, device: DeviceId, pasid: Option<Pasid>);

    /// Makes a PASID that the guest programs into the function stand for one of the host, or for none.
    ///
    /// # Errors
    ///
    /// [`HostError::Flag`] where the host's PASIDs are the guest's and `host` differs.
    fn set_pasid_translation(
        &self,
        device: DeviceId,
        guest: Pasid,
        host: Option<Pasid>,
    ) -> Result<(), HostError>;

    /// Carries invalidations out, in order; returns how many are done. Those that are not may be presented again.
    fn invalidate(&self, batch: &[Invalidation]) -> usize;

    /// Answers a page request group; the PASID is the host's, and `cookie` came with its last request.
    fn respond(&self, device: DeviceId, response: PageGroupResponse, cookie: u64);
}
