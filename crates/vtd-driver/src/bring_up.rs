// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Bring-up and shutdown: the register sequence of a Linux boot in scalable mode (dmar.c, iommu.c, prq.c).

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use vtd_spec::registers::offset;
use vtd_spec::{
    Capabilities, Capability, ExtendedCapability, FaultStatus, GlobalCommand, GlobalStatus,
    InvalidationQueueAddress, Message, PageRequestQueueAddress, ProtectedMemoryEnable, RootTableAddress,
    TranslationTableMode,
};

use crate::cache;
use crate::command;
use crate::error::Error;
use crate::iommu::Iommu;
use crate::memory::Memory;
use crate::registers::Registers;
use crate::state::DomainIds;
use crate::state::InterruptTable;
use crate::state::PageRequestQueue;
use crate::state::Queue;
use crate::state::page_request_queue::{PAGES as PAGE_REQUEST_PAGES, SIZE_SHIFT as PAGE_REQUEST_SHIFT};
use crate::state::queue::{PAGES as QUEUE_PAGES, SIZE_SHIFT as QUEUE_SHIFT};

/// What the platform decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Host address width in bits, as the DMAR table reports it, 52 at the most. \[S 8.1\]
    pub haw: u8,
    /// The message that says faults are pending.
    pub fault_interrupt: Message,
    /// The message that says page requests are pending.
    pub page_request_interrupt: Message,
    /// Interrupt remapping: `None` leaves it off, otherwise whether APIC ids have 32 bits (EIME).
    pub interrupt_remapping: Option<bool>,
}

impl Config {
    /// No interrupts but the unit's own, which go to the vectors Linux gave them: 0x22 faults, 0x21 page requests, on
    /// processor 0.
    pub const fn new(haw: u8) -> Self {
        Self {
            haw,
            fault_interrupt: Message { address: 0xfee0_0000, data: 0x22 },
            page_request_interrupt: Message { address: 0xfee0_0000, data: 0x21 },
            interrupt_remapping: None,
        }
    }
}

/// The bits of GSTS that are not one-shot (Linux dmar.c: `DMAR_GSTS_EN_BITS`).
const PERSISTENT: u32 = 0x96ff_ffff;

impl<R: Registers, M: Memory> Iommu<R, M> {
    /// Brings a unit up to where devices can be added: queues on, tables empty, events unmasked, remapping still off.
    ///
    /// # Errors
    ///
    /// [`Error::NoUnit`], [`Error::Unsupported`], [`Error::OutOfMemory`], [`Error::CommandTimeout`], and the queue's.
    pub fn bring_up(registers: R, memory: M, config: Config) -> Result<Self, Error> {
        let (cap, ecap) = (registers.read64(offset::CAP), registers.read64(offset::ECAP));
        if cap == u64::MAX && ecap == u64::MAX {
            return Err(Error::NoUnit);
        }
        let capabilities = Capabilities {
            cap: Capability::from_bits(cap),
            ecap: ExtendedCapability::from_bits(ecap),
            // No format has room for more.
            haw: config.haw.min(52),
        };
        check(&capabilities, &config)?;
        registers.read32(offset::VER);

        let mut iommu = Self {
            registers,
            memory,
            capabilities,
            command: GlobalCommand::new(),
            queue: Queue::default(),
            root_table: 0,
            interrupt_table: None,
            page_requests: None,
            devices: BTreeMap::new(),
            domains: BTreeMap::new(),
            domain_ids: DomainIds::new(&capabilities),
            next_domain: 0,
            quarantine: Vec::new(),
        };
        match iommu.set_up(&config) {
            Ok(()) => Ok(iommu),
            Err(error) => {
                // The unit must not go on with memory that is given back.
                let off = iommu.quiesce();
                iommu.free_all(off.is_ok());
                Err(error)
            }
        }
    }

