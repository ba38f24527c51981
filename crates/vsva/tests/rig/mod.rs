// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A whole system in one process: a guest with its virtual unit, the joint, a soft host with its physical unit, and a
//! device behind that.

#![allow(dead_code, reason = "each test binary uses its own part")]

#[path = "../../../vtd-unit/tests/common/mod.rs"]
pub mod common;
pub mod kernel;
pub mod ledger;

use std::sync::Arc;

use common::{Guest, MEMORY_BYTES, Memory, Messages, SOURCE_ID, Sink};
use ledger::Ledger;
use vm_memory::{FileOffset, GuestAddress};
use vmm_sys_util::tempfile::TempFile;
use vsva::{Assigned, DeviceId, HostIommu, HostMemory, Joint, SoftHost, SoftHostConfig, Tracer};
use vtd_spec::descriptors::{
    PasidCache, PasidCacheGranularity, PasidDeviceTlb, PasidIotlb, PasidIotlbGranularity,
};
use vtd_spec::{AddressRange, Descriptor, DomainId, Pasid, SourceId};
use vtd_unit::{Endpoint, EndpointSink, Notify, UnitConfig};

/// See the module's documentation.
pub struct Rig {
    pub guest: Guest,
    pub host: Arc<SoftHost>,
    pub joint: Joint<Memory>,
    pub assigned: Arc<Assigned<Memory>>,
    pub device: DeviceId,
    /// The device's port into the physical unit, and what it hears there.
    pub port: Endpoint<HostMemory>,
    pub sink: Arc<Sink>,
    pub messages: Arc<Messages>,
}

/// One more device behind the physical unit, assigned to the guest.
pub struct Device {
    pub source_id: SourceId,
    pub id: DeviceId,
    pub port: Endpoint<HostMemory>,
    pub sink: Arc<Sink>,
    pub assigned: Arc<Assigned<Memory>>,
}

/// Guest memory that a soft host can map again.
pub fn shared_memory() -> Memory {
    let file = TempFile::new().unwrap().into_file();
    file.set_len(MEMORY_BYTES).unwrap();
    let half = MEMORY_BYTES / 2;
    let file = Arc::new(file);
    let range = |start| {
        let file = FileOffset::from_arc(Arc::clone(&file), start);
        (GuestAddress(start), half as usize, Some(file))
    };
    Memory::from_ranges_with_files([range(0), range(half)]).unwrap()
}

impl Rig {
    pub fn new() -> Self {
        Self::with(&UnitConfig::default(), &SoftHostConfig::default())
    }

    pub fn with(guest: &UnitConfig, host: &SoftHostConfig) -> Self {
        Self::joined(guest, host, None, |host| host)
    }

    /// With books between the joint and the soft host.
    pub fn with_ledger(guest: &UnitConfig, host: &SoftHostConfig) -> (Self, Arc<Ledger>) {
        let mut ledger = None;
        let rig = Self::joined(guest, host, None, |host| {
            Arc::clone(ledger.insert(Ledger::of(host))) as Arc<dyn HostIommu>
        });
        (rig, ledger.unwrap())
    }

    /// With whatever `between` puts between the joint and the soft host.
    pub fn joined(
        guest: &UnitConfig,
        host: &SoftHostConfig,
        tracer: Option<Arc<dyn Tracer>>,
        between: impl FnOnce(Arc<dyn HostIommu>) -> Arc<dyn HostIommu>,
    ) -> Self {
        let guest = Guest::powered_up_in(guest, shared_memory()).boot();
        let host = SoftHost::new(host, &guest.memory).unwrap();
        let (sink, messages) = (Arc::new(Sink::default()), Arc::new(Messages::default()));
        let (device, port) = host
            .function(Arc::clone(&sink) as Arc<dyn EndpointSink>, Arc::clone(&messages) as Arc<dyn Notify>)
            .unwrap();
        // What it has there is assigned.
        guest.unit.remove_endpoint(SOURCE_ID);
        let joint =
            Joint::new(&guest.unit, between(Arc::clone(&host) as Arc<dyn HostIommu>), tracer).unwrap();
        let assigned = joint.assign(SOURCE_ID, device).unwrap();
        Self { guest, host, joint, assigned, device, port, sink, messages }
    }

