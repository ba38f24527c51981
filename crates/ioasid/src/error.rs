// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What can go wrong.

use crate::Ioasid;

/// Why the allocator refused. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The range is empty or reaches beyond what the allocator manages.
    #[error("id range {first:#x}..={last:#x} is empty or not within the allocator's")]
    InvalidRange {
        /// First id of the range.
        first: Ioasid,
        /// Last id of the range.
        last: Ioasid,
    },
    /// Every id of the range is taken.
    #[error("no id is free in the range asked for")]
    NoSpace,
    /// The set holds as many ids as its quota allows.
    #[error("the set's quota of {quota} ids is used up")]
    QuotaExceeded {
        /// The quota.
        quota: u32,
    },
    /// A quota cannot go below what the set holds.
    #[error("the set holds {allocated} ids: a quota of {quota} is too small")]
    QuotaTooSmall {
        /// The quota asked for.
        quota: u32,
        /// What the set holds.
        allocated: u32,
    },
    /// The quotas of all sets together cannot exceed the number of ids.
    #[error("{available} ids are not promised to other sets: a quota of {quota} is too large")]
    NoCapacity {
        /// The quota asked for.
        quota: u32,
        /// What is left to promise.
        available: u32,
    },
    /// The set does not exist (any more).
    #[error("no such set")]
    NoSuchSet,
    /// The id is not allocated.
    #[error("id {id:#x} is not allocated")]
    NotAllocated {
        /// The id.
        id: Ioasid,
    },
    /// The id belongs to another set.
    #[error("id {id:#x} belongs to another set")]
    NotInSet {
        /// The id.
        id: Ioasid,
    },
    /// The id is still bound: it cannot be freed.
    #[error("id {id:#x} is bound: unbind it first")]
    Bound {
        /// The id.
        id: Ioasid,
    },
    /// The id is not bound.
    #[error("id {id:#x} is not bound")]
    NotBound {
        /// The id.
        id: Ioasid,
    },
    /// A custom allocator comes or goes only while no id of the one it replaces is allocated.
    #[error("the allocator cannot change while {allocated} ids are allocated")]
    Outstanding {
        /// Ids that are allocated.
        allocated: u32,
    },
    /// The custom allocator is not registered.
    #[error("no such custom allocator")]
    NoSuchAllocator,
    /// The custom allocator had no id.
    #[error("the custom allocator has no id to give")]
    CustomExhausted,
    /// The custom allocator gave an id outside the range asked for, or one that is allocated.
    #[error("the custom allocator gave id {id:#x}, which was not to be had")]
    CustomMisbehaved {
        /// The id it gave.
        id: Ioasid,
    },
    /// The notifier is not registered.
    #[error("no such notifier")]
    NoSuchNotifier,
}
