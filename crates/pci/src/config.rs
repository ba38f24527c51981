// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! One function's configuration space: the bytes, which of them can be written, and what a write means.

use crate::bar::{BAR_COUNT, Bar, BarRange, BarRanges};
use crate::layout::{CapabilityId, ats, header, msix, pasid, pcie, pri};
use crate::msix::MsixControl;

/// Size of a function's configuration space in bytes.
pub const CONFIG_SPACE_SIZE: usize = 4096;

/// The control register of the ATS capability. \[PCIe 10.5.1.3\]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AtsControl {
    /// ATS Enable.
    pub enabled: bool,
    /// Smallest Translation Unit: log2 of the number of 4-KiB pages, 5 bits.
    pub smallest_translation_unit: u8,
}

/// The control register of the PASID capability. \[PCIe 7.8.9.3\]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PasidControl {
    /// PASID Enable.
    pub enabled: bool,
    /// Execute Permission Enable.
    pub execute: bool,
    /// Privileged Mode Enable.
    pub privileged: bool,
}

/// The registers of the page request capability that software writes. \[PCIe 10.5.2\]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PriControl {
    /// Page Request Enable.
    pub enabled: bool,
    /// Outstanding Page Request Allocation as written: may be 0 or above the capacity, both of which are the
    /// driver's mistake.
    pub allocation: u32,
}

/// What a write to configuration space changed. The new values are in force in [`ConfigSpace`] already.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConfigChanges {
    /// A function level reset was asked for. The configuration space is reset; the fields below tell what that
    /// changed. The device ends its work and resets the rest of itself.
    pub function_level_reset: bool,
    /// Bus Master Enable has this new value.
    pub bus_master: Option<bool>,
    /// A BAR moved, or decoding was turned on or off.
    pub bars: bool,
    /// The new MSI-X control; pass it to [`crate::MsixTable::set_control`].
    pub msix: Option<MsixControl>,
    /// The new PASID control.
    pub pasid: Option<PasidControl>,
    /// The new ATS control.
    pub ats: Option<AtsControl>,
    /// The new page request control. On disable the device sends no new page request and calls
    /// [`ConfigSpace::set_pri_stopped`] once none is outstanding.
    pub pri: Option<PriControl>,
    /// The page request interface, being disabled, was reset: the device forgets page requests that it sent or
    /// queued, and the allocation's count starts afresh.
    pub pri_reset: bool,
}

impl ConfigChanges {
    /// Nothing that concerns the device happened.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// The bytes of a configuration space with what writes do to them.
#[derive(Clone)]
pub(crate) struct Registers {
    pub value: Box<[u8; CONFIG_SPACE_SIZE]>,
    /// Bits that take the written value.
    pub writable: Box<[u8; CONFIG_SPACE_SIZE]>,
    /// Bits that a written 1 clears.
    pub rw1c: Box<[u8; CONFIG_SPACE_SIZE]>,
}

impl Registers {
    pub fn new() -> Self {
        let zeroes = || Box::new([0; CONFIG_SPACE_SIZE]);
        Self { value: zeroes(), writable: zeroes(), rw1c: zeroes() }
    }

    fn bytes<const N: usize>(&self, at: usize) -> [u8; N] {
        self.value.get(at..).and_then(<[u8]>::first_chunk).copied().unwrap_or([0; N])
    }

    pub fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes(self.bytes(at))
    }

    pub fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.bytes(at))
    }

    pub fn set(&mut self, at: usize, bytes: &[u8]) {
        copy_to(&mut self.value[..], at, bytes);
    }

    pub fn set_writable(&mut self, at: usize, bytes: &[u8]) {
        copy_to(&mut self.writable[..], at, bytes);
    }

    pub fn set_rw1c(&mut self, at: usize, bytes: &[u8]) {
        copy_to(&mut self.rw1c[..], at, bytes);
    }

    fn update16(&mut self, at: usize, clear: u16, set: u16) {
        let value = self.u16(at) & !clear | set;
        self.set(at, &value.to_le_bytes());
    }

    fn write(&mut self, offset: usize, data: &[u8]) {
        let targets = self.value.iter_mut().zip(self.writable.iter()).zip(self.rw1c.iter());
        for (((value, writable), rw1c), byte) in targets.skip(offset).zip(data) {
            *value = (*value & !writable & !(byte & rw1c)) | (byte & writable);
        }
    }
}

fn copy_to(target: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(target) = target.get_mut(at..at.saturating_add(bytes.len())) {
        target.copy_from_slice(bytes);
    }
}

/// Where the capabilities lie that the code below acts on.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Offsets {
    pub pcie: Option<usize>,
    pub msix: Option<usize>,
    pub ats: Option<usize>,
    pub pri: Option<usize>,
    pub pasid: Option<usize>,
}

/// What software controls and a device wants to hear of.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Controls {
    bus_master: bool,
    bars: BarRanges,
    msix: MsixControl,
    pasid: PasidControl,
    ats: AtsControl,
    pri: PriControl,
}

fn changed<T: PartialEq>(before: T, after: T) -> Option<T> {
    (before != after).then_some(after)
}

