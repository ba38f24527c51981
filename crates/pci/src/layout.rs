// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Offsets and bits of the configuration space. Offsets of header registers are absolute, those of capability
//! registers count from the capability's header.

/// Identifies a capability structure in the first 256 bytes. \[PCIe 7.5, 7.7\]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CapabilityId(pub u8);

impl CapabilityId {
    /// Vendor-specific: what virtio uses to point at its registers.
    pub const VENDOR: Self = Self(0x09);
    /// PCI Express.
    pub const PCI_EXPRESS: Self = Self(0x10);
    /// MSI-X.
    pub const MSIX: Self = Self(0x11);
}

/// Identifies an extended capability structure, at 0x100 and above. \[PCIe 7.6.3\]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExtendedCapabilityId(pub u16);

impl ExtendedCapabilityId {
    /// Address translation services.
    pub const ATS: Self = Self(0x0f);
    /// Page request interface.
    pub const PRI: Self = Self(0x13);
    /// Process address space identifiers.
    pub const PASID: Self = Self(0x1b);
}

/// The type 0 header. \[PCIe 7.5.1\]
pub(crate) mod header {
    pub const VENDOR_ID: usize = 0x00;
    pub const DEVICE_ID: usize = 0x02;
    pub const COMMAND: usize = 0x04;
    pub const STATUS: usize = 0x06;
    pub const REVISION_ID: usize = 0x08;
    pub const CLASS_CODE: usize = 0x09;
    pub const CACHE_LINE_SIZE: usize = 0x0c;
    pub const HEADER_TYPE: usize = 0x0e;
    pub const BAR0: usize = 0x10;
    pub const SUBSYSTEM_VENDOR_ID: usize = 0x2c;
    pub const SUBSYSTEM_ID: usize = 0x2e;
    pub const CAPABILITIES: usize = 0x34;
    pub const INTERRUPT_LINE: usize = 0x3c;
    /// The first byte that capabilities may use.
    pub const END: usize = 0x40;

    pub const COMMAND_MEMORY: u16 = 1 << 1;
    pub const COMMAND_BUS_MASTER: u16 = 1 << 2;
    pub const COMMAND_PARITY: u16 = 1 << 6;
    pub const COMMAND_SERR: u16 = 1 << 8;
    pub const COMMAND_INTX_DISABLE: u16 = 1 << 10;

    pub const STATUS_CAPABILITIES: u16 = 1 << 4;
    /// Master data parity error, and the five of bits 15:11.
    pub const STATUS_RW1C: u16 = 0xf900;

    pub const HEADER_MULTI_FUNCTION: u8 = 1 << 7;
}

/// The PCI Express capability, version 2. \[PCIe 7.5.3\]
pub(crate) mod pcie {
    pub const LENGTH: usize = 0x3c;
    pub const CAPABILITIES: usize = 0x02;
    pub const DEVICE_CAPABILITIES: usize = 0x04;
    pub const DEVICE_CONTROL: usize = 0x08;
    pub const DEVICE_STATUS: usize = 0x0a;
    pub const DEVICE_CAPABILITIES_2: usize = 0x24;

    pub const VERSION_2: u16 = 2;
    /// Device/port type in bits 7:4: root complex integrated endpoint.
    pub const TYPE_RC_INTEGRATED_ENDPOINT: u16 = 9 << 4;

    pub const DEVCAP_EXTENDED_TAG: u32 = 1 << 5;
    pub const DEVCAP_ROLE_BASED_ERRORS: u32 = 1 << 15;
    pub const DEVCAP_FLR: u32 = 1 << 28;

    /// Error reporting enables, relaxed ordering, payload size, extended tag, no snoop, read request size.
    pub const DEVCTL_WRITABLE: u16 = 0x79ff;
    pub const DEVCTL_MAX_PAYLOAD: u16 = 0x7 << 5;
    pub const DEVCTL_RESET: u16 = 0x2810;
    pub const DEVCTL_FLR: u16 = 1 << 15;
    pub const DEVSTA_RW1C: u16 = 0x000f;

    pub const DEVCAP2_EXTENDED_FMT: u32 = 1 << 20;
    pub const DEVCAP2_END_END_PREFIX: u32 = 1 << 21;
    /// Max End-End TLP Prefixes in bits 23:22: one.
    pub const DEVCAP2_ONE_PREFIX: u32 = 1 << 22;
}

/// The MSI-X capability. \[PCIe 7.7.2\]
pub(crate) mod msix {
    pub const LENGTH: usize = 0x0c;
    pub const CONTROL: usize = 0x02;
    pub const TABLE: usize = 0x04;
    pub const PBA: usize = 0x08;

    pub const CONTROL_FUNCTION_MASK: u16 = 1 << 14;
    pub const CONTROL_ENABLE: u16 = 1 << 15;
}

/// The ATS extended capability. \[PCIe 10.5.1\]
pub(crate) mod ats {
    pub const LENGTH: usize = 0x08;
    pub const CAPABILITY: usize = 0x04;
    pub const CONTROL: usize = 0x06;

    pub const CAP_PAGE_ALIGNED: u16 = 1 << 5;
    pub const CAP_GLOBAL_INVALIDATE: u16 = 1 << 6;
    pub const CTL_STU: u16 = 0x1f;
    pub const CTL_ENABLE: u16 = 1 << 15;
}

/// The page request extended capability. \[PCIe 10.5.2\]
pub(crate) mod pri {
    pub const LENGTH: usize = 0x10;
    pub const CONTROL: usize = 0x04;
    pub const STATUS: usize = 0x06;
    pub const CAPACITY: usize = 0x08;
    pub const ALLOCATION: usize = 0x0c;

    pub const CTL_ENABLE: u16 = 1 << 0;
    pub const CTL_RESET: u16 = 1 << 1;
    pub const STATUS_RESPONSE_FAILURE: u16 = 1 << 0;
    pub const STATUS_UNEXPECTED_GROUP: u16 = 1 << 1;
    pub const STATUS_STOPPED: u16 = 1 << 8;
    pub const STATUS_PASID_REQUIRED: u16 = 1 << 15;
}

/// The PASID extended capability. \[PCIe 7.8.9\]
pub(crate) mod pasid {
    pub const LENGTH: usize = 0x08;
    pub const CAPABILITY: usize = 0x04;
    pub const CONTROL: usize = 0x06;

    pub const CAP_EXECUTE: u16 = 1 << 1;
    pub const CAP_PRIVILEGED: u16 = 1 << 2;
    pub const CAP_WIDTH_SHIFT: u16 = 8;
    pub const CTL_ENABLE: u16 = 1 << 0;
    pub const CTL_EXECUTE: u16 = 1 << 1;
    pub const CTL_PRIVILEGED: u16 = 1 << 2;
}
