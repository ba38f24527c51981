// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The root complex, configuration spaces with every capability, and an MSI-X table, against a guest that accesses them as it
//! likes. What must hold: nothing panics, what is read-only stays, a BAR decodes where its registers say and gets no access
//! that reaches outside it, no message is sent that is masked, and a reset brings the first day back.

use std::sync::{Arc, Mutex};

use arbitrary::Arbitrary;
use pci::{
    AtsCapability, AtsControl, Bar, BarRanges, CONFIG_ADDRESS_PORT, CONFIG_DATA_PORT, CapabilityId,
    ConfigChanges, ConfigSpace, ConfigSpaceBuilder, HostBridge, Identity, MsixControl, MsixLayout, MsixTable,
    PasidCapability, PasidControl, PciFunction, PcieCapability, PriCapability, PriControl, RootComplex,
};

use crate::steps::steps;

const VECTORS: u16 = 70;
const TABLE: u32 = 0x2000;
const PBA: u32 = 0x3000;
const BAR_SIZES: [u64; 6] = [0x4000, 0, 0x1000, 0x80, 0x10_0000, 0];
const VENDOR: u16 = 0x1234;
/// The functions of the model: another device, and one that shares a device with a third.
const PLACES: [(u8, u8); 3] = [(1, 0), (2, 0), (2, 7)];

/// One run.
#[derive(Arbitrary, Debug)]
pub struct Input {
    #[arbitrary(with = steps::<_, 128>)]
    actions: Vec<Action>,
}

/// An address of memory: near what BARs decode, or any.
#[derive(Arbitrary, Debug)]
enum Address {
    Near { page: u8, offset: u16 },
    Any(u64),
}

impl Address {
    fn get(&self) -> u64 {
        match self {
            Self::Near { page, offset } => u64::from(*page) << 12 | u64::from(offset & 0xfff),
            Self::Any(address) => *address,
        }
    }
}

#[derive(Arbitrary, Debug)]
enum Action {
    Ecam {
        place: u8,
        register: u16,
        bytes: Vec<u8>,
    },
    EcamAnywhere {
        offset: u64,
        bytes: Vec<u8>,
    },
    EcamRead {
        offset: u32,
        length: u8,
    },
    /// A register of the header or of a capability, whole.
    Register {
        place: u8,
        word: u8,
        value: u32,
    },
    Extended {
        place: u8,
        word: u8,
        value: u32,
    },
    Ports {
        address: u32,
        port: u8,
        bytes: Vec<u8>,
    },
    PortRead {
        port: u8,
        length: u8,
    },
    Place {
        place: u8,
        bar: u8,
        base: Address,
        command: u8,
    },
    Memory {
        at: Address,
        bytes: Vec<u8>,
    },
    MemoryRead {
        at: Address,
        length: u8,
    },
    Entry {
        place: u8,
        vector: u8,
        word: u8,
        value: u32,
    },
    Control {
        place: u8,
        enabled: bool,
        function_mask: bool,
    },
    Trigger {
        place: u8,
        vector: u8,
    },
    /// What the device says of its page requests.
    PageRequests {
        place: u8,
        status: u8,
    },
    Reset,
}

/// A function that has all there is, and checks what the root complex asks of it.
struct Model {
    config: Mutex<ConfigSpace>,
    msix: MsixTable,
    /// What the device was told.
    known: Mutex<Controls>,
}

#[derive(Debug, Default, PartialEq)]
struct Controls {
    bus_master: bool,
    msix: MsixControl,
    ats: AtsControl,
    pasid: PasidControl,
    pri: PriControl,
}

impl Controls {
    fn of(config: &ConfigSpace) -> Self {
        assert_eq!(config.ats_enabled(), config.ats_control().enabled);
        assert_eq!(config.pasid_enabled(), config.pasid_control().enabled);
        assert_eq!(config.pasid_privileged(), config.pasid_control().privileged);
        assert_eq!(config.pri_enabled(), config.pri_control().enabled);
        assert_eq!(config.pri_allocation(), config.pri_control().allocation);
        assert_eq!(config.pri_capacity(), 64);
        Self {
            bus_master: config.bus_master(),
            msix: config.msix_control(),
            ats: config.ats_control(),
            pasid: config.pasid_control(),
            pri: config.pri_control(),
        }
    }

    fn learn(&mut self, changes: &ConfigChanges) {
        self.bus_master = changes.bus_master.unwrap_or(self.bus_master);
        self.msix = changes.msix.unwrap_or(self.msix);
        self.ats = changes.ats.unwrap_or(self.ats);
        self.pasid = changes.pasid.unwrap_or(self.pasid);
        self.pri = changes.pri.unwrap_or(self.pri);
    }
}

