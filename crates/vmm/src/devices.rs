// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The PCI functions that the user asked for, each a root-complex integrated endpoint of its own on bus 0.

use std::str::FromStr;
use std::sync::Arc;

use dsa::Dsa;
use pci::{HostBridge, PciFunction, RootComplex};
use vtd_unit::{EndpointSink, LateSink, SourceId, Unit};

use crate::assigned_function::AssignedFunction;
use crate::host::{self, Host};
use crate::irqfd::IrqfdRouter;
use crate::memory::Memory;
use crate::virtio::{AttachError, Disk, Routed, VirtioBlock};

/// The device number of the host bridge.
const HOST_BRIDGE: u8 = 0;
/// Last device number of a bus.
const LAST: u8 = 31;
/// Most devices and disks of a machine: all numbers but the host bridge's.
pub const MAX_DEVICES: usize = LAST as usize;

/// A device as the command line names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceOptions {
    /// An Intel Data Streaming Accelerator.
    Dsa {
        /// What stands behind it.
        host: Backing,
    },
}

/// What stands behind a device: option `host`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Backing {
    /// `none`: the machine emulates it behind the guest's remapping unit.
    #[default]
    None,
    /// `soft`: it belongs to a software host with a remapping unit of its own, and is assigned to the guest. All such
    /// devices of a machine share one host.
    Soft,
}

impl DeviceOptions {
    /// Whether it belongs to a host.
    pub fn is_assigned(self) -> bool {
        match self {
            Self::Dsa { host } => host == Backing::Soft,
        }
    }
}

/// Why a device on the command line cannot be understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseDeviceError {
    /// No such device.
    #[error("unknown device \"{0}\": known is \"dsa\"")]
    UnknownDevice(String),
    /// No such option.
    #[error("unknown option \"{option}\": device \"{device}\" has the option \"host\"")]
    UnknownOption {
        /// The device.
        device: String,
        /// What it has not.
        option: String,
    },
    /// No such host.
    #[error("unknown host \"{0}\": known are \"soft\" and \"none\"")]
    UnknownHost(String),
    /// An option more than once.
    #[error("option \"{0}\" is given twice")]
    Twice(&'static str),
}

impl FromStr for Backing {
    type Err = ParseDeviceError;

    fn from_str(text: &str) -> Result<Self, ParseDeviceError> {
        match text {
            "none" => Ok(Self::None),
            "soft" => Ok(Self::Soft),
            _ => Err(ParseDeviceError::UnknownHost(text.into())),
        }
    }
}

impl FromStr for DeviceOptions {
    type Err = ParseDeviceError;

    fn from_str(text: &str) -> Result<Self, ParseDeviceError> {
        let mut words = text.split(',');
        let device = words.next().unwrap_or_default();
        if device != "dsa" {
            return Err(ParseDeviceError::UnknownDevice(device.into()));
        }
        let mut host = None;
        for option in words {
            match option.split_once('=') {
                Some(("host", _)) if host.is_some() => return Err(ParseDeviceError::Twice("host")),
                Some(("host", name)) => host = Some(name.parse()?),
                _ => {
                    let (device, option) = (device.into(), option.into());
                    return Err(ParseDeviceError::UnknownOption { device, option });
                }
            }
        }
        Ok(Self::Dsa { host: host.unwrap_or_default() })
    }
}

