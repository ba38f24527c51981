// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The registers: their values, what can be written and when.

use super::*;

#[test]
fn capabilities_read_as_announced() {
    let machine = Machine::new();
    assert_eq!(machine.read32(VERSION), 0x100);
    let gencap = machine.read64(GENCAP);
    assert_eq!(gencap, 0x815f_0017);
    assert_eq!((gencap >> 16 & 0x1f, gencap >> 21 & 0xf), (31, 10));
    assert_eq!(machine.read64(WQCAP), 0x004a_0000_0108_0080);
    assert_eq!(machine.read64(0x30), 4);
    assert_eq!(machine.read64(0x38), 4);
    assert_eq!(machine.read64(OPCAP), 0x1_0003_03ff);
    assert_eq!(machine.read64(0x60), 0x0004_0005_0008);
    assert_eq!(machine.read64(0xb0), 0x1ffe);
    for offset in [0x48, 0x50, 0x58, 0x68, 0xe0, 0xf0, 0x100, 0xe000, 0xfff8] {
        assert_eq!(machine.read64(offset), 0, "{offset:#x}");
    }
    let mut byte = [0];
    machine.0.read_registers(GENCAP + 2, &mut byte);
    assert_eq!(byte, [0x5f]);
}

#[test]
fn registers_take_aligned_accesses_of_up_to_8_bytes_only() {
    let machine = Machine::new();
    machine.0.write_registers(GENCTRL, &[3]);
    assert_eq!(machine.read32(GENCTRL), 3);
    machine.0.write_registers(GENCFG + 1, &[0x10]);
    assert_eq!(machine.read32(GENCFG), 0x1000);
    machine.0.write_registers(GENCTRL + 1, &[0xff, 0xff]);
    machine.0.write_registers(GENCTRL, &[0; 3]);
    machine.0.write_registers(GENCTRL, &[]);
    machine.0.write_registers(GENCTRL, &[0; 16]);
    assert_eq!(machine.read32(GENCTRL), 3);
    // Half a write of CMD is no command.
    machine.0.write_registers(CMD, &[0, 0]);
    assert_eq!(machine.read32(CMDSTATUS), 0);
    machine.0.write_registers(u64::MAX - 7, &[0; 8]);
    let mut data = [1; 8];
    machine.0.read_registers(u64::MAX - 3, &mut data);
    assert_eq!(data[..4], [0; 4]);
}

#[test]
fn tables_are_locked_while_the_device_or_queue_is_enabled() {
    let machine = Machine::enabled();
    machine.write32(GENCFG, 0x1000);
    machine.write64(GRPCFG, 0);
    machine.write32(GRPCFG + 40, 9);
    machine.write32(WQCFG, 1);
    machine.write32(WQCFG + 8, 0);
    assert_eq!(machine.read32(GENCFG), 0);
    assert_eq!(machine.read64(GRPCFG), 3);
    assert_eq!(machine.read32(GRPCFG + 40), 0);
    assert_eq!(machine.read32(WQCFG), 16);
    assert_eq!(machine.read32(WQCFG + 8), MODE | 0x2a00);
    assert_eq!(machine.read32(WQCFG + 24), 1 << 30);
    assert_eq!(machine.command(DRAIN_QUEUE, 1), 0);
    assert_eq!(machine.command(RESET_QUEUE, 1), 0);
    // Reset leaves the size, and nothing of the rest.
    assert_eq!([0, 4, 8, 12, 24].map(|n| machine.read32(WQCFG + n)), [16, 0, 0, 0, 0]);
    assert_eq!(machine.read64(WQCFG + 32), 0x1_0003_03ff);
    machine.write32(WQCFG, 1);
    machine.write32(WQCFG + 8, MODE);
    assert_eq!([0, 8].map(|n| machine.read32(WQCFG + n)), [16, MODE]);
}
