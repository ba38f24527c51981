// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Builds a function's configuration space.

use crate::bar::{BAR_COUNT, Bar};
use crate::config::{CONFIG_SPACE_SIZE, ConfigSpace, Offsets, Registers};
use crate::layout::{CapabilityId, ExtendedCapabilityId, ats, header, msix, pasid, pcie, pri};
use crate::msix::MsixLayout;

/// The first byte after the part that the I/O ports can reach; extended capabilities start here.
const EXTENDED_START: usize = 0x100;

/// Who the function is. \[PCIe 7.5.1.1\]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Vendor ID.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// Revision ID.
    pub revision: u8,
    /// Class code, 24 bits: base class, subclass, programming interface.
    pub class: u32,
    /// Subsystem vendor ID.
    pub subsystem_vendor: u16,
    /// Subsystem ID.
    pub subsystem: u16,
}

/// The PCI Express capability of a root complex integrated endpoint. \[PCIe 7.5.3\]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PcieCapability {
    /// Function level reset.
    pub function_level_reset: bool,
    /// End-End TLP prefixes (DevCap2 bit 21, one prefix): Linux enables PASID only on functions that have it.
    pub end_end_prefix: bool,
}

/// The ATS extended capability. \[PCIe 10.5.1\]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AtsCapability {
    /// Invalidate Queue Depth, 1 to 32.
    pub queue_depth: u8,
    /// Global Invalidate Supported.
    pub global_invalidate: bool,
}

/// The PASID extended capability. \[PCIe 7.8.9\]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PasidCapability {
    /// Max PASID Width, 1 to 20 bits.
    pub width: u8,
    /// Execute Permission Supported.
    pub execute: bool,
    /// Privileged Mode Supported.
    pub privileged: bool,
}

/// The page request extended capability. \[PCIe 10.5.2\]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PriCapability {
    /// Outstanding Page Request Capacity, at least 1.
    pub capacity: u32,
    /// PRG Response PASID Required: page group responses carry the PASID of their request. Linux refuses page
    /// requests beside PASIDs without it.
    pub response_pasid_required: bool,
}

/// Why a configuration space cannot be built.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BuildError {
    /// No such register, one that is taken, or no second register for a 64-bit BAR.
    #[error("BAR {0} has no free register")]
    BarRegister(usize),
    /// The size is no power of two, less than 128 bytes or too big for the BAR.
    #[error("BAR {bar} cannot have {size:#x} bytes")]
    BarSize {
        /// The BAR.
        bar: usize,
        /// The size asked for.
        size: u64,
    },
    /// The capabilities do not fit into the configuration space.
    #[error("capability {id:#x} does not fit into the configuration space")]
    NoRoom {
        /// The capability's identifier.
        id: u16,
    },
    /// A capability that can be there once is there twice.
    #[error("capability {id:#x} is there twice")]
    Twice {
        /// The capability's identifier.
        id: u16,
    },
    /// A capability's field cannot have the value asked for.
    #[error("{field} of capability {id:#x} is out of range")]
    Value {
        /// The capability's identifier.
        id: u16,
        /// The field's name.
        field: &'static str,
    },
    /// The MSI-X table or the pending bits are misaligned, overlap or lie outside a BAR.
    #[error("the MSI-X {0} is misaligned, overlaps or lies outside its BAR")]
    MsixPlace(&'static str),
}

/// Builds a [`ConfigSpace`]. Capabilities are linked in the order in which they are added; the extended ones start
/// at 0x100. The first error is kept and returned by [`Self::build`].
pub struct ConfigSpaceBuilder {
    registers: Registers,
    bars: [Option<Bar>; BAR_COUNT],
    bar_registers_taken: [bool; BAR_COUNT],
    offsets: Offsets,
    msix: Option<MsixLayout>,
    next: usize,
    link: usize,
    next_extended: usize,
    extended_link: Option<usize>,
    error: Option<BuildError>,
}