    fn set_up(&mut self, config: &Config) -> Result<(), Error> {
        // Whatever ran before may have left remapping on (kexec), its queue with it, and faults.
        self.command = self.status();
        if self.command.te() {
            self.set_command(command::TRANSLATION, false)?;
        }
        let faults = FaultStatus::from_bits(self.registers.read32(offset::FSTS));
        self.take_faults_of(faults);
        self.command = self.status();
        if self.command.ire() {
            self.set_command(command::INTERRUPTS, false)?;
        }
        let queue = self.command.qie();
        if queue {
            self.await_empty_queue();
            self.set_command(command::QUEUE, false)?;
        }
        if queue || faults.iqe() || faults.ite() || faults.ice() {
            self.clear_queue_errors();
        }

        let base = self.allocate_table(QUEUE_PAGES)?;
        self.queue.base = base;
        self.queue.status = self.allocate_table(1)?;
        self.root_table = self.allocate_table(1)?;
        self.registers.write32(offset::IQT, 0);
        let iqa = InvalidationQueueAddress::new().with_qs(QUEUE_SHIFT).with_dw(true).with_iqa(base);
        self.registers.write64(offset::IQA, iqa.into_bits());
        self.set_command(command::QUEUE, true)?;

        if let Some(eime) = config.interrupt_remapping {
            self.interrupt_table =
                Some(InterruptTable { address: self.allocate_table(InterruptTable::PAGES)? });
            self.enable_interrupt_remapping(eime)?;
        }

        self.flush_write_buffer()?;
        let root = RootTableAddress::new().with_rta(self.root_table).with_ttm(TranslationTableMode::Scalable);
        self.registers.write64(offset::RTADDR, root.into_bits());
        self.one_shot(command::SET_ROOT)?;
        if !self.capabilities.cap.esrtps() {
            self.submit(&[cache::context_global(), cache::pasid_cache_global(), cache::iotlb_global()])?;
        }

        if self.capabilities.ecap.prs() {
            self.page_requests = Some(PageRequestQueue::new(self.allocate_table(PAGE_REQUEST_PAGES)?));
            self.event(offset::PECTL, config.page_request_interrupt);
            self.registers.write64(offset::PQH, 0);
            self.registers.write64(offset::PQT, 0);
            let pqa = PageRequestQueueAddress::new()
                .with_pqs(PAGE_REQUEST_SHIFT)
                .with_pqa(self.page_requests.as_ref().map_or(0, |queue| queue.base));
            self.registers.write64(offset::PQA, pqa.into_bits());
        }
        self.event(offset::FECTL, config.fault_interrupt);
        Ok(())
    }

    /// What is on.
    fn status(&self) -> GlobalCommand {
        let status = GlobalStatus::from_bits(self.registers.read32(offset::GSTS)).into_bits();
        GlobalCommand::from_bits(status & PERSISTENT)
    }

    /// Gives the unit time to finish what whoever ran before has queued (dmar.c:dmar_disable_qi); not where it stopped.
    fn await_empty_queue(&self) {
        let mut polls = 0;
        while self.registers.read64(offset::IQH) != self.registers.read64(offset::IQT) {
            let errors = self.queue_errors();
            if errors.iqe() || errors.ite() || !self.registers.relax(polls) {
                break;
            }
            polls += 1;
        }
    }

    /// The unit fetches nothing, and raises no event, while it shows an error of the queue before.
    fn clear_queue_errors(&self) {
        let errors = self.queue_errors();
        if errors != FaultStatus::new() {
            self.registers.write32(offset::FSTS, errors.into_bits());
        }
    }

    fn queue_errors(&self) -> FaultStatus {
        let status = FaultStatus::from_bits(self.registers.read32(offset::FSTS));
        FaultStatus::new().with_iqe(status.iqe()).with_ite(status.ite()).with_ice(status.ice())
    }

    /// Programs an event's message and unmasks it (dmar.c:dmar_msi_write, dmar_msi_unmask). The data, address and upper
    /// address registers follow the control register.
    fn event(&self, control: u64, message: Message) {
        self.registers.write32(control + 4, message.data);
        self.registers.write32(control + 8, message.address as u32);
        self.registers.write32(control + 12, (message.address >> 32) as u32);
        self.registers.write32(control, 0);
        // Read back: the unmasking is done when this returns.
        self.registers.read32(control);
    }

