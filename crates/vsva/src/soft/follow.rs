// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One pointer followed through both stages, by plain reading: for people who want to see it.

use vm_memory::{Bytes, GuestAddress};
use vtd_spec::{FirstStageEntry, Pasid, PasidEntry};

use super::soft_host::SoftHost;
use crate::host::DeviceId;

/// One entry of the guest's table that a walk reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FollowedEntry {
    /// Level of the table, from 5 or 4 down.
    pub level: u8,
    /// Where the guest has it: a guest physical address.
    pub guest_physical: u64,
    /// Where it is: a host physical address.
    pub host_physical: u64,
    /// What it holds.
    pub value: u64,
}

/// A pointer of a guest process, and where it leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Followed {
    /// The pointer: a guest virtual address.
    pub guest_virtual: u64,
    /// The host's PASID entry.
    pub entry: PasidEntry,
    /// The entries on the way.
    pub entries: Vec<FollowedEntry>,
    /// Guest physical address of the byte.
    pub guest_physical: u64,
    /// Host physical address of the byte.
    pub host_physical: u64,
}

impl SoftHost {
    /// Follows a pointer of the process behind one of the host's PASIDs. Marks nothing accessed. `None` where the PASID
    /// is not nested or the pointer leads nowhere now.
    pub fn follow(&self, device: DeviceId, pasid: Pasid, pointer: u64) -> Option<Followed> {
        let entry = self.entry(device, pasid)?;
        let mut table = entry.fsptptr();
        let mut entries = Vec::new();
        for level in (1..=4 + entry.fspm()).rev() {
            let shift = 12 + 9 * (u32::from(level) - 1);
            let guest_physical = table | ((pointer >> shift) & 0x1ff) << 3;
            let host_physical = self.host_physical(guest_physical)?;
            let value: u64 = self.memory.read_obj(GuestAddress(host_physical)).ok()?;
            entries.push(FollowedEntry { level, guest_physical, host_physical, value });
            let next = FirstStageEntry::from_bits(value);
            if !next.p() {
                return None;
            }
            table = next.address(level);
            if next.is_leaf(level) {
                let guest_physical = table | pointer & ((1 << shift) - 1);
                let host_physical = self.host_physical(guest_physical)?;
                return Some(Followed {
                    guest_virtual: pointer,
                    entry,
                    entries,
                    guest_physical,
                    host_physical,
                });
            }
        }
        None
    }
}
