// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! PASIDs for a guest that allocates them by the virtual command, in a machine whose devices belong to no host.

use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, PoisonError};

use ioasid::{Allocator, SetId};
use vtd_unit::{Pasid, PasidAllocator, Unit};

use crate::memory::Memory;

/// All PASIDs that the unit knows, but 0, which requests without PASID use.
pub struct OwnPasids {
    pasids: Mutex<Allocator<()>>,
    guest: SetId,
    range: RangeInclusive<u32>,
}

impl OwnPasids {
    /// Has the virtual command of `unit` allocate here for as long as what comes back is kept; nothing where it allocates
    /// elsewhere already, or has no virtual command.
    pub fn serve(unit: &Unit<Memory>) -> Option<Arc<dyn PasidAllocator>> {
        if !unit.has_virtual_command() {
            return None;
        }
        let range = 1..=(2 << unit.capabilities().ecap.pss()) - 1;
        let mut pasids = Allocator::new(range.clone()).ok()?;
        let guest = pasids.create_set(*range.end()).ok()?;
        let own: Arc<dyn PasidAllocator> = Arc::new(Self { pasids: Mutex::new(pasids), guest, range });
        unit.set_pasid_allocator(&own).then_some(own)
    }
}

impl PasidAllocator for OwnPasids {
    fn allocate(&self) -> Option<Pasid> {
        let mut pasids = self.pasids.lock().unwrap_or_else(PoisonError::into_inner);
        pasids.allocate(self.guest, self.range.clone(), None).ok().map(Pasid::truncated)
    }

    fn free(&self, pasid: Pasid) -> bool {
        let mut pasids = self.pasids.lock().unwrap_or_else(PoisonError::into_inner);
        pasids.free(self.guest, pasid.get()).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use vtd_unit::{Message, Notify, UnitConfig};

    use super::*;
    use crate::memory::{self, MemoryOptions};

    struct Deaf;

    impl Notify for Deaf {
        fn message(&self, _message: Message) {}
    }

    fn unit(options: &str) -> Unit<Memory> {
        let memory = memory::allocate(MemoryOptions::ordinary(1 << 20)).unwrap();
        Unit::new(&options.parse::<UnitConfig>().unwrap(), memory, Arc::new(Deaf)).unwrap()
    }

    /// VCMD at E00h, VCRSP at E10h: status in bits 7:1, result from bit 16 on. \[S 11.4.16\]
    fn command(unit: &Unit<Memory>, command: u64) -> (u64, u64) {
        unit.write(0xe00, &command.to_le_bytes());
        let mut response = [1; 8];
        while response[0] & 1 == 1 {
            unit.read(0xe10, &mut response);
        }
        let response = u64::from_le_bytes(response);
        (response >> 1 & 0x7f, response >> 16)
    }

    #[test]
    fn a_guest_without_a_host_allocates_pasids_and_gives_them_back() {
        let unit = unit("vcmd=on,pss=4");
        let own = OwnPasids::serve(&unit).unwrap();
        let all: Vec<_> = (0..31).map(|_| command(&unit, 1)).collect();
        assert!(all.iter().all(|(status, _)| *status == 0), "{all:?}");
        let first = all[0].1;
        assert_ne!(command(&unit, 1).0, 0, "31 of 5 bits, and no more");
        // The operand of the free command is where the result of the allocation is.
        assert_eq!(command(&unit, 2 | first << 16).0, 0);
        assert_ne!(command(&unit, 2 | first << 16).0, 0, "it is no longer the guest's");
        assert_eq!(command(&unit, 1), (0, first));
        assert!(OwnPasids::serve(&unit).is_none(), "one allocates already");
        drop(own);
    }

    #[test]
    fn a_unit_without_the_virtual_command_needs_none() {
        assert!(OwnPasids::serve(&unit("")).is_none());
    }
}
