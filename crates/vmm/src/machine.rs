// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The machine: puts all parts together, runs it, and says how it ended.

use std::fs::File;
use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use kvm_bindings::kvm_cpuid_entry2;
use kvm_ioctls::{VcpuFd, VmFd};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::signal::Killable;
use vsva::Tracer;
use vtd_unit::{PasidAllocator, Unit};

use crate::bus::{Bus, Overlap};
use crate::console::{self, Console, Output};
use crate::devices::{self, DeviceOptions, Slots};
use crate::figures::Nested;
use crate::host::{self, Host};
use crate::ioapic::IoApic;
use crate::irqfd::IrqfdRouter;
use crate::kvm::{self, Messages};
use crate::memory::{self, Memory, MemoryOptions};
use crate::output_file::OutputFile;
use crate::own_pasids::OwnPasids;
use crate::pci_bus::{BarWindow, CONFIG_PORTS, ConfigPorts, Ecam};
use crate::power::{self, KeyboardReset, Power, ResetControl};
use crate::remapping::{self, IoApicPort, RegisterPage};
use crate::sandbox::{self, Role};
use crate::stop::{Outcome, Stop};
use crate::terminal::{self, RawMode};
use crate::vcpu::{self, Surroundings};
use crate::virtio::{Disk, DiskError, DiskOptions};
use crate::{acpi, boot, cpuid, layout, signals};

/// Most processors: their APIC ids fit 8 bits, 255 is broadcast.
pub const MAX_PROCESSORS: u8 = 254;

/// What machine to build.
#[derive(Clone, Debug)]
pub struct Config {
    /// Kernel, initramfs and command line.
    pub payload: boot::Payload,
    /// Number of processors, 1 to [`MAX_PROCESSORS`].
    pub processors: u8,
    /// RAM in bytes, a multiple of 4 KiB.
    pub memory: MemoryOptions,
    /// The remapping unit.
    pub iommu: remapping::Choice,
    /// Devices behind the remapping unit.
    pub devices: Vec<DeviceOptions>,
    /// Disks behind the remapping unit.
    pub disks: Vec<DiskOptions>,
    /// File that gets a copy of the console's output.
    pub console_log: Option<PathBuf>,
}

