// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Device PASIDs that differ from the PASIDs of the unit's tables: what a mediated function has, whose software
//! programs guest PASIDs into it while its host has bound others.

use std::collections::HashMap;

use vtd_spec::Pasid;

/// Which PASID of the unit's tables a PASID of the device stands for. One to one.
#[derive(Debug, Default)]
pub(crate) struct PasidTranslation {
    to_host: HashMap<Pasid, Pasid>,
    to_device: HashMap<Pasid, Pasid>,
}

impl PasidTranslation {
    /// Makes `device` stand for `host`; what either stood for before is forgotten.
    pub(crate) fn map(&mut self, device: Pasid, host: Pasid) {
        self.unmap(device);
        if let Some(other) = self.to_device.insert(host, device) {
            self.to_host.remove(&other);
        }
        self.to_host.insert(device, host);
    }

    pub(crate) fn unmap(&mut self, device: Pasid) {
        if let Some(host) = self.to_host.remove(&device) {
            self.to_device.remove(&host);
        }
    }

    pub(crate) fn host(&self, device: Pasid) -> Option<Pasid> {
        self.to_host.get(&device).copied()
    }

    pub(crate) fn device(&self, host: Pasid) -> Option<Pasid> {
        self.to_device.get(&host).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_stays_one_to_one() {
        let pasid = Pasid::truncated;
        let mut translation = PasidTranslation::default();
        translation.map(pasid(1), pasid(10));
        translation.map(pasid(2), pasid(10));
        assert_eq!((translation.host(pasid(1)), translation.host(pasid(2))), (None, Some(pasid(10))));
        assert_eq!(translation.device(pasid(10)), Some(pasid(2)));
        translation.map(pasid(2), pasid(11));
        assert_eq!((translation.device(pasid(10)), translation.device(pasid(11))), (None, Some(pasid(2))));
        translation.unmap(pasid(2));
        assert_eq!((translation.host(pasid(2)), translation.device(pasid(11))), (None, None));
    }
}
