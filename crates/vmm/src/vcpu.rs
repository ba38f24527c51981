// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A processor: its state at the kernel's 64-bit entry, and its run loop.

use std::sync::Arc;

use kvm_bindings::{
    KVM_INTERNAL_ERROR_DELIVERY_EV, KVM_INTERNAL_ERROR_EMULATION, KVM_INTERNAL_ERROR_SIMUL_EX, Msrs,
    kvm_cpuid_entry2, kvm_fpu, kvm_msr_entry, kvm_regs, kvm_segment,
};
use kvm_ioctls::{VcpuExit, VcpuFd};
use vm_memory::{Bytes, GuestAddress};

use crate::bus::Bus;
use crate::layout;
use crate::memory::Memory;
use crate::stop::{Outcome, Stop};

const CR0_PE: u64 = 1;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;

/// x87 state: always on in a valid XCR0.
const XCR0_X87: u32 = 1;

const PAGE_PRESENT_WRITE: u64 = 3;
const PAGE_LARGE: u64 = 0x83;

const GDT: [u64; 4] = [0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff, 0x008f_8b00_0000_ffff];

const MSR_IA32_MISC_ENABLE: u32 = 0x1a0;
const MISC_ENABLE_FAST_STRING: u64 = 1;
const MSR_MTRR_DEF_TYPE: u32 = 0x2ff;
/// MTRRs on, write-back by default: Linux sets up its PAT only then.
const MTRR_WRITE_BACK: u64 = 0x806;

/// Writes what the kernel's 64-bit entry needs in memory: descriptor tables and an identity map of 4 GiB.
pub fn write_boot_tables(memory: &Memory) -> Result<(), vm_memory::GuestMemoryError> {
    for (i, descriptor) in GDT.iter().enumerate() {
        memory.write_obj(*descriptor, GuestAddress(layout::BOOT_GDT.0 + 8 * i as u64))?;
    }
    memory.write_obj(0u64, layout::BOOT_IDT)?;
    let pml4 = layout::BOOT_PAGE_TABLES.0;
    let pdpt = pml4 + 0x1000;
    memory.write_obj(pdpt | PAGE_PRESENT_WRITE, GuestAddress(pml4))?;
    for gib in 0..4 {
        let directory = pdpt + 0x1000 * (gib + 1);
        memory.write_obj(directory | PAGE_PRESENT_WRITE, GuestAddress(pdpt + 8 * gib))?;
        for i in 0..512 {
            let page = gib << 30 | i << 21;
            memory.write_obj(page | PAGE_LARGE, GuestAddress(directory + 8 * i))?;
        }
    }
    Ok(())
}

fn segment(index: u16, kind: u8, long: bool) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: 0xf_ffff,
        selector: index * 8,
        type_: kind,
        present: 1,
        dpl: 0,
        db: u8::from(!long && kind == 3),
        s: u8::from(index != 3),
        l: u8::from(long),
        g: 1,
        ..Default::default()
    }
}

/// Sets the registers of the first processor for a start at `entry` in 64-bit mode.
pub fn set_boot_state(vcpu: &VcpuFd, entry: u64) -> Result<(), kvm_ioctls::Error> {
    let mut sregs = vcpu.get_sregs()?;
    sregs.gdt.base = layout::BOOT_GDT.0;
    sregs.gdt.limit = size_of_val(&GDT) as u16 - 1;
    sregs.idt.base = layout::BOOT_IDT.0;
    sregs.idt.limit = 7;
    sregs.cs = segment(1, 0xb, true);
    let data = segment(2, 3, false);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = segment(3, 0xb, false);
    sregs.cr0 |= CR0_PE | CR0_PG;
    sregs.cr3 = layout::BOOT_PAGE_TABLES.0;
    sregs.cr4 |= CR4_PAE;
    sregs.efer |= EFER_LME | EFER_LMA;
    vcpu.set_sregs(&sregs)?;
    vcpu.set_regs(&kvm_regs {
        rip: entry,
        rsi: layout::ZERO_PAGE.0,
        rsp: layout::BOOT_STACK,
        rbp: layout::BOOT_STACK,
        rflags: 2,
        ..Default::default()
    })?;
    vcpu.set_fpu(&kvm_fpu { fcw: 0x37f, mxcsr: 0x1f80, ..Default::default() })
}