/// Why a machine cannot be built. Each message is one line.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// KVM.
    #[error(transparent)]
    Kvm(#[from] kvm::Error),
    /// A request to KVM failed.
    #[error("KVM: {0} failed: {1}")]
    Request(&'static str, kvm_ioctls::Error),
    /// Kernel or initramfs.
    #[error(transparent)]
    Boot(#[from] boot::Error),
    /// Guest RAM.
    #[error(transparent)]
    Memory(#[from] memory::Error),
    /// Boot structures do not fit into guest memory.
    #[error("cannot write boot structures: {0}")]
    GuestMemory(#[from] vm_memory::GuestMemoryError),
    /// ACPI tables.
    #[error(transparent)]
    Acpi(#[from] acpi::Error),
    /// A mistake in the layout.
    #[error(transparent)]
    Overlap(#[from] Overlap),
    /// The remapping unit's options.
    #[error(transparent)]
    Unit(#[from] vtd_unit::ConfigError),
    /// Two of its functions have one source-id.
    #[error(transparent)]
    SourceId(#[from] vtd_unit::SourceIdInUse),
    /// A disk's image.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The host behind assigned devices.
    #[error(transparent)]
    AssignedHost(#[from] host::Error),
    /// The sandbox.
    #[error(transparent)]
    Sandbox(#[from] sandbox::Error),
    /// A device.
    #[error(transparent)]
    Device(#[from] devices::Error),
    /// More processors than KVM takes.
    #[error("this KVM takes at most {0} processors: give fewer --cpus")]
    Processors(usize),
    /// RAM and the windows behind it do not fit the processor's address space.
    #[error(
        "{memory} MiB of memory are too much for the {bits} physical address bits of this processor: give less \
         --memory"
    )]
    AddressBits {
        /// MiB of RAM.
        memory: u64,
        /// Address bits.
        bits: u8,
    },
    /// More CPUID leaves than KVM takes.
    #[error("this processor has more CPUID leaves than KVM takes")]
    Cpuid,
    /// The console's log cannot be written.
    #[error("cannot create the console log {0}: {1}")]
    ConsoleLog(PathBuf, io::Error),
    /// The host refuses something else.
    #[error("cannot {0}: {1}")]
    Host(&'static str, io::Error),
}

/// A machine, ready to run.
pub struct Machine {
    vcpus: Vec<VcpuFd>,
    surroundings: Arc<Surroundings>,
    console: Arc<Console>,
    stop: Arc<Stop>,
    // Dropped after the devices, which are in the surroundings.
    host: Option<Host>,
    _pasids: Option<Arc<dyn PasidAllocator>>,
    // Dropped last: KVM and devices use the memory as long as they exist.
    _vm: Arc<VmFd>,
    _memory: Arc<Memory>,
}

impl Machine {
    /// Builds the machine; it stops when `stop` is requested. `tracer` hears of what passes between the guest and the
    /// host behind assigned devices.
    ///
    /// Files other than those that are open then are given up ([`sandbox`]): of `outputs` alone, what has been made is removed
    /// where the machine is not to be.
    pub fn new(
        config: &Config,
        outputs: &[PathBuf],
        tracer: Option<Arc<dyn Tracer>>,
        stop: Arc<Stop>,
    ) -> Result<Self, Error> {
        // What the user got wrong is said before anything is built.
        let ram = layout::ram(config.memory.size);
        let payload = config.payload.open(ram.first().map_or(0, |w| w.size))?;
        let disks = config.disks.iter().map(Disk::open).collect::<Result<Vec<_>, _>>()?;
        let no_log = |e| Error::ConsoleLog(config.console_log.clone().unwrap_or_default(), e);
        let log = config.console_log.as_deref().map(OutputFile::open).transpose().map_err(no_log)?;
        memory::check(config.memory.size)?;
        let outputs: Vec<_> = outputs.iter().map(PathBuf::as_path).collect();
        sandbox::give_up_files(&outputs)?;
        let kvm = kvm::open()?;
        let processors = config.processors;
        if usize::from(processors) > kvm.get_max_vcpus() {
            return Err(Error::Processors(kvm.get_max_vcpus()));
        }
        let leaves = cpuid::supported(&kvm).map_err(|e| Error::Request("KVM_GET_SUPPORTED_CPUID", e))?;
        let pci_mem64 = layout::pci_mem64(config.memory.size);
        let bits = cpuid::address_bits(&leaves);
        if pci_mem64.last() >> bits != 0 {
            return Err(Error::AddressBits { memory: config.memory.size >> 20, bits });
        }
        let memory = memory::allocate(config.memory)?;
        let vm = Arc::new(kvm::create_vm(&kvm)?);
        memory::register(&vm, &memory)?;

        let mut mmio = Bus::default();
        let mut ports = Bus::default();
        let messages = Messages::new(vm.clone());
        let unit = Unit::new(&config.iommu.config, memory.clone(), Arc::new(messages.clone()))?;
        if config.iommu.visible {
            let window = layout::REMAPPING_UNIT;
            mmio.insert(window.base, window.size, Arc::new(RegisterPage(unit.clone())))?;
        }
        let ioapic = Arc::new(IoApic::new(layout::IOAPIC_ID, IoApicPort::new(&unit, messages.clone())?));
        mmio.insert(layout::IOAPIC.base, layout::IOAPIC.size, ioapic.clone())?;

        let screen = io::stdout().as_fd().try_clone_to_owned().map_err(|e| Error::Host("use stdout", e))?;
        let line = ioapic.clone();
        let output = Output::new(screen.into());
        let console = Arc::new(Console::new(output, move || line.pulse(layout::SERIAL_IRQ)));
        ports.insert(layout::SERIAL_PORT.into(), console::PORTS, console.clone())?;
        ports.insert(layout::POWER_PORT.into(), power::BLOCK_SIZE, Arc::new(Power::new(stop.clone())))?;
        ports.insert(0x64, 1, Arc::new(KeyboardReset(stop.clone())))?;
        let host = if config.devices.iter().any(|device| device.is_assigned()) {
            Some(Host::new(&unit, &memory, tracer)?)
        } else {
            None
        };
        let pasids = OwnPasids::serve(&unit);
        let router = IrqfdRouter::new(unit.clone(), Arc::new(messages.clone()));
        let mut slots = Slots::new(&unit, host.as_ref(), router)?;
        for device in &config.devices {
            slots.add_device(*device)?;
        }
        for disk in disks {
            slots.add_disk(disk)?;
        }
        let root = Arc::new(slots.finish());
        mmio.insert(layout::ECAM.base, layout::ECAM.size, Arc::new(Ecam(root.clone())))?;
        for window in [layout::PCI_MEM32, pci_mem64] {
            let bars = BarWindow { root: root.clone(), base: window.base };
            mmio.insert(window.base, window.size, Arc::new(bars))?;
        }
        let config_ports = ConfigPorts { root, reset: ResetControl(stop.clone()) };
        ports.insert(pci::CONFIG_ADDRESS_PORT.into(), CONFIG_PORTS, Arc::new(config_ports))?;

        let remapping = config.iommu.visible.then(|| remapping::description(&unit));
        let tables = acpi::build(&acpi::Description { processors, pci_mem64, remapping })?;
        memory.write_slice(&tables.bytes, GuestAddress(layout::ACPI.base))?;
        memory.write_slice(&power::RESET_VECTOR_CODE, layout::RESET_VECTOR)?;
        let entry = payload.load(&memory, &ram, tables.rsdp)?;
        vcpu::write_boot_tables(&memory)?;
        let vcpus = create_processors(&vm, &leaves, processors, entry)?;

        // From here on nothing fails.
        // Of a machine that is to end before it has begun, no log is left.
        if let Some(log) = log.filter(|_| !stop.requested()) {
            console.log_to(log.keep().map_err(no_log)?);
        }
        let end_of_interrupt = Box::new(move |vector| ioapic.end_of_interrupt(vector));
        let surroundings = Arc::new(Surroundings { mmio, ports, end_of_interrupt });
        Ok(Self { vcpus, surroundings, console, stop, host, _pasids: pasids, _vm: vm, _memory: memory })
    }

    /// What the host behind assigned devices has done so far, if there is one.
    pub fn nested(&self) -> Option<Nested> {
        self.host.as_ref().map(Host::nested)
    }

    /// Runs the machine until it stops, which it does once. Standard input is the console's; a terminal is raw
    /// meanwhile.
    pub fn run(&mut self) -> Result<Outcome, Error> {
        let terminal = terminal::is_ours();
        // A terminal that is not ours is not read either: that would stop the process, and the guest with it.
        let readable = terminal || !io::stdin().is_terminal();
        let raw = if terminal {
            Some(RawMode::enter().map_err(|e| Error::Host("set up the terminal", e))?)
        } else {
            None
        };
        if readable {
            let stdin = io::stdin().as_fd().try_clone_to_owned().map_err(|e| Error::Host("use stdin", e))?;
            let (console, stop) = (self.console.clone(), self.stop.clone());
            // Not joined: it may be reading, and ends with the process.
            thread::Builder::new()
                .name("console".into())
                .spawn(move || console::pump_input(File::from(stdin), &console, terminal, &stop))
                .map_err(|e| Error::Host("start a thread", e))?;
        }

        let mut threads = Vec::new();
        for (id, vcpu) in (0u32..).zip(std::mem::take(&mut self.vcpus)) {
            let (surroundings, stop) = (self.surroundings.clone(), self.stop.clone());
            let thread = thread::Builder::new().name(format!("cpu{id}")).spawn(move || {
                let _ended = RequestOnPanic(stop.clone());
                sandbox::narrow(Role::Processor);
                vcpu::run(id, vcpu, &surroundings, &stop);
            });
            match thread {
                Ok(thread) => threads.push(thread),
                Err(e) => {
                    self.stop.request(Outcome::Failed(format!("cannot start a thread: {e}")));
                    break;
                }
            }
        }
        let outcome = self.stop.wait();
        join_processors(threads);
        drop(raw);
        Ok(outcome)
    }
}

/// Stops the machine if the thread that owns it panics.
struct RequestOnPanic(Arc<Stop>);

impl Drop for RequestOnPanic {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.request(Outcome::Failed("internal error: a processor's thread panicked".into()));
        }
    }
}

/// Takes the processors out of KVM and waits for their threads. A signal that arrives just before KVM_RUN is lost,
/// so it is repeated.
fn join_processors(threads: Vec<JoinHandle<()>>) {
    let deadline = Instant::now() + Duration::from_secs(2);
    for thread in threads {
        while !thread.is_finished() && Instant::now() < deadline {
            let _ = thread.kill(signals::kick());
            thread::sleep(Duration::from_millis(2));
        }
        if thread.is_finished() {
            let _ = thread.join();
        }
    }
}

fn create_processors(
    vm: &VmFd,
    supported: &[kvm_cpuid_entry2],
    count: u8,
    entry: u64,
) -> Result<Vec<VcpuFd>, Error> {
    let mut vcpus = Vec::new();
    for id in 0..u32::from(count) {
        let vcpu = vm.create_vcpu(id.into()).map_err(|e| Error::Request("KVM_CREATE_VCPU", e))?;
        let leaves = cpuid::for_processor(supported, id, count.into());
        let table = cpuid::table(&leaves).ok_or(Error::Cpuid)?;
        vcpu.set_cpuid2(&table).map_err(|e| Error::Request("KVM_SET_CPUID2", e))?;
        vcpu::enable_state_components(&vcpu, &leaves).map_err(|e| Error::Request("KVM_SET_XCRS", e))?;
        vcpu::set_firmware_msrs(&vcpu).map_err(|e| Error::Request("KVM_SET_MSRS", e))?;
        if id == 0 {
            vcpu::set_boot_state(&vcpu, entry).map_err(|e| Error::Request("setting registers", e))?;
        }
        vcpus.push(vcpu);
    }
    Ok(vcpus)
}
