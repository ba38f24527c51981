// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a virtual processor's thread does in a unit passes the filter that Cloud Hypervisor puts on such threads: a system
//! call that it does not allow ends this process. \[Cloud Hypervisor vmm/src/seccomp_filters.rs: vcpu_thread_rules\]

#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

mod common;

use std::collections::BTreeMap;

use common::descriptors::{context_device, pasid_iotlb, wait};
use common::{Guest, SOURCE_ID, WAIT_STATUS, entry};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};
use vm_memory::{Bytes, GuestAddress};
use vtd_spec::registers::offset;
use vtd_spec::{DomainId, Pasid};

const PASID: Pasid = Pasid::truncated(0x42);
const ADDRESS: u64 = 0x7f12_3456_7000;

/// Of that filter, what a library may need: memory, locks, and the end of a thread.
fn filter() -> BpfProgram {
    let allowed = [
        libc::SYS_brk,
        libc::SYS_clock_gettime,
        libc::SYS_exit,
        libc::SYS_futex,
        libc::SYS_madvise,
        libc::SYS_mmap,
        libc::SYS_mprotect,
        libc::SYS_mremap,
        libc::SYS_munmap,
        libc::SYS_rt_sigprocmask,
        libc::SYS_rt_sigreturn,
        libc::SYS_sched_yield,
        libc::SYS_sigaltstack,
        // Of the tests' own patience.
        libc::SYS_clock_nanosleep,
        libc::SYS_nanosleep,
    ];
    let rules: BTreeMap<i64, Vec<_>> = allowed.into_iter().map(|call| (call, vec![])).collect();
    let filter = SeccompFilter::new(rules, SeccompAction::Trap, SeccompAction::Allow, TargetArch::x86_64);
    filter.unwrap().try_into().unwrap()
}

#[test]
fn register_writes_pass_a_virtual_processors_filter() {
    let guest = Guest::new();
    guest.bind(PASID);
    guest.map(PASID, ADDRESS, guest.page(), entry::USER);
    let status = WAIT_STATUS + 0x40;
    // More than a doorbell works off itself.
    for _ in 0..400 {
        guest.queue(&pasid_iotlb(DomainId(1), PASID));
    }
    guest.queue(&wait(status, 2));
    let filter = filter();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let pinned = guest.endpoint.pin(Guest::with_pasid(PASID), ADDRESS).unwrap();
            seccompiler::apply_filter(&filter).unwrap();
            // Work that has to wait, and work that is long.
            guest.ring();
            guest.write32(offset::GCMD, 0);
            guest.write32(offset::GCMD, 0x8600_0000);
            guest.endpoint.set_ats_enabled(true);
            drop(pinned);
            guest.endpoint.write(Guest::with_pasid(PASID), ADDRESS, &[1]).unwrap();
            guest.submit(&context_device(SOURCE_ID));
            guest.unit.reset();
        });
    });
    let found: u32 = guest.memory.read_obj(GuestAddress(status)).unwrap();
    assert!(found == 2 || found == 0, "the queue was disabled before it got there, or not");
}
