// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A small KVM machine for x86: a stock Linux kernel, a serial console, a PCI Express root complex and a VT-d
//! remapping unit in front of its devices.
//!
//! KVM runs the processors and their local APICs; everything else is here, in user space, the I/O APIC too, so that
//! every interrupt and every DMA passes through the remapping unit. There is no firmware: the kernel is entered at
//! its 64-bit entry point and finds ACPI tables of a hardware-reduced platform.
//!
//! | module | what |
//! |---|---|
//! | [`machine`] | puts all together and runs it |
//! | [`layout`], [`memory`], [`bus`] | addresses, RAM, memory-mapped devices and ports |
//! | [`kvm`], [`cpuid`], [`vcpu`] | KVM, what the processors show, their run loop |
//! | [`boot`], [`acpi`] | kernel and initramfs, tables |
//! | [`ioapic`], [`power`], [`console`] | the devices that are not PCI |
//! | [`pci_bus`], [`devices`] | the ways to the root complex, its functions |
//! | [`remapping`] | the remapping unit's place |
//! | [`host`] | the software host behind assigned devices |
//! | [`virtio`] | the disk |
//! | [`trace`] | what crosses the joint to a host, in files |
//! | [`figures`] | what a host did for a process, to look at |
//! | [`terminal`], [`signals`] | the user's side |
//! | [`files`], [`output_file`] | files that the command line names, files that are written |
//! | [`cli`], [`check`] | the command `vsva` |

pub mod acpi;
pub mod assigned_function;
pub mod boot;
pub mod bus;
pub mod check;
pub mod cli;
pub mod console;
pub mod cpuid;
pub mod devices;
pub mod figures;
pub mod files;
pub mod host;
pub mod ioapic;
pub mod irqfd;
pub mod kvm;
pub mod layout;
pub mod machine;
pub mod memory;
pub mod output_file;
pub mod own_pasids;
pub mod pci_bus;
pub mod power;
pub mod remapping;
pub mod sandbox;
pub mod signals;
pub mod stop;
pub mod terminal;
pub mod trace;
pub mod vcpu;
pub mod virtio;
