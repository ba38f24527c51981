// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A function with every capability, and a guest that reads and writes it through the root complex.
#![allow(dead_code, reason = "each test program uses a part")]

use std::sync::{Arc, Mutex, MutexGuard};

use pci::{
    AtsCapability, Bar, BarRanges, CapabilityId, ConfigChanges, ConfigSpace, ConfigSpaceBuilder, HostBridge,
    Identity, Message, MsixLayout, MsixTable, PasidCapability, PciFunction, PcieCapability, PriCapability,
    RootComplex,
};

/// Shaped like a DSA, with a 32-bit BAR and vendor-specific capabilities added.
pub fn builder() -> ConfigSpaceBuilder {
    ConfigSpaceBuilder::new(Identity {
        vendor: 0x8086,
        device: 0x0b25,
        revision: 1,
        class: 0x08_8000,
        subsystem_vendor: 0x1234,
        subsystem: 0x5678,
    })
    .bar(0, Bar::memory64_prefetchable(0x1_0000))
    .bar(2, Bar::memory64_prefetchable(0x2_0000))
    .bar(4, Bar::memory32(0x1000))
    .pcie(PcieCapability { function_level_reset: true, end_end_prefix: true })
    .msix(MsixLayout::in_bar(0, 9, 0x2000, 0x3000))
    .capability(CapabilityId::VENDOR, &[1, 2, 3, 4, 5], &[])
    .capability(CapabilityId::VENDOR, &[9, 8, 7, 6], &[0, 0xf0])
    .ats(AtsCapability { queue_depth: 32, global_invalidate: true })
    .pasid(PasidCapability { width: 20, execute: false, privileged: true })
    .pri(PriCapability { capacity: 0x200, response_pasid_required: true })
}

pub struct TestFunction {
    config: Mutex<ConfigSpace>,
    pub msix: MsixTable,
    accesses: Mutex<Vec<(usize, u64, usize)>>,
    decoded: Mutex<Vec<(usize, u64, usize)>>,
    changes: Mutex<Vec<ConfigChanges>>,
    messages: Mutex<Vec<Message>>,
}

impl TestFunction {
    pub fn new() -> Self {
        Self {
            config: Mutex::new(builder().build().unwrap()),
            msix: MsixTable::new(MsixLayout::in_bar(0, 9, 0x2000, 0x3000)),
            accesses: Mutex::default(),
            decoded: Mutex::default(),
            changes: Mutex::default(),
            messages: Mutex::default(),
        }
    }

    pub fn config(&self) -> MutexGuard<'_, ConfigSpace> {
        self.config.lock().unwrap()
    }

    /// Accesses to BARs that the MSI-X structures did not take: BAR, offset, length.
    pub fn take_accesses(&self) -> Vec<(usize, u64, usize)> {
        std::mem::take(&mut *self.accesses.lock().unwrap())
    }

    /// All accesses to BARs, those to the MSI-X structures too: BAR, offset, length.
    pub fn take_decoded(&self) -> Vec<(usize, u64, usize)> {
        std::mem::take(&mut *self.decoded.lock().unwrap())
    }

    pub fn take_changes(&self) -> Vec<ConfigChanges> {
        std::mem::take(&mut *self.changes.lock().unwrap())
    }

    pub fn take_messages(&self) -> Vec<Message> {
        std::mem::take(&mut *self.messages.lock().unwrap())
    }
}

/// What a function is promised of each access of its configuration space.
fn within_a_dword(offset: u16, length: usize) {
    assert!((1..=4 - usize::from(offset % 4)).contains(&length) && offset < 4096, "{offset:#x} {length}");
}

impl PciFunction for TestFunction {
    fn config_read(&self, offset: u16, data: &mut [u8]) {
        within_a_dword(offset, data.len());
        self.config().read(offset, data);
    }

    fn config_write(&self, offset: u16, data: &[u8]) {
        within_a_dword(offset, data.len());
        let changes = self.config().write(offset, data);
        if changes.function_level_reset {
            self.msix.reset();
        }
        if let Some(control) = changes.msix {
            self.messages.lock().unwrap().extend(self.msix.set_control(control));
        }
        if !changes.is_empty() {
            self.changes.lock().unwrap().push(changes);
        }
    }

