// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Page tables of either stage: map, unmap, large pages (Linux drivers/iommu/generic_pt).
//!
//! Unmapping collects the tables it takes out; they are freed by the domain, once the unit has forgotten them.

use alloc::vec::Vec;

use vtd_spec::{AddressWidth, Capabilities, Capability, FirstStageEntry, SecondStageEntry};

use crate::error::Error;
use crate::memory::Memory;
use crate::state::domain_id::Stage;

/// What a device may do with a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// Read.
    Read,
    /// Write; second stage only, a first stage lets it read as well.
    Write,
    /// Both.
    ReadWrite,
}

/// What an address is mapped to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// The physical address.
    pub physical: u64,
    /// Size of the page in bytes.
    pub size: u64,
    /// What the device may do.
    pub access: Access,
}

/// One table tree.
pub(crate) struct PageTable {
    pub(crate) root: u64,
    stage: Stage,
    /// A bit per level at which a leaf may lie.
    leaf_levels: u8,
    /// The levels that the unit walks. It enters the table below those beyond, at the lowest entry of each.
    walked_levels: u8,
    /// The last address that can be mapped: of a first stage's canonical ones, the lower half.
    pub(crate) last: u64,
    /// The last physical address that can be mapped to.
    last_physical: u64,
    coherent: bool,
}

/// Bytes under one entry of a table of this level.
const fn span(level: u8) -> u64 {
    1 << (12 + 9 * (level as u32 - 1))
}

/// What a walk found: the entry, its level, and the first address it covers.
struct Found {
    bits: u64,
    level: u8,
    first: u64,
}

impl PageTable {
    pub(crate) fn new<M: Memory>(
        memory: &M,
        stage: Stage,
        capabilities: &Capabilities,
        coherent: bool,
    ) -> Result<Self, Error> {
        let cap = capabilities.cap;
        let (walked_levels, last) = match stage {
            Stage::First(mode) => (mode.levels(), (1 << (mode.bits() - 1)) - 1),
            Stage::Second(width) => {
                let walked = walked_width(width, cap)
                    .ok_or(Error::lacks("second-stage tables that are as narrow (CAP.SAGAW)"))?;
                (walked.levels(), capabilities.max_second_stage_input(walked))
            }
        };
        let (two_megabytes, one_gigabyte) = match stage {
            Stage::First(_) => (true, cap.fs1gp()),
            Stage::Second(_) => (cap.sslps() & 1 != 0, cap.sslps() & 2 != 0),
        };
        let leaf_levels = 1 << 1 | u8::from(two_megabytes) << 2 | u8::from(one_gigabyte) << 3;
        let last_physical = capabilities.max_host_address();
        let mut table = Self { root: 0, stage, leaf_levels, walked_levels, last, last_physical, coherent };
        table.root = table.allocate(memory)?;
        Ok(table)
    }

    fn levels(&self) -> u8 {
        match self.stage {
            Stage::First(mode) => mode.levels(),
            Stage::Second(width) => width.levels(),
        }
    }

    fn allocate<M: Memory>(&self, memory: &M) -> Result<u64, Error> {
        let table = memory.allocate(1).ok_or(Error::OutOfMemory)?;
        if !self.coherent {
            memory.flush(table, 4096);
        }
        Ok(table)
    }

    fn store<M: Memory>(&self, memory: &M, address: u64, value: u64) {
        memory.store(address, value);
        if !self.coherent {
            memory.flush(address, 8);
        }
    }

    fn present(&self, bits: u64) -> bool {
        match self.stage {
            Stage::First(_) => FirstStageEntry::from_bits(bits).p(),
            Stage::Second(_) => SecondStageEntry::from_bits(bits).present(false),
        }
    }

    fn is_leaf(&self, bits: u64, level: u8) -> bool {
        match self.stage {
            Stage::First(_) => FirstStageEntry::from_bits(bits).is_leaf(level),
            Stage::Second(_) => SecondStageEntry::from_bits(bits).is_leaf(level),
        }
    }

    fn address(&self, bits: u64, level: u8) -> u64 {
        match self.stage {
            Stage::First(_) => FirstStageEntry::from_bits(bits).address(level),
            Stage::Second(_) => SecondStageEntry::from_bits(bits).address(level),
        }
    }