impl ConfigSpaceBuilder {
    /// A function with a type 0 header and neither BARs nor capabilities.
    pub fn new(identity: Identity) -> Self {
        let mut registers = Registers::new();
        registers.set(header::VENDOR_ID, &identity.vendor.to_le_bytes());
        registers.set(header::DEVICE_ID, &identity.device.to_le_bytes());
        registers.set(header::REVISION_ID, &[identity.revision]);
        registers.set(header::CLASS_CODE, &identity.class.to_le_bytes()[..3]);
        registers.set(header::SUBSYSTEM_VENDOR_ID, &identity.subsystem_vendor.to_le_bytes());
        registers.set(header::SUBSYSTEM_ID, &identity.subsystem.to_le_bytes());
        let command = header::COMMAND_BUS_MASTER
            | header::COMMAND_PARITY
            | header::COMMAND_SERR
            | header::COMMAND_INTX_DISABLE;
        registers.set_writable(header::COMMAND, &command.to_le_bytes());
        registers.set_rw1c(header::STATUS, &header::STATUS_RW1C.to_le_bytes());
        // Both have no function in PCI Express but can be written.
        registers.set_writable(header::CACHE_LINE_SIZE, &[0xff]);
        registers.set_writable(header::INTERRUPT_LINE, &[0xff]);
        Self {
            registers,
            bars: [None; BAR_COUNT],
            bar_registers_taken: [false; BAR_COUNT],
            offsets: Offsets::default(),
            msix: None,
            next: header::END,
            link: header::CAPABILITIES,
            next_extended: EXTENDED_START,
            extended_link: None,
            error: None,
        }
    }

    /// Says in the header that the device has more functions than this one.
    pub fn multi_function(mut self) -> Self {
        self.registers.set(header::HEADER_TYPE, &[header::HEADER_MULTI_FUNCTION]);
        self
    }

    /// Adds a memory BAR at register `index`.
    pub fn bar(mut self, index: usize, bar: Bar) -> Self {
        let last = index.saturating_add(usize::from(bar.is_64bit));
        let taken = self.bar_registers_taken.get_mut(index..=last);
        let free = taken.is_some_and(|taken| {
            let free = taken.iter().all(|taken| !taken);
            taken.fill(true);
            free
        });
        if !free {
            return self.fail(BuildError::BarRegister(index));
        }
        if !bar.is_valid() {
            return self.fail(BuildError::BarSize { bar: index, size: bar.size });
        }
        let at = header::BAR0 + 4 * index;
        self.registers.set(at, &bar.attributes().to_le_bytes());
        let width = if bar.is_64bit { 8 } else { 4 };
        self.registers.set_writable(at, &bar.address_mask().to_le_bytes()[..width]);
        let command = header::COMMAND_MEMORY as u8 | self.registers.writable[header::COMMAND];
        self.registers.set_writable(header::COMMAND, &[command]);
        self.bars[index] = Some(bar);
        self
    }

    /// Adds a capability with a `body` (all that follows the two bytes of the header) and the bits of it that can be
    /// written. `writable` may be shorter than `body`; the rest is read-only.
    pub fn capability(mut self, id: CapabilityId, body: &[u8], writable: &[u8]) -> Self {
        let Some(at) = self.allocate(id, 2 + body.len()) else { return self };
        self.registers.set(at + 2, body);
        self.registers.set_writable(at + 2, writable.get(..body.len()).unwrap_or(writable));
        self
    }

    /// Adds the PCI Express capability.
    pub fn pcie(mut self, capability: PcieCapability) -> Self {
        if self.offsets.pcie.is_some() {
            return self.fail(BuildError::Twice { id: CapabilityId::PCI_EXPRESS.0.into() });
        }
        let Some(at) = self.allocate(CapabilityId::PCI_EXPRESS, pcie::LENGTH) else { return self };
        self.offsets.pcie = Some(at);
        let capabilities = pcie::VERSION_2 | pcie::TYPE_RC_INTEGRATED_ENDPOINT;
        self.registers.set(at + pcie::CAPABILITIES, &capabilities.to_le_bytes());
        let mut device = pcie::DEVCAP_ROLE_BASED_ERRORS | pcie::DEVCAP_EXTENDED_TAG;
        let mut control = pcie::DEVCTL_WRITABLE;
        if capability.function_level_reset {
            device |= pcie::DEVCAP_FLR;
            control |= pcie::DEVCTL_FLR;
        }
        self.registers.set(at + pcie::DEVICE_CAPABILITIES, &device.to_le_bytes());
        self.registers.set(at + pcie::DEVICE_CONTROL, &pcie::DEVCTL_RESET.to_le_bytes());
        self.registers.set_writable(at + pcie::DEVICE_CONTROL, &control.to_le_bytes());
        self.registers.set_rw1c(at + pcie::DEVICE_STATUS, &pcie::DEVSTA_RW1C.to_le_bytes());
        if capability.end_end_prefix {
            let device2 =
                pcie::DEVCAP2_EXTENDED_FMT | pcie::DEVCAP2_END_END_PREFIX | pcie::DEVCAP2_ONE_PREFIX;
            self.registers.set(at + pcie::DEVICE_CAPABILITIES_2, &device2.to_le_bytes());
        }
        self
    }

