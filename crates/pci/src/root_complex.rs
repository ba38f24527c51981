// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The root complex: finds the function that an access is for.
//!
//! Locks: `decoded` (the BARs as last seen) is taken before `segments` (the list that lookups use). Functions are
//! called with `decoded` held only to ask for their BARs; accesses are passed on with no lock held.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use crate::bar::{BAR_COUNT, BarRange, BarRanges};
use crate::config::CONFIG_SPACE_SIZE;
use crate::function::PciFunction;

/// Size of the ECAM window of one bus in bytes.
pub const ECAM_BUS_SIZE: u64 = 1 << 20;
/// The I/O port of the configuration address register.
pub const CONFIG_ADDRESS_PORT: u16 = 0xcf8;
/// The first of the four I/O ports of the configuration data register.
pub const CONFIG_DATA_PORT: u16 = 0xcfc;

/// Device and function numbers of a bus make an 8-bit index.
const FUNCTIONS: usize = 256;
const ADDRESS_ENABLE: u32 = 1 << 31;
/// Enable, bus, device and function, register.
const ADDRESS_WRITABLE: u32 = 0x80ff_fffc;

/// Why a function cannot be added.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddError {
    /// A bus has devices 0 to 31 with functions 0 to 7.
    #[error("there is no PCI device {device:#x} function {function}")]
    NoSuchPlace {
        /// The device number.
        device: u8,
        /// The function number.
        function: u8,
    },
    /// There is a function already.
    #[error("PCI device {device:#x} function {function} is taken")]
    Taken {
        /// The device number.
        device: u8,
        /// The function number.
        function: u8,
    },
}

/// A part of the address space that one BAR decodes. Segments do not overlap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Segment {
    first: u64,
    last: u64,
    devfn: u8,
    range: BarRange,
}

/// Bus 0 with its functions.
///
/// Functions are added before the guest runs; all accesses take `&self` and come from any thread. An access to what
/// does not exist reads all ones and writes nothing.
pub struct RootComplex {
    functions: Vec<Option<Arc<dyn PciFunction>>>,
    address: AtomicU32,
    decoded: Mutex<Vec<BarRanges>>,
    segments: RwLock<Vec<Segment>>,
}

impl Default for RootComplex {
    fn default() -> Self {
        Self::new()
    }
}

impl RootComplex {
    /// An empty bus.
    pub fn new() -> Self {
        Self {
            functions: vec![None; FUNCTIONS],
            address: AtomicU32::new(0),
            decoded: Mutex::new(vec![[None; BAR_COUNT]; FUNCTIONS]),
            segments: RwLock::new(Vec::new()),
        }
    }

    /// Puts a function on the bus.
    ///
    /// # Errors
    ///
    /// [`AddError`] where there is no such place or it is taken.
    pub fn add(
        &mut self,
        device: u8,
        function: u8,
        implementation: Arc<dyn PciFunction>,
    ) -> Result<(), AddError> {
        if device > 31 || function > 7 {
            return Err(AddError::NoSuchPlace { device, function });
        }
        let devfn = device << 3 | function;
        let slot = &mut self.functions[usize::from(devfn)];
        if slot.is_some() {
            return Err(AddError::Taken { device, function });
        }
        *slot = Some(implementation);
        self.refresh(devfn);
        Ok(())
    }

    /// Reads at `offset` of the ECAM window. \[PCIe 7.2.2: bus 27:20, device 19:15, function 14:12, register 11:0\]
    pub fn ecam_read(&self, offset: u64, data: &mut [u8]) {
        for (offset, part) in dwords_mut(offset, data) {
            self.config_read(offset, part);
        }
    }

    /// Writes at `offset` of the ECAM window.
    pub fn ecam_write(&self, offset: u64, data: &[u8]) {
        for (offset, part) in dwords(offset, data) {
            self.config_write(offset, part);
        }
    }

