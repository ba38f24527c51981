// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What can go wrong.

use vtd_spec::{Pasid, QueueError, SourceId};

/// Why something was refused, or what did not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The unit's registers read as all ones: there is no unit.
    #[error("no remapping unit answers: its capability registers read as all ones")]
    NoUnit,
    /// The unit lacks something that this driver cannot do without, or that was asked for.
    #[error("the unit lacks {capability}")]
    Unsupported {
        /// The capability as the specification names it.
        capability: &'static str,
    },
    /// The unit did not carry out a global command in time.
    #[error("the unit did not take global command {command:#x}")]
    CommandTimeout {
        /// The value written to GCMD.
        command: u32,
    },
    /// The unit goes on protecting the memory that firmware had it protect.
    #[error("the unit does not open its protected memory regions")]
    ProtectedMemory,
    /// No memory for a table or queue.
    #[error("out of memory for tables")]
    OutOfMemory,

    /// The invalidation queue does not move.
    #[error("the invalidation queue does not move")]
    QueueTimeout,
    /// The unit refused a descriptor; it was left out, those around it were carried out.
    #[error("the unit refused descriptor {index} of a batch: {}", queue_error(*.reason))]
    InvalidDescriptor {
        /// Place in the batch.
        index: usize,
        /// Why; `None` where the unit did not say.
        reason: Option<QueueError>,
    },
    /// The unit stopped at its own queue registers or at a wait descriptor.
    #[error("the unit stopped the invalidation queue: {}", queue_error(*.reason))]
    QueueStopped {
        /// Why; `None` where the unit did not say.
        reason: Option<QueueError>,
    },
    /// A device did not complete a device-TLB invalidation; everything else was invalidated.
    #[error("device {source_id} does not complete its device-TLB invalidations: reset or remove it")]
    DeviceTimedOut {
        /// The device.
        source_id: SourceId,
    },

    /// The device has been added already.
    #[error("device {source_id} is known already")]
    DeviceExists {
        /// The device.
        source_id: SourceId,
    },
    /// No such device has been added.
    #[error("device {source_id} is not known")]
    NoSuchDevice {
        /// The device.
        source_id: SourceId,
    },
    /// The domain does not exist (any more).
    #[error("no such domain")]
    NoSuchDomain,
    /// The domain is still attached to a device.
    #[error("the domain is still attached: detach it from every device first")]
    DomainBusy,
    /// All domain-ids are in use.
    #[error("the unit's domain-ids are used up")]
    NoDomainId,

    /// The PASID is beyond what the device, or the unit, has.
    #[error("PASID {pasid} is beyond the PASIDs of device {source_id}")]
    PasidOutOfRange {
        /// The device.
        source_id: SourceId,
        /// The PASID.
        pasid: Pasid,
    },
    /// The PASID's entry is present: something is bound to it.
    #[error("PASID {pasid} of device {source_id} is in use")]
    PasidBusy {
        /// The device.
        source_id: SourceId,
        /// The PASID.
        pasid: Pasid,
    },
    /// Nothing is bound to the PASID.
    #[error("nothing is bound to PASID {pasid} of device {source_id}")]
    NotBound {
        /// The device.
        source_id: SourceId,
        /// The PASID.
        pasid: Pasid,
    },

    /// An address or a length is not a multiple of 4 KiB, or the length is 0.
    #[error("{address:#x} + {length:#x} is not made of 4 KiB pages")]
    Misaligned {
        /// The first address.
        address: u64,
        /// The length.
        length: u64,
    },
    /// The range exceeds the addresses that the domain or the unit has.
    #[error("{address:#x} + {length:#x} is beyond the addresses that can be mapped")]
    OutOfRange {
        /// The first address.
        address: u64,
        /// The length.
        length: u64,
    },
    /// Something is mapped there.
    #[error("{address:#x} is mapped already")]
    AlreadyMapped {
        /// The first such address.
        address: u64,
    },
    /// The range begins or ends within a large page.
    #[error("the page at {address:#x} is {size:#x} bytes large: unmap it as a whole")]
    WithinLargePage {
        /// Where the page begins.
        address: u64,
        /// Its size in bytes.
        size: u64,
    },

    /// The domain is not a second-stage domain made to be nested on.
    #[error("the domain is not one that a first stage can be nested on")]
    NotNestParent,
    /// The top levels of a domain's table cannot be skipped for a unit with fewer levels.
    #[error(
        "the domain's table has more levels than the unit, and nothing mapped where they would be skipped"
    )]
    LevelsNotSkippable,
    /// First-stage tables are 48 or 57 bits wide.
    #[error("a first stage of {bits} bits does not exist: 48 or 57")]
    AddressWidth {
        /// The width asked for.
        bits: u32,
    },
    /// The first-stage table does not lie in what its domain can address.
    #[error("the first-stage table at {address:#x} is beyond the domain's addresses")]
    TableOutOfRange {
        /// Address of the table.
        address: u64,
    },
    /// Memory types cannot be passed down.
    #[error("memory type control is not supported")]
    MemoryTypes,

    /// The structure is shorter than its own size field or than the version at hand.
    #[error("structure of {size} bytes; {needed} are needed")]
    Size {
        /// What there is.
        size: u32,
        /// What it takes.
        needed: u32,
    },
    /// A version of the interface that does not exist.
    #[error("version {version} is not known: 1")]
    Version {
        /// The version.
        version: u32,
    },
    /// A table format other than Intel VT-d.
    #[error("PASID table format {format} is not known: 1 (Intel VT-d)")]
    Format {
        /// The format.
        format: u32,
    },
    /// A flag is set that does not exist.
    #[error("flags {flags:#x} hold unknown ones")]
    Flags {
        /// The flags.
        flags: u64,
    },
    /// Padding is not zero.
    #[error("padding is not zero")]
    Padding,
    /// A PASID that cannot be: 0 or beyond 20 bits.
    #[error("{pasid:#x} is not a PASID that can be bound")]
    InvalidPasid {
        /// The number.
        pasid: u64,
    },
    /// The device does not have all 2^20 PASIDs.
    #[error("device {source_id} has {bits} PASID bits; 20 are needed")]
    PasidWidth {
        /// The device.
        source_id: SourceId,
        /// Its PASID bits.
        bits: u8,
    },
    /// The PASID is bound to another address space or guest PASID.
    #[error("PASID {pasid} is bound to another address space")]
    OtherAddressSpace {
        /// The PASID.
        pasid: Pasid,
    },
    /// The process that the PASID stands for has ended; it is still to be unbound from other devices.
    #[error("the process behind PASID {pasid} has ended")]
    ProcessEnded {
        /// The PASID.
        pasid: Pasid,
    },
    /// A kind of cache that does not exist, or none at all.
    #[error("cache types {caches:#x} are not known")]
    CacheType {
        /// The bitmap.
        caches: u8,
    },
    /// A granularity that does not exist or that the cache does not have.
    #[error("cache type {cache:#x} cannot be invalidated with granularity {granularity}")]
    Granularity {
        /// The cache's bit.
        cache: u8,
        /// The granularity.
        granularity: u8,
    },
    /// A PASID-selective or address-selective invalidation that names no PASID.
    #[error("the invalidation names no PASID")]
    PasidMissing,
    /// The address is not a multiple of the size to be invalidated.
    #[error("{address:#x} is not aligned to its 2^{order} pages")]
    Unaligned {
        /// The address.
        address: u64,
        /// log2 of the number of pages.
        order: u8,
    },

    /// A virtual command was not answered in time.
    #[error("the virtual command interface does not answer")]
    VirtualCommandTimeout,
    /// A virtual command failed.
    #[error("virtual command failed with status {status}")]
    VirtualCommand {
        /// The status code.
        status: u8,
    },
    /// The host has no PASID left, or does not know the one to be freed.
    #[error("the host has no such PASID to give or take")]
    VirtualCommandNoPasid,

    /// The PASID allocator refused.
    #[error(transparent)]
    Pasid(#[from] ioasid::Error),
}

impl Error {
    /// Whether the queue or a device did not do what was submitted: all else of the call has been carried out.
    pub(crate) const fn is_queues(&self) -> bool {
        matches!(
            self,
            Self::QueueTimeout
                | Self::QueueStopped { .. }
                | Self::InvalidDescriptor { .. }
                | Self::DeviceTimedOut { .. }
        )
    }

    pub(crate) const fn lacks(capability: &'static str) -> Self {
        Self::Unsupported { capability }
    }
}

fn queue_error(reason: Option<QueueError>) -> impl core::fmt::Display {
    struct Reason(Option<QueueError>);
    impl core::fmt::Display for Reason {
        fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
            match self.0 {
                Some(error) => error.fmt(f),
                None => f.write_str("no reason given"),
            }
        }
    }
    Reason(reason)
}
