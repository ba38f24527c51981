// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a driver keeps of its unit: the words of all its parts.

mod device;
pub(crate) mod device_config;
mod domain;
pub(crate) mod domain_id;
mod interrupt_table;
pub(crate) mod page_request_queue;
pub(crate) mod queue;
mod table;

pub(crate) use device::{Attachment, Device};
pub use device_config::{Ats, DeviceConfig};
pub(crate) use domain::Domain;
pub use domain_id::{DomainHandle, Stage};
pub(crate) use domain_id::{DomainIds, FIRST_STAGE_DID};
pub(crate) use interrupt_table::InterruptTable;
pub(crate) use page_request_queue::PageRequestQueue;
pub use page_request_queue::{PageRequest, PageRequests};
pub(crate) use queue::Queue;
pub use table::{FirstStageTable, NestedTable};