    /// Reads an I/O port from 0xCF8 to 0xCFF. The address register answers to DWORD accesses alone: some machines
    /// have other registers among its bytes.
    pub fn io_read(&self, port: u16, data: &mut [u8]) {
        if port == CONFIG_ADDRESS_PORT && data.len() == 4 {
            data.copy_from_slice(&self.address.load(Ordering::Relaxed).to_le_bytes());
        } else if let Some(offset) = self.data_port(port, data.len()) {
            self.config_read(offset, data);
        } else {
            data.fill(0xff);
        }
    }

    /// Writes an I/O port from 0xCF8 to 0xCFF.
    pub fn io_write(&self, port: u16, data: &[u8]) {
        if port == CONFIG_ADDRESS_PORT {
            if let Ok(bytes) = data.try_into() {
                self.address.store(u32::from_le_bytes(bytes) & ADDRESS_WRITABLE, Ordering::Relaxed);
            }
        } else if let Some(offset) = self.data_port(port, data.len()) {
            self.config_write(offset, data);
        }
    }

    /// Reads memory at a physical address, if an enabled BAR decodes all of the access; otherwise returns `false` and
    /// leaves `data` alone. Of BARs that overlap, the one of the lowest device, function and register answers.
    /// RAM and the platform's own registers come first: ask here when nothing else decodes the address.
    pub fn mmio_read(&self, address: u64, data: &mut [u8]) -> bool {
        let Some((function, bar, offset)) = self.decode(address, data.len()) else { return false };
        function.bar_read(bar, offset, data);
        true
    }

    /// Writes memory at a physical address, if an enabled BAR decodes all of the access; otherwise returns `false`.
    pub fn mmio_write(&self, address: u64, data: &[u8]) -> bool {
        let Some((function, bar, offset)) = self.decode(address, data.len()) else { return false };
        function.bar_write(bar, offset, data);
        true
    }

    /// Resets every function and the address register.
    pub fn reset(&self) {
        self.address.store(0, Ordering::Relaxed);
        for (devfn, function) in (0..=u8::MAX).zip(&self.functions) {
            if let Some(function) = function {
                function.reset();
                self.refresh(devfn);
            }
        }
    }

    fn function(&self, devfn: u8) -> Option<&Arc<dyn PciFunction>> {
        self.functions.get(usize::from(devfn))?.as_ref()
    }

    /// The offset in the ECAM window that an access to the data port means now.
    fn data_port(&self, port: u16, length: usize) -> Option<u64> {
        let byte = usize::from(port.checked_sub(CONFIG_DATA_PORT)?);
        let address = self.address.load(Ordering::Relaxed);
        if length == 0 || byte + length > 4 || address & ADDRESS_ENABLE == 0 {
            return None;
        }
        // Bus, device and function lie in bits 23:8, the register in bits 7:2.
        Some(u64::from(address >> 8 & 0xffff) << 12 | u64::from(address & 0xfc) | byte as u64)
    }

    fn config_read(&self, offset: u64, data: &mut [u8]) {
        match split(offset).and_then(|(devfn, register)| Some((self.function(devfn)?, register))) {
            Some((function, register)) => function.config_read(register, data),
            None => data.fill(0xff),
        }
    }

    fn config_write(&self, offset: u64, data: &[u8]) {
        let Some((devfn, register)) = split(offset) else { return };
        let Some(function) = self.function(devfn) else { return };
        function.config_write(register, data);
        self.refresh(devfn);
    }

    /// Takes over what a function decodes now, if that changed.
    fn refresh(&self, devfn: u8) {
        let Some(function) = self.function(devfn) else { return };
        let mut decoded = self.decoded.lock().unwrap_or_else(PoisonError::into_inner);
        // Asked under the lock, so that of two writers the last one to get here sees the final state.
        let bars = function.bars();
        let Some(known) = decoded.get_mut(usize::from(devfn)) else { return };
        if *known == bars {
            return;
        }
        *known = bars;
        let segments = segments(&decoded);
        *self.segments.write().unwrap_or_else(PoisonError::into_inner) = segments;
    }

