// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What someone who mirrors the unit's tables elsewhere hears: the software's invalidations in queue order.

use vtd_spec::Descriptor;

/// Hears what software tells the unit. Called in queue order by the one worker of the queue, with no lock held.
pub trait Observer: Send + Sync {
    /// An invalidation has been carried out on the unit's own caches. May be called by a thread that writes registers, so
    /// what takes long is for [`complete`](Self::complete).
    fn invalidated(&self, descriptor: &Descriptor);

    /// Whether it follows translations. Where nobody does, a processor that rings carries out what would have those who do look
    /// at any number of PASIDs.
    fn mirrors_tables(&self) -> bool {
        true
    }

    /// Whether [`complete`](Self::complete) would have to look at any number of PASIDs: then wait descriptors that are in the
    /// queue together complete together, behind one look.
    fn is_behind(&self) -> bool {
        false
    }

    /// A wait descriptor is about to complete: what was heard before it must be in effect when this returns.
    /// `page_request_drain` is its PD flag: software expects no more answers to be owed for what it has invalidated.
    fn complete(&self, page_request_drain: bool);

    /// Unit-wide state changed: remapping was enabled or disabled, the root table pointer was set, or the unit was
    /// reset. Any function may translate differently now. Called on the thread that wrote the register.
    fn remapping_changed(&self);

    /// Interrupts are remapped otherwise than before: remapping was turned on or off, the table pointer was set, requests in
    /// compatibility format pass or no longer do, or the unit was reset. Together with
    /// [`invalidated`](Self::invalidated) of interrupt entries, that is whenever
    /// [`Unit::remapped`](crate::Unit::remapped) may answer otherwise. May be called on the thread that wrote the register:
    /// what takes long is for another one.
    fn interrupts_changed(&self) {}

    /// The unit was reset, with its machine: the software that ran is gone. Follows
    /// [`remapping_changed`](Self::remapping_changed).
    fn reset(&self) {}
}
