// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Names of the address spaces within a function.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use vtd_spec::Pasid;

use crate::request::Requester;

/// PASIDs and domain-ids are small numbers that software hands out in order: spreading them needs one multiplication.
#[derive(Default)]
pub(crate) struct PasidHasher(u64);

impl Hasher for PasidHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u32(u32::from(*byte) ^ (self.0 as u32));
        }
    }

    fn write_u16(&mut self, value: u16) {
        self.write_u32(u32::from(value));
    }

    fn write_u32(&mut self, value: u32) {
        self.0 = u64::from(value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

pub(super) type Map<V> = HashMap<Key, V, BuildHasherDefault<PasidHasher>>;

/// Names an address space within a function: a PASID, or requests without one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Key(pub(super) u32);

impl std::hash::Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u32(self.0);
    }
}

impl Key {
    pub(super) const WITHOUT_PASID: Self = Self(1 << 20);
    pub(super) const PRIVILEGED: u32 = 1 << 21;

    pub(super) fn new(pasid: Option<Pasid>) -> Self {
        pasid.map_or(Self::WITHOUT_PASID, |pasid| Self(pasid.get()))
    }

    /// Those under which the device-TLB keeps what this one names: of user and of privileged requests.
    pub(super) const fn of_device(self) -> [Self; 2] {
        [self, Self(self.0 | Self::PRIVILEGED)]
    }

    /// The device-TLB keeps what privileged requests were granted apart.
    pub(super) fn device(requester: Requester) -> Self {
        let privilege = if requester.privileged { Self::PRIVILEGED } else { 0 };
        Self(Self::new(requester.pasid).0 | privilege)
    }
}
