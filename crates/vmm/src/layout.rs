// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Where everything is in the guest's physical address space and I/O ports.
//!
//! ```text
//! 0            RAM (boot structures below 640 KiB, ACPI tables at 0xe0000)
//! 1 MiB        RAM: kernel, initramfs
//! 3 GiB        32-bit window for BARs, then ECAM
//! 0xfec00000   IOAPIC
//! 0xfed90000   remapping unit
//! 0xfee00000   local APICs
//! 4 GiB        RAM, the part that does not fit below 3 GiB
//! above RAM    64-bit window for BARs
//! ```

use vm_memory::GuestAddress;

/// First byte of the hole below 4 GiB: RAM ends here at the latest.
pub const HOLE_START: u64 = 0xc000_0000;
/// First byte above the hole.
pub const HIGH_RAM_START: u64 = 1 << 32;

/// 32-bit memory window of the PCI root bridge.
pub const PCI_MEM32: Window = Window { base: HOLE_START, size: 0x2000_0000 };
/// The last bus below the root bridge. Only buses that exist, or that hot-plug could bring: of each that MCFG names, Linux
/// asks every slot by configuration ports (arch/x86/pci/legacy.c:pcibios_fixup_peer_bridges, up to the last bus that
/// mmconfig-shared.c:__pci_mmcfg_init took from there), which of 256 buses are 16,000 exits at each boot.
pub const LAST_BUS: u8 = 0;
/// Enhanced configuration access: 1 MiB for each bus. \[PCIe 7.2.2\]
pub const ECAM: Window = Window { base: 0xe000_0000, size: (LAST_BUS as u64 + 1) * pci::ECAM_BUS_SIZE };
/// The IOAPIC's page.
pub const IOAPIC: Window = Window { base: 0xfec0_0000, size: 0x1000 };
/// The remapping unit's register page, where Intel's chipsets have it.
pub const REMAPPING_UNIT: Window = Window { base: 0xfed9_0000, size: 0x1000 };
/// Local APIC base.
pub const LOCAL_APIC: u64 = 0xfee0_0000;
/// Three pages KVM needs on Intel processors without unrestricted guest.
pub const KVM_TSS: u64 = 0xfffb_d000;
/// The page below them, for KVM's identity map.
pub const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;

/// Size and alignment of the 64-bit window for BARs.
pub const PCI_MEM64_SIZE: u64 = 1 << 35;

/// Where conventional memory ends for the kernel: the extended BIOS data area's place.
pub const LOW_RAM_END: u64 = 0x9_fc00;
/// Where the kernel's protected-mode part is loaded.
pub const KERNEL_START: u64 = 0x10_0000;
/// RSDP and the other ACPI tables, where a BIOS would keep them.
pub const ACPI: Window = Window { base: 0xe_0000, size: 0x1_0000 };

/// The real-mode reset vector, f000:fff0.
pub const RESET_VECTOR: GuestAddress = GuestAddress(0xf_fff0);

/// Global descriptor table for the 64-bit entry.
pub const BOOT_GDT: GuestAddress = GuestAddress(0x500);
/// Interrupt descriptor table for the 64-bit entry.
pub const BOOT_IDT: GuestAddress = GuestAddress(0x520);
/// The zero page (struct boot_params).
pub const ZERO_PAGE: GuestAddress = GuestAddress(0x7000);
/// Stack at entry.
pub const BOOT_STACK: u64 = 0x8ff0;
/// Page tables at entry: PML4, PDPT and four page directories.
pub const BOOT_PAGE_TABLES: GuestAddress = GuestAddress(0x9000);
/// The kernel command line.
pub const COMMAND_LINE: GuestAddress = GuestAddress(0x2_0000);
/// Room for the command line, terminator included.
pub const COMMAND_LINE_SIZE: usize = 0x1_0000;

/// COM1's first port.
pub const SERIAL_PORT: u16 = 0x3f8;
/// COM1's interrupt, an IOAPIC pin.
pub const SERIAL_IRQ: u8 = 4;
/// First port of the power block: sleep control, sleep status, reset, PM timer.
pub const POWER_PORT: u16 = 0x600;

/// MADT identifier of the IOAPIC.
pub const IOAPIC_ID: u8 = 0;
/// Bus number of the IOAPIC's source-id: one on which no function can be.
pub const IOAPIC_BUS: u8 = 0xff;
/// Device and function of the IOAPIC's source-id.
pub const IOAPIC_DEVFN: u8 = 0;

/// A range of guest physical addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// First byte.
    pub base: u64,
    /// Length in bytes.
    pub size: u64,
}

impl Window {
    /// First byte behind the window.
    pub const fn end(self) -> u64 {
        self.base + self.size
    }

    /// Last byte of the window.
    pub const fn last(self) -> u64 {
        self.base + self.size - 1
    }
}

/// The RAM ranges of a machine with `size` bytes: what fits below the hole, then the rest above 4 GiB.
pub fn ram(size: u64) -> Vec<Window> {
    let low = size.min(HOLE_START);
    let mut ranges = vec![Window { base: 0, size: low }];
    if size > low {
        ranges.push(Window { base: HIGH_RAM_START, size: size - low });
    }
    ranges
}

/// First byte behind the RAM of a machine with `size` bytes.
pub fn ram_end(size: u64) -> u64 {
    ram(size).last().map_or(0, |window| window.end())
}

/// The 64-bit window for BARs of a machine with `ram_size` bytes of RAM.
pub fn pci_mem64(ram_size: u64) -> Window {
    let end = ram_end(ram_size).max(HIGH_RAM_START);
    Window { base: end.next_multiple_of(PCI_MEM64_SIZE), size: PCI_MEM64_SIZE }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn windows(ram_size: u64) -> Vec<Window> {
        let mut all = ram(ram_size);
        all.extend([PCI_MEM32, ECAM, IOAPIC, REMAPPING_UNIT, pci_mem64(ram_size)]);
        all.push(Window { base: LOCAL_APIC, size: 0x10_0000 });
        all.push(Window { base: KVM_IDENTITY_MAP, size: 0x4000 });
        all
    }

    #[test]
    fn windows_never_overlap_whatever_the_memory() {
        for ram_size in [64 << 20, 3 << 30, (3 << 30) + 4096, 4 << 30, 100 << 30, 1 << 40] {
            let mut all = windows(ram_size);
            all.sort_by_key(|w| w.base);
            for pair in all.windows(2) {
                assert!(pair[0].end() <= pair[1].base, "{:x?} with {ram_size:#x}", pair);
            }
        }
    }

    #[test]
    fn ram_above_three_gib_continues_at_four() {
        assert_eq!(ram(512 << 20), [Window { base: 0, size: 512 << 20 }]);
        assert_eq!(
            ram(4 << 30),
            [Window { base: 0, size: 3 << 30 }, Window { base: 4 << 30, size: 1 << 30 }]
        );
        assert_eq!(ram(4 << 30).iter().map(|w| w.size).sum::<u64>(), 4 << 30);
    }

    #[test]
    fn the_64_bit_window_of_small_machines_fits_36_address_bits() {
        assert!(pci_mem64(20 << 30).end() <= 1 << 36);
    }
}
