// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! An I/O APIC with 24 pins (Intel 82093AA, with the EOI register of later ones).
//!
//! It lives outside KVM so that what it sends can be remapped: each interrupt leaves as a message, in compatibility
//! or in remappable format, just as the driver wrote the redirection entry. \[S 5.1.2, 5.1.5.1\]

use std::sync::{Mutex, MutexGuard, PoisonError};

use vtd_unit::Message;

use crate::bus::BusDevice;

/// Number of pins.
pub const PINS: usize = 24;

const IOREGSEL: u64 = 0x00;
const IOWIN: u64 = 0x10;
const EOI: u64 = 0x40;

const REG_ID: u8 = 0x00;
const REG_VERSION: u8 = 0x01;
const REG_ARBITRATION: u8 = 0x02;
const REG_REDIRECTION: u8 = 0x10;

/// Version 0x20: the EOI register exists, which interrupt remapping needs (the vector of an entry is then not the
/// vector the processor sees). Highest redirection entry in bits 23:16.
const VERSION: u32 = 0x20 | ((PINS as u32 - 1) << 16);

const DELIVERY_STATUS: u64 = 1 << 12;
const REMOTE_IRR: u64 = 1 << 14;
const LEVEL: u64 = 1 << 15;
const MASKED: u64 = 1 << 16;
const FORMAT_REMAPPABLE: u64 = 1 << 48;
const READ_ONLY: u64 = DELIVERY_STATUS | REMOTE_IRR;
/// Bits 47:17 are reserved.
const RESERVED: u64 = 0x0000_ffff_fffe_0000;

const MSI_BASE: u64 = 0xfee0_0000;
/// As a destination, in physical mode.
const EVERY_PROCESSOR: u64 = 0xff;
const MSI_LEVEL_ASSERT: u32 = 1 << 14;
const MSI_LEVEL: u32 = 1 << 15;

/// Where an I/O APIC's interrupts go.
pub trait InterruptSink: Send + Sync {
    /// Delivers one interrupt. Called with no lock held.
    fn deliver(&self, message: Message);
    /// The messages of the unmasked level-triggered pins changed, in compatibility format: the local APICs must report the
    /// end of these interrupts back ([`IoApic::end_of_interrupt`]). Those of pins in remappable format name every processor,
    /// because only the unit knows which one it is; their vector is the one that it sees. Called under the I/O APIC's lock so that changes arrive in
    /// order; must not call back.
    fn level_routes(&self, routes: &[Option<Message>; PINS]);
}

struct State {
    select: u8,
    id: u8,
    redirection: [u64; PINS],
    /// Levels of the input lines.
    lines: u32,
    routes: [Option<Message>; PINS],
}

/// The I/O APIC.
pub struct IoApic<S> {
    state: Mutex<State>,
    sink: S,
}

/// The message that a redirection entry stands for.
///
/// Bits 63:48 go to address bits 19:4 and bit 11 to bit 2: in compatibility format that is the destination and its
/// mode, in remappable format (bit 48) the interrupt's handle. \[S 5.1.2.1, 5.1.5.1\]
fn message(entry: u64) -> Message {
    let level = entry & LEVEL != 0;
    let remappable = entry & FORMAT_REMAPPABLE != 0;
    let address = MSI_BASE | ((entry >> 48) << 4) | ((entry >> 11) & 1) << 2;
    let mut data = (entry & 0x7ff) as u32;
    if level {
        data |= MSI_LEVEL;
        if !remappable {
            data |= MSI_LEVEL_ASSERT;
        }
    }
    Message { address, data }
}

/// The message whose end a local APIC is to report, for the redirection entry of a level pin.
///
/// Software that relies on the broadcast of ends gives both entries, this one and the unit's, one vector, as the
/// specification wants it; other software writes the EOI register, and a report too many does no harm. \[S 5.1.5.1\]
fn level_route(entry: u64) -> Message {
    if entry & FORMAT_REMAPPABLE == 0 {
        return message(entry);
    }
    let data = (entry & 0xff) as u32 | MSI_LEVEL | MSI_LEVEL_ASSERT;
    Message { address: MSI_BASE | EVERY_PROCESSOR << 12, data }
}

impl State {
    /// Whether pin `pin` has a level interrupt to send now; marks it as sent.
    fn take_level(&mut self, pin: usize) -> Option<Message> {
        let entry = &mut self.redirection[pin];
        let asserted = self.lines & (1 << pin) != 0;
        if !asserted || *entry & (MASKED | REMOTE_IRR) != 0 || *entry & LEVEL == 0 {
            return None;
        }
        *entry |= REMOTE_IRR;
        Some(message(*entry))
    }

    fn register(&self, index: u8) -> u32 {
        match index {
            REG_ID | REG_ARBITRATION => u32::from(self.id) << 24,
            REG_VERSION => VERSION,
            _ => match self.redirection.get(usize::from(index.wrapping_sub(REG_REDIRECTION) / 2)) {
                Some(entry) if index >= REG_REDIRECTION => (entry >> (32 * (index & 1))) as u32,
                _ => 0,
            },
        }
    }

