// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The identifiers that requests, tables and descriptors share.

use core::fmt;

/// A source-id (requester-id): bus in bits 15:8, device in bits 7:3, function in bits 2:0. \[S 3.4.1\]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceId(pub u16);

impl SourceId {
    /// The source-id of a function; `device` is 5 bits wide and `function` 3 bits, higher bits are dropped.
    pub const fn new(bus: u8, device: u8, function: u8) -> Self {
        Self((bus as u16) << 8 | ((device & 0x1f) as u16) << 3 | (function & 7) as u16)
    }

    /// The bus number: the index into the root table.
    pub const fn bus(self) -> u8 {
        (self.0 >> 8) as u8
    }

    /// Device and function as one number: the index into the context table.
    pub const fn devfn(self) -> u8 {
        self.0 as u8
    }
}

impl fmt::Display for SourceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}:{:02x}.{}", self.bus(), self.devfn() >> 3, self.devfn() & 7)
    }
}

/// A process address space identifier, 20 bits wide. \[S 3.2\]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pasid(u32);

impl Pasid {
    /// The largest PASID: 20 bits, all ones.
    pub const MAX: Self = Self(0xf_ffff);
    /// PASID 0, which requests without PASID use where the unit has no RID_PASID field. \[S 9.4\]
    pub const ZERO: Self = Self(0);

    /// `None` where `value` needs more than 20 bits.
    pub const fn new(value: u32) -> Option<Self> {
        if value <= Self::MAX.0 { Some(Self(value)) } else { None }
    }

    /// The low 20 bits of `value`: for fields that are 20 bits wide by layout.
    pub const fn truncated(value: u32) -> Self {
        Self(value & Self::MAX.0)
    }

    /// The number.
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Display for Pasid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// A domain-id: 16 bits, of which CAP.ND says how many a unit uses. \[S 11.4.2\]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DomainId(pub u16);
