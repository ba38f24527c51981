// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! FADT: a hardware-reduced platform whose reset, sleep and timer registers are ports. \[ACPI 5.2.9\]

use acpi_tables::fadt::{FADT, FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};

use crate::layout::POWER_PORT;
use crate::power;

/// No VGA, no CMOS clock, no keyboard controller: the kernel does not look for them. \[ACPI 5.2.9.3\]
const BOOT_ARCH_VGA_NOT_PRESENT: u16 = 1 << 2;
const BOOT_ARCH_CMOS_RTC_NOT_PRESENT: u16 = 1 << 5;

fn port(offset: u16, bits: u8, access: AccessSize) -> GAS {
    GAS::new(AddressSpace::SystemIo, bits, 0, access, u64::from(POWER_PORT + offset))
}

/// The FADT of the machine, with its DSDT at `dsdt`.
pub fn build(dsdt: u64) -> FADT {
    let mut fadt = FADTBuilder::new(super::oem::OEM_ID, super::oem::OEM_TABLE_ID, super::oem::OEM_REVISION)
        .dsdt_64(dsdt)
        .preferred_pm_profile(PmProfile::EnterpriseServer)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::TmrValExt)
        .flag(Flags::Headless);
    fadt.iapc_boot_arch = (BOOT_ARCH_VGA_NOT_PRESENT | BOOT_ARCH_CMOS_RTC_NOT_PRESENT).into();
    fadt.reset_reg = port(power::RESET, 8, AccessSize::ByteAccess);
    fadt.reset_value = power::RESET_VALUE;
    fadt.sleep_control_reg = port(power::SLEEP_CONTROL, 8, AccessSize::ByteAccess);
    fadt.sleep_status_reg = port(power::SLEEP_STATUS, 8, AccessSize::ByteAccess);
    fadt.pm_tmr_len = 4;
    fadt.x_pm_tmr_blk = port(power::PM_TIMER, 32, AccessSize::DwordAccess);
    fadt.finalize()
}
