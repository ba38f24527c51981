// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Power-off, reset and the power management timer.
//!
//! The machine is a hardware-reduced ACPI platform \[ACPI 4.8.3.7, 4.8.3.8\]: a sleep control register for S5, a
//! reset register, and besides them the two reset ports that every PC has.

use std::sync::Arc;
use std::time::Instant;

use crate::bus::BusDevice;
use crate::stop::{Outcome, Stop};

/// Ports of the block, from [`POWER_PORT`](crate::layout::POWER_PORT) on.
pub const BLOCK_SIZE: u64 = 12;
/// Sleep control register, 8 bits.
pub const SLEEP_CONTROL: u16 = 0;
/// Sleep status register, 8 bits.
pub const SLEEP_STATUS: u16 = 1;
/// Reset register, 8 bits.
pub const RESET: u16 = 4;
/// Power management timer, 32 bits.
pub const PM_TIMER: u16 = 8;

/// What is written to the reset register.
pub const RESET_VALUE: u8 = 1;
/// SLP_TYP of S5, as the DSDT says.
pub const SLEEP_TYPE_S5: u8 = 5;

/// Real-mode code for the reset vector: resets by the keyboard controller's port, then halts.
///
/// Linux restarts a hardware-reduced platform through EFI, and where there is none by a jump to the BIOS in real
/// mode. \[Linux arch/x86/kernel/reboot.c: reboot_init, native_machine_emergency_restart\]
pub const RESET_VECTOR_CODE: [u8; 7] = [
    0xb0, 0xfe, // mov al, 0xfe
    0xe6, 0x64, // out 0x64, al
    0xf4, // hlt
    0xeb, 0xfd, // jmp to the hlt
];

const SLEEP_ENABLE: u8 = 1 << 5;
const SLEEP_TYPE_SHIFT: u8 = 2;
const SLEEP_TYPE_MASK: u8 = 7;

/// Frequency of the power management timer in Hz. \[ACPI 4.8.3.3\]
const PM_TIMER_HZ: u128 = 3_579_545;

/// The power block.
pub struct Power {
    stop: Arc<Stop>,
    start: Instant,
}

impl Power {
    /// A power block that stops the machine through `stop`.
    pub fn new(stop: Arc<Stop>) -> Self {
        Self { stop, start: Instant::now() }
    }
}

impl BusDevice for Power {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if offset == u64::from(PM_TIMER) {
            let ticks = (self.start.elapsed().as_nanos() * PM_TIMER_HZ / 1_000_000_000) as u32;
            for (to, from) in data.iter_mut().zip(ticks.to_le_bytes()) {
                *to = from;
            }
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let Some(&value) = data.first() else { return };
        if offset == u64::from(SLEEP_CONTROL) {
            let kind = (value >> SLEEP_TYPE_SHIFT) & SLEEP_TYPE_MASK;
            if value & SLEEP_ENABLE != 0 && kind == SLEEP_TYPE_S5 {
                self.stop.request(Outcome::PowerOff);
            }
        } else if offset == u64::from(RESET) && value == RESET_VALUE {
            self.stop.request(Outcome::Reset);
        }
    }
}

/// The keyboard controller's command port (0x64): all it does is pulse the reset line.
pub struct KeyboardReset(pub Arc<Stop>);

impl BusDevice for KeyboardReset {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        // Both buffers empty.
        data.fill(0);
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        if data.first() == Some(&0xfe) {
            self.0.request(Outcome::Reset);
        }
    }
}

/// The chipset's reset control register (0xcf9).
pub struct ResetControl(pub Arc<Stop>);

impl BusDevice for ResetControl {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        // Bit 2 resets the processors.
        if data.first().is_some_and(|value| value & 4 != 0) {
            self.0.request(Outcome::Reset);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(act: impl FnOnce(&Arc<Stop>)) -> Option<Outcome> {
        let stop = Arc::new(Stop::default());
        act(&stop);
        stop.outcome()
    }

    #[test]
    fn s5_powers_off_and_other_sleep_writes_do_not() {
        let write = |value: u8| outcome(|stop| Power::new(stop.clone()).write(0, &[value]));
        assert_eq!(write(0x34), Some(Outcome::PowerOff));
        for value in [0x14, 0x20, 0x30, !0x20] {
            assert_eq!(write(value), None, "{value:#x}");
        }
    }

    #[test]
    fn each_reset_port_resets() {
        assert_eq!(outcome(|s| Power::new(s.clone()).write(4, &[1])), Some(Outcome::Reset));
        assert_eq!(outcome(|s| KeyboardReset(s.clone()).write(0, &[0xfe])), Some(Outcome::Reset));
        assert_eq!(outcome(|s| ResetControl(s.clone()).write(0, &[6])), Some(Outcome::Reset));
        assert_eq!(outcome(|s| KeyboardReset(s.clone()).write(0, &[0xd1])), None);
        assert_eq!(outcome(|s| ResetControl(s.clone()).write(0, &[2])), None);
    }

    #[test]
    fn the_timer_counts_at_its_frequency() {
        let power = Power::new(Arc::new(Stop::default()));
        let read = || {
            let mut data = [0; 4];
            power.read(8, &mut data);
            u32::from_le_bytes(data)
        };
        // Around the reads and between them: however slow the machine is, what was counted lies in between.
        let begin = Instant::now();
        let before = read();
        let inner = Instant::now();
        std::thread::sleep(std::time::Duration::from_millis(20));
        let least = inner.elapsed().as_secs_f64() * 3_579_545.0;
        let after = read();
        let most = begin.elapsed().as_secs_f64() * 3_579_545.0;
        let counted = f64::from(after.wrapping_sub(before));
        assert!(least - 1.0 <= counted && counted <= most + 1.0, "{least} <= {counted} <= {most}");
    }
}