    fn bar_read(&self, bar: usize, offset: u64, data: &mut [u8]) {
        self.decoded.lock().unwrap().push((bar, offset, data.len()));
        if !self.msix.bar_read(bar, offset, data) {
            data.fill(0);
            self.accesses.lock().unwrap().push((bar, offset, data.len()));
        }
    }

    fn bar_write(&self, bar: usize, offset: u64, data: &[u8]) {
        self.decoded.lock().unwrap().push((bar, offset, data.len()));
        match self.msix.bar_write(bar, offset, data) {
            Some(messages) => self.messages.lock().unwrap().extend(messages),
            None => self.accesses.lock().unwrap().push((bar, offset, data.len())),
        }
    }

    fn bars(&self) -> BarRanges {
        self.config().bars()
    }

    fn reset(&self) {
        self.config().reset();
        self.msix.reset();
    }
}

/// A root complex with a host bridge at 00:00.0 and the test function at 00:01.0.
pub struct Guest {
    pub root: RootComplex,
    pub function: Arc<TestFunction>,
}

impl Guest {
    pub fn new() -> Self {
        let mut root = RootComplex::new();
        let function = Arc::new(TestFunction::new());
        root.add(0, 0, Arc::new(HostBridge::new().unwrap())).unwrap();
        root.add(1, 0, function.clone()).unwrap();
        Self { root, function }
    }

    fn read<const N: usize>(&self, devfn: u8, offset: u16) -> [u8; N] {
        let mut data = [0x5a; N];
        self.root.ecam_read(u64::from(devfn) << 12 | u64::from(offset), &mut data);
        data
    }

    fn write(&self, devfn: u8, offset: u16, data: &[u8]) {
        self.root.ecam_write(u64::from(devfn) << 12 | u64::from(offset), data);
    }

    pub fn read8(&self, devfn: u8, offset: u16) -> u8 {
        self.read::<1>(devfn, offset)[0]
    }

    pub fn read16(&self, devfn: u8, offset: u16) -> u16 {
        u16::from_le_bytes(self.read(devfn, offset))
    }

    pub fn read32(&self, devfn: u8, offset: u16) -> u32 {
        u32::from_le_bytes(self.read(devfn, offset))
    }

    pub fn write16(&self, devfn: u8, offset: u16, value: u16) {
        self.write(devfn, offset, &value.to_le_bytes());
    }

    pub fn write32(&self, devfn: u8, offset: u16, value: u32) {
        self.write(devfn, offset, &value.to_le_bytes());
    }

    pub fn port32(&self, port: u16) -> u32 {
        let mut data = [0x5a; 4];
        self.root.io_read(port, &mut data);
        u32::from_le_bytes(data)
    }

    /// __pci_find_next_cap_ttl: identifier and offset of each capability.
    pub fn capabilities(&self, devfn: u8) -> Vec<(u8, u16)> {
        let mut found = vec![];
        let mut at = u16::from(self.read8(devfn, 0x34));
        while at >= 0x40 {
            assert_eq!(at % 4, 0);
            assert!(found.len() < 48, "the list does not end");
            let header = self.read16(devfn, at);
            found.push((header as u8, at));
            at = header >> 8;
        }
        found
    }

    /// pci_find_next_ext_capability: the same above 0x100.
    pub fn extended_capabilities(&self, devfn: u8) -> Vec<(u16, u16)> {
        let mut found = vec![];
        let mut at = 0x100;
        while at >= 0x100 {
            assert!(found.len() < 480, "the list does not end");
            let header = self.read32(devfn, at);
            if header == 0 {
                break;
            }
            assert_eq!(header >> 16 & 0xf, 1);
            found.push((header as u16, at));
            at = (header >> 20) as u16;
        }
        found
    }

    pub fn find(&self, devfn: u8, id: u8) -> u16 {
        self.capabilities(devfn).into_iter().find(|cap| cap.0 == id).unwrap().1
    }

    pub fn find_extended(&self, devfn: u8, id: u16) -> u16 {
        self.extended_capabilities(devfn).into_iter().find(|cap| cap.0 == id).unwrap().1
    }
}
