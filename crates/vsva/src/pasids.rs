// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The host's PASIDs that stand for a guest's: one for each PASID that the guest has bound, whatever the number of
//! functions it is bound on, and those that the guest has allocated through the virtual command.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vtd_spec::Pasid;

use crate::host::{HostError, HostIommu};

struct InUse {
    host: Pasid,
    /// Functions on which it is bound.
    users: usize,
}

#[derive(Default)]
struct State {
    in_use: HashMap<Pasid, InUse>,
    /// Allocated by the guest's virtual command: the host's number is the guest's.
    commanded: HashSet<Pasid>,
    /// The machine is gone: nothing is allocated any more.
    closed: bool,
}

/// See the module's documentation. Its lock is held over calls to the host's allocator.
pub(crate) struct HostPasids {
    host: Arc<dyn HostIommu>,
    state: Mutex<State>,
}

impl HostPasids {
    pub(crate) fn new(host: Arc<dyn HostIommu>) -> Self {
        Self { host, state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The host's PASID for one more function on which the guest binds `guest`.
    pub(crate) fn acquire(&self, guest: Pasid) -> Result<Pasid, HostError> {
        let mut state = self.state();
        if let Some(in_use) = state.in_use.get_mut(&guest) {
            in_use.users += 1;
            return Ok(in_use.host);
        }
        let host = if state.commanded.contains(&guest) {
            guest
        } else if self.host.nesting_info().identical_pasids {
            self.host.allocate_this_pasid(guest)?;
            guest
        } else {
            self.host.allocate_pasid()?
        };
        state.in_use.insert(guest, InUse { host, users: 1 });
        Ok(host)
    }

    /// One function less: the last one gives the host's PASID back, unless the guest holds it itself.
    pub(crate) fn release(&self, guest: Pasid) {
        let mut state = self.state();
        let Some(in_use) = state.in_use.get_mut(&guest) else { return };
        in_use.users -= 1;
        if in_use.users > 0 {
            return;
        }
        let host = in_use.host;
        state.in_use.remove(&guest);
        if !state.commanded.contains(&guest) {
            self.host.free_pasid(host);
        }
    }

    /// PASIDs that are in use.
    pub(crate) fn held(&self) -> usize {
        self.state().in_use.len()
    }

    /// Gives everything back that the guest had allocated itself: the machine is reset.
    pub(crate) fn release_commanded(&self) {
        let mut state = self.state();
        let State { in_use, commanded, .. } = &mut *state;
        for pasid in commanded.drain() {
            // One that is still bound is given back with its last binding.
            if !in_use.contains_key(&pasid) {
                self.host.free_pasid(pasid);
            }
        }
    }

    /// As [`Self::release_commanded`], for good: the machine goes.
    pub(crate) fn close(&self) {
        self.state().closed = true;
        self.release_commanded();
    }
}

impl HostPasids {
    /// A PASID of the host for the guest, under the host's number.
    pub(crate) fn allocate(&self) -> Option<Pasid> {
        let mut state = self.state();
        if state.closed {
            return None;
        }
        // Numbers that the guest uses on its own account, for other PASIDs of the host, are not to be had.
        let mut taken = Vec::new();
        let pasid = loop {
            match self.host.allocate_pasid().ok() {
                Some(pasid) if state.in_use.contains_key(&pasid) => taken.push(pasid),
                other => break other,
            }
        };
        taken.into_iter().for_each(|pasid| self.host.free_pasid(pasid));
        state.commanded.extend(pasid);
        pasid
    }

    /// Whether the guest has allocated it.
    pub(crate) fn is_commanded(&self, pasid: Pasid) -> bool {
        self.state().commanded.contains(&pasid)
    }

    /// Takes one back; false where the guest has not allocated it. One that is still in use goes with its last use.
    pub(crate) fn free(&self, pasid: Pasid) -> bool {
        let mut state = self.state();
        if !state.commanded.remove(&pasid) {
            return false;
        }
        if !state.in_use.contains_key(&pasid) {
            self.host.free_pasid(pasid);
        }
        true
    }
}