    /// An entry that points to a table. The leaf below decides on rights.
    fn table_entry(&self, table: u64) -> u64 {
        match self.stage {
            Stage::First(_) => {
                let entry = FirstStageEntry::new().with_p(true).with_rw(true).with_us(true);
                entry.with_a(true).with_addr(table).into_bits()
            }
            Stage::Second(_) => {
                SecondStageEntry::new().with_r(true).with_w(true).with_addr(table).into_bits()
            }
        }
    }

    /// A leaf. Accessed and dirty are set beforehand: nobody asks for them here, and the unit need not set them.
    fn leaf_entry(&self, physical: u64, level: u8, access: Access) -> u64 {
        let write = access != Access::Read;
        match self.stage {
            Stage::First(_) => FirstStageEntry::new()
                .with_p(true)
                .with_us(true)
                .with_rw(write)
                .with_a(true)
                .with_d(write)
                .with_ps(level > 1)
                .with_addr(physical)
                .into_bits(),
            Stage::Second(_) => SecondStageEntry::new()
                .with_r(access != Access::Write)
                .with_w(write)
                .with_ps(level > 1)
                .with_addr(physical)
                .into_bits(),
        }
    }

    /// Fails unless the range is made of pages that can be mapped.
    pub(crate) fn check_range(&self, address: u64, length: u64) -> Result<u64, Error> {
        if length == 0 || (address | length) & 0xfff != 0 {
            return Err(Error::Misaligned { address, length });
        }
        match address.checked_add(length - 1) {
            Some(last) if last <= self.last => Ok(last),
            _ => Err(Error::OutOfRange { address, length }),
        }
    }

    /// Maps a range, in the largest pages that fit. On failure, also says how many bytes from the first address on
    /// have been mapped.
    pub(crate) fn map<M: Memory>(
        &self,
        memory: &M,
        address: u64,
        physical: u64,
        length: u64,
        access: Access,
    ) -> Result<(), (Error, u64)> {
        let last = self.check_range(address, length).map_err(|error| (error, 0))?;
        if physical & 0xfff != 0 {
            return Err((Error::Misaligned { address: physical, length }, 0));
        }
        if physical.checked_add(length - 1).is_none_or(|last| last > self.last_physical) {
            return Err((Error::OutOfRange { address: physical, length }, 0));
        }
        let mut mapped = address;
        let offset = physical.wrapping_sub(address);
        let result =
            self.map_in(memory, self.root, self.levels(), address, last, offset, access, &mut mapped);
        result.map_err(|error| (error, mapped - address))
    }

    #[expect(clippy::too_many_arguments, reason = "the state of one recursion")]
    fn map_in<M: Memory>(
        &self,
        memory: &M,
        table: u64,
        level: u8,
        first: u64,
        last: u64,
        offset: u64,
        access: Access,
        mapped: &mut u64,
    ) -> Result<(), Error> {
        let inside = span(level) - 1;
        let mut at = first;
        loop {
            let end = last.min(at | inside);
            let slot = table + 8 * (at / span(level) % 512);
            let mut entry = memory.load(slot);
            let physical = at.wrapping_add(offset);
            let fits = end - at == inside && physical & inside == 0 && self.leaf_levels & 1 << level != 0;
            if !self.present(entry) && fits {
                self.store(memory, slot, self.leaf_entry(physical, level, access));
                *mapped = end + 1;
            } else if self.present(entry) && self.is_leaf(entry, level) {
                return Err(Error::AlreadyMapped { address: at });
            } else {
                if !self.present(entry) {
                    entry = self.table_entry(self.allocate(memory)?);
                    self.store(memory, slot, entry);
                }
                let next = self.address(entry, level);
                self.map_in(memory, next, level - 1, at, end, offset, access, mapped)?;
            }
            if end == last {
                return Ok(());
            }
            at = end + 1;
        }
    }