    /// Adds the MSI-X capability. The BARs that hold the structures must be there by [`Self::build`].
    pub fn msix(mut self, layout: MsixLayout) -> Self {
        let id = CapabilityId::MSIX;
        if self.offsets.msix.is_some() {
            return self.fail(BuildError::Twice { id: id.0.into() });
        }
        if !layout.has_valid_vectors() {
            return self.fail(BuildError::Value { id: id.0.into(), field: "the number of vectors" });
        }
        if !layout.table_offset.is_multiple_of(8) || layout.table_bar >= BAR_COUNT {
            return self.fail(BuildError::MsixPlace("table"));
        }
        if !layout.pba_offset.is_multiple_of(8) || layout.pba_bar >= BAR_COUNT {
            return self.fail(BuildError::MsixPlace("pending bit array"));
        }
        let Some(at) = self.allocate(id, msix::LENGTH) else { return self };
        self.offsets.msix = Some(at);
        self.msix = Some(layout);
        self.registers.set(at + msix::CONTROL, &(layout.vectors - 1).to_le_bytes());
        let control = msix::CONTROL_ENABLE | msix::CONTROL_FUNCTION_MASK;
        self.registers.set_writable(at + msix::CONTROL, &control.to_le_bytes());
        self.registers.set(at + msix::TABLE, &(layout.table_offset | layout.table_bar as u32).to_le_bytes());
        self.registers.set(at + msix::PBA, &(layout.pba_offset | layout.pba_bar as u32).to_le_bytes());
        self
    }

    /// Adds the ATS extended capability, with Page Aligned Request set.
    pub fn ats(mut self, capability: AtsCapability) -> Self {
        let id = ExtendedCapabilityId::ATS;
        if self.offsets.ats.is_some() {
            return self.fail(BuildError::Twice { id: id.0 });
        }
        if !(1..=32).contains(&capability.queue_depth) {
            return self.fail(BuildError::Value { id: id.0, field: "the invalidate queue depth" });
        }
        let Some(at) = self.allocate_extended(id, ats::LENGTH) else { return self };
        self.offsets.ats = Some(at);
        // A field of 0 stands for 32.
        let mut value = u16::from(capability.queue_depth % 32) | ats::CAP_PAGE_ALIGNED;
        if capability.global_invalidate {
            value |= ats::CAP_GLOBAL_INVALIDATE;
        }
        self.registers.set(at + ats::CAPABILITY, &value.to_le_bytes());
        self.registers.set_writable(at + ats::CONTROL, &(ats::CTL_ENABLE | ats::CTL_STU).to_le_bytes());
        self
    }

    /// Adds the PASID extended capability.
    pub fn pasid(mut self, capability: PasidCapability) -> Self {
        let id = ExtendedCapabilityId::PASID;
        if self.offsets.pasid.is_some() {
            return self.fail(BuildError::Twice { id: id.0 });
        }
        if !(1..=20).contains(&capability.width) {
            return self.fail(BuildError::Value { id: id.0, field: "the PASID width" });
        }
        let Some(at) = self.allocate_extended(id, pasid::LENGTH) else { return self };
        self.offsets.pasid = Some(at);
        let mut value = u16::from(capability.width) << pasid::CAP_WIDTH_SHIFT;
        let mut control = pasid::CTL_ENABLE;
        if capability.execute {
            value |= pasid::CAP_EXECUTE;
            control |= pasid::CTL_EXECUTE;
        }
        if capability.privileged {
            value |= pasid::CAP_PRIVILEGED;
            control |= pasid::CTL_PRIVILEGED;
        }
        self.registers.set(at + pasid::CAPABILITY, &value.to_le_bytes());
        self.registers.set_writable(at + pasid::CONTROL, &control.to_le_bytes());
        self
    }

