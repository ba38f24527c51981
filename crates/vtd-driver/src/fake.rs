// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Memory, and a unit that takes down what it is told and does nothing but answer: the other side of the unit tests.
//!
//! It carries out waits, runs the global commands, and can be told to find fault with descriptors.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::vec;
use std::vec::Vec;

use vtd_spec::descriptors::Wait;
use vtd_spec::registers::offset;
use vtd_spec::{
    Capabilities, Capability, Descriptor, DescriptorWidth, ExtendedCapability, FaultStatus, Pasid,
    QueueError, QueueErrorRecord, SourceId,
};

use crate::{Config, DeviceConfig, Iommu, Memory, Registers};

pub(crate) const DEVICE: SourceId = SourceId::new(0, 3, 0);
pub(crate) const OTHER: SourceId = SourceId::new(2, 0x11, 1);
pub(crate) const PASID: Pasid = Pasid::truncated(0x42);

pub(crate) type Driver = Iommu<Fake, Fake>;

/// What happens when a descriptor is reached.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Mishap {
    /// The descriptor is refused: IQE with this reason, once.
    Refuse(fn(&Descriptor) -> bool, Option<QueueError>),
    /// Device-TLB invalidations of this device do not complete, this many times.
    TimeOut(SourceId, u32),
    /// The queue stands still.
    Hang,
}

#[derive(Default)]
pub(crate) struct State {
    pages: BTreeMap<u64, Vec<u64>>,
    next_page: u64,
    pages_left: Option<usize>,
    /// Allocations: address and pages.
    allocated: BTreeMap<u64, usize>,
    registers: BTreeMap<u64, u64>,
    /// Every register access: written, offset, bytes, value.
    pub(crate) log: Vec<(bool, u64, u8, u64)>,
    /// Every descriptor but the waits that only write a status.
    pub(crate) descriptors: Vec<Descriptor>,
    /// Number of waits carried out.
    pub(crate) waits: usize,
    pub(crate) mishaps: Vec<Mishap>,
    pub(crate) flushed: Vec<(u64, u64)>,
    /// Values that reads of a register give before its own.
    pub(crate) script: BTreeMap<u64, VecDeque<u64>>,
    time_out: Option<SourceId>,
}

#[derive(Clone)]
pub(crate) struct Fake(Arc<Mutex<State>>);

/// What the fake unit can do: everything the driver knows of.
pub(crate) fn capabilities() -> (Capability, ExtendedCapability) {
    let cap = Capability::new()
        .with_nd(6)
        .with_cm(true)
        .with_sagaw(0b100)
        .with_mgaw(47)
        .with_fro(0x22)
        .with_nfr(3)
        .with_sslps(3)
        .with_psi(true)
        .with_mamv(18)
        .with_fs1gp(true)
        .with_fs5lp(true)
        .with_esrtps(true);
    let ecap = ExtendedCapability::new()
        .with_c(true)
        .with_qi(true)
        .with_dt(true)
        .with_ir(true)
        .with_pt(true)
        .with_iro(0xf)
        .with_nest(true)
        .with_prs(true)
        .with_pss(19)
        .with_pasid(true)
        .with_pds(true)
        .with_smts(true)
        .with_ssts(true)
        .with_fsts(true)
        .with_smpwc(true)
        .with_srs(true)
        .with_eafs(true);
    (cap, ecap)
}

impl Fake {
    pub(crate) fn new() -> Self {
        let (cap, ecap) = capabilities();
        Self::with(cap, ecap)
    }