    fn find<M: Memory>(&self, memory: &M, address: u64) -> Option<Found> {
        let mut table = self.root;
        for level in (1..=self.levels()).rev() {
            let bits = memory.load(table + 8 * (address / span(level) % 512));
            if !self.present(bits) {
                return None;
            }
            if self.is_leaf(bits, level) {
                return Some(Found { bits, level, first: address & !(span(level) - 1) });
            }
            table = self.address(bits, level);
        }
        None
    }

    /// What an address is mapped to.
    pub(crate) fn lookup<M: Memory>(&self, memory: &M, address: u64) -> Option<Mapping> {
        if address > self.last {
            return None;
        }
        let found = self.find(memory, address)?;
        let access = match self.stage {
            Stage::First(_) => match FirstStageEntry::from_bits(found.bits).rw() {
                true => Access::ReadWrite,
                false => Access::Read,
            },
            Stage::Second(_) => {
                let entry = SecondStageEntry::from_bits(found.bits);
                match (entry.r(), entry.w()) {
                    (true, true) => Access::ReadWrite,
                    (false, true) => Access::Write,
                    _ => Access::Read,
                }
            }
        };
        let physical = self.address(found.bits, found.level) | (address - found.first);
        Some(Mapping { physical, size: span(found.level), access })
    }

    /// Unmaps what is mapped in a range; tables that nothing needs any more go to `freed`. The table at which the unit
    /// enters stays, since PASID entries name it. Returns whether anything was
    /// mapped. Nothing is changed on failure.
    pub(crate) fn unmap<M: Memory>(
        &self,
        memory: &M,
        address: u64,
        length: u64,
        freed: &mut Vec<u64>,
    ) -> Result<bool, Error> {
        let last = self.check_range(address, length)?;
        for (edge, outside) in [(address, address.wrapping_sub(1)), (last, last.wrapping_add(1))] {
            if let Some(found) = self.find(memory, edge) {
                let size = span(found.level);
                if outside & !(size - 1) == found.first {
                    return Err(Error::WithinLargePage { address: found.first, size });
                }
            }
        }
        Ok(self.unmap_in(memory, self.root, self.levels(), address, last, freed))
    }

    fn unmap_in<M: Memory>(
        &self,
        memory: &M,
        table: u64,
        level: u8,
        first: u64,
        last: u64,
        freed: &mut Vec<u64>,
    ) -> bool {
        let inside = span(level) - 1;
        let mut unmapped = false;
        let mut at = first;
        loop {
            let end = last.min(at | inside);
            let slot = table + 8 * (at / span(level) % 512);
            let entry = memory.load(slot);
            if self.present(entry) {
                if self.is_leaf(entry, level) {
                    self.store(memory, slot, 0);
                    unmapped = true;
                } else if end - at == inside && level <= self.walked_levels {
                    self.store(memory, slot, 0);
                    unmapped = true;
                    self.collect(memory, self.address(entry, level), level - 1, freed);
                } else {
                    let next = self.address(entry, level);
                    unmapped |= self.unmap_in(memory, next, level - 1, at, end, freed);
                }
            }
            if end == last {
                return unmapped;
            }
            at = end + 1;
        }
    }

    /// A table and all below it.
    pub(crate) fn collect<M: Memory>(&self, memory: &M, table: u64, level: u8, freed: &mut Vec<u64>) {
        freed.push(table);
        if level == 1 {
            return;
        }
        for index in 0..512 {
            let entry = memory.load(table + 8 * index);
            if self.present(entry) && !self.is_leaf(entry, level) {
                self.collect(memory, self.address(entry, level), level - 1, freed);
            }
        }
    }

    /// All tables, for a domain that goes.
    pub(crate) fn tables<M: Memory>(&self, memory: &M) -> Vec<u64> {
        let mut tables = Vec::new();
        self.collect(memory, self.root, self.levels(), &mut tables);
        tables
    }
}

/// The width that the unit walks of a second-stage table: the widest it has that is not wider.
pub(crate) fn walked_width(width: AddressWidth, cap: Capability) -> Option<AddressWidth> {
    [AddressWidth::Bits57, AddressWidth::Bits48, AddressWidth::Bits39]
        .into_iter()
        .find(|walked| *walked <= width && walked.is_supported(cap))
}

#[cfg(test)]
mod tests;