impl Model {
    fn new() -> Self {
        let layout = MsixLayout::in_bar(0, VECTORS, TABLE, PBA);
        let identity = Identity {
            vendor: VENDOR,
            device: 0x5678,
            revision: 9,
            class: 0x08_8000,
            subsystem_vendor: VENDOR,
            subsystem: 1,
        };
        let config = ConfigSpaceBuilder::new(identity)
            .multi_function()
            .bar(0, Bar::memory64_prefetchable(BAR_SIZES[0]))
            .bar(2, Bar::memory32(BAR_SIZES[2]))
            .bar(3, Bar::memory32(BAR_SIZES[3]))
            .bar(4, Bar::memory64(BAR_SIZES[4]))
            .pcie(PcieCapability { function_level_reset: true, end_end_prefix: true })
            .msix(layout)
            .capability(CapabilityId::VENDOR, &[6, 1, 2, 3], &[0, 0xff])
            .ats(AtsCapability { queue_depth: 32, global_invalidate: true })
            .pasid(PasidCapability { width: 20, execute: true, privileged: true })
            .pri(PriCapability { capacity: 64, response_pasid_required: true })
            .build()
            .unwrap();
        Self { config: Mutex::new(config), msix: MsixTable::new(layout), known: Mutex::default() }
    }

    fn word(&self, offset: u16) -> u32 {
        let mut data = [0; 4];
        self.config_read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn within_a_dword(offset: u16, length: usize) {
        assert!((1..=4 - usize::from(offset % 4)).contains(&length) && offset < 4096, "{offset:#x} {length}");
    }

    fn in_bar(bar: usize, offset: u64, length: usize) {
        let size = BAR_SIZES[bar];
        assert!(length > 0 && offset < size && length as u64 <= size - offset, "{bar}: {offset:#x} {length}");
    }
}

impl PciFunction for Model {
    fn config_read(&self, offset: u16, data: &mut [u8]) {
        Self::within_a_dword(offset, data.len());
        self.config.lock().unwrap().read(offset, data);
    }

    fn config_write(&self, offset: u16, data: &[u8]) {
        Self::within_a_dword(offset, data.len());
        let mut config = self.config.lock().unwrap();
        let before = config.bars();
        let changes = config.write(offset, data);
        assert_eq!(changes.bars, before != config.bars());
        let mut known = self.known.lock().unwrap();
        known.learn(&changes);
        assert_eq!(*known, Controls::of(&config));
        if changes.function_level_reset {
            self.msix.reset();
        }
        if let Some(control) = changes.msix {
            let messages = self.msix.set_control(control);
            assert!(messages.is_empty() || control.enabled && !control.function_mask);
        }
    }

    fn bar_read(&self, bar: usize, offset: u64, data: &mut [u8]) {
        Self::in_bar(bar, offset, data.len());
        if !self.msix.bar_read(bar, offset, data) {
            data.fill(0x77);
        }
    }

    fn bar_write(&self, bar: usize, offset: u64, data: &[u8]) {
        Self::in_bar(bar, offset, data.len());
        self.msix.bar_write(bar, offset, data);
    }

    fn bars(&self) -> BarRanges {
        self.config.lock().unwrap().bars()
    }

    fn reset(&self) {
        let mut config = self.config.lock().unwrap();
        config.reset();
        self.msix.reset();
        *self.known.lock().unwrap() = Controls::of(&config);
    }
}

struct Machine {
    root: RootComplex,
    models: Vec<Arc<Model>>,
    bridge: Arc<HostBridge>,
    first_day: Vec<u8>,
}

/// Runs one input. Panics where something that must hold does not.
pub fn run(input: &Input) {
    let machine = Machine::new();
    for action in &input.actions {
        machine.act(action);
        machine.check();
    }
    machine.root.reset();
    assert!(machine.image() == machine.first_day, "a reset leaves nothing behind");
}

/// Where the configuration space of a device and function begins in the ECAM window.
fn window((device, function): (u8, u8)) -> u64 {
    u64::from(device) << 15 | u64::from(function) << 12
}

impl Machine {
    fn new() -> Self {
        let mut root = RootComplex::new();
        let bridge = Arc::new(HostBridge::new().unwrap());
        root.add(0, 0, bridge.clone()).unwrap();
        let models: Vec<_> = PLACES.iter().map(|_| Arc::new(Model::new())).collect();
        for ((device, function), model) in PLACES.iter().zip(&models) {
            root.add(*device, *function, model.clone()).unwrap();
            assert!(root.add(*device, *function, model.clone()).is_err(), "taken");
        }
        assert!(root.add(32, 0, bridge.clone()).is_err() && root.add(0, 8, bridge.clone()).is_err());
        let mut machine = Self { root, models, bridge, first_day: Vec::new() };
        machine.first_day = machine.image();
        machine
    }

