// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The fixed parts of the remapping structures.

/// Type of a remapping structure. \[S 8.2\]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u16)]
pub enum StructureType {
    /// DMA remapping hardware unit definition.
    Drhd = 0,
    /// Reserved memory region reporting.
    Rmrr = 1,
    /// Root port ATS capability reporting.
    Atsr = 2,
    /// Remapping hardware static affinity.
    Rhsa = 3,
    /// ACPI name-space device declaration.
    Andd = 4,
    /// SoC integrated address translation cache reporting.
    Satc = 5,
    /// SoC integrated device property reporting.
    Sidp = 6,
}

impl StructureType {
    /// From the type field; `None` for a type that software skips.
    pub const fn from_bits(kind: u16) -> Option<Self> {
        Some(match kind {
            0 => Self::Drhd,
            1 => Self::Rmrr,
            2 => Self::Atsr,
            3 => Self::Rhsa,
            4 => Self::Andd,
            5 => Self::Satc,
            6 => Self::Sidp,
            _ => return None,
        })
    }
}

/// DRHD: a remapping unit. \[S 8.3\]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drhd {
    /// INCLUDE_PCI_ALL: the unit has all PCI devices of the segment that no other unit names. It is the last unit of its
    /// segment then and names at most I/O APICs and HPETs.
    pub include_pci_all: bool,
    /// Size of the register set: 2^N pages of 4 KiB, 4 bits.
    pub size: u8,
    /// PCI segment.
    pub segment: u16,
    /// Address of the register set, aligned to its size.
    pub register_base: u64,
}

/// RMRR: memory that devices keep using for the firmware. \[S 8.4\]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rmrr {
    /// PCI segment.
    pub segment: u16,
    /// Address of the first byte, 4 KiB aligned.
    pub base: u64,
    /// Address of the last byte; the byte behind it is 4 KiB aligned.
    pub limit: u64,
}

/// ATSR: root ports below which ATS works. \[S 8.5\]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Atsr {
    /// ALL_PORTS: all root ports of the segment; there are no scopes then.
    pub all_ports: bool,
    /// PCI segment.
    pub segment: u16,
}

/// RHSA: the proximity domain of a remapping unit. \[S 8.6\]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rhsa {
    /// Address of the unit's register set.
    pub register_base: u64,
    /// Proximity domain.
    pub proximity_domain: u32,
}

/// ANDD: a device of the ACPI name space. \[S 8.7\]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Andd<'a> {
    /// The number by which device scopes name it.
    pub device_number: u8,
    /// Its object name, without the NUL byte that ends it.
    pub object_name: &'a [u8],
}

/// SATC: integrated devices with an address translation cache. \[S 8.8\]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Satc {
    /// ATC_REQUIRED: the devices do not work without it.
    pub atc_required: bool,
    /// PCI segment.
    pub segment: u16,
}

/// SIDP: properties of integrated devices, in the flags of their scopes. Software that uses it ignores SATC. \[S 8.9\]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sidp {
    /// PCI segment.
    pub segment: u16,
}
