// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Sets: the ids of one owner.

use alloc::vec::Vec;

use crate::Ioasid;

/// The quota of a machine where nothing else is said (Linux vfio_pasid.c: `pasid_quota`).
pub const DEFAULT_QUOTA: u32 = 1000;

/// A set of an allocator. Never used again for another set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SetId(pub(crate) u64);

/// What a set holds.
pub(crate) struct Set {
    pub(crate) quota: u32,
    /// The ids, in no order; each knows its place here.
    pub(crate) members: Vec<Ioasid>,
}

impl Set {
    pub(crate) fn allocated(&self) -> u32 {
        self.members.len() as u32
    }
}
