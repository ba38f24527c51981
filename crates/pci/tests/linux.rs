// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What Linux does to a function, access by access: drivers/pci/probe.c, drivers/pci/msi/msi.c, drivers/pci/ats.c.

mod common;

use common::{Guest, TestFunction};
use pci::{ConfigChanges, Message, MsixControl, PasidControl, PriControl};

const COMMAND: u16 = 0x04;

#[test]
fn an_empty_place_reads_all_ones_and_swallows_writes() {
    let guest = Guest::new();
    for devfn in [0x09, 0x18, 0xff] {
        assert_eq!(guest.read32(devfn, 0), 0xffff_ffff);
        guest.write32(devfn, 0, 0);
        assert_eq!(guest.read16(devfn, 0x100), 0xffff);
    }
    let mut data = [0; 4];
    guest.root.ecam_read(1 << 20, &mut data);
    assert_eq!(data, [0xff; 4], "bus 1 is empty");
}

#[test]
fn the_identity_is_where_probe_reads_it() {
    let guest = Guest::new();
    assert_eq!(guest.read32(0x08, 0), 0x0b25_8086);
    assert_eq!(guest.read32(0x08, 8), 0x0880_0001);
    assert_eq!(guest.read8(0x08, 0x0e), 0);
    assert_eq!(guest.read32(0x08, 0x2c), 0x5678_1234);
    assert_eq!(guest.read32(0x00, 0) & 0xffff, 0x8086);
    assert_eq!(guest.read16(0x00, 0x0a), 0x0600, "a host bridge sits at 00:00.0");
}

#[test]
fn type_1_accesses_reach_the_same_registers() {
    // arch/x86/pci/direct.c: pci_check_type1, pci_conf1_read, pci_conf1_write.
    let guest = Guest::new();
    guest.root.io_write(0xcfb, &[1]);
    assert_eq!(guest.port32(0xcf8), 0);
    guest.root.io_write(0xcf8, &0x8000_0000_u32.to_le_bytes());
    assert_eq!(guest.port32(0xcf8), 0x8000_0000);
    assert_eq!(guest.port32(0xcfc), guest.read32(0, 0));

    guest.root.io_write(0xcf8, &(0x8000_0000_u32 | 0x08 << 8).to_le_bytes());
    let mut word = [0; 2];
    guest.root.io_read(0xcfe, &mut word);
    assert_eq!(u16::from_le_bytes(word), 0x0b25);
    guest.root.io_write(0xcf8, &(0x8000_0000_u32 | 0x08 << 8 | 0x04).to_le_bytes());
    guest.root.io_write(0xcfc, &[0x06]);
    assert_eq!(guest.read16(0x08, COMMAND), 6);

    guest.root.io_write(0xcf8, &0_u32.to_le_bytes());
    assert_eq!(guest.port32(0xcfc), 0xffff_ffff, "not enabled");
    guest.root.io_write(0xcf8, &(0x8000_0000_u32 | 1 << 16).to_le_bytes());
    assert_eq!(guest.port32(0xcfc), 0xffff_ffff, "bus 1");
    let mut wide = [0; 8];
    guest.root.io_read(0xcfc, &mut wide);
    assert_eq!(wide, [0xff; 8]);
}

#[test]
fn bars_are_sized_with_decoding_off_and_then_decode_where_they_were_put() {
    // __pci_read_bases, pci_std_update_resource
    let guest = Guest::new();
    assert_eq!(guest.read16(0x08, COMMAND), 0);
    let mut sizes = vec![];
    for bar in 0..6 {
        let at = 0x10 + bar * 4;
        let old = guest.read32(0x08, at);
        guest.write32(0x08, at, 0xffff_ffff);
        sizes.push(guest.read32(0x08, at));
        guest.write32(0x08, at, old);
        assert_eq!(guest.read32(0x08, at), old);
    }
    assert_eq!(sizes, [0xffff_000c, 0xffff_ffff, 0xfffe_000c, 0xffff_ffff, 0xffff_f000, 0]);
    guest.write32(0x08, 0x30, 0xffff_f800);
    assert_eq!(guest.read32(0x08, 0x30), 0, "no expansion ROM");

    guest.write32(0x08, 0x10, 0x4000_0000);
    guest.write32(0x08, 0x14, 0x1);
    let mut data = [0; 4];
    assert!(!guest.root.mmio_read(0x1_4000_0000, &mut data), "decoding is off");
    guest.write16(0x08, COMMAND, 2);
    guest.write32(0x08, 0x20, 0xfe00_0000);
    assert!(guest.root.mmio_read(0x1_4000_fffc, &mut data));
    assert_eq!(guest.function.take_accesses(), [(0, 0xfffc, 4)]);
    assert!(guest.root.mmio_write(0xfe00_0010, &data[..1]));
    assert_eq!(guest.function.take_accesses(), [(4, 0x10, 1)]);
    assert!(!guest.root.mmio_read(0x1_4000_fffd, &mut data), "runs over the end");
    assert!(!guest.root.mmio_read(0x1_4001_0000, &mut data));
    assert!(!guest.root.mmio_read(u64::MAX - 1, &mut data));

    guest.write32(0x08, 0x14, 0x2);
    assert!(!guest.root.mmio_read(0x1_4000_0000, &mut data));
    assert!(guest.root.mmio_read(0x2_4000_0000, &mut data), "the BAR moved");
    guest.root.reset();
    assert!(!guest.root.mmio_read(0x2_4000_0000, &mut data));
    assert_eq!(guest.read32(0x08, 0x14), 0);
}

