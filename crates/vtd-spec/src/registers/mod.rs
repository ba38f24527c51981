// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The register page: offsets and layouts. \[S 11.4\]
//!
//! Registers are 32 or 64 bits; 64-bit ones may be accessed as two 32-bit halves. \[S 11.2\]

mod capability;
mod context;
pub mod enhanced_command;
mod event;
mod fault;
mod global;
mod interrupt;
mod iotlb;
mod mtrr;
pub mod offset;
mod page_request;
mod protected_memory;
mod queue;
mod resource_director;
mod root;
mod version;
pub mod virtual_command;

pub use capability::{Capability, ExtendedCapability};
pub use context::ContextCommand;
pub use enhanced_command::{EnhancedCommand, EnhancedCommandResponse};
pub use event::{EventAddress, EventControl, EventData};
pub use fault::{FaultRecord, FaultRequestType, FaultStatus};
pub use global::{GlobalCommand, GlobalStatus};
pub use interrupt::InterruptRemapTableAddress;
pub use iotlb::{InvalidateAddress, IotlbInvalidate};
pub use mtrr::{
    MemoryType, MtrrCapability, MtrrDefaultType, MtrrFixedRange, MtrrPhysicalBase, MtrrPhysicalMask,
};
pub use page_request::{
    PageRequestQueueAddress, PageRequestQueueHead, PageRequestQueueTail, PageRequestStatus,
};
pub use protected_memory::{ProtectedMemoryEnable, protected_region, protected_region_alignment};
pub use queue::{
    InvalidationCompletionStatus, InvalidationQueueAddress, InvalidationQueueHead, InvalidationQueueTail,
    QueueError, QueueErrorRecord,
};
pub use resource_director::ResourceDirectorControl;
pub use root::{RootTableAddress, TranslationTableMode};
pub use version::Version;