    /// All configuration spaces, and one place where there is no function.
    fn image(&self) -> Vec<u8> {
        let mut image = vec![0; 4096 * (PLACES.len() + 2)];
        let mut places = vec![(0, 0), (5, 5)];
        places.extend(PLACES);
        for (place, image) in places.into_iter().zip(image.chunks_exact_mut(4096)) {
            self.root.ecam_read(window(place), image);
        }
        image
    }

    fn place(place: u8) -> (usize, u64) {
        let index = usize::from(place) % PLACES.len();
        (index, window(PLACES[index]))
    }

    fn write(&self, at: u64, value: u32) {
        self.root.ecam_write(at, &value.to_le_bytes());
    }

    fn act(&self, action: &Action) {
        match action {
            Action::Ecam { place, register, bytes } => {
                let offset = Self::place(*place).1 + u64::from(register & 0xfff);
                self.root.ecam_write(offset, &bytes[..bytes.len().min(16)]);
            }
            Action::EcamAnywhere { offset, bytes } => {
                self.root.ecam_write(*offset, &bytes[..bytes.len().min(16)]);
                self.root.ecam_read(*offset, &mut vec![0; bytes.len().min(16)]);
            }
            Action::EcamRead { offset, length } => {
                let (start, length) = (u64::from(*offset), usize::from(*length));
                let mut whole = vec![0; length];
                self.root.ecam_read(start, &mut whole);
                for (at, byte) in whole.iter().enumerate() {
                    let mut single = [0];
                    self.root.ecam_read(start + at as u64, &mut single);
                    assert_eq!(single[0], *byte, "{start:#x} + {at:#x}");
                }
            }
            Action::Register { place, word, value } => {
                self.write(Self::place(*place).1 + u64::from(word % 64) * 4, *value);
            }
            Action::Extended { place, word, value } => {
                let (_, at) = Self::place(*place);
                self.write(at + 0x100 + u64::from(word % 64) * 4, *value);
            }
            Action::Ports { address, port, bytes } => {
                self.root.io_write(CONFIG_ADDRESS_PORT, &address.to_le_bytes());
                let bytes = &bytes[..bytes.len().min(4)];
                self.root.io_write(CONFIG_DATA_PORT + u16::from(port % 4), bytes);
                self.ports_show_what_ecam_shows(*address);
            }
            Action::PortRead { port, length } => {
                let port = CONFIG_ADDRESS_PORT + u16::from(port % 8);
                self.root.io_read(port, &mut vec![0; usize::from(length % 5)]);
            }
            Action::Place { place, bar, base, command } => {
                let at = Self::place(*place).1;
                let register = at + 0x10 + u64::from(bar % 6) * 4;
                self.write(register, base.get() as u32);
                self.write(register + 4, (base.get() >> 32) as u32);
                self.root.ecam_write(at + 4, &[*command]);
            }
            Action::Memory { at, bytes } => {
                let decoded = self.root.mmio_write(at.get(), &bytes[..bytes.len().min(64)]);
                self.decoded(at.get(), bytes.len().min(64), decoded);
            }
            Action::MemoryRead { at, length } => {
                let mut data = vec![0x55; usize::from(*length)];
                let decoded = self.root.mmio_read(at.get(), &mut data);
                assert!(decoded || data.iter().all(|byte| *byte == 0x55), "left alone");
                self.decoded(at.get(), data.len(), decoded);
            }
            Action::Entry { place, vector, word, value } => {
                let model = &self.models[Self::place(*place).0];
                let entry = u64::from(TABLE) + u64::from(*vector) * 16;
                model.msix.bar_write(0, entry + u64::from(word % 4) * 4, &value.to_le_bytes());
            }
            Action::Control { place, enabled, function_mask } => {
                let (index, at) = Self::place(*place);
                let capability = self.capability(index, CapabilityId::MSIX);
                let value = u32::from(*enabled) << 31 | u32::from(*function_mask) << 30;
                self.write(at + u64::from(capability), value);
                let now = self.models[index].word(capability) >> 30;
                assert_eq!(now, u32::from(*enabled) << 1 | u32::from(*function_mask));
            }
            Action::Trigger { place, vector } => self.trigger(*place, u16::from(*vector)),
            Action::PageRequests { place, status } => {
                let mut config = self.models[Self::place(*place).0].config.lock().unwrap();
                match status % 3 {
                    0 => config.set_pri_stopped(),
                    1 => config.set_pri_response_failure(),
                    _ => config.set_pri_unexpected_group(),
                }
                assert!(status % 3 != 1 || config.pri_response_failure());
                assert!(status % 3 != 0 || config.pri_stopped() || config.pri_enabled());
            }
            Action::Reset => self.root.reset(),
        }
    }

