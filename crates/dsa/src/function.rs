// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The accelerator as a PCI function: configuration space, BARs, interrupts, and its endpoint of the remapping unit.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pci::{
    AtsCapability, Bar, BarRanges, ConfigSpace, ConfigSpaceBuilder, Identity, Message, MsixLayout, MsixTable,
    PasidCapability, PciFunction, PcieCapability, PriCapability,
};
use vm_memory::GuestMemoryBackend;
use vtd_unit::{
    Access, DmaError, Endpoint, EndpointSink, PageGroupResponse, PageRequest, Requester, ResponseCode,
};

use crate::bus::{Bus, PciState};
use crate::core::Device;
use crate::error::Error;
use crate::page_request::PageRequests;
use crate::portal::BAR2_SIZE;
use crate::registers::{BAR0_SIZE, MSIX_PENDING, MSIX_TABLE, VECTORS};

const REGISTERS_BAR: usize = 0;
const PORTALS_BAR: usize = 2;

/// Outstanding page requests: as many as there are group indexes. \[PCIe 10.5.2.4\]
const PRI_CAPACITY: u32 = 0x200;

const IDENTITY: Identity = Identity {
    vendor: 0x8086,
    device: 0x0b25,
    revision: 0,
    // System peripheral, other.
    class: 0x08_80_00,
    subsystem_vendor: 0x8086,
    subsystem: 0,
};

fn lock(config: &Mutex<ConfigSpace>) -> MutexGuard<'_, ConfigSpace> {
    config.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the root complex sends to the function.
struct Sink {
    requests: Arc<PageRequests>,
    config: Arc<Mutex<ConfigSpace>>,
}

impl EndpointSink for Sink {
    fn page_group_response(&self, response: PageGroupResponse) {
        let expected = self.requests.respond(response);
        let mut config = lock(&self.config);
        if !expected {
            // After a Response Failure all responses are ignored. [PCIe 10.4.2]
            if !config.pri_response_failure() {
                config.set_pri_unexpected_group();
            }
        } else if response.code == ResponseCode::ResponseFailure {
            // The interface stops until it is enabled again, and awaits no response. [PCIe 10.4.2]
            config.set_pri_response_failure();
            config.set_pri_stopped();
            drop(config);
            self.requests.fail_all();
        }
    }
}

/// What the accelerator and the function share.
struct Wiring<M> {
    endpoint: Endpoint<M>,
    config: Arc<Mutex<ConfigSpace>>,
    msix: MsixTable,
}

impl<M> Wiring<M> {
    fn config(&self) -> MutexGuard<'_, ConfigSpace> {
        lock(&self.config)
    }
}

impl<M: GuestMemoryBackend + Send + Sync + 'static> Wiring<M> {
    fn send(&self, messages: impl IntoIterator<Item = Message>) {
        for Message { address, data } in messages {
            // A message is a memory write of the function's, whatever lies at the address. [PCIe 6.1.4, 7.5.1.1.3]
            if self.config().bus_master()
                && let Err(error) = self.endpoint.write(Requester::default(), address, &data.to_le_bytes())
            {
                tracing::debug!(%error, "an interrupt message is lost");
            }
        }
    }
}

impl<M: GuestMemoryBackend + Send + Sync + 'static> Bus for Wiring<M> {
    fn read(&self, requester: Requester, address: u64, data: &mut [u8]) -> Result<(), DmaError> {
        self.endpoint.read(requester, address, data)
    }

    fn write(&self, requester: Requester, address: u64, data: &[u8]) -> Result<(), DmaError> {
        self.endpoint.write(requester, address, data)
    }

    fn probe(
        &self,
        requester: Requester,
        address: u64,
        length: usize,
        access: Access,
    ) -> Result<(), DmaError> {
        self.endpoint.probe(requester, address, length, access)
    }

    fn page_request(&self, request: PageRequest) {
        self.endpoint.page_request(request);
    }

    fn interrupt(&self, vector: u16) {
        self.send(self.msix.trigger(vector));
    }

    fn pci(&self) -> PciState {
        let config = self.config();
        PciState {
            bus_master: config.bus_master(),
            pasid: config.pasid_enabled(),
            privileged: config.pasid_privileged(),
            ats: config.ats_enabled(),
            // Stopped while it is enabled: by a Response Failure, whatever became of the status bit that tells of it.
            pri: config.pri_enabled() && !config.pri_stopped(),
            pri_allocation: config.pri_allocation(),
            pri_capacity: config.pri_capacity(),
        }
    }
}

/// An Intel Data Streaming Accelerator 1.0 (8086:0b25): a root complex integrated endpoint with 8 dedicated work
/// queues, 4 groups and 4 engines.
///
/// BAR 0 has the registers, BAR 2 the portals: work queue n takes descriptors at `n * 0x4000` and
/// `n * 0x4000 + 0x1000`, as 64-byte writes or as smaller aligned stores that fill a 64-byte slot.
///
/// Descriptors are executed on threads that are made with the device and end with it.
/// Accesses by the guest's processors do not wait for them, except for a function level reset and for a change of
/// configuration space that stops the device, and then no longer than one piece of work takes.
pub struct Dsa<M: GuestMemoryBackend + Send + Sync + 'static> {
    device: Arc<Device<Wiring<M>>>,
    /// Held from a write of configuration space until its effects have been carried out: of two writers the last one
    /// wins in the device, too.
    configuring: Mutex<()>,
}

