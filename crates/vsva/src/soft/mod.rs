// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A host that needs no hardware: a physical remapping unit in software, programmed by the driver half alone, with the
//! guest's memory somewhere in a physical address space of its own.
//!
//! Device models get their port from [`SoftHost::function`]: their DMA goes through the physical unit, whose PASID table
//! the host keeps. Whatever the guest wants there comes through [`HostIommu`].

mod follow;
mod function;
mod memory;

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock, Weak};
use std::thread::JoinHandle;

use vm_memory::GuestMemoryMmap;
use vtd_driver::nested::{self, BindData};
use vtd_driver::{Ats, DeviceConfig, DomainHandle, Iommu, NestedTable, Pasids};
use vtd_spec::{
    AddressRange, AddressWidth, FaultReason, FaultRequestType, Pasid, PasidEntry, ResponseCode, SourceId,
};
use vtd_unit::{
    Access, Endpoint, EndpointSink, FirstStageTable, Message, Notify, PageGroupResponse, PageRequest,
    Requester, Statistics, Unit, UnitConfig,
};

pub use follow::{Followed, FollowedEntry};
pub use memory::HostMemory;

use crate::host::{
    Attachment, DeviceId, FaultPasid, HostError, HostEvents, HostFault, HostIommu, Invalidation,
    InvalidationKind, NestingInfo,
};
use crate::unit_registers::UnitRegisters;
use function::{Function, FunctionSink};
use memory::{Piece, Tables, lay_out};

/// What a soft host is made of.
#[derive(Clone, Debug)]
pub struct SoftHostConfig {
    /// Its physical unit.
    pub unit: UnitConfig,
    /// PASIDs that the guest may have at a time. \[Linux vfio_pasid.c: pasid_quota\]
    pub pasid_quota: u32,
    /// Bytes of host memory for the driver's tables.
    pub table_bytes: u64,
    /// Whether the host's PASIDs are the guest's, as where PASID tables are a device's own.
    pub identical_pasids: bool,
}

impl Default for SoftHostConfig {
    fn default() -> Self {
        Self {
            unit: UnitConfig {
                cm: false,
                ssts: true,
                ssads: true,
                nest: true,
                haw: 48,
                fault_records: 32,
                ..UnitConfig::default()
            },
            pasid_quota: 1000,
            table_bytes: 64 << 20,
            identical_pasids: false,
        }
    }
}