    /// Turns remapping on: from now on only what has been attached gets through. The regions that firmware had the unit
    /// protect until then are opened.
    ///
    /// # Errors
    ///
    /// [`Error::CommandTimeout`]; [`Error::ProtectedMemory`], with remapping on.
    pub fn enable_translation(&mut self) -> Result<(), Error> {
        self.set_command(command::TRANSLATION, true)?;
        self.open_protected_memory()
    }

    /// iommu.c:iommu_disable_protect_mem_regions: remapping does not matter to these regions, so mappings that lead there
    /// would not work.
    fn open_protected_memory(&self) -> Result<(), Error> {
        let cap = self.capabilities.cap;
        if !cap.plmr() && !cap.phmr() {
            return Ok(());
        }
        let read = || ProtectedMemoryEnable::from_bits(self.registers.read32(offset::PMEN));
        self.registers.write32(offset::PMEN, read().with_epm(false).into_bits());
        let mut polls = 0;
        while read().prs() {
            if !self.registers.relax(polls) {
                return Err(Error::ProtectedMemory);
            }
            polls += 1;
        }
        Ok(())
    }

    /// Turns remapping off: devices reach all of memory.
    ///
    /// # Errors
    ///
    /// [`Error::CommandTimeout`].
    pub fn disable_translation(&mut self) -> Result<(), Error> {
        self.set_command(command::TRANSLATION, false)
    }

    /// Turns everything off and gives all memory back, also what was attached and mapped; returns the register page and
    /// the memory.
    ///
    /// # Errors
    ///
    /// [`Error::CommandTimeout`]: the unit may still read its tables, so their memory is not given back.
    pub fn shutdown(mut self) -> Result<(R, M), Error> {
        self.quiesce()?;
        self.free_all(true);
        Ok((self.registers, self.memory))
    }

    /// Stops the unit from using memory.
    fn quiesce(&mut self) -> Result<(), Error> {
        for bit in [command::TRANSLATION, command::INTERRUPTS, command::QUEUE] {
            if self.command.into_bits() & bit.into_bits() != 0 {
                self.set_command(bit, false)?;
            }
        }
        if self.page_requests.is_some() {
            for register in [offset::PQH, offset::PQT, offset::PQA] {
                self.registers.write64(register, 0);
            }
        }
        Ok(())
    }

    /// Gives all memory back where the unit no longer uses it.
    fn free_all(&mut self, unused: bool) {
        if !unused {
            return;
        }
        self.free_devices();
        self.free_domains();
        let kept = core::mem::take(&mut self.quarantine);
        self.release(kept.into_iter(), true);
        let interrupts = self.interrupt_table.take().map_or(0, |table| table.address);
        let requests = self.page_requests.take().map_or(0, |queue| queue.base);
        for (address, pages) in [
            (self.root_table, 1),
            (self.queue.status, 1),
            (self.queue.base, QUEUE_PAGES),
            (interrupts, InterruptTable::PAGES),
            (requests, PAGE_REQUEST_PAGES),
        ] {
            if address != 0 {
                self.memory.free(address, pages);
            }
        }
    }
}

/// What this driver cannot do without.
fn check(capabilities: &Capabilities, config: &Config) -> Result<(), Error> {
    let ecap = capabilities.ecap;
    for (present, capability) in [
        (ecap.qi(), "queued invalidation (ECAP.QI)"),
        (ecap.smts(), "scalable mode (ECAP.SMTS)"),
        (ecap.fsts() || ecap.ssts() || ecap.pt(), "any kind of translation (ECAP.FSTS, SSTS, PT)"),
        (config.interrupt_remapping.is_none() || ecap.ir(), "interrupt remapping (ECAP.IR)"),
        (config.interrupt_remapping != Some(true) || ecap.eim(), "32-bit APIC ids (ECAP.EIM)"),
    ] {
        if !present {
            return Err(Error::lacks(capability));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