impl<M: GuestMemoryBackend + Send + Sync + 'static> Dsa<M> {
    /// A device after power-on. `make_endpoint` gets the sink for what the root complex sends to the function, and
    /// returns the function's port into the remapping unit.
    ///
    /// # Errors
    ///
    /// There are no threads for the engines, or the configuration space cannot be built, which is a fault of this crate.
    pub fn new(make_endpoint: impl FnOnce(Arc<dyn EndpointSink>) -> Endpoint<M>) -> Result<Arc<Self>, Error> {
        let layout = MsixLayout::in_bar(REGISTERS_BAR, VECTORS, MSIX_TABLE, MSIX_PENDING);
        let config = ConfigSpaceBuilder::new(IDENTITY)
            .bar(REGISTERS_BAR, Bar::memory64_prefetchable(BAR0_SIZE))
            .bar(PORTALS_BAR, Bar::memory64_prefetchable(BAR2_SIZE))
            .pcie(PcieCapability { function_level_reset: true, end_end_prefix: true })
            .msix(layout)
            .ats(AtsCapability { queue_depth: 32, global_invalidate: true })
            .pasid(PasidCapability { width: 20, execute: false, privileged: true })
            .pri(PriCapability { capacity: PRI_CAPACITY, response_pasid_required: true })
            .build()?;
        let config = Arc::new(Mutex::new(config));
        let requests = Arc::new(PageRequests::new());
        let sink = Sink { requests: Arc::clone(&requests), config: Arc::clone(&config) };
        let wiring = Wiring { endpoint: make_endpoint(Arc::new(sink)), config, msix: MsixTable::new(layout) };
        let device = Device::new(wiring, requests);
        device.start_engines().map_err(Error::Threads)?;
        Ok(Arc::new(Self { device, configuring: Mutex::new(()) }))
    }
}

impl<M: GuestMemoryBackend + Send + Sync + 'static> Dsa<M> {
    fn wiring(&self) -> &Wiring<M> {
        &self.device.bus
    }

    fn configuring(&self) -> MutexGuard<'_, ()> {
        self.configuring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Resets all but configuration space. Work ends before ATS goes off, so that none of its requests changes kind.
    fn reset_behind_config(&self) {
        self.device.reset();
        self.wiring().endpoint.set_ats_enabled(false);
        self.wiring().msix.reset();
    }
}

impl<M: GuestMemoryBackend + Send + Sync + 'static> PciFunction for Dsa<M> {
    fn config_read(&self, offset: u16, data: &mut [u8]) {
        self.wiring().config().read(offset, data);
    }

    fn config_write(&self, offset: u16, data: &[u8]) {
        let _one_at_a_time = self.configuring();
        let wiring = self.wiring();
        let changes = wiring.config().write(offset, data);
        if changes.function_level_reset {
            return self.reset_behind_config();
        }
        let pri_off = changes.pri.is_some_and(|pri| !pri.enabled) || changes.pri_reset;
        if changes.bus_master.is_some()
            || changes.pasid.is_some()
            || changes.ats.is_some()
            || changes.pri.is_some()
        {
            self.device.configuration_changed();
        }
        if changes.pasid.is_some_and(|pasid| !pasid.enabled) {
            // Translations are not kept beyond the PASIDs that they belong to.
            wiring.endpoint.set_ats_enabled(false);
        }
        if changes.ats.is_some() || changes.pasid.is_some() {
            wiring.endpoint.set_ats_enabled(wiring.config().ats_enabled());
        }
        if pri_off {
            self.device.requests.cancel_all();
            wiring.config().set_pri_stopped();
        }
        if let Some(control) = changes.msix {
            wiring.send(wiring.msix.set_control(control));
        }
    }

    fn bar_read(&self, bar: usize, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if !self.wiring().msix.bar_read(bar, offset, data) && bar == REGISTERS_BAR {
            self.device.read_registers(offset, data);
        }
    }

    fn bar_write(&self, bar: usize, offset: u64, data: &[u8]) {
        if let Some(messages) = self.wiring().msix.bar_write(bar, offset, data) {
            self.wiring().send(messages);
        } else if bar == REGISTERS_BAR {
            self.device.write_registers(offset, data);
        } else if bar == PORTALS_BAR {
            self.device.write_portal(offset, data);
        }
    }

    fn bars(&self) -> BarRanges {
        self.wiring().config().bars()
    }

    fn reset(&self) {
        let _one_at_a_time = self.configuring();
        self.wiring().config().reset();
        self.reset_behind_config();
    }
}

impl<M: GuestMemoryBackend + Send + Sync + 'static> Drop for Dsa<M> {
    fn drop(&mut self) {
        self.device.shut_down();
    }
}