/// One function's configuration space. Built by [`crate::ConfigSpaceBuilder`].
pub struct ConfigSpace {
    registers: Registers,
    reset_value: Box<[u8; CONFIG_SPACE_SIZE]>,
    bars: [Option<Bar>; BAR_COUNT],
    offsets: Offsets,
}

impl ConfigSpace {
    pub(crate) fn new(registers: Registers, bars: [Option<Bar>; BAR_COUNT], offsets: Offsets) -> Self {
        Self { reset_value: registers.value.clone(), registers, bars, offsets }
    }

    /// Reads `data.len()` bytes at `offset`. Registers that do not exist and bytes beyond the end read 0.
    pub fn read(&self, offset: u16, data: &mut [u8]) {
        for (index, byte) in data.iter_mut().enumerate() {
            *byte = self.registers.value.get(usize::from(offset) + index).copied().unwrap_or(0);
        }
    }

    /// Writes `data` at `offset`. Read-only bits keep their value, bits that are cleared by a 1 are, and what
    /// lies beyond the end is dropped. Returns what the device must act on.
    pub fn write(&mut self, offset: u16, data: &[u8]) -> ConfigChanges {
        let before = self.controls();
        self.registers.write(usize::from(offset), data);

        let function_level_reset = self.take_function_level_reset();
        if function_level_reset {
            self.reset_function();
        }
        let pri_reset = self.settle_pri(before.pri.enabled);

        let after = self.controls();
        ConfigChanges {
            function_level_reset,
            bus_master: changed(before.bus_master, after.bus_master),
            bars: before.bars != after.bars,
            msix: changed(before.msix, after.msix),
            pasid: changed(before.pasid, after.pasid),
            ats: changed(before.ats, after.ats),
            pri: changed(before.pri, after.pri),
            pri_reset,
        }
    }

    /// Back to the values after power-on.
    pub fn reset(&mut self) {
        self.registers.value.copy_from_slice(&self.reset_value[..]);
    }

    /// As [`Self::reset`], but for what a function level reset leaves alone: Max_Payload_Size. \[PCIe 6.6.2\]
    fn reset_function(&mut self) {
        let device_control = self.offsets.pcie.map(|at| at + pcie::DEVICE_CONTROL);
        let payload = device_control.map_or(0, |at| self.registers.u16(at) & pcie::DEVCTL_MAX_PAYLOAD);
        self.reset();
        if let Some(at) = device_control {
            self.registers.update16(at, pcie::DEVCTL_MAX_PAYLOAD, payload);
        }
    }

    /// What the BARs decode now: nothing unless Memory Space Enable is set. A BAR that was never written decodes
    /// address 0, as on hardware.
    pub fn bars(&self) -> BarRanges {
        let mut ranges = [None; BAR_COUNT];
        if self.registers.u16(header::COMMAND) & header::COMMAND_MEMORY == 0 {
            return ranges;
        }
        for (index, (range, bar)) in ranges.iter_mut().zip(&self.bars).enumerate() {
            let Some(bar) = bar else { continue };
            let at = header::BAR0 + 4 * index;
            let low = u64::from(self.registers.u32(at));
            let high = if bar.is_64bit { u64::from(self.registers.u32(at + 4)) } else { 0 };
            let base = (high << 32 | low) & bar.address_mask();
            *range = Some(BarRange { bar: index, base, size: bar.size });
        }
        ranges
    }

    /// Memory Space Enable.
    pub fn memory_enabled(&self) -> bool {
        self.registers.u16(header::COMMAND) & header::COMMAND_MEMORY != 0
    }

    /// Bus Master Enable: without it the function sends neither memory requests nor messages.
    pub fn bus_master(&self) -> bool {
        self.registers.u16(header::COMMAND) & header::COMMAND_BUS_MASTER != 0
    }

    /// The MSI-X control bits; all clear without the capability.
    pub fn msix_control(&self) -> MsixControl {
        let Some(at) = self.offsets.msix else { return MsixControl::default() };
        let control = self.registers.u16(at + msix::CONTROL);
        MsixControl {
            enabled: control & msix::CONTROL_ENABLE != 0,
            function_mask: control & msix::CONTROL_FUNCTION_MASK != 0,
        }
    }

    /// The ATS control register; all clear without the capability.
    pub fn ats_control(&self) -> AtsControl {
        let Some(at) = self.offsets.ats else { return AtsControl::default() };
        let control = self.registers.u16(at + ats::CONTROL);
        AtsControl {
            enabled: control & ats::CTL_ENABLE != 0,
            smallest_translation_unit: (control & ats::CTL_STU) as u8,
        }
    }

    /// ATS Enable.
    pub fn ats_enabled(&self) -> bool {
        self.ats_control().enabled
    }

    /// The PASID control register; all clear without the capability.
    pub fn pasid_control(&self) -> PasidControl {
        let Some(at) = self.offsets.pasid else { return PasidControl::default() };
        let control = self.registers.u16(at + pasid::CONTROL);
        PasidControl {
            enabled: control & pasid::CTL_ENABLE != 0,
            execute: control & pasid::CTL_EXECUTE != 0,
            privileged: control & pasid::CTL_PRIVILEGED != 0,
        }
    }

