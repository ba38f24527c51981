// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the guest's CPUID shows: all that KVM supports, one package with a core per processor, and MOVDIR64B.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::Kvm;

const LEAF1_ECX_TSC_DEADLINE: u32 = 1 << 24;
const LEAF1_ECX_HYPERVISOR: u32 = 1 << 31;
const LEAF1_EDX_HTT: u32 = 1 << 28;
const LEAF7_ECX_MOVDIR64B: u32 = 1 << 28;
const AMD_ECX_TOPOLOGY_EXTENSIONS: u32 = 1 << 22;

const LEVEL_SMT: u32 = 1;
const LEVEL_CORE: u32 = 2;

/// KVM's supported set, to be made a processor's with [`for_processor`].
pub fn supported(kvm: &Kvm) -> Result<Vec<kvm_cpuid_entry2>, kvm_ioctls::Error> {
    Ok(kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?.as_slice().to_vec())
}

/// Physical address bits of the processor: leaf 8000_0008h EAX\[7:0\], 36 where there is none.
pub fn address_bits(leaves: &[kvm_cpuid_entry2]) -> u8 {
    let leaf = leaves.iter().find(|e| e.function == 0x8000_0008);
    leaf.map_or(36, |e| (e.eax as u8).clamp(32, 52))
}

/// Bits of an APIC id that number the processors of a package of `count`.
fn core_bits(count: u32) -> u32 {
    count.next_power_of_two().trailing_zeros()
}

/// The extended topology leaf 0Bh: one thread per core, `count` cores.
fn extended_topology(id: u32, count: u32) -> [kvm_cpuid_entry2; 3] {
    let level = |index: u32, kind: u32, shift: u32, processors: u32| kvm_cpuid_entry2 {
        function: 0xb,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: shift,
        ebx: processors,
        ecx: index | kind << 8,
        edx: id,
        ..Default::default()
    };
    [level(0, LEVEL_SMT, 0, 1), level(1, LEVEL_CORE, core_bits(count), count), level(2, 0, 0, 0)]
}

/// The leaves of processor `id` of `count` (APIC id and number alike), from KVM's `supported` set.
pub fn for_processor(supported: &[kvm_cpuid_entry2], id: u32, count: u32) -> Vec<kvm_cpuid_entry2> {
    // Leaves that describe the host's topology and that we do not rewrite: without them 0Bh counts.
    let hosts_topology = [0xb, 0x1f, 0x8000_0026];
    let mut leaves: Vec<_> =
        supported.iter().filter(|e| !hosts_topology.contains(&e.function)).copied().collect();
    for leaf in &mut leaves {
        match (leaf.function, leaf.index) {
            (0, _) => leaf.eax = leaf.eax.clamp(0xd, 0x1e),
            (1, _) => {
                leaf.ecx |= LEAF1_ECX_HYPERVISOR | LEAF1_ECX_TSC_DEADLINE;
                leaf.ebx = (leaf.ebx & 0xffff) | count.min(255) << 16 | (id & 0xff) << 24;
                leaf.edx &= !LEAF1_EDX_HTT;
                if count > 1 {
                    leaf.edx |= LEAF1_EDX_HTT;
                }
            }
            // Cache parameters: EAX 25:14 processors that share the cache less one, 31:26 cores of the package
            // less one. The first two levels are a core's own, the third is everybody's.
            (4, _) if leaf.eax & 0x1f != 0 => {
                let sharing = if (leaf.eax >> 5) & 7 >= 3 { count.next_power_of_two() - 1 } else { 0 };
                let cores = (count.next_power_of_two() - 1).min(63);
                leaf.eax = (leaf.eax & 0x3fff) | (sharing & 0xfff) << 14 | cores << 26;
            }
            // Linux's idxd loads only where the processor has MOVDIR64B. The instruction itself cannot reach a
            // portal under KVM, so programs store eight quadwords instead. [Linux drivers/dma/idxd/init.c]
            (7, 0) => leaf.ecx |= LEAF7_ECX_MOVDIR64B,
            // APIC id size (15:12) and number of threads less one.
            (0x8000_0008, _) => {
                leaf.ecx = (leaf.ecx & !0xf0ff) | core_bits(count) << 12 | (count - 1).min(255);
            }
            (0x8000_001d, _) if leaf.eax & 0x1f != 0 => {
                let sharing = if (leaf.eax >> 5) & 7 >= 3 { count - 1 } else { 0 };
                leaf.eax = (leaf.eax & 0x3fff) | (sharing & 0xfff) << 14;
            }
            // AMD's topology extension: extended APIC id; core id, one thread per core; node 0 of 1.
            (0x8000_001e, _) => {
                leaf.eax = id;
                leaf.ebx = id & 0xff;
                leaf.ecx = 0;
                leaf.edx = 0;
            }
            _ => {}
        }
    }
    let has_topology_leaf = leaves.iter().any(|e| e.function == 0x8000_001e);
    if let Some(leaf) = leaves.iter_mut().find(|e| e.function == 0x8000_0001)
        && !has_topology_leaf
    {
        leaf.ecx &= !AMD_ECX_TOPOLOGY_EXTENSIONS;
    }
    leaves.extend(extended_topology(id, count));
    leaves
}

