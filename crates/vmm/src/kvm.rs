// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! KVM: opening it, telling whether it is usable, and message-signalled interrupts into it.

use std::arch::x86_64::__cpuid;
use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvm_bindings::{
    KVM_CAP_SPLIT_IRQCHIP, KvmIrqRouting, kvm_enable_cap, kvm_irq_routing_entry,
    kvm_irq_routing_entry__bindgen_ty_1, kvm_irq_routing_msi, kvm_msi, kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, Kvm, VcpuExit, VmFd};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;
use vtd_unit::{Message, Notify};

use crate::ioapic::{InterruptSink, PINS};
use crate::irqfd::Routing;
use crate::layout;
use crate::memory::Memory;

/// The device node.
pub const DEVICE: &str = "/dev/kvm";

/// Why KVM cannot be used. Each message is one line that names the remedy.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No device node.
    #[error(
        "no {DEVICE}: load the kvm_intel or kvm_amd module, switch virtualization on in the firmware, or run \
         where KVM exists (`cargo xtask demo` does without)"
    )]
    Missing,
    /// The user may not open it.
    #[error("no permission for {DEVICE}: add your user to its group (usually `kvm`) or run as root")]
    Permission,
    /// It cannot be opened for another reason.
    #[error("cannot open {DEVICE}: {0}")]
    Open(kvm_ioctls::Error),
    /// It answers, but not as KVM does.
    #[error(
        "{DEVICE} is no KVM that can be used (its API version is {0}, not 12): remove it and load the kvm_intel or \
         kvm_amd module"
    )]
    Version(i32),
    /// No hardware virtualization behind it.
    #[error(
        "{DEVICE} is a paravirtual KVM (the processor shows neither vmx nor svm), in which stock 64-bit kernels \
         hang: use a machine with hardware virtualization, or `cargo xtask demo`, which brings its own"
    )]
    Paravirtual,
    /// Somebody else has the processor's virtualization.
    #[error(
        "KVM can create no machine now ({0}): stop other hypervisors that use the processor's virtualization"
    )]
    Busy(kvm_ioctls::Error),
    /// A capability is missing.
    #[error("this KVM lacks {0}: a newer kernel is needed")]
    Capability(&'static str),
    /// A request failed.
    #[error("KVM: {0} failed: {1}")]
    Request(&'static str, kvm_ioctls::Error),
    /// The probe's guest did something else than it should.
    #[error("KVM runs no guest: the probe ended with {0}")]
    Probe(String),
}

/// Hardware virtualization as the processor shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Virtualization {
    /// Intel VT-x.
    Vmx,
    /// AMD-V.
    Svm,
}

/// What hardware virtualization the processor shows, read with CPUID: leaf 1 ECX\[5\] and 8000_0001h ECX\[2\].
pub fn virtualization() -> Option<Virtualization> {
    // Both leaves: the second is 0 where it does not exist.
    if __cpuid(1).ecx & (1 << 5) != 0 {
        Some(Virtualization::Vmx)
    } else if __cpuid(0x8000_0000).eax >= 0x8000_0001 && __cpuid(0x8000_0001).ecx & (1 << 2) != 0 {
        Some(Virtualization::Svm)
    } else {
        None
    }
}

/// Opens KVM, whatever stands behind it.
pub fn open_any() -> Result<Kvm, Error> {
    let kvm = Kvm::new().map_err(|e| match e.errno() {
        libc::ENOENT | libc::ENODEV | libc::ENXIO => Error::Missing,
        libc::EACCES | libc::EPERM => Error::Permission,
        _ => Error::Open(e),
    })?;
    match kvm.get_api_version() {
        12 => Ok(kvm),
        version => Err(Error::Version(version)),
    }
}