#[test]
fn overlapping_bars_have_one_owner_and_free_the_rest() {
    let guest = Guest::new();
    guest.write16(0x08, COMMAND, 2);
    // BAR 4 (4 KiB) in the middle of BAR 2 (128 KiB) in turn over the end of BAR 0 (64 KiB).
    guest.write32(0x08, 0x10, 0x8001_0000);
    guest.write32(0x08, 0x18, 0x8000_0000);
    guest.write32(0x08, 0x20, 0x8000_4000);
    let mut data = [0; 1];
    for address in [0x8000_4000, 0x8000_ffff, 0x8001_0000, 0x8001_ffff] {
        assert!(guest.root.mmio_read(address, &mut data));
    }
    assert_eq!(guest.function.take_accesses(), [(2, 0x4000, 1), (2, 0xffff, 1), (0, 0, 1), (0, 0xffff, 1)]);
    guest.write32(0x08, 0x18, 0);
    guest.write32(0x08, 0x1c, 0xffff_ffff);
    assert!(guest.root.mmio_read(0x8000_4000, &mut data));
    assert!(!guest.root.mmio_read(0x8000_0000, &mut data));
    assert_eq!(guest.function.take_accesses(), [(4, 0, 1)]);
}

#[test]
fn a_bar_over_the_msix_table_of_an_earlier_one_does_not_take_it() {
    let guest = Guest::new();
    guest.write32(0x08, 0x10, 0x8000_0000);
    guest.write32(0x08, 0x20, 0x8000_2000);
    guest.write16(0x08, COMMAND, 2);
    let mut control = [0; 4];
    assert!(guest.root.mmio_read(0x8000_200c, &mut control));
    assert_eq!(guest.function.take_decoded(), [(0, 0x200c, 4)]);
    assert_eq!(u32::from_le_bytes(control), 1, "the vector is masked after a reset");
    assert_eq!(guest.function.take_accesses(), [], "the MSI-X table answered");
}

#[test]
fn both_capability_lists_are_complete_and_end() {
    let guest = Guest::new();
    assert_eq!(guest.read16(0x08, 0x06) & 0x10, 0x10);
    let caps: Vec<_> = guest.capabilities(0x08).into_iter().map(|(id, _)| id).collect();
    assert_eq!(caps, [0x10, 0x11, 0x09, 0x09]);
    let extended: Vec<_> = guest.extended_capabilities(0x08).into_iter().map(|(id, _)| id).collect();
    assert_eq!(extended, [0x0f, 0x1b, 0x13]);
    assert_eq!(guest.read16(0x00, 0x06) & 0x10, 0);
    assert_eq!(guest.read32(0x00, 0x100), 0);
}

#[test]
fn the_pcie_capability_is_that_of_an_integrated_endpoint_with_prefixes() {
    let guest = Guest::new();
    let at = guest.find(0x08, 0x10);
    assert_eq!(guest.read16(0x08, at + 2), 0x0092);
    let device = guest.read32(0x08, at + 4);
    assert_eq!(device & 1 << 28, 1 << 28);
    assert_eq!(guest.read32(0x08, at + 0x24) >> 20 & 0xf, 0b0111);
    // pci_configure_mps and pcie_set_readrq
    guest.write16(0x08, at + 8, 0x5936);
    assert_eq!(guest.read16(0x08, at + 8), 0x5936);
    assert_eq!(guest.function.take_changes(), []);
}