/// The leaves as KVM takes them; `None` if there are too many.
pub fn table(leaves: &[kvm_cpuid_entry2]) -> Option<CpuId> {
    CpuId::from_entries(leaves).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(function: u32, index: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 { function, index, ..Default::default() }
    }

    fn host() -> Vec<kvm_cpuid_entry2> {
        let mut all = vec![leaf(0, 0), leaf(1, 0), leaf(7, 0), leaf(7, 1), leaf(0x8000_0001, 0)];
        all[0].eax = 0x10;
        all[1].ebx = 0x0910_0800;
        all.push(kvm_cpuid_entry2 { edx: 77, ..leaf(0xb, 0) });
        all.push(kvm_cpuid_entry2 { edx: 77, ..leaf(0x1f, 0) });
        all[4].ecx = AMD_ECX_TOPOLOGY_EXTENSIONS;
        all
    }

    fn find(leaves: &[kvm_cpuid_entry2], function: u32, index: u32) -> kvm_cpuid_entry2 {
        *leaves.iter().find(|e| (e.function, e.index) == (function, index)).unwrap()
    }

    #[test]
    fn movdir64b_is_announced_in_subleaf_0_only() {
        let leaves = for_processor(&host(), 0, 1);
        assert_eq!(find(&leaves, 7, 0).ecx, LEAF7_ECX_MOVDIR64B);
        assert_eq!(find(&leaves, 7, 1).ecx, 0);
    }

    #[test]
    fn apic_ids_agree_between_leaves_and_hosts_ids_are_gone() {
        for id in 0..5 {
            let leaves = for_processor(&host(), id, 5);
            assert_eq!(find(&leaves, 1, 0).ebx, id << 24 | 5 << 16 | 0x0800);
            assert!(leaves.iter().filter(|e| e.function == 0xb).all(|e| e.edx == id));
            assert!(leaves.iter().all(|e| e.function != 0x1f));
        }
    }

    #[test]
    fn core_level_shift_covers_all_processors() {
        for (count, shift) in [(1, 0), (2, 1), (3, 2), (4, 2), (5, 3), (254, 8)] {
            let leaves = for_processor(&host(), 0, count);
            assert_eq!((find(&leaves, 0xb, 1).eax, find(&leaves, 0xb, 1).ebx), (shift, count));
        }
    }

    #[test]
    fn hypervisor_and_deadline_timer_are_announced_and_htt_only_with_several_processors() {
        let one = find(&for_processor(&host(), 0, 1), 1, 0);
        let two = find(&for_processor(&host(), 0, 2), 1, 0);
        assert_eq!(one.ecx, LEAF1_ECX_HYPERVISOR | LEAF1_ECX_TSC_DEADLINE);
        assert_eq!((one.edx & LEAF1_EDX_HTT, two.edx & LEAF1_EDX_HTT), (0, LEAF1_EDX_HTT));
    }

    #[test]
    fn address_bits_come_from_their_leaf() {
        assert_eq!(address_bits(&host()), 36);
        let known = kvm_cpuid_entry2 { eax: 0x3028, ..leaf(0x8000_0008, 0) };
        assert_eq!(address_bits(&[known]), 40);
    }

    #[test]
    fn topology_extensions_need_their_leaf() {
        assert_eq!(find(&for_processor(&host(), 0, 1), 0x8000_0001, 0).ecx, 0);
        let mut amd = host();
        amd.push(leaf(0x8000_001e, 0));
        let leaves = for_processor(&amd, 3, 4);
        assert_eq!(find(&leaves, 0x8000_0001, 0).ecx, AMD_ECX_TOPOLOGY_EXTENSIONS);
        assert_eq!((find(&leaves, 0x8000_001e, 0).eax, find(&leaves, 0x8000_001e, 0).ebx), (3, 3));
    }
}