/// Opens KVM and makes sure that it can run a 64-bit kernel in the machine that we build.
pub fn open() -> Result<Kvm, Error> {
    let kvm = open_any()?;
    virtualization().ok_or(Error::Paravirtual)?;
    for (cap, name) in [
        (Cap::UserMemory, "user memory (KVM_CAP_USER_MEMORY)"),
        (Cap::SplitIrqchip, "a split interrupt controller (KVM_CAP_SPLIT_IRQCHIP)"),
        (Cap::SignalMsi, "direct message interrupts (KVM_CAP_SIGNAL_MSI)"),
        (Cap::IrqRouting, "interrupt routing (KVM_CAP_IRQ_ROUTING)"),
        (Cap::TscDeadlineTimer, "the TSC deadline timer (KVM_CAP_TSC_DEADLINE_TIMER)"),
    ] {
        if !kvm.check_extension(cap) {
            return Err(Error::Capability(name));
        }
    }
    Ok(kvm)
}

fn new_vm(kvm: &Kvm) -> Result<VmFd, Error> {
    kvm.create_vm().map_err(|e| match e.errno() {
        libc::EBUSY | libc::EIO => Error::Busy(e),
        _ => Error::Request("KVM_CREATE_VM", e),
    })
}

/// A VM whose local APICs are KVM's and whose I/O APIC is ours.
pub fn create_vm(kvm: &Kvm) -> Result<VmFd, Error> {
    let vm = new_vm(kvm)?;
    vm.set_identity_map_address(layout::KVM_IDENTITY_MAP)
        .map_err(|e| Error::Request("KVM_SET_IDENTITY_MAP_ADDR", e))?;
    vm.set_tss_address(layout::KVM_TSS as usize).map_err(|e| Error::Request("KVM_SET_TSS_ADDR", e))?;
    let mut split = kvm_enable_cap { cap: KVM_CAP_SPLIT_IRQCHIP, ..Default::default() };
    // The first routes are the pins of the I/O APIC: KVM reports the end of their level interrupts to us.
    split.args[0] = PINS as u64;
    vm.enable_cap(&split).map_err(|e| Error::Request("KVM_CAP_SPLIT_IRQCHIP", e))?;
    Ok(vm)
}

/// Runs three real-mode instructions in a VM of its own and looks whether they did what they should.
pub fn probe(kvm: &Kvm) -> Result<(), Error> {
    const PORT: u16 = 0xe9;
    const START: u64 = 0x1000;
    // mov dx, 0xe9; mov al, 'v'; out dx, al; hlt
    const CODE: [u8; 7] = [0xba, 0xe9, 0x00, 0xb0, b'v', 0xee, 0xf4];

    let memory =
        Memory::from_ranges(&[(GuestAddress(0), 0x10000)]).map_err(|e| Error::Probe(e.to_string()))?;
    memory.write_slice(&CODE, GuestAddress(START)).map_err(|e| Error::Probe(e.to_string()))?;
    let vm = new_vm(kvm)?;
    let slot = kvm_userspace_memory_region {
        slot: 0,
        guest_phys_addr: 0,
        memory_size: 0x10000,
        userspace_addr: vm_memory::GuestMemoryBackend::get_host_address(&memory, GuestAddress(0))
            .map_err(|e| Error::Probe(e.to_string()))? as u64,
        flags: 0,
    };
    // SAFETY: the range is the whole mapping of `memory`, which outlives `vm`: it was declared earlier.
    unsafe { vm.set_user_memory_region(slot) }
        .map_err(|e| Error::Request("KVM_SET_USER_MEMORY_REGION", e))?;
    let mut vcpu = vm.create_vcpu(0).map_err(|e| Error::Request("KVM_CREATE_VCPU", e))?;
    let mut sregs = vcpu.get_sregs().map_err(|e| Error::Request("KVM_GET_SREGS", e))?;
    sregs.cs.base = 0;
    sregs.cs.selector = 0;
    vcpu.set_sregs(&sregs).map_err(|e| Error::Request("KVM_SET_SREGS", e))?;
    let mut regs = vcpu.get_regs().map_err(|e| Error::Request("KVM_GET_REGS", e))?;
    regs.rip = START;
    regs.rflags = 2;
    vcpu.set_regs(&regs).map_err(|e| Error::Request("KVM_SET_REGS", e))?;
    match vcpu.run().map_err(|e| Error::Request("KVM_RUN", e))? {
        VcpuExit::IoOut(PORT, [b'v']) => {}
        other => return Err(Error::Probe(format!("{other:?}"))),
    }
    match vcpu.run().map_err(|e| Error::Request("KVM_RUN", e))? {
        VcpuExit::Hlt => Ok(()),
        other => Err(Error::Probe(format!("{other:?}"))),
    }
}