/// Why a device cannot be attached.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The bus is full.
    #[error("too many devices: a machine takes {MAX_DEVICES} devices and disks")]
    Full,
    /// A device belongs to a host, and there is none.
    #[error("internal error: no host behind an assigned device")]
    NoHost,
    /// The host has no place for a device.
    #[error(transparent)]
    Host(#[from] host::Error),
    /// A disk has no thread.
    #[error(transparent)]
    Disk(#[from] AttachError),
    /// A configuration space cannot be built.
    #[error(transparent)]
    Function(#[from] pci::BuildError),
    /// An accelerator cannot be made.
    #[error(transparent)]
    Dsa(#[from] dsa::Error),
    /// There is a function of this number behind the unit.
    #[error(transparent)]
    SourceId(#[from] vtd_unit::SourceIdInUse),
    /// There is no place for a function.
    #[error(transparent)]
    Place(#[from] pci::AddError),
}

/// Bus 0 while the machine is built.
pub struct Slots<'a> {
    root: RootComplex,
    unit: &'a Unit<Memory>,
    host: Option<&'a Host>,
    router: Arc<IrqfdRouter>,
    next: u8,
}

impl<'a> Slots<'a> {
    /// A bus with a host bridge, whose functions do their DMA through `unit`, or belong to `host`. `router` routes the
    /// interrupts of disks.
    pub fn new(
        unit: &'a Unit<Memory>,
        host: Option<&'a Host>,
        router: Arc<IrqfdRouter>,
    ) -> Result<Self, Error> {
        let mut root = RootComplex::new();
        root.add(HOST_BRIDGE, 0, Arc::new(HostBridge::new()?))?;
        Ok(Self { root, unit, host, router, next: HOST_BRIDGE + 1 })
    }

    /// Puts the function that `make` returns for its source-id into the next free place.
    fn add(
        &mut self,
        make: impl FnOnce(SourceId, &Unit<Memory>) -> Result<Arc<dyn PciFunction>, Error>,
    ) -> Result<(), Error> {
        if self.next > LAST {
            return Err(Error::Full);
        }
        let function = make(SourceId::new(0, self.next, 0), self.unit)?;
        self.root.add(self.next, 0, function)?;
        self.next += 1;
        Ok(())
    }

    /// Adds one of the devices that the command line names.
    pub fn add_device(&mut self, device: DeviceOptions) -> Result<(), Error> {
        match device {
            DeviceOptions::Dsa { host: Backing::None } => self.add(|source_id, unit| {
                let sink = Arc::new(LateSink::default());
                let endpoint = unit.endpoint(source_id, Arc::clone(&sink) as Arc<dyn EndpointSink>)?;
                let dsa = Dsa::new(|device| {
                    sink.set(device);
                    endpoint
                })?;
                Ok(dsa as Arc<dyn PciFunction>)
            }),
            DeviceOptions::Dsa { host: Backing::Soft } => {
                let host = self.host.ok_or(Error::NoHost)?;
                self.add(|source_id, _| {
                    let sink = Arc::new(LateSink::default());
                    let function = host.function(Arc::clone(&sink) as Arc<dyn EndpointSink>)?;
                    let dsa = Dsa::new(|device| {
                        sink.set(device);
                        function.endpoint.clone()
                    })?;
                    let assigned = host.assign(source_id, &function)?;
                    Ok(Arc::new(AssignedFunction::new(dsa, assigned)) as Arc<dyn PciFunction>)
                })
            }
        }
    }

    /// Adds a disk.
    pub fn add_disk(&mut self, disk: Disk) -> Result<(), Error> {
        let router = Arc::clone(&self.router);
        self.add(|source_id, unit| {
            let dma = Routed::new(unit, source_id, router)?;
            Ok(Arc::new(VirtioBlock::new(dma, disk)?))
        })
    }

    /// The root complex with all that was added.
    pub fn finish(self) -> RootComplex {
        self.root
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io;
    use std::sync::Mutex;

    use vm_memory::{Bytes, GuestAddress};
    use vmm_sys_util::eventfd::EventFd;
    use vtd_unit::{Message, Notify, UnitConfig};

    use super::*;
    use crate::host::HostFunction;
    use crate::irqfd::Routing;
    use crate::memory;

    const EMULATED: DeviceOptions = DeviceOptions::Dsa { host: Backing::None };
    const ASSIGNED: DeviceOptions = DeviceOptions::Dsa { host: Backing::Soft };

    #[derive(Default)]
    struct Heard(Mutex<Vec<Message>>);

    impl Notify for Heard {
        fn message(&self, message: Message) {
            self.0.lock().unwrap().push(message);
        }
    }

    /// Nothing has a route: all goes through the unit.
    struct NoRoutes;

    impl Routing for NoRoutes {
        fn set_routes(&self, _routes: &BTreeMap<u32, Message>) -> io::Result<()> {
            Err(io::ErrorKind::Unsupported.into())
        }

        fn attach(&self, _eventfd: &EventFd, _gsi: u32) -> io::Result<()> {
            Err(io::ErrorKind::Unsupported.into())
        }

        fn detach(&self, _eventfd: &EventFd, _gsi: u32) {}
    }

    fn slots<'a>(unit: &'a Unit<Memory>, host: Option<&'a Host>) -> Slots<'a> {
        Slots::new(unit, host, IrqfdRouter::new(unit.clone(), Arc::new(NoRoutes))).unwrap()
    }

    fn machine(options: &str) -> (Arc<Memory>, Unit<Memory>, Arc<Heard>) {
        let memory = memory::allocate(memory::MemoryOptions::ordinary(16 << 20)).unwrap();
        let heard = Arc::new(Heard::default());
        let config: UnitConfig = options.parse().unwrap();
        let unit = Unit::new(&config, Arc::clone(&memory), Arc::clone(&heard) as Arc<dyn Notify>).unwrap();
        (memory, unit, heard)
    }

    fn identity(root: &RootComplex, device: u64) -> u32 {
        let mut data = [0; 4];
        root.ecam_read(device << 15, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn devices_are_parsed_and_unknown_ones_named() {
        assert_eq!("dsa".parse(), Ok(EMULATED));
        assert_eq!("dsa,host=none".parse(), Ok(EMULATED));
        assert_eq!("dsa,host=soft".parse(), Ok(ASSIGNED));
        assert!(ASSIGNED.is_assigned() && !EMULATED.is_assigned());
        for (text, word) in [
            ("iax", "iax"),
            ("", "\"\""),
            ("dsa,fast", "fast"),
            ("dsa,", "option"),
            ("dsa,host", "option"),
            ("dsa,host=", "soft"),
            ("dsa,host=hard", "hard"),
            ("dsa,host=soft,host=none", "twice"),
        ] {
            let error = text.parse::<DeviceOptions>().unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn accelerators_follow_the_host_bridge_on_bus_0() {
        let (memory, unit, _) = machine("");
        let host = Host::new(&unit, &memory, None).unwrap();
        let mut slots = slots(&unit, Some(&host));
        slots.add_device(EMULATED).unwrap();
        slots.add_device(ASSIGNED).unwrap();
        slots.add_device(ASSIGNED).unwrap();
        let root = slots.finish();
        let identities = [1, 2, 3, 4].map(|device| identity(&root, device));
        assert_eq!(identities, [0x0b25_8086, 0x0b25_8086, 0x0b25_8086, u32::MAX]);
    }

    #[test]
    fn a_full_bus_is_an_error() {
        let (_, unit, _) = machine("");
        let mut slots = slots(&unit, None);
        for _ in 1..=LAST {
            slots.add_device(EMULATED).unwrap();
        }
        assert!(matches!(slots.add_device(EMULATED), Err(Error::Full)));
    }

    #[test]
    fn a_function_level_reset_of_an_assigned_device_binds_afresh() {
        let (memory, unit, _) = machine("");
        let host = Host::new(&unit, &memory, None).unwrap();
        let mut slots = slots(&unit, Some(&host));
        slots.add_device(ASSIGNED).unwrap();
        let root = slots.finish();
        let changes = || {
            let counts = host.nested().counts;
            (counts.binds, counts.unbinds)
        };
        assert_eq!(changes(), (1, 0), "requests without PASID");
        // Device Control of the PCI Express capability at 0x40, first without and then with the reset bit.
        root.ecam_write(1 << 15 | 0x48, &0x2000u16.to_le_bytes());
        assert_eq!(changes(), (1, 0));
        root.ecam_write(1 << 15 | 0x48, &0x8000u16.to_le_bytes());
        // The processor that wrote it does not wait.
        patience::eventually("the reset", || changes() == (2, 1));
        root.reset();
        assert_eq!(changes(), (3, 2));
    }

    /// A function of the host that is assigned as 00:05.0.
    fn assigned(host: &Host) -> (HostFunction, Arc<vsva::Assigned<Memory>>) {
        let function = host.function(Arc::new(LateSink::default())).unwrap();
        let assigned = host.assign(SourceId::new(0, 5, 0), &function).unwrap();
        (function, assigned)
    }

    #[test]
    fn an_assigned_device_reaches_the_guests_memory_at_the_guests_addresses() {
        let (memory, unit, _) = machine("");
        let host = Host::new(&unit, &memory, None).unwrap();
        let (HostFunction { endpoint, .. }, _assigned) = assigned(&host);
        memory.write_obj(0x1234_5678_u32, GuestAddress(0x9a_bcd0)).unwrap();
        let mut data = [0; 4];
        // The guest's remapping is off: what the device names is a guest physical address.
        endpoint.read(Default::default(), 0x9a_bcd0, &mut data).unwrap();
        assert_eq!(u32::from_le_bytes(data), 0x1234_5678);
        assert!(host.nested().counts.second_stage_walks > 0);
        assert!(endpoint.read(Default::default(), 16 << 20, &mut data).is_err(), "beyond the guest's memory");
    }

    #[test]
    fn messages_of_an_assigned_device_are_remapped_by_the_guests_unit() {
        let (memory, unit, heard) = machine("ir=on");
        let host = Host::new(&unit, &memory, None).unwrap();
        let (HostFunction { endpoint, .. }, assigned) = assigned(&host);
        let plain = Message { address: 0xfee0_1000, data: 0x31 };
        endpoint.message(plain);
        assert_eq!(heard.0.lock().unwrap().drain(..).collect::<Vec<_>>(), [plain]);

        // IRTA: a table of two entries. GCMD: SIRTP, then IRE.
        const TABLE: u64 = 0x1_0000;
        unit.write(0xb8, &TABLE.to_le_bytes());
        unit.write(0x18, &(1u32 << 24).to_le_bytes());
        unit.write(0x18, &(1u32 << 25).to_le_bytes());
        // Entry 1 takes requests of this function alone (SVT=1), to vector 0x55 of processor 0.
        let sid = u64::from(assigned.source_id().0);
        memory.write_obj(0x55_0001_u64, GuestAddress(TABLE + 16)).unwrap();
        memory.write_obj(1 << 18 | sid, GuestAddress(TABLE + 24)).unwrap();
        // Remappable format, handle 1.
        endpoint.message(Message { address: 0xfee0_0010 | 1 << 5, data: 0 });
        let remapped = heard.0.lock().unwrap().drain(..).collect::<Vec<_>>();
        assert_eq!(remapped.len(), 1);
        assert_eq!((remapped[0].address, remapped[0].data & 0xff), (0xfee0_0000, 0x55));
        // Compatibility format is blocked now, and handle 0 is not present.
        endpoint.message(plain);
        endpoint.message(Message { address: 0xfee0_0010, data: 0 });
        assert!(heard.0.lock().unwrap().is_empty());
        let mut status = [0; 4];
        unit.read(0x34, &mut status);
        assert_ne!(u32::from_le_bytes(status) & 2, 0, "PPF: the fault is recorded in the guest's unit");
    }

    #[test]
    fn what_the_host_lacks_names_the_option() {
        for (options, word) in [("cm=off", "cm"), ("srs=on", "srs")] {
            let (memory, unit, _) = machine(options);
            let line = Host::new(&unit, &memory, None).err().expect(options).to_string();
            assert!(line.contains(word) && !line.contains('\n'), "{line}");
        }
    }
}
