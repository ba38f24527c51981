// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the joint asks of the host.

use std::sync::{PoisonError, Weak};

use vtd_spec::{AddressRange, AddressWidth, Pasid};
use vtd_unit::PageGroupResponse;

use super::driver::host_error;
use super::soft_host::SoftHost;
use crate::host::{
    Attachment, DeviceId, HostError, HostEvents, HostIommu, Invalidation, InvalidationKind, NestingInfo,
};

impl HostIommu for SoftHost {
    fn nesting_info(&self) -> NestingInfo {
        let capabilities = self.unit.capabilities();
        NestingInfo {
            fs1gp: capabilities.cap.fs1gp(),
            fs5lp: capabilities.cap.fs5lp(),
            prs: capabilities.ecap.prs(),
            srs: capabilities.ecap.srs(),
            eafs: capabilities.ecap.eafs(),
            pasid_bits: capabilities.pasid_bits(),
            address_width: AddressWidth::Bits48.bits(),
            identical_pasids: self.config.identical_pasids,
            // Its own driver keeps to PASID 0; a guest's choice is its shadow's.
            pasid_zero_is_rid: false,
            ends_groups: false,
        }
    }

    fn listen(&self, device: DeviceId, events: Weak<dyn HostEvents>) {
        if let Ok(function) = self.find(device) {
            function.sink.listen(events);
        }
    }

    fn allocate_pasid(&self) -> Result<Pasid, HostError> {
        let mut driver = self.driver();
        let set = driver.set;
        let pasid = driver.pasids.allocate(set, 1..=Pasid::MAX.get(), None);
        pasid.map(Pasid::truncated).map_err(|_| HostError::NoPasid)
    }

    fn allocate_this_pasid(&self, pasid: Pasid) -> Result<(), HostError> {
        let mut driver = self.driver();
        let set = driver.set;
        let allocated = driver.pasids.allocate(set, pasid.get()..=pasid.get(), None);
        allocated.map(drop).map_err(|_| HostError::NoPasid)
    }

    fn free_pasid(&self, pasid: Pasid) {
        let mut driver = self.driver();
        let set = driver.set;
        if let Err(error) = driver.pasids.free(set, pasid.get()) {
            tracing::error!(%error, %pasid, "soft host: a PASID that cannot be freed");
        }
    }

    fn attach(&self, device: DeviceId, pasid: Option<Pasid>, to: Attachment) -> Result<(), HostError> {
        let function = self.find(device)?;
        let mut driver = self.driver();
        if let Some(pasid) = pasid {
            let set = driver.set;
            if driver.pasids.find(Some(set), pasid.get()).is_err() {
                return Err(HostError::NotAllocated(pasid));
            }
        }
        let key = (device, pasid);
        if driver.attached.get(&key) == Some(&to) {
            return Ok(());
        }
        driver.attach(&function, pasid, to).map_err(|error| host_error(&error))?;
        driver.attached.insert(key, to);
        Ok(())
    }

    fn block(&self, device: DeviceId, pasid: Option<Pasid>) {
        let Ok(function) = self.find(device) else { return };
        let mut driver = self.driver();
        if driver.attached.remove(&(device, pasid)).is_none() {
            return;
        }
        let done = driver.detach(&function, pasid);
        if let Err(error) = done {
            // The driver carries a detachment to its end, whatever does not answer.
            tracing::error!(%error, ?device, ?pasid, "soft host: blocking");
        }
        drop(driver);
        // The queue is empty of this PASID, but a request may just be on its way up: its answer must come before the PASID
        // stands for another.
        drop(self.passing.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn set_pasid_translation(
        &self,
        device: DeviceId,
        guest: Pasid,
        host: Option<Pasid>,
    ) -> Result<(), HostError> {
        let function = self.find(device)?;
        if self.config.identical_pasids {
            return match host {
                Some(host) if host != guest => Err(HostError::Flag("a PASID other than the guest's")),
                _ => Ok(()),
            };
        }
        if let Some(host) = host {
            function.sink.stands_for(host, guest);
        }
        function.endpoint.set_pasid_translation(guest, host);
        Ok(())
    }

    fn invalidate(&self, batch: &[Invalidation]) -> usize {
        let mut driver = self.driver();
        let mut descriptors = Vec::with_capacity(batch.len() * 2);
        for invalidation in batch {
            let Ok(function) = self.find(invalidation.device) else { continue };
            // What is not attached has nothing cached.
            if !driver.attached.contains_key(&(invalidation.device, invalidation.pasid)) {
                continue;
            }
            let (source_id, ats, range) =
                (function.source_id, vtd_driver::Ats::default(), invalidation.range);
            let pasid = invalidation.pasid.unwrap_or(Pasid::ZERO);
            let Some(did) = driver.iommu.domain_id_of(source_id, pasid) else { continue };
            if let InvalidationKind::Iotlb { leaf_only } = invalidation.kind {
                descriptors.push(if range == AddressRange::ALL {
                    vtd_driver::cache::pasid_iotlb(did, pasid)
                } else {
                    vtd_driver::cache::pasid_iotlb_pages(did, pasid, range, leaf_only)
                });
            }
            // The device-TLB goes too: a guest that runs with caching mode may leave that to its host.
            descriptors.push(vtd_driver::cache::device_tlb_of_pasid(source_id, ats, pasid, range));
        }
        match driver.iommu.submit(&descriptors) {
            Ok(()) => batch.len(),
            Err(error) => {
                tracing::error!(%error, "soft host: invalidation");
                0
            }
        }
    }

    fn respond(&self, device: DeviceId, response: PageGroupResponse, _: u64) {
        let Ok(function) = self.find(device) else { return };
        let request = vtd_driver::PageRequest {
            source_id: function.source_id,
            pasid: response.pasid,
            address: 0,
            read: true,
            write: false,
            group: response.group,
            last: true,
        };
        let answered = self.driver().iommu.respond(&request, response.code);
        if let Err(error) = answered {
            tracing::error!(%error, "soft host: page group response");
        }
    }
}
