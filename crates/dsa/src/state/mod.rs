// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What registers show and engines share: one lock guards it, and nothing is called with that lock held but
//! [`crate::bus::Bus::pci`]. What has to be called is collected in [`Effects`] and done after the lock is released.

mod access;
mod command;
mod dispatch;
mod shared;

pub(crate) use shared::{DeviceState, Effects, Job, State};