    pub(crate) fn with(cap: Capability, ecap: ExtendedCapability) -> Self {
        let mut state = State { next_page: 0x10_0000, ..State::default() };
        state.registers.insert(offset::CAP, cap.into_bits());
        state.registers.insert(offset::ECAP, ecap.into_bits());
        Self(Arc::new(Mutex::new(state)))
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// A unit that has been brought up, with [`DEVICE`] and [`OTHER`] behind it, and nothing in the log.
    pub(crate) fn driver(&self) -> Driver {
        let mut iommu = Iommu::bring_up(self.clone(), self.clone(), Config::new(46)).unwrap();
        iommu.add_device(DeviceConfig::with_sva(DEVICE)).unwrap();
        iommu.add_device(DeviceConfig::with_sva(OTHER)).unwrap();
        self.clear();
        iommu
    }

    pub(crate) fn clear(&self) {
        let mut state = self.state();
        state.log.clear();
        state.descriptors.clear();
        state.flushed.clear();
        state.waits = 0;
    }

    /// The descriptors since the last call.
    pub(crate) fn take(&self) -> Vec<Descriptor> {
        std::mem::take(&mut self.state().descriptors)
    }

    /// The register writes since the last call: offset, bytes, value.
    pub(crate) fn take_writes(&self) -> Vec<(u64, u8, u64)> {
        let log = std::mem::take(&mut self.state().log);
        log.into_iter().filter(|entry| entry.0).map(|(_, at, bytes, value)| (at, bytes, value)).collect()
    }

    /// Whether a page is allocated.
    pub(crate) fn is_allocated(&self, page: u64) -> bool {
        self.state().pages.contains_key(&page)
    }

    /// Pages that are allocated.
    pub(crate) fn outstanding(&self) -> usize {
        self.state().allocated.values().sum()
    }

    /// Only so many pages can still be allocated.
    pub(crate) fn limit_pages(&self, pages: Option<usize>) {
        self.state().pages_left = pages;
    }

    pub(crate) fn set(&self, register: u64, value: u64) {
        self.state().registers.insert(register, value);
    }

    pub(crate) fn mishap(&self, mishap: Mishap) {
        self.state().mishaps.push(mishap);
    }
}

impl State {
    fn get(&self, register: u64) -> u64 {
        self.registers.get(&register).copied().unwrap_or(0)
    }

    pub(crate) fn load(&self, address: u64) -> u64 {
        let page = self.pages.get(&(address & !0xfff)).expect("memory that is not allocated is read");
        page[(address as usize & 0xfff) / 8]
    }

    pub(crate) fn store(&mut self, address: u64, value: u64) {
        assert_eq!(address & 7, 0);
        let page = self.pages.get_mut(&(address & !0xfff)).expect("memory that is not allocated is written");
        page[(address as usize & 0xfff) / 8] = value;
    }

    fn command(&mut self, value: u64) {
        let before = self.get(offset::GSTS);
        // Persistent bits follow; the pointers' status stays set.
        let mut status = value & 0x8680_0000 | (before | value) & 0x4100_0000;
        status &= !(1 << 27);
        if value & 1 << 26 == 0 {
            self.registers.insert(offset::IQH, 0);
        }
        self.registers.insert(offset::GSTS, status);
    }

    fn fault(&mut self, bits: FaultStatus) {
        let status = self.get(offset::FSTS) | u64::from(bits.into_bits());
        self.registers.insert(offset::FSTS, status);
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            cap: Capability::from_bits(self.get(offset::CAP)),
            ecap: ExtendedCapability::from_bits(self.get(offset::ECAP)),
            haw: 46,
        }
    }

    /// Works the queue off until it is empty or the unit stops.
    fn run(&mut self) {
        let base = self.get(offset::IQA) & !0xfff;
        while self.get(offset::GSTS) & 1 << 26 != 0
            && self.get(offset::IQH) != self.get(offset::IQT)
            && self.get(offset::FSTS) & 0x50 == 0
        {
            if self.mishaps.iter().any(|mishap| matches!(mishap, Mishap::Hang)) {
                return;
            }
            let head = self.get(offset::IQH);
            let qwords = [0, 8, 16, 24].map(|at| self.load(base + head + at));
            let descriptor = Descriptor::decode(qwords, DescriptorWidth::Bits256, &self.capabilities());
            let error = match descriptor {
                Err(error) => Some(Some(error)),
                Ok(descriptor) => {
                    let refused = self
                        .mishaps
                        .iter()
                        .position(|mishap| matches!(mishap, Mishap::Refuse(which, _) if which(&descriptor)));
                    refused.map(|index| match self.mishaps.remove(index) {
                        Mishap::Refuse(_, reason) => reason,
                        _ => None,
                    })
                }
            };
            if let Some(reason) = error {
                let record = QueueErrorRecord::new().with_iqei(reason.map_or(0, QueueError::into_bits));
                self.registers.insert(offset::IQERCD, record.into_bits());
                self.fault(FaultStatus::new().with_iqe(true));
                return;
            }
            self.registers.insert(offset::IQH, (head + 32) % 8192);
            self.execute(descriptor.unwrap());
        }
    }