    /// Adds the page request extended capability; the interface is stopped after reset.
    pub fn pri(mut self, capability: PriCapability) -> Self {
        let id = ExtendedCapabilityId::PRI;
        if self.offsets.pri.is_some() {
            return self.fail(BuildError::Twice { id: id.0 });
        }
        if capability.capacity == 0 {
            return self.fail(BuildError::Value { id: id.0, field: "the page request capacity" });
        }
        let Some(at) = self.allocate_extended(id, pri::LENGTH) else { return self };
        self.offsets.pri = Some(at);
        let mut status = pri::STATUS_STOPPED;
        if capability.response_pasid_required {
            status |= pri::STATUS_PASID_REQUIRED;
        }
        let control = pri::CTL_ENABLE | pri::CTL_RESET;
        let flags = pri::STATUS_RESPONSE_FAILURE | pri::STATUS_UNEXPECTED_GROUP;
        self.registers.set_writable(at + pri::CONTROL, &control.to_le_bytes());
        self.registers.set(at + pri::STATUS, &status.to_le_bytes());
        self.registers.set_rw1c(at + pri::STATUS, &flags.to_le_bytes());
        self.registers.set(at + pri::CAPACITY, &capability.capacity.to_le_bytes());
        self.registers.set_writable(at + pri::ALLOCATION, &[0xff; 4]);
        self
    }

    /// The configuration space after reset.
    ///
    /// # Errors
    ///
    /// The first thing that could not be built.
    pub fn build(self) -> Result<ConfigSpace, BuildError> {
        if let Some(error) = self.error {
            return Err(error);
        }
        if let Some(layout) = &self.msix {
            self.check_msix(layout)?;
        }
        Ok(ConfigSpace::new(self.registers, self.bars, self.offsets))
    }

    fn fail(mut self, error: BuildError) -> Self {
        self.error.get_or_insert(error);
        self
    }

    fn check_msix(&self, layout: &MsixLayout) -> Result<(), BuildError> {
        let fits = |bar: usize, offset: u32, size: u64| {
            self.bars[bar].is_some_and(|bar| u64::from(offset) + size <= bar.size)
        };
        let (table, pba) = (u64::from(layout.table_offset), u64::from(layout.pba_offset));
        if !fits(layout.table_bar, layout.table_offset, layout.table_size()) {
            return Err(BuildError::MsixPlace("table"));
        }
        let overlap = layout.table_bar == layout.pba_bar
            && table < pba + layout.pba_size()
            && pba < table + layout.table_size();
        if overlap || !fits(layout.pba_bar, layout.pba_offset, layout.pba_size()) {
            return Err(BuildError::MsixPlace("pending bit array"));
        }
        Ok(())
    }

    /// Takes room for a capability of `length` bytes, links it and writes its identifier.
    fn allocate(&mut self, id: CapabilityId, length: usize) -> Option<usize> {
        let at = self.next;
        let end = at.checked_add(length)?.next_multiple_of(4);
        if end > EXTENDED_START {
            self.error.get_or_insert(BuildError::NoRoom { id: id.0.into() });
            return None;
        }
        self.registers.set(at, &[id.0, 0]);
        self.registers.set(self.link, &[at as u8]);
        let status = header::STATUS_CAPABILITIES.to_le_bytes();
        self.registers.set(header::STATUS, &status);
        self.link = at + 1;
        self.next = end;
        Some(at)
    }

    /// The same for an extended capability. \[PCIe 7.6.3: version in bits 19:16, next in bits 31:20\]
    fn allocate_extended(&mut self, id: ExtendedCapabilityId, length: usize) -> Option<usize> {
        let at = self.next_extended;
        let end = at.checked_add(length)?.next_multiple_of(4);
        if end > CONFIG_SPACE_SIZE {
            self.error.get_or_insert(BuildError::NoRoom { id: id.0 });
            return None;
        }
        self.registers.set(at, &(u32::from(id.0) | 1 << 16).to_le_bytes());
        if let Some(link) = self.extended_link {
            let previous = self.registers.u32(link) | (at as u32) << 20;
            self.registers.set(link, &previous.to_le_bytes());
        }
        self.extended_link = Some(at);
        self.next_extended = end;
        Some(at)
    }
}