#[test]
fn msix_is_enabled_masked_programmed_and_unmasked() {
    // msix_capability_init, msix_setup_msi_descs, pci_msix_unmask
    let guest = Guest::new();
    let at = guest.find(0x08, 0x11);
    let count = (guest.read16(0x08, at + 2) & 0x7ff) + 1;
    assert_eq!(count, 9);
    assert_eq!(guest.read32(0x08, at + 4), 0x2000);
    assert_eq!(guest.read32(0x08, at + 8), 0x3000);
    guest.write32(0x08, 0x10, 0xe000_0000);
    guest.write16(0x08, COMMAND, 0x406);
    guest.function.take_changes();

    let control = guest.read16(0x08, at + 2);
    guest.write16(0x08, at + 2, control | 0xc000);
    let masked = MsixControl { enabled: true, function_mask: true };
    assert_eq!(guest.function.take_changes(), [ConfigChanges { msix: Some(masked), ..Default::default() }]);
    assert_eq!(guest.read16(0x08, at + 2), 0xc008);
    for vector in 0..u64::from(count) {
        assert!(guest.root.mmio_write(0xe000_2000 + vector * 16 + 12, &1_u32.to_le_bytes()));
    }
    guest.write16(0x08, at + 2, 0x8008);
    let entry = 0xe000_2000;
    guest.root.mmio_write(entry, &0xfee0_1000_u32.to_le_bytes());
    guest.root.mmio_write(entry + 4, &0_u32.to_le_bytes());
    guest.root.mmio_write(entry + 8, &0x22_u32.to_le_bytes());
    assert_eq!(guest.function.msix.trigger(0), None);
    guest.root.mmio_write(entry + 12, &0_u32.to_le_bytes());
    let message = Message { address: 0xfee0_1000, data: 0x22 };
    assert_eq!(guest.function.take_messages(), [message]);
    assert_eq!(guest.function.msix.trigger(0), Some(message));
}

#[test]
fn pasid_ats_and_pri_are_enabled_in_the_order_and_with_the_accesses_of_linux() {
    let guest = Guest::new();
    let none = ConfigChanges::default();

    // pci_enable_pasid: features = execute | privileged of the capability
    let pasid = guest.find_extended(0x08, 0x1b);
    let supported = guest.read16(0x08, pasid + 4);
    assert_eq!(supported, 0x1404);
    assert_eq!(guest.read16(0x08, pasid + 6), 0);
    guest.write16(0x08, pasid + 6, 1 | supported & 6);
    let control = PasidControl { enabled: true, execute: false, privileged: true };
    assert_eq!(guest.function.take_changes(), [ConfigChanges { pasid: Some(control), ..none }]);

    // pci_ats_page_aligned, pci_ats_queue_depth, pci_enable_ats
    let ats = guest.find_extended(0x08, 0x0f);
    let capability = guest.read16(0x08, ats + 4);
    assert_eq!(capability, 0x0060);
    guest.write16(0x08, ats + 6, 0x8000);
    let changes = guest.function.take_changes();
    assert_eq!(changes.len(), 1);
    assert!(changes[0].ats.is_some_and(|ats| ats.enabled && ats.smallest_translation_unit == 0));
    assert_eq!(guest.read16(0x08, ats + 6), 0x8000);

    // pci_reset_pri, pci_enable_pri
    let pri = guest.find_extended(0x08, 0x13);
    assert_eq!(guest.read16(0x08, pri + 6), 0x8100);
    guest.write16(0x08, pri + 4, 2);
    assert_eq!(guest.function.take_changes(), [ConfigChanges { pri_reset: true, ..none }]);
    assert_eq!(guest.read16(0x08, pri + 4), 0, "reset reads 0");
    assert_eq!(guest.read16(0x08, pri + 6), 0x8100);
    assert_eq!(guest.read32(0x08, pri + 8), 0x200);
    guest.write32(0x08, pri + 0xc, 0x200);
    let control = PriControl { enabled: false, allocation: 0x200 };
    assert_eq!(guest.function.take_changes(), [ConfigChanges { pri: Some(control), ..none }]);
    guest.write16(0x08, pri + 4, 1);
    let control = PriControl { enabled: true, allocation: 0x200 };
    assert_eq!(guest.function.take_changes(), [ConfigChanges { pri: Some(control), ..none }]);
    assert_eq!(guest.read16(0x08, pri + 6), 0x8000, "running");

    // pci_disable_pri, pci_disable_ats, pci_disable_pasid
    guest.write16(0x08, pri + 4, 0);
    assert_eq!(guest.read16(0x08, pri + 6), 0x8000, "requests may be outstanding");
    guest.function.config().set_pri_stopped();
    assert_eq!(guest.read16(0x08, pri + 6), 0x8100);
    guest.write16(0x08, ats + 6, 0);
    guest.write16(0x08, pasid + 6, 0);
    let config = guest.function.config();
    assert!(!config.pri_enabled() && !config.ats_enabled() && !config.pasid_enabled());
}

