// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How a soft host comes up.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use vm_memory::GuestMemoryMmap;
use vtd_driver::{Iommu, Pasids};
use vtd_spec::{AddressWidth, Pasid};
use vtd_unit::{Notify, Unit};

use super::config::{SoftHostConfig, SoftHostError};
use super::driver::Driver;
use super::interrupts::Interrupts;
use super::memory::{Tables, lay_out};
use super::soft_host::SoftHost;
use crate::unit_registers::UnitRegisters;

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
}