    fn execute(&mut self, descriptor: Descriptor) {
        let device = match &descriptor {
            Descriptor::DeviceTlb(device) => Some(device.sid),
            Descriptor::PasidDeviceTlb(device) => Some(device.sid),
            _ => None,
        };
        for mishap in &mut self.mishaps {
            if let Mishap::TimeOut(sid, times) = mishap
                && Some(*sid) == device
                && *times > 0
            {
                *times -= 1;
                self.time_out = Some(*sid);
            }
        }
        match descriptor {
            Descriptor::Wait(wait) => {
                if let Some(sid) = self.time_out.take() {
                    let record = QueueErrorRecord::new().with_itesid(sid.0);
                    self.registers.insert(offset::IQERCD, record.into_bits());
                    self.fault(FaultStatus::new().with_ite(true));
                    return;
                }
                if wait.sw {
                    let (address, high) = (wait.status_address & !7, wait.status_address & 4 != 0);
                    let value = self.load(address);
                    let data = u64::from(wait.status_data);
                    let value =
                        if high { value & 0xffff_ffff | data << 32 } else { value & !0xffff_ffff | data };
                    self.store(address, value);
                    self.waits += 1;
                }
                if wait.pd || wait.fn_ || !wait.sw {
                    let wait = Wait { status_address: 0, status_data: 0, ..wait };
                    self.descriptors.push(Descriptor::Wait(wait));
                }
            }
            other => self.descriptors.push(other),
        }
    }

    fn read(&mut self, register: u64, bytes: u8) -> u64 {
        let scripted = self.script.get_mut(&register).and_then(VecDeque::pop_front);
        let value = scripted.unwrap_or_else(|| match register % 8 {
            4 if bytes == 4 && !self.registers.contains_key(&register) => self.get(register - 4) >> 32,
            _ => self.get(register),
        });
        let value = if bytes == 4 { value & 0xffff_ffff } else { value };
        self.log.push((false, register, bytes, value));
        value
    }

    fn write(&mut self, register: u64, bytes: u8, value: u64) {
        self.log.push((true, register, bytes, value));
        match register {
            offset::GCMD => self.command(value),
            // Write 1 to clear.
            offset::FSTS | offset::PRS => {
                let value = self.get(register) & !value;
                self.registers.insert(register, value);
            }
            _ => {
                self.registers.insert(register, value);
            }
        }
        if matches!(register, offset::GCMD | offset::IQT | offset::FSTS) {
            self.run();
        }
    }
}

impl Registers for Fake {
    fn read32(&self, offset: u64) -> u32 {
        self.state().read(offset, 4) as u32
    }

    fn read64(&self, offset: u64) -> u64 {
        self.state().read(offset, 8)
    }

    fn write32(&self, offset: u64, value: u32) {
        self.state().write(offset, 4, value.into());
    }

    fn write64(&self, offset: u64, value: u64) {
        self.state().write(offset, 8, value);
    }

    fn relax(&self, polls: u64) -> bool {
        self.state().run();
        polls < 100
    }
}

impl Memory for Fake {
    fn allocate(&self, pages: usize) -> Option<u64> {
        let mut state = self.state();
        if let Some(left) = &mut state.pages_left {
            *left = left.checked_sub(pages)?;
        }
        let address = state.next_page;
        state.next_page += 4096 * pages as u64;
        for page in 0..pages as u64 {
            state.pages.insert(address + 4096 * page, vec![0; 512]);
        }
        state.allocated.insert(address, pages);
        Some(address)
    }

    fn free(&self, address: u64, pages: usize) {
        let mut state = self.state();
        assert_eq!(state.allocated.remove(&address), Some(pages), "freed as it was allocated, and once");
        for page in 0..pages as u64 {
            state.pages.remove(&(address + 4096 * page));
        }
    }

    fn load(&self, address: u64) -> u64 {
        self.state().load(address)
    }

    fn store(&self, address: u64, value: u64) {
        self.state().store(address, value);
    }

    fn compare_exchange(&self, address: u64, current: u64, new: u64) -> Result<(), u64> {
        let mut state = self.state();
        let found = state.load(address);
        if found != current {
            return Err(found);
        }
        state.store(address, new);
        Ok(())
    }

    fn flush(&self, address: u64, bytes: u64) {
        self.state().flushed.push((address, bytes));
    }
}