/// Why there is no soft host.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SoftHostError {
    /// Guest memory is private to the guest.
    #[error("the soft host needs guest memory that is backed by a file (a memfd)")]
    NotShared,
    /// The memory cannot be mapped again.
    #[error("cannot map guest memory for the soft host: {0}")]
    Map(String),
    /// The pieces do not fit into the host's address space.
    #[error("guest memory does not fit into the soft host's address space")]
    Layout,
    /// The physical unit's options.
    #[error(transparent)]
    Unit(#[from] vtd_unit::ConfigError),
    /// The driver.
    #[error("soft host: {0}")]
    Driver(#[from] vtd_driver::Error),
    /// The PASID quota.
    #[error("soft host: {0}")]
    Quota(#[from] ioasid::Error),
    /// No thread.
    #[error("cannot start the soft host's interrupt thread: {0}")]
    Thread(String),
}

/// The physical unit's own interrupts: they wake the host's thread.
#[derive(Default)]
struct Interrupts {
    pending: Mutex<Pending>,
    changed: Condvar,
}

#[derive(Default)]
struct Pending {
    any: bool,
    stop: bool,
}

impl Interrupts {
    fn raise(&self, f: impl FnOnce(&mut Pending)) {
        f(&mut self.pending.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_all();
    }

    /// Waits for an interrupt; false when the host goes.
    fn wait(&self) -> bool {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        while !pending.any && !pending.stop {
            pending = self.changed.wait(pending).unwrap_or_else(PoisonError::into_inner);
        }
        pending.any = false;
        !pending.stop
    }
}

impl Notify for Interrupts {
    fn message(&self, _: Message) {
        self.raise(|pending| pending.any = true);
    }
}

/// What the driver's lock guards.
struct Driver {
    iommu: Iommu<UnitRegisters<HostMemory>, Tables>,
    pasids: Pasids,
    set: ioasid::SetId,
    /// The guest's memory: second stage, GPA to HPA.
    domain: DomainHandle,
    attached: HashMap<(DeviceId, Option<Pasid>), Attachment>,
}

/// See the module's documentation.
pub struct SoftHost {
    config: SoftHostConfig,
    unit: Unit<HostMemory>,
    pub(crate) memory: Arc<HostMemory>,
    pub(crate) pieces: Vec<Piece>,
    interrupts: Arc<Interrupts>,
    thread: Mutex<Option<JoinHandle<()>>>,
    /// Held over submissions to the physical unit. What the unit calls meanwhile only wakes threads.
    driver: Mutex<Driver>,
    /// Held while page requests that were taken off the unit's queue are on their way up.
    passing: Mutex<()>,
    functions: RwLock<Vec<Arc<Function>>>,
}

impl SoftHost {
    /// Brings a host up around a guest's memory, which must be shared and backed by files.
    ///
    /// # Errors
    ///
    /// Memory that is not, options that no unit can have, or too little of something.
    pub fn new(config: &SoftHostConfig, guest: &GuestMemoryMmap<()>) -> Result<Arc<Self>, SoftHostError> {
        let (memory, pieces) = lay_out(guest, config.table_bytes)?;
        let memory = Arc::new(memory);
        let interrupts = Arc::new(Interrupts::default());
        let unit = Unit::new(&config.unit, Arc::clone(&memory), Arc::clone(&interrupts) as Arc<dyn Notify>)?;
        let tables = Tables::new(Arc::clone(&memory), config.table_bytes)?;
        let settings = vtd_driver::Config::new(config.unit.haw);
        let mut iommu = Iommu::bring_up(UnitRegisters(unit.clone()), tables, settings)?;
        let domain = iommu.create_nest_parent(AddressWidth::Bits48)?;
        for piece in &pieces {
            iommu.map(domain, piece.guest, piece.host, piece.length, vtd_driver::Access::ReadWrite)?;
        }
        iommu.enable_translation()?;
        let mut pasids = Pasids::new(1..=Pasid::MAX.get())?;
        let set = pasids.create_set(config.pasid_quota)?;
        let driver = Driver { iommu, pasids, set, domain, attached: HashMap::new() };
        let host = Arc::new(Self {
            config: config.clone(),
            unit,
            memory,
            pieces,
            interrupts: Arc::clone(&interrupts),
            thread: Mutex::default(),
            driver: Mutex::new(driver),
            passing: Mutex::default(),
            functions: RwLock::default(),
        });
        let weak = Arc::downgrade(&host);
        let serve = move || {
            while interrupts.wait() {
                let Some(host) = weak.upgrade() else { break };
                host.serve_interrupts();
            }
        };
        let thread = std::thread::Builder::new()
            .name("soft-host".into())
            .spawn(serve)
            .map_err(|error| SoftHostError::Thread(error.to_string()))?;
        *host.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
        Ok(host)
    }

    /// A function of the host for a device model, whose interrupts go to `messages`: its name, and its port. Its requests
    /// are blocked until it is assigned.
    ///
    /// # Errors
    ///
    /// The driver's.
    pub fn function(
        &self,
        device: Arc<dyn EndpointSink>,
        messages: Arc<dyn Notify>,
    ) -> Result<(DeviceId, Endpoint<HostMemory>), SoftHostError> {
        let mut functions = self.functions.write().unwrap_or_else(PoisonError::into_inner);
        let number = functions.len() as u32 + 1;
        let id = DeviceId(number);
        let source_id = SourceId::new((number >> 5) as u8, (number & 0x1f) as u8, 0);
        // All functions here forget every PASID at once.
        let ats = Some(Ats { global_invalidate: true, ..Ats::default() });
        self.driver().iommu.add_device(DeviceConfig { ats, ..DeviceConfig::with_sva(source_id) })?;
        let sink = Arc::new(FunctionSink::new(id, device));
        let endpoint =
            self.unit.endpoint_with_messages(source_id, Arc::clone(&sink) as Arc<dyn EndpointSink>, messages);
        if !self.config.identical_pasids {
            endpoint.translate_pasids();
        }
        functions.push(Arc::new(Function { id, source_id, sink, endpoint: endpoint.clone() }));
        Ok((id, endpoint))
    }

    /// The host's PASID table entry as it stands in its memory.
    pub fn entry(&self, device: DeviceId, pasid: Pasid) -> Option<PasidEntry> {
        let source_id = self.find(device).ok()?.source_id;
        self.driver().iommu.pasid_entry(source_id, pasid).ok().filter(PasidEntry::p)
    }

    /// The host's memory.
    pub fn memory(&self) -> &Arc<HostMemory> {
        &self.memory
    }

    /// What the physical unit has done so far.
    pub fn statistics(&self) -> Statistics {
        self.unit.statistics()
    }

    /// PASIDs that the guest holds.
    pub fn allocated_pasids(&self) -> u32 {
        let driver = self.driver();
        driver.pasids.usage(driver.set).map_or(0, |(_, allocated)| allocated)
    }

    /// Takes a piece of the guest's memory away from its devices, or gives it back: what a host does that moves or
    /// reclaims it. No access to it is in flight when this returns.
    ///
    /// # Errors
    ///
    /// Addresses that are not the guest's or not whole pages; the driver's.
    pub fn set_mapped(&self, guest_physical: u64, length: u64, mapped: bool) -> Result<(), SoftHostError> {
        let end = guest_physical.checked_add(length).ok_or(SoftHostError::Layout)?;
        // What neighbours for the guest need not do so on the host.
        let mut parts = Vec::new();
        let mut at = guest_physical;
        while at < end {
            let piece = self.piece(at).ok_or(SoftHostError::Layout)?;
            let length = (piece.guest + piece.length).min(end) - at;
            parts.push((at, piece.host + (at - piece.guest), length));
            at += length;
        }
        let mut driver = self.driver();
        let domain = driver.domain;
        for (guest, host, length) in parts {
            if mapped {
                driver.iommu.map(domain, guest, host, length, vtd_driver::Access::ReadWrite)?;
            } else {
                driver.iommu.unmap(domain, guest, length)?;
            }
        }
        Ok(())
    }

    fn driver(&self) -> MutexGuard<'_, Driver> {
        self.driver.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, device: DeviceId) -> Result<Arc<Function>, HostError> {
        let functions = self.functions.read().unwrap_or_else(PoisonError::into_inner);
        functions.iter().find(|function| function.id == device).cloned().ok_or(HostError::NoDevice(device))
    }

    fn find_source(&self, source_id: SourceId) -> Option<Arc<Function>> {
        let functions = self.functions.read().unwrap_or_else(PoisonError::into_inner);
        functions.iter().find(|function| function.source_id == source_id).cloned()
    }

    /// Reads faults and page requests, and passes them on with the driver unlocked.
    fn serve_interrupts(&self) {
        let _passing = self.passing.lock().unwrap_or_else(PoisonError::into_inner);
        let (faults, requests) = {
            let mut driver = self.driver();
            let faults = driver.iommu.take_faults();
            let requests = driver.iommu.take_page_requests();
            (faults, requests)
        };
        for record in faults.records {
            let reason = FaultReason::ALL.iter().copied().find(|reason| reason.code() == record.fr());
            let function = self.find_source(record.sid());
            let Some(((function, events), reason)) =
                function.and_then(|function| Some((function.id, function.sink.events()?))).zip(reason)
            else {
                tracing::debug!(?record, "a fault of no assigned function");
                continue;
            };
            let access = match record.request_type() {
                FaultRequestType::Write => Access::Write,
                FaultRequestType::AtomicOp => Access::Atomic,
                _ => Access::Read,
            };
            let pasid = if record.pp() { FaultPasid::Host(record.pv()) } else { FaultPasid::None };
            let (address, privileged) = (record.fi(), record.privileged());
            events.fault(function, HostFault { reason, pasid, address, access, privileged });
        }
        match requests {
            Ok(requests) => {
                for request in requests.requests {
                    self.pass_on(&request);
                }
            }
            Err(error) => tracing::error!(%error, "soft host: page requests"),
        }
    }

    fn pass_on(&self, request: &vtd_driver::PageRequest) {
        let function = self.find_source(request.source_id);
        let events = function.and_then(|function| Some((function.id, function.sink.events()?)));
        match events {
            Some((id, events)) => {
                let requester = Requester { pasid: request.pasid, privileged: false };
                let vtd_driver::PageRequest { address, read, write, last, group, .. } = *request;
                events.page_request(id, PageRequest { requester, address, read, write, last, group });
            }
            None => {
                let answered = self.driver().iommu.respond(request, ResponseCode::InvalidRequest);
                if let Err(error) = answered {
                    tracing::error!(%error, "soft host: a page request of no assigned function");
                }
            }
        }
    }
}

impl Drop for SoftHost {
    fn drop(&mut self) {
        self.interrupts.raise(|pending| pending.stop = true);
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        // The thread itself may hold the last reference.
        if let Some(thread) = thread.filter(|thread| thread.thread().id() != std::thread::current().id()) {
            let _ = thread.join();
        }
    }
}

fn host_error(error: &vtd_driver::Error) -> HostError {
    use vtd_driver::Error as E;
    match *error {
        E::TableOutOfRange { address } => HostError::TableAddress(address),
        E::AddressWidth { bits } => HostError::Levels(if bits > 48 { 5 } else { 4 }),
        E::Unsupported { capability } if capability.contains("5-level") => HostError::Levels(5),
        E::Unsupported { capability } => HostError::Flag(capability),
        _ => HostError::Host(error.to_string()),
    }
}

impl Driver {
    fn bind_data(table: &FirstStageTable, pasid: Pasid) -> BindData {
        let mut vtd_flags = 0;
        if table.sre {
            vtd_flags |= nested::vtd_flag::SRE;
        }
        if table.eafe {
            vtd_flags |= nested::vtd_flag::EAFE;
        }
        let addr_width = if table.levels == 5 { 57 } else { 48 };
        BindData { addr_width, vtd_flags, wpe: table.wpe, ..BindData::new(table.address, pasid) }
    }

    fn nested_table(table: &FirstStageTable) -> NestedTable {
        NestedTable {
            sre: table.sre,
            eafe: table.eafe,
            wpe: table.wpe,
            ..NestedTable::new(table.address, if table.levels == 5 { 57 } else { 48 })
        }
    }

    /// Requests without PASID are entry 0's. Whatever is attached is replaced in place.
    fn attach(
        &mut self,
        function: &Function,
        pasid: Option<Pasid>,
        to: Attachment,
    ) -> Result<(), vtd_driver::Error> {
        let replaces = self.attached.contains_key(&(function.id, pasid));
        let Self { iommu, pasids, set, domain, .. } = self;
        let (source_id, at) = (function.source_id, pasid.unwrap_or(Pasid::ZERO));
        match to {
            Attachment::Nested(table) if replaces => {
                iommu.replace_stages(source_id, at, *domain, Some(Self::nested_table(&table)))
            }
            Attachment::SecondStage if replaces => iommu.replace_stages(source_id, at, *domain, None),
            Attachment::Nested(table) if pasid.is_some() => {
                let data = Self::bind_data(&table, at);
                nested::bind_gpasid(iommu, pasids, *set, *domain, source_id, &data)
            }
            Attachment::Nested(table) => {
                iommu.setup_nested(source_id, at, *domain, Self::nested_table(&table))
            }
            Attachment::SecondStage => iommu.attach(*domain, source_id, at),
        }
    }

    fn detach(&mut self, function: &Function, pasid: Option<Pasid>) -> Result<(), vtd_driver::Error> {
        let Self { iommu, pasids, set, .. } = self;
        let source_id = function.source_id;
        let Some(pasid) = pasid else { return iommu.detach(source_id, Pasid::ZERO) };
        match nested::unbind_gpasid(iommu, pasids, *set, source_id, pasid.get().into()) {
            // It was attached to the second stage alone at first.
            Err(vtd_driver::Error::NotBound { .. }) => iommu.detach(source_id, pasid),
            unbound => unbound,
        }
    }
}

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
        let Ok(did) = driver.iommu.domain_id(driver.domain) else { return 0 };
        for invalidation in batch {
            let Ok(function) = self.find(invalidation.device) else { continue };
            // What is not attached has nothing cached.
            if !driver.attached.contains_key(&(invalidation.device, invalidation.pasid)) {
                continue;
            }
            let (source_id, ats, range) =
                (function.source_id, vtd_driver::Ats::default(), invalidation.range);
            let pasid = invalidation.pasid.unwrap_or(Pasid::ZERO);
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

    fn respond(&self, device: DeviceId, response: PageGroupResponse) {
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