    fn decode(&self, address: u64, length: usize) -> Option<(&Arc<dyn PciFunction>, usize, u64)> {
        let last = address.checked_add(u64::try_from(length).ok()?.checked_sub(1)?)?;
        let segment = {
            let segments = self.segments.read().unwrap_or_else(PoisonError::into_inner);
            let index = segments.partition_point(|segment| segment.last < address);
            *segments.get(index).filter(|segment| segment.first <= address && last <= segment.last)?
        };
        let offset = address.checked_sub(segment.range.base)?;
        Some((self.function(segment.devfn)?, segment.range.bar, offset))
    }
}

/// Device-function and register of an ECAM offset on bus 0.
fn split(offset: u64) -> Option<(u8, u16)> {
    if offset >= ECAM_BUS_SIZE {
        return None;
    }
    Some(((offset >> 12) as u8, (offset % CONFIG_SPACE_SIZE as u64) as u16))
}

/// Up to 4 bytes that `offset` shares a DWORD with.
fn dword_rest(offset: u64) -> usize {
    4 - (offset % 4) as usize
}

fn dwords(mut offset: u64, mut data: &[u8]) -> impl Iterator<Item = (u64, &[u8])> {
    std::iter::from_fn(move || {
        let (part, rest) = data.split_at(dword_rest(offset).min(data.len()));
        data = rest;
        let at = offset;
        offset = offset.saturating_add(part.len() as u64);
        (!part.is_empty()).then_some((at, part))
    })
}

fn dwords_mut(mut offset: u64, mut data: &mut [u8]) -> impl Iterator<Item = (u64, &mut [u8])> {
    std::iter::from_fn(move || {
        let all = std::mem::take(&mut data);
        let (part, rest) = all.split_at_mut(dword_rest(offset).min(all.len()));
        data = rest;
        let at = offset;
        offset = offset.saturating_add(part.len() as u64);
        (!part.is_empty()).then_some((at, part))
    })
}

/// The decoded ranges as segments in ascending order; where ranges overlap the first one in order of device,
/// function and register keeps the addresses.
fn segments(decoded: &[BarRanges]) -> Vec<Segment> {
    let mut segments: Vec<Segment> = Vec::new();
    for (devfn, bars) in (0..=u8::MAX).zip(decoded) {
        for range in bars.iter().flatten() {
            let mut free = Vec::new();
            let mut first = Some(range.base);
            for taken in segments.iter().filter(|s| s.last >= range.base && s.first <= range.last()) {
                if let (Some(start), Some(end)) = (first, taken.first.checked_sub(1))
                    && start <= end
                {
                    free.push((start, end));
                }
                first = taken.last.checked_add(1);
            }
            if let Some(start) = first
                && start <= range.last()
            {
                free.push((start, range.last()));
            }
            segments.extend(free.into_iter().map(|(first, last)| Segment {
                first,
                last,
                devfn,
                range: *range,
            }));
            segments.sort_unstable_by_key(|segment| segment.first);
        }
    }
    segments
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn each_address_belongs_to_the_first_range_that_has_it(
            places in prop::collection::vec((0_u8..4, 0..BAR_COUNT, 0_u32..5, 0_u64..64, any::<bool>()), 0..12),
        ) {
            let mut decoded = vec![[None; BAR_COUNT]; 4];
            for (devfn, bar, shift, place, high) in places {
                let size = 1 << shift;
                // At both ends of the address space.
                let base = if high { (u64::MAX - place) & !(size - 1) } else { place & !(size - 1) };
                decoded[usize::from(devfn)][bar] = Some(BarRange { bar, base, size });
            }
            let segments = segments(&decoded);
            for pair in segments.windows(2) {
                prop_assert!(pair[0].last < pair[1].first);
            }
            for address in (0..80).chain(u64::MAX - 80..=u64::MAX) {
                let has = |range: &BarRange| range.base <= address && address <= range.last();
                let owner = (0_u8..).zip(&decoded).find_map(|(devfn, bars)| {
                    Some((devfn, *bars.iter().flatten().find(|range| has(range))?))
                });
                let found = segments.iter().find(|segment| segment.first <= address && address <= segment.last);
                prop_assert_eq!(found.map(|segment| (segment.devfn, segment.range)), owner, "{:#x}", address);
            }
        }
    }
}