#[test]
fn page_request_status_flags_are_cleared_by_a_one_and_by_enabling() {
    let guest = Guest::new();
    let pri = guest.find_extended(0x08, 0x13);
    guest.write16(0x08, pri + 4, 3);
    assert!(guest.function.config().pri_enabled(), "reset does not act while enabling");
    assert!(!guest.function.take_changes()[0].pri_reset);
    guest.function.config().set_pri_stopped();
    assert!(!guest.function.config().pri_stopped(), "a running function is not stopped");
    guest.function.config().set_pri_response_failure();
    guest.function.config().set_pri_unexpected_group();
    guest.function.config().set_pri_stopped();
    assert_eq!(guest.read16(0x08, pri + 6), 0x8103);
    guest.write16(0x08, pri + 6, 2);
    assert_eq!(guest.read16(0x08, pri + 6), 0x8101);
    guest.write16(0x08, pri + 6, 0xffff);
    assert_eq!(guest.read16(0x08, pri + 6), 0x8100);
    guest.function.config().set_pri_unexpected_group();
    guest.write16(0x08, pri + 4, 0);
    guest.write16(0x08, pri + 4, 1);
    assert_eq!(guest.read16(0x08, pri + 6), 0x8000);
}

#[test]
fn a_function_level_reset_turns_everything_off_and_reads_back_as_clear() {
    // pcie_flr: PCI_EXP_DEVCTL_BCR_FLR set by a read-modify-write
    let guest = Guest::new();
    let pcie = guest.find(0x08, 0x10);
    let msix = guest.find(0x08, 0x11);
    guest.write32(0x08, 0x10, 0xe000_0000);
    guest.write16(0x08, COMMAND, 6);
    guest.write16(0x08, msix + 2, 0x8000);
    guest.write16(0x08, guest.find_extended(0x08, 0x1b) + 6, 1);
    guest.write16(0x08, guest.find_extended(0x08, 0x0f) + 6, 0x8000);
    guest.write16(0x08, guest.find_extended(0x08, 0x13) + 4, 1);
    guest.function.take_changes();

    // pci_configure_mps chose 256 bytes for the whole hierarchy.
    guest.write16(0x08, pcie + 8, 0x593f);
    let control = guest.read16(0x08, pcie + 8);
    guest.write16(0x08, pcie + 8, control | 0x8000);
    let expected = ConfigChanges {
        function_level_reset: true,
        bus_master: Some(false),
        bars: true,
        msix: Some(MsixControl::default()),
        pasid: Some(PasidControl::default()),
        ats: Some(Default::default()),
        pri: Some(PriControl::default()),
        pri_reset: false,
    };
    assert_eq!(guest.function.take_changes(), [expected]);
    assert_eq!(guest.read16(0x08, pcie + 8), 0x2830, "only the payload size stays");
    assert_eq!(guest.read32(0x08, 0x10), 0xc);
    assert!(!guest.root.mmio_read(0xe000_0000, &mut [0; 4]));
    assert_eq!(guest.read16(0x08, guest.find_extended(0x08, 0x13) + 6), 0x8100);
}

#[test]
fn vendor_capabilities_keep_their_bodies_and_masks() {
    let function = TestFunction::new();
    let offsets: Vec<_> = function.config().capabilities(pci::CapabilityId::VENDOR).collect();
    assert_eq!(offsets.len(), 2);
    let mut body = [0; 6];
    function.config().read(offsets[0] + 2, &mut body);
    assert_eq!(body, [1, 2, 3, 4, 5, 0]);
    assert!(function.config().write(offsets[1] + 2, &[0xff; 6]).is_empty());
    function.config().read(offsets[1] + 2, &mut body);
    assert_eq!(body, [9, 0xf8, 7, 6, 0, 0], "bits 3:0 of the 8 are read-only");
}
