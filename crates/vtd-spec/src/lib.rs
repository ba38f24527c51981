// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Layouts of Intel VT-d, and nothing but layouts: registers, memory-resident tables, invalidation and page
//! request descriptors, fault reasons, interrupt requests and the ACPI DMAR table.
//!
//! Every item encodes, decodes and checks reserved bits; what a unit or a driver *does* with it lives in other
//! crates. `[S n]` means section n of the *Intel Virtualization Technology for Directed I/O Architecture
//! Specification*, revision 5.10 (D51397-018); names are that text's names.
//!
//! Conventions:
//!
//! - Address fields are read and written as byte addresses: a field at bits 63:12 returns the address with bits 11:0
//!   zero, and its setter drops bits 11:0.
//! - `with_*` of the wide structures (128 bits and more) and of the table entries drop the bits of a value that do not
//!   fit the field. The `with_*`/`set_*` of the register bitfields assert that it fits in builds with debug
//!   assertions (`with_*_checked` return an error instead), so pass them values of your own, never a guest's.
//! - `reserved` says whether a reserved bit is set. It looks at nothing else: test the present bit first, and the
//!   *values* of fields (an unsupported AW, PGTT, FSPM or TT) afterwards.
//!
//! ```
//! use vtd_spec::{Capabilities, Capability, Descriptor, DescriptorWidth, ExtendedCapability, QueueError};
//!
//! let caps = Capabilities {
//!     cap: Capability::new().with_nd(6).with_mgaw(47),
//!     ecap: ExtendedCapability::new().with_qi(true).with_smts(true),
//!     haw: 46,
//! };
//! // PASID-cache invalidation of domain 4, PASID 0x42.
//! let words = [0x42_0004_0017, 0, 0, 0];
//! let Ok(Descriptor::PasidCache(cache)) = Descriptor::decode(words, DescriptorWidth::Bits256, &caps) else {
//!     panic!("the descriptor is valid");
//! };
//! assert_eq!((cache.did.0, cache.pasid.get()), (4, 0x42));
//! // This unit has no device-TLBs (ECAP.DT=0).
//! let device_tlb = Descriptor::decode([3, 0, 0, 0], DescriptorWidth::Bits256, &caps);
//! assert_eq!(device_tlb, Err(QueueError::InvalidType));
//! ```
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod bits;
mod capabilities;
mod ids;

pub mod descriptors;
pub mod dmar;
pub mod fault;
pub mod interrupt;
pub mod io_apic;
pub mod page_request;
pub mod registers;
pub mod tables;

pub use capabilities::{AddressWidth, Capabilities, FirstStagePagingMode};
pub use descriptors::{
    AddressRange, Descriptor, DescriptorType, DescriptorWidth, ResponseCode, check_queue_mode,
};
pub use fault::{AtsResponse, FaultReason};
pub use ids::{DomainId, Pasid, SourceId};
pub use interrupt::{InterruptRequest, Message, RemappableRequest};
pub use io_apic::RemappableRedirectionEntry;
pub use page_request::PageRequestDescriptor;
pub use registers::{
    Capability, ContextCommand, EventAddress, EventControl, EventData, ExtendedCapability, FaultRecord,
    FaultRequestType, FaultStatus, GlobalCommand, GlobalStatus, InterruptRemapTableAddress,
    InvalidateAddress, InvalidationCompletionStatus, InvalidationQueueAddress, InvalidationQueueHead,
    InvalidationQueueTail, IotlbInvalidate, PageRequestQueueAddress, PageRequestQueueHead,
    PageRequestQueueTail, PageRequestStatus, ProtectedMemoryEnable, QueueError, QueueErrorRecord,
    RootTableAddress, TranslationTableMode, Version, offset,
};
pub use tables::{
    FirstStageEntry, InterruptRemapEntry, LegacyContextEntry, PasidDirectoryEntry, PasidEntry,
    PasidGranularTranslationType, PostedInterruptDescriptor, RootEntry, RootHalf, ScalableContextEntry,
    ScalableRootEntry, SecondStageEntry,
};