    fn capability(&self, index: usize, id: CapabilityId) -> u16 {
        self.models[index].config.lock().unwrap().capabilities(id).next().unwrap()
    }

    /// Through both ways in, one register.
    fn ports_show_what_ecam_shows(&self, address: u32) {
        let mut through_port = [0; 4];
        self.root.io_read(CONFIG_DATA_PORT, &mut through_port);
        let mut through_window = [0xff; 4];
        if address >> 31 == 1 {
            let offset = u64::from(address >> 8 & 0xffff) << 12 | u64::from(address & 0xfc);
            self.root.ecam_read(offset, &mut through_window);
        }
        assert_eq!(through_port, through_window, "{address:#x}");
    }

    fn ranges(&self) -> impl Iterator<Item = pci::BarRange> {
        self.models.iter().flat_map(|model| model.bars()).flatten()
    }

    /// Somebody has all of what was decoded; where nobody overlaps, who has all of it decodes it.
    fn decoded(&self, at: u64, length: usize, decoded: bool) {
        let Some(last) = (length as u64).checked_sub(1).and_then(|more| at.checked_add(more)) else {
            assert!(!decoded, "nothing, or beyond the end");
            return;
        };
        let touched: Vec<_> =
            self.ranges().filter(|range| range.base <= last && at <= range.last()).collect();
        let whole = touched.iter().any(|range| range.base <= at && last <= range.last());
        assert!(whole || !decoded, "{at:#x} {length}");
        if let [only] = touched[..] {
            assert_eq!(decoded, only.base <= at && last <= only.last(), "{at:#x} {length}");
        }
    }

    fn trigger(&self, place: u8, vector: u16) {
        let (index, _) = Self::place(place);
        let control = self.models[index].word(self.capability(index, CapabilityId::MSIX)) >> 16;
        let control = MsixControl { enabled: control >> 15 == 1, function_mask: control >> 14 & 1 == 1 };
        let table = &self.models[index].msix;
        let word = |offset: u64| {
            let mut data = [0; 4];
            assert!(table.bar_read(0, offset, &mut data));
            u32::from_le_bytes(data)
        };
        let exists = vector < VECTORS;
        let entry = u64::from(TABLE) + u64::from(vector) * 16;
        let open = exists && control.enabled && !control.function_mask && word(entry + 12) & 1 == 0;
        let message = table.trigger(vector);
        assert_eq!(message.is_some(), open, "{vector} {control:?}");
        if let Some(message) = message {
            assert_eq!(message.address as u32, word(entry));
            assert_eq!(message.data, word(entry + 8));
        }
        if exists {
            let pending = word(u64::from(PBA) + u64::from(vector / 32) * 4) >> (vector % 32) & 1;
            // It may have been pending before; open, there is nothing to hold back.
            assert!(pending == 1 || open || !control.enabled, "{vector} {control:?}");
        }
    }

    /// What holds after every action.
    fn check(&self) {
        for model in &self.models {
            assert_eq!(model.word(0), 0x5678 << 16 | u32::from(VENDOR));
            assert_eq!(model.word(8), 0x0880_0009);
            assert_eq!(model.word(0x0c) >> 16 & 0xff, 0x80, "header type");
            let enabled = model.word(4) & 2 != 0;
            for range in model.bars().into_iter().flatten() {
                assert!(enabled && range.size == BAR_SIZES[range.bar] && range.base % range.size == 0);
                let register = 0x10 + 4 * range.bar as u16;
                let wide = range.bar == 0 || range.bar == 4;
                let high = if wide { u64::from(model.word(register + 4)) << 32 } else { 0 };
                assert_eq!(high | u64::from(model.word(register) & !0xf), range.base);
            }
        }
        assert_eq!(self.bridge.bars(), [None; 6]);
    }
}