    /// Plugs in another device, behind the same PASID directory.
    pub fn plug(&self, source_id: SourceId) -> Device {
        self.guest.add_function(source_id);
        self.guest.submit(&common::descriptors::context_device(source_id));
        let (sink, messages) = (Arc::new(Sink::default()), Arc::new(Messages::default()));
        let (id, port) = self
            .host
            .function(Arc::clone(&sink) as Arc<dyn EndpointSink>, messages as Arc<dyn Notify>)
            .unwrap();
        let assigned = self.joint.assign(source_id, id).unwrap();
        Device { source_id, id, port, sink, assigned }
    }

    /// The first device, as [`Self::plug`] returns the others.
    pub fn first(&self) -> Device {
        Device {
            source_id: SOURCE_ID,
            id: self.device,
            port: self.port.clone(),
            sink: Arc::clone(&self.sink),
            assigned: Arc::clone(&self.assigned),
        }
    }

    /// Binds an empty table to a PASID of the guest and announces it, as Linux does.
    pub fn bind(&self, pasid: Pasid) {
        self.guest.bind(pasid);
        self.guest.submit_all(&[pasid_cache(pasid), piotlb_all(pasid)]);
    }

    /// Takes the PASID away, as Linux does.
    pub fn unbind(&self, pasid: Pasid) {
        self.guest.write_pasid_entry(pasid, Default::default());
        self.guest.submit_all(&[pasid_cache(pasid), piotlb_all(pasid), device_tlb(pasid, AddressRange::ALL)]);
        self.drain(pasid);
    }

    /// Drains the page requests of a PASID, as Linux does last (prq.c:intel_iommu_drain_pasid_prq).
    pub fn drain(&self, pasid: Pasid) {
        for descriptor in [piotlb_all(pasid), device_tlb(pasid, AddressRange::ALL)] {
            self.guest.queue(&descriptor);
        }
        self.guest.submit_wait(1 << 7);
    }

    /// Unmaps a page and invalidates it, as Linux does.
    pub fn unmap(&self, pasid: Pasid, address: u64) {
        self.guest.map(pasid, address, 0, 0);
        self.invalidate(pasid, address);
    }

    pub fn invalidate(&self, pasid: Pasid, address: u64) {
        let range = AddressRange::new(address, 0);
        self.guest.submit_all(&[piotlb_page(pasid, address), device_tlb(pasid, range)]);
    }

    /// Waits until `done`, which other threads bring about.
    pub fn eventually(&self, what: &str, done: impl Fn() -> bool) {
        patience::eventually(what, done);
    }
}

pub fn pasid_cache(pasid: Pasid) -> Descriptor {
    let granularity = PasidCacheGranularity::Pasid;
    Descriptor::PasidCache(PasidCache { granularity, did: DomainId(1), pasid })
}

pub fn piotlb_all(pasid: Pasid) -> Descriptor {
    let granularity = PasidIotlbGranularity::Pasid;
    Descriptor::PasidIotlb(PasidIotlb { granularity, did: DomainId(1), pasid, am: 0, ih: false, addr: 0 })
}

pub fn piotlb_page(pasid: Pasid, addr: u64) -> Descriptor {
    let granularity = PasidIotlbGranularity::Page;
    Descriptor::PasidIotlb(PasidIotlb { granularity, did: DomainId(1), pasid, am: 0, ih: false, addr })
}

pub fn device_tlb(pasid: Pasid, range: AddressRange) -> Descriptor {
    let sid = SOURCE_ID;
    Descriptor::PasidDeviceTlb(PasidDeviceTlb { sid, pfsid: SourceId(0), mip: 0, pasid, gi: false, range })
}