    /// PASID Enable.
    pub fn pasid_enabled(&self) -> bool {
        self.pasid_control().enabled
    }

    /// Privileged Mode Enable.
    pub fn pasid_privileged(&self) -> bool {
        self.pasid_control().privileged
    }

    /// The page request control; all clear without the capability.
    pub fn pri_control(&self) -> PriControl {
        let Some(at) = self.offsets.pri else { return PriControl::default() };
        PriControl {
            enabled: self.registers.u16(at + pri::CONTROL) & pri::CTL_ENABLE != 0,
            allocation: self.registers.u32(at + pri::ALLOCATION),
        }
    }

    /// Page Request Enable.
    pub fn pri_enabled(&self) -> bool {
        self.pri_control().enabled
    }

    /// Outstanding Page Request Allocation as software wrote it.
    pub fn pri_allocation(&self) -> u32 {
        self.pri_control().allocation
    }

    /// Outstanding Page Request Capacity; 0 without the capability.
    pub fn pri_capacity(&self) -> u32 {
        self.offsets.pri.map_or(0, |at| self.registers.u32(at + pri::CAPACITY))
    }

    /// The function sends no page request and none is outstanding. \[PCIe 10.5.2.3\]
    pub fn pri_stopped(&self) -> bool {
        self.pri_status() & pri::STATUS_STOPPED != 0
    }

    /// A page group response said Response Failure and software has not cleared it: the function sends no page
    /// request.
    pub fn pri_response_failure(&self) -> bool {
        self.pri_status() & pri::STATUS_RESPONSE_FAILURE != 0
    }

    /// The device stopped: it sends no page request any more and none is outstanding. Has no effect while Page
    /// Request Enable is set and no response failed, when the function counts as running.
    pub fn set_pri_stopped(&mut self) {
        if !self.pri_enabled() || self.pri_response_failure() {
            self.set_pri_status(pri::STATUS_STOPPED);
        }
    }

    /// The device got a page group response of Response Failure.
    pub fn set_pri_response_failure(&mut self) {
        self.set_pri_status(pri::STATUS_RESPONSE_FAILURE);
    }

    /// The device got a page group response whose group index it does not know.
    pub fn set_pri_unexpected_group(&mut self) {
        self.set_pri_status(pri::STATUS_UNEXPECTED_GROUP);
    }

    /// Offsets of the capabilities with this identifier, in the order of the list.
    pub fn capabilities(&self, id: CapabilityId) -> impl Iterator<Item = u16> {
        let mut next = self.registers.value[header::CAPABILITIES];
        // The builder made the list, and each entry is at least 4 bytes long: it ends.
        std::iter::from_fn(move || {
            while next != 0 {
                let at = usize::from(next);
                let [found, following] = self.registers.bytes(at);
                next = following;
                if found == id.0 {
                    return Some(at as u16);
                }
            }
            None
        })
    }

    fn pri_status(&self) -> u16 {
        self.offsets.pri.map_or(0, |at| self.registers.u16(at + pri::STATUS))
    }

    fn set_pri_status(&mut self, bits: u16) {
        if let Some(at) = self.offsets.pri {
            self.registers.update16(at + pri::STATUS, 0, bits);
        }
    }

    fn controls(&self) -> Controls {
        Controls {
            bus_master: self.bus_master(),
            bars: self.bars(),
            msix: self.msix_control(),
            pasid: self.pasid_control(),
            ats: self.ats_control(),
            pri: self.pri_control(),
        }
    }

    /// Initiate Function Level Reset reads 0 at all times. \[PCIe 7.5.3.4\]
    fn take_function_level_reset(&mut self) -> bool {
        let Some(at) = self.offsets.pcie.map(|at| at + pcie::DEVICE_CONTROL) else { return false };
        let asked = self.registers.u16(at) & pcie::DEVCTL_FLR != 0;
        self.registers.update16(at, pcie::DEVCTL_FLR, 0);
        asked
    }

    /// What a write of the page request control implies for its status. Returns whether the interface was reset.
    fn settle_pri(&mut self, was_enabled: bool) -> bool {
        let Some(at) = self.offsets.pri else { return false };
        let control = self.registers.u16(at + pri::CONTROL);
        // Reset reads 0 and acts only on a disabled interface.
        self.registers.update16(at + pri::CONTROL, pri::CTL_RESET, 0);
        let enabled = control & pri::CTL_ENABLE != 0;
        if enabled && !was_enabled {
            let flags = pri::STATUS_STOPPED | pri::STATUS_RESPONSE_FAILURE | pri::STATUS_UNEXPECTED_GROUP;
            self.registers.update16(at + pri::STATUS, flags, 0);
        }
        let reset = control & pri::CTL_RESET != 0 && !enabled;
        if reset {
            self.registers.update16(at + pri::STATUS, 0, pri::STATUS_STOPPED);
        }
        reset
    }
}