    fn set_register(&mut self, index: u8, value: u32) -> Option<Message> {
        if index == REG_ID {
            self.id = (value >> 24) as u8 & 0xf;
            return None;
        }
        let pin = usize::from(index.checked_sub(REG_REDIRECTION)? / 2);
        let entry = self.redirection.get_mut(pin)?;
        let shift = 32 * (index & 1);
        let written = (*entry & !(0xffff_ffff << shift)) | (u64::from(value) << shift);
        *entry = (written & !(READ_ONLY | RESERVED)) | (*entry & READ_ONLY);
        // Remote IRR means something for level-triggered pins only: Linux clears a stuck one by switching to edge
        // and back (io_apic.c: __eoi_ioapic_pin).
        if *entry & LEVEL == 0 {
            *entry &= !REMOTE_IRR;
        }
        self.take_level(pin)
    }
}

impl<S: InterruptSink> IoApic<S> {
    /// A reset I/O APIC with the identifier `id`: all pins masked.
    pub fn new(id: u8, sink: S) -> Self {
        let state = State { select: 0, id, redirection: [MASKED; PINS], lines: 0, routes: [None; PINS] };
        Self { state: Mutex::new(state), sink }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One edge on pin `pin`: sent if the pin is unmasked and edge-triggered, lost otherwise.
    pub fn pulse(&self, pin: u8) {
        let entry = self.lock().redirection.get(usize::from(pin)).copied();
        if let Some(entry) = entry
            && entry & (MASKED | LEVEL) == 0
        {
            self.sink.deliver(message(entry));
        }
    }

    /// Sets the level of pin `pin`'s line. A rising edge counts as [`pulse`](Self::pulse) on an edge-triggered pin.
    pub fn set_line(&self, pin: u8, asserted: bool) {
        let pin = usize::from(pin);
        if pin >= PINS {
            return;
        }
        let mut state = self.lock();
        let bit = 1 << pin;
        let rose = asserted && state.lines & bit == 0;
        state.lines = if asserted { state.lines | bit } else { state.lines & !bit };
        let entry = state.redirection[pin];
        let out = if entry & LEVEL != 0 {
            state.take_level(pin)
        } else {
            (rose && entry & MASKED == 0).then(|| message(entry))
        };
        drop(state);
        if let Some(message) = out {
            self.sink.deliver(message);
        }
    }

    /// A local APIC, or the driver through the EOI register, ended the interrupt with `vector`: the level pins with
    /// that vector may interrupt again, and do at once if their line is still asserted.
    pub fn end_of_interrupt(&self, vector: u8) {
        let mut again = Vec::new();
        let mut state = self.lock();
        for pin in 0..PINS {
            let entry = &mut state.redirection[pin];
            if *entry & LEVEL != 0 && *entry & 0xff == u64::from(vector) {
                *entry &= !REMOTE_IRR;
                again.extend(state.take_level(pin));
            }
        }
        drop(state);
        for message in again {
            self.sink.deliver(message);
        }
    }

    fn window_write(&self, value: u32) {
        let mut state = self.lock();
        let index = state.select;
        let out = state.set_register(index, value);
        let mut routes = [None; PINS];
        for (route, entry) in routes.iter_mut().zip(state.redirection) {
            if entry & LEVEL != 0 && entry & MASKED == 0 {
                *route = Some(level_route(entry));
            }
        }
        if routes != state.routes {
            state.routes = routes;
            self.sink.level_routes(&routes);
        }
        drop(state);
        if let Some(message) = out {
            self.sink.deliver(message);
        }
    }
}

impl<S: InterruptSink> BusDevice for IoApic<S> {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let state = self.lock();
        let value = match offset {
            IOREGSEL => u32::from(state.select),
            IOWIN => state.register(state.select),
            _ => 0,
        };
        data.fill(0);
        for (to, from) in data.iter_mut().zip(value.to_le_bytes()) {
            *to = from;
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut bytes = [0; 4];
        for (to, from) in bytes.iter_mut().zip(data) {
            *to = *from;
        }
        let value = u32::from_le_bytes(bytes);
        match offset {
            IOREGSEL => self.lock().select = value as u8,
            // Registers are 32 bits wide; narrower accesses to them are undefined and ignored here.
            IOWIN if data.len() >= 4 => self.window_write(value),
            EOI => self.end_of_interrupt(value as u8),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Seen {
        messages: Mutex<Vec<Message>>,
        routes: Mutex<Vec<[Option<Message>; PINS]>>,
    }

    impl InterruptSink for &Seen {
        fn deliver(&self, message: Message) {
            self.messages.lock().unwrap().push(message);
        }
        fn level_routes(&self, routes: &[Option<Message>; PINS]) {
            self.routes.lock().unwrap().push(*routes);
        }
    }

    impl Seen {
        fn take(&self) -> Vec<Message> {
            std::mem::take(&mut self.messages.lock().unwrap())
        }
    }

    fn set(ioapic: &IoApic<&Seen>, index: u8, value: u32) {
        ioapic.write(IOREGSEL, &u32::from(index).to_le_bytes());
        ioapic.write(IOWIN, &value.to_le_bytes());
    }

    fn get(ioapic: &IoApic<&Seen>, index: u8) -> u32 {
        ioapic.write(IOREGSEL, &[index]);
        let mut data = [0; 4];
        ioapic.read(IOWIN, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn version_announces_24_pins_and_the_eoi_register() {
        let seen = Seen::default();
        assert_eq!(get(&IoApic::new(0, &seen), REG_VERSION), 0x0017_0020);
    }

    #[test]
    fn pins_are_masked_after_reset() {
        let seen = Seen::default();
        let ioapic = IoApic::new(0, &seen);
        for pin in 0..=255 {
            ioapic.pulse(pin);
            ioapic.set_line(pin, true);
        }
        assert!(seen.take().is_empty());
        assert_eq!(get(&ioapic, 0x10), 0x1_0000);
    }

    #[test]
    fn an_edge_leaves_as_a_compatibility_message() {
        let seen = Seen::default();
        let ioapic = IoApic::new(0, &seen);
        set(&ioapic, 0x19, 0x0300_0000);
        set(&ioapic, 0x18, 0x0000_0931); // logical destination 3, lowest priority, vector 0x31
        ioapic.pulse(4);
        assert_eq!(seen.take(), [Message { address: 0xfee0_3004, data: 0x0131 }]);
        assert!(seen.routes.lock().unwrap().is_empty(), "edge pins need no end of interrupt");
    }

    #[test]
    fn a_remappable_entry_keeps_its_handle_in_the_address() {
        // Handle 0x8123: bits 63:49 are index 14:0, bit 11 is index 15, bit 48 the format.
        let entry = (0x0123 << 49) | FORMAT_REMAPPABLE | (1 << 11) | 4;
        let sent = message(entry);
        assert_eq!(sent.address, 0xfee0_0000 | 0x0123 << 5 | 1 << 4 | 1 << 2);
        assert_eq!(sent.data, 4);
    }

    #[test]
    fn a_level_interrupt_is_sent_once_until_its_end() {
        let seen = Seen::default();
        let ioapic = IoApic::new(0, &seen);
        set(&ioapic, 0x22, 0x8029); // pin 9, level, vector 0x29
        ioapic.set_line(9, true);
        ioapic.set_line(9, true);
        let sent = Message { address: 0xfee0_0000, data: 0xc029 };
        assert_eq!(seen.take(), [sent]);
        assert_eq!(get(&ioapic, 0x22) & REMOTE_IRR as u32, REMOTE_IRR as u32);
        ioapic.end_of_interrupt(0x28);
        assert!(seen.take().is_empty(), "another vector's end");
        ioapic.end_of_interrupt(0x29);
        assert_eq!(seen.take(), [sent], "line still asserted");
        ioapic.set_line(9, false);
        ioapic.write(EOI, &0x29u32.to_le_bytes());
        assert!(seen.take().is_empty());
        assert_eq!(get(&ioapic, 0x22) & REMOTE_IRR as u32, 0);
    }

    #[test]
    fn level_routes_follow_mask_and_trigger() {
        let seen = Seen::default();
        let ioapic = IoApic::new(0, &seen);
        set(&ioapic, 0x22, 0x8029);
        set(&ioapic, 0x22, 0x1_8029);
        set(&ioapic, 0x23, 0x0001_0000);
        set(&ioapic, 0x22, 0x8029); // unmasked again, but in remappable format
        let routes = seen.routes.lock().unwrap();
        assert_eq!(routes.len(), 3);
        assert_eq!(routes[0][9], Some(Message { address: 0xfee0_0000, data: 0xc029 }));
        assert_eq!(routes[1][9], None);
        // Whichever processor the unit makes of it.
        assert_eq!(routes[2][9], Some(Message { address: 0xfeef_f000, data: 0xc029 }));
    }

    #[test]
    fn status_bits_cannot_be_written_and_edge_clears_remote_irr() {
        let seen = Seen::default();
        let ioapic = IoApic::new(0, &seen);
        set(&ioapic, 0x10, 0xffff_ffff);
        assert_eq!(get(&ioapic, 0x10), 0x0001_afff);
        set(&ioapic, 0x22, 0x8029);
        ioapic.set_line(9, true);
        set(&ioapic, 0x22, 0x1_0029);
        set(&ioapic, 0x22, 0x1_8029);
        assert_eq!(get(&ioapic, 0x22), 0x1_8029);
    }

    #[test]
    fn unmasking_a_level_pin_with_its_line_asserted_sends() {
        let seen = Seen::default();
        let ioapic = IoApic::new(0, &seen);
        ioapic.set_line(5, true);
        set(&ioapic, 0x1a, 0x8030);
        assert_eq!(seen.take().len(), 1);
    }

    #[test]
    fn unknown_registers_read_zero() {
        let seen = Seen::default();
        let ioapic = IoApic::new(0, &seen);
        for index in [0x03, 0x0f, 0x40, 0xff] {
            set(&ioapic, index, 0xffff_ffff);
            assert_eq!(get(&ioapic, index), 0);
        }
    }
}
