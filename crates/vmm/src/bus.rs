// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The buses between processors and devices: memory-mapped I/O and ports.

use std::collections::BTreeMap;
use std::sync::Arc;

/// A device that answers accesses. Called on processor threads, several at once.
pub trait BusDevice: Send + Sync {
    /// Fills `data`, 1 to 8 bytes, from the register at `offset`.
    fn read(&self, offset: u64, data: &mut [u8]);
    /// Writes `data`, 1 to 8 bytes, to the register at `offset`.
    fn write(&self, offset: u64, data: &[u8]);
}

/// Two devices want the same addresses.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("bus range {base:#x}+{size:#x} overlaps another device")]
pub struct Overlap {
    /// First address wanted.
    pub base: u64,
    /// Length wanted.
    pub size: u64,
}

/// An address space of devices. Filled when the machine is built, read-only while it runs.
#[derive(Default)]
pub struct Bus {
    devices: BTreeMap<u64, (u64, Arc<dyn BusDevice>)>,
}

impl Bus {
    /// Puts `device` at `base`, `size` bytes long.
    pub fn insert(&mut self, base: u64, size: u64, device: Arc<dyn BusDevice>) -> Result<(), Overlap> {
        let end = base.checked_add(size).ok_or(Overlap { base, size })?;
        let free = size > 0
            && self
                .devices
                .range(..end)
                .next_back()
                .is_none_or(|(other, (length, _))| other + length <= base);
        if !free {
            return Err(Overlap { base, size });
        }
        self.devices.insert(base, (size, device));
        Ok(())
    }

    fn find(&self, address: u64, length: usize) -> Option<(u64, &dyn BusDevice)> {
        let (base, (size, device)) = self.devices.range(..=address).next_back()?;
        let offset = address - base;
        // An access that leaves the device's range reaches nobody, as on a bus.
        (offset.checked_add(length as u64)? <= *size).then_some((offset, device.as_ref()))
    }

    /// Reads; all ones where nobody answers.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        match self.find(address, data.len()) {
            Some((offset, device)) => device.read(offset, data),
            None => data.fill(0xff),
        }
    }

    /// Writes; lost where nobody answers.
    pub fn write(&self, address: u64, data: &[u8]) {
        if let Some((offset, device)) = self.find(address, data.len()) {
            device.write(offset, data);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Offsets;

    impl BusDevice for Offsets {
        fn read(&self, offset: u64, data: &mut [u8]) {
            data.fill(offset as u8);
        }
        fn write(&self, _offset: u64, _data: &[u8]) {}
    }

    fn read(bus: &Bus, address: u64, length: usize) -> Vec<u8> {
        let mut data = vec![0; length];
        bus.read(address, &mut data);
        data
    }

    #[test]
    fn devices_see_offsets_and_holes_read_all_ones() {
        let mut bus = Bus::default();
        bus.insert(0x1000, 0x10, Arc::new(Offsets)).unwrap();
        bus.insert(0x1010, 0x10, Arc::new(Offsets)).unwrap();
        assert_eq!(read(&bus, 0x1004, 1), [4]);
        assert_eq!(read(&bus, 0x1013, 2), [3, 3]);
        assert_eq!(read(&bus, 0x1020, 4), [0xff; 4]);
        assert_eq!(read(&bus, 0xfff, 1), [0xff]);
        assert_eq!(read(&bus, u64::MAX, 8), [0xff; 8]);
    }

    #[test]
    fn an_access_across_the_end_of_a_device_reaches_nobody() {
        let mut bus = Bus::default();
        bus.insert(0x1000, 0x10, Arc::new(Offsets)).unwrap();
        assert_eq!(read(&bus, 0x100e, 4), [0xff; 4]);
    }

    #[test]
    fn overlapping_devices_are_refused() {
        let mut bus = Bus::default();
        bus.insert(0x1000, 0x10, Arc::new(Offsets)).unwrap();
        for (base, size) in
            [(0x1000, 0x10), (0xff8, 0x10), (0x100f, 1), (0x800, 0x1000), (0x2000, 0), (!0, 2)]
        {
            assert!(bus.insert(base, size, Arc::new(Offsets)).is_err(), "{base:#x}+{size:#x}");
        }
    }
}
