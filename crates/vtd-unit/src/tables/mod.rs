// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the unit's software has written, read: no lock is taken and nobody called.

mod context;
mod first_stage;
mod legacy;
mod pasid;
mod second_stage;
mod walk;

pub(crate) use context::{Context, read_context};
pub(crate) use legacy::read_legacy_context;
pub(crate) use pasid::{read_directory_entry, read_pasid_entry, read_table_entry};
pub(crate) use walk::{Cached, Purpose, Walker};