/// Sets the model-specific registers that firmware would have set, on each processor.
pub fn set_firmware_msrs(vcpu: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
    for (index, data) in
        [(MSR_IA32_MISC_ENABLE, MISC_ENABLE_FAST_STRING), (MSR_MTRR_DEF_TYPE, MTRR_WRITE_BACK)]
    {
        let entry = kvm_msr_entry { index, data, ..Default::default() };
        if let Ok(msrs) = Msrs::from_entries(&[entry])
            && vcpu.set_msrs(&msrs)? != 1
        {
            tracing::debug!(index, "KVM does not take this MSR");
        }
    }
    Ok(())
}

/// Turns on all state components that `leaves` announce (XCR0), on each processor.
///
/// KVM derives CPUID 0Dh:0 EBX, the size of the enabled components, from the XCR0 it knows of. Below it, emulated
/// virtualization (QEMU without KVM) may let the guest's XSETBV pass unseen; then EBX would stay at its reset value,
/// which Linux takes for broken hardware. With hardware virtualization it makes no difference: the guest's XSETBV
/// counts.
pub fn enable_state_components(vcpu: &VcpuFd, leaves: &[kvm_cpuid_entry2]) -> Result<(), kvm_ioctls::Error> {
    let Some(leaf) = leaves.iter().find(|e| e.function == 0xd && e.index == 0) else { return Ok(()) };
    let mut xcrs = vcpu.get_xcrs()?;
    if let Some(xcr0) = xcrs.xcrs.first_mut()
        && leaf.eax & XCR0_X87 != 0
    {
        xcr0.value = u64::from(leaf.eax) | u64::from(leaf.edx) << 32;
        vcpu.set_xcrs(&xcrs)?;
    }
    Ok(())
}

/// What a processor reaches.
pub struct Surroundings {
    /// Memory-mapped devices.
    pub mmio: Bus,
    /// Devices at ports.
    pub ports: Bus,
    /// Hears the end of level-triggered interrupts, by vector.
    pub end_of_interrupt: Box<dyn Fn(u8) + Send + Sync>,
}

/// How often in a row KVM may give up on an event's delivery before the guest is given up, too.
///
/// With SVM, KVM refuses to emulate an access to a device if the exit's EXITINTINFO has a type, whether or not its
/// valid bit is set (Linux arch/x86/kvm/svm/svm.c:svm_check_emulate_instruction). QEMU's emulation of SVM leaves the
/// type of the last exception that the guest took by itself, so that a store to a device right behind a page fault
/// ends here. Nothing is lost: entered again, the guest repeats the access, this time with an empty EXITINTINFO.
const DELIVERY_RETRIES: u32 = 16;

/// The size of one access after an exit for port I/O: a string instruction comes as many accesses in one exit.
fn port_access_size(vcpu: &mut VcpuFd) -> usize {
    // SAFETY: the caller has just seen an exit for port I/O, for which this union field is valid.
    let size = unsafe { vcpu.get_kvm_run().__bindgen_anon_1.io.size };
    usize::from(size.max(1))
}

