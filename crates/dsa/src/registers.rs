// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The register map of BAR 0 and the values of the capability registers. \[D 9.2\]

use crate::descriptor::opcode;

/// Size of BAR 0 in bytes: up to and with the dummy portal at 0xF000.
pub(crate) const BAR0_SIZE: u64 = 0x1_0000;

/// Work queues.
pub(crate) const QUEUES: usize = 8;
/// Engines.
pub(crate) const ENGINES: usize = 4;
/// Groups.
pub(crate) const GROUPS: usize = 4;
/// MSI-X vectors: one for the device, one for each work queue.
pub(crate) const VECTORS: u16 = 9;
/// Entries that the work queues share.
pub(crate) const TOTAL_QUEUE_SIZE: u32 = 128;
/// log2 of the largest transfer size in bytes.
pub(crate) const MAX_TRANSFER_SHIFT: u32 = 31;
/// log2 of the largest batch.
pub(crate) const MAX_BATCH_SHIFT: u32 = 10;

pub(crate) const VERSION: u64 = 0x00;
pub(crate) const GENCAP: u64 = 0x10;
pub(crate) const WQCAP: u64 = 0x20;
pub(crate) const GRPCAP: u64 = 0x30;
pub(crate) const ENGCAP: u64 = 0x38;
pub(crate) const OPCAP: u64 = 0x40;
pub(crate) const OFFSETS: u64 = 0x60;
pub(crate) const GENCFG: u64 = 0x80;
pub(crate) const GENCTRL: u64 = 0x88;
pub(crate) const GENSTS: u64 = 0x90;
pub(crate) const INTCAUSE: u64 = 0x98;
pub(crate) const CMD: u64 = 0xa0;
pub(crate) const CMDSTATUS: u64 = 0xa8;
pub(crate) const CMDCAP: u64 = 0xb0;
pub(crate) const SWERROR: u64 = 0xc0;
pub(crate) const SWERROR_END: u64 = 0xe0;

/// MSI-X permission table, 8 bytes per vector.
pub(crate) const MSIXPERM: u64 = 0x400;
pub(crate) const MSIXPERM_END: u64 = MSIXPERM + 8 * VECTORS as u64;
/// Work queue configuration table, 64 bytes per queue.
pub(crate) const WQCFG: u64 = 0x500;
pub(crate) const WQCFG_END: u64 = WQCFG + WQCFG_STRIDE * QUEUES as u64;
pub(crate) const WQCFG_STRIDE: u64 = 64;
/// Group configuration table, 64 bytes per group.
pub(crate) const GRPCFG: u64 = 0x800;
pub(crate) const GRPCFG_END: u64 = GRPCFG + GRPCFG_STRIDE * GROUPS as u64;
pub(crate) const GRPCFG_STRIDE: u64 = 64;

/// Where the MSI-X table and the pending bits lie in BAR 0.
pub(crate) const MSIX_TABLE: u32 = 0x2000;
pub(crate) const MSIX_PENDING: u32 = 0x3000;

/// Version 1.0. Linux then keeps batch out of its sysfs op_cap, but not out of the queues' allowed operations.
pub(crate) const VERSION_VALUE: u64 = 0x0100;

/// Block on fault, overlapping copy, cache control, command capabilities; configuration support.
pub(crate) const GENCAP_VALUE: u64 =
    0b1_0111 | (MAX_TRANSFER_SHIFT as u64) << 16 | (MAX_BATCH_SHIFT as u64) << 21 | 1 << 31;

/// 64-byte WQCFG; dedicated queues, priority, allowed operations.
pub(crate) const WQCAP_VALUE: u64 =
    TOTAL_QUEUE_SIZE as u64 | (QUEUES as u64) << 16 | 1 << 24 | 1 << 49 | 1 << 51 | 1 << 54;

/// No read buffer controls.
pub(crate) const GRPCAP_VALUE: u64 = GROUPS as u64;

pub(crate) const ENGCAP_VALUE: u64 = ENGINES as u64;

/// The first QWORD; the others are 0.
pub(crate) const OPCAP_VALUE: u64 = opcode::SUPPORTED;

/// No interrupt message storage, no performance monitors.
pub(crate) const OFFSETS_VALUE: u64 = GRPCFG >> 8 | (WQCFG >> 8) << 16 | (MSIXPERM >> 8) << 32;

/// Commands 1 to 12: interrupt handles are MSI-X indexes and need not be requested.
pub(crate) const CMDCAP_VALUE: u64 = 0x1ffe;

/// GENCFG: user-mode interrupts enable, the only implemented field.
pub(crate) const GENCFG_USER_INTERRUPTS: u32 = 1 << 12;

/// GENCTRL: interrupt on software error.
pub(crate) const GENCTRL_SOFTWARE_ERROR: u32 = 1 << 0;
/// GENCTRL: interrupt on halt.
pub(crate) const GENCTRL_HALT: u32 = 1 << 1;

/// INTCAUSE bits.
pub(crate) mod cause {
    pub const SOFTWARE_ERROR: u32 = 1 << 0;
    pub const COMMAND: u32 = 1 << 1;
    pub const HALT: u32 = 1 << 4;
}

/// CMDSTATUS: a command is executed.
pub(crate) const CMDSTATUS_ACTIVE: u32 = 1 << 31;