/// Delivers messages to the local APICs inside KVM.
#[derive(Clone)]
pub struct Messages {
    vm: Arc<VmFd>,
    routes: Arc<Mutex<Routes>>,
}

/// KVM's one table of routes.
#[derive(Default)]
struct Routes {
    pins: [Option<Message>; PINS],
    others: BTreeMap<u32, Message>,
}

impl Messages {
    /// Messages into `vm`.
    pub fn new(vm: Arc<VmFd>) -> Self {
        Self { vm, routes: Arc::default() }
    }

    fn send(&self, message: Message) {
        let [address_lo, address_hi] = message.address_words();
        let msi = kvm_msi { address_lo, address_hi, data: message.data, ..Default::default() };
        // 0 means that no local APIC took it: the guest's business. An error means that the message addresses none.
        if let Err(error) = self.vm.signal_msi(msi) {
            tracing::debug!(?message, %error, "message not delivered");
        }
    }
}

impl Notify for Messages {
    fn message(&self, message: Message) {
        self.send(message);
    }
}

impl InterruptSink for Messages {
    fn deliver(&self, message: Message) {
        self.send(message);
    }

    fn level_routes(&self, routes: &[Option<Message>; PINS]) {
        // KVM exits to us at the end of an interrupt if one of the first PINS routes is a level-triggered message
        // with its vector. [Linux arch/x86/kvm/irq.c: kvm_scan_ioapic_routes]
        let mut table = self.routes();
        table.pins = *routes;
        if let Err(error) = self.set_table(&table.pins, &table.others) {
            tracing::debug!(%error, "interrupt routes not set");
        }
    }
}

impl Messages {
    fn routes(&self) -> MutexGuard<'_, Routes> {
        self.routes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_table(&self, pins: &[Option<Message>; PINS], others: &BTreeMap<u32, Message>) -> io::Result<()> {
        let pins = pins.iter().enumerate().filter_map(|(pin, route)| Some((pin as u32, (*route)?)));
        let entries: Vec<_> =
            pins.chain(others.iter().map(|(gsi, message)| (*gsi, *message))).map(routing_entry).collect();
        let table = KvmIrqRouting::from_entries(&entries).map_err(|e| io::Error::other(format!("{e:?}")))?;
        Ok(self.vm.set_gsi_routing(&table)?)
    }
}

fn routing_entry((gsi, message): (u32, Message)) -> kvm_irq_routing_entry {
    let [address_lo, address_hi] = message.address_words();
    let msi = kvm_irq_routing_msi { address_lo, address_hi, data: message.data, ..Default::default() };
    kvm_irq_routing_entry {
        gsi,
        type_: kvm_bindings::KVM_IRQ_ROUTING_MSI,
        u: kvm_irq_routing_entry__bindgen_ty_1 { msi },
        ..Default::default()
    }
}

impl Routing for Messages {
    fn set_routes(&self, routes: &BTreeMap<u32, Message>) -> io::Result<()> {
        let mut table = self.routes();
        self.set_table(&table.pins, routes)?;
        table.others.clone_from(routes);
        Ok(())
    }

    fn attach(&self, eventfd: &EventFd, gsi: u32) -> io::Result<()> {
        Ok(self.vm.register_irqfd(eventfd, gsi)?)
    }

    fn detach(&self, eventfd: &EventFd, gsi: u32) {
        if let Err(error) = self.vm.unregister_irqfd(eventfd, gsi) {
            tracing::debug!(%error, "an eventfd is still an interrupt");
        }
    }
}