/// Runs processor `id` until the machine stops.
pub fn run(id: u32, mut vcpu: VcpuFd, surroundings: &Surroundings, stop: &Arc<Stop>) {
    let mut delivery_failures = 0;
    while !stop.requested() {
        let exit = vcpu.run();
        if !matches!(exit, Ok(VcpuExit::InternalError)) {
            delivery_failures = 0;
        }
        let failure = match exit {
            Ok(VcpuExit::MmioRead(address, data)) => {
                surroundings.mmio.read(address, data);
                continue;
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                surroundings.mmio.write(address, data);
                continue;
            }
            Ok(VcpuExit::IoIn(port, data)) => {
                let (start, length) = (data.as_mut_ptr(), data.len());
                let size = port_access_size(&mut vcpu);
                // SAFETY: start and length are those of the exit's data, which lie in the mapping that `vcpu` owns,
                // behind the structure that was read meanwhile, and are ours until the processor runs again.
                let data = unsafe { std::slice::from_raw_parts_mut(start, length) };
                for item in data.chunks_mut(size) {
                    surroundings.ports.read(port.into(), item);
                }
                continue;
            }
            Ok(VcpuExit::IoOut(port, data)) => {
                let (start, length) = (data.as_ptr(), data.len());
                let size = port_access_size(&mut vcpu);
                // SAFETY: as above.
                let data = unsafe { std::slice::from_raw_parts(start, length) };
                for item in data.chunks(size) {
                    surroundings.ports.write(port.into(), item);
                }
                continue;
            }
            Ok(VcpuExit::IoapicEoi(vector)) => {
                (surroundings.end_of_interrupt)(vector);
                continue;
            }
            Ok(VcpuExit::Intr | VcpuExit::IrqWindowOpen | VcpuExit::Hlt) => continue,
            Err(e) if matches!(e.errno(), libc::EINTR | libc::EAGAIN) => continue,
            Ok(VcpuExit::Shutdown) => format!("the guest crashed: triple fault on processor {id}"),
            Ok(VcpuExit::SystemEvent(kind, _)) => match kind {
                kvm_bindings::KVM_SYSTEM_EVENT_SHUTDOWN => return stop.request(Outcome::PowerOff),
                kvm_bindings::KVM_SYSTEM_EVENT_RESET => return stop.request(Outcome::Reset),
                _ => format!("the guest crashed: system event {kind} on processor {id}"),
            },
            Ok(VcpuExit::FailEntry(reason, _)) => {
                format!("the processor refuses the guest's state (reason {reason:#x}, processor {id})")
            }
            Ok(VcpuExit::InternalError) => {
                // SAFETY: the exit reason is KVM_EXIT_INTERNAL_ERROR, for which this union field is valid.
                let code = unsafe { vcpu.get_kvm_run().__bindgen_anon_1.internal.suberror };
                if code == kvm_bindings::KVM_INTERNAL_ERROR_DELIVERY_EV
                    && delivery_failures < DELIVERY_RETRIES
                {
                    delivery_failures += 1;
                    continue;
                }
                let rip = vcpu.get_regs().map_or(0, |r| r.rip);
                let what = match code {
                    KVM_INTERNAL_ERROR_EMULATION => "it does not know an instruction on device memory",
                    KVM_INTERNAL_ERROR_SIMUL_EX => "exceptions on top of each other",
                    KVM_INTERNAL_ERROR_DELIVERY_EV => "an event could not be delivered",
                    _ => "internal error",
                };
                format!("KVM cannot go on: {what} (code {code}, processor {id} at {rip:#x})")
            }
            Ok(other) => format!("KVM: unexpected exit {other:?} on processor {id}"),
            Err(e) => format!("KVM cannot run processor {id}: {e}"),
        };
        return stop.request(Outcome::Failed(failure));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boot_page_tables_map_the_first_four_gib_to_themselves() {
        let memory = Memory::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        write_boot_tables(&memory).unwrap();
        let entry = |table: u64, index: u64| -> u64 {
            memory.read_obj(GuestAddress((table & !0xfff) + 8 * (index & 0x1ff))).unwrap()
        };
        for address in [0, 0x10_0200, 0x1234_5678, (3 << 30) + 5, (4 << 30) - 1u64] {
            let pdpt = entry(layout::BOOT_PAGE_TABLES.0, address >> 39);
            let directory = entry(pdpt, address >> 30);
            let page = entry(directory, address >> 21);
            assert_eq!((pdpt & 1, directory & 1, page & 0x81), (1, 1, 0x81));
            assert_eq!((page & !0x1f_ffff) | (address & 0x1f_ffff), address);
        }
        // The tables end before the command line and the next thing below it.
        const { assert!(layout::BOOT_PAGE_TABLES.0 + 6 * 0x1000 <= layout::COMMAND_LINE.0) };
    }
}
