// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Rights of a translation, as bits of what is cached.

/// First stage: user requests are allowed (U/S in all entries).
pub(crate) const USER: u64 = 1;
/// First stage: writes are allowed (R/W in all entries).
pub(crate) const WRITE: u64 = 2;
/// Every dirty bit that a write owes is set, so a write may use the cached translation.
pub(crate) const DIRTY: u64 = 4;
/// Second stage: reads are allowed. In a device-TLB: reads are allowed.
pub(crate) const READ: u64 = 8;
/// Second stage: writes are allowed.
pub(crate) const SECOND_WRITE: u64 = 16;

/// What a stage that does not take part grants.
pub(crate) const NO_FIRST_STAGE: u64 = USER | WRITE;
/// See [`NO_FIRST_STAGE`].
pub(crate) const NO_SECOND_STAGE: u64 = READ | SECOND_WRITE;
