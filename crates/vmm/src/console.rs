// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The serial console: a 16550 whose output goes to standard output (and a log), and whose input comes from standard
//! input through an escape filter.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::fs::File;
use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use vm_superio::Trigger;
use vm_superio::serial::{NoEvents, Serial};

use crate::bus::BusDevice;
use crate::output_file::PatientFile;
use crate::stop::{Outcome, Stop};

/// Ports of the 16550.
pub const PORTS: u64 = 8;
/// Input that the guest has not taken is kept up to this size; from a terminal more is dropped, from a pipe more is
/// not read.
const PENDING_LIMIT: usize = 64 << 10;
const DATA_REGISTER: u64 = 0;

/// Raises the port's interrupt.
pub struct Interrupt(Box<dyn Fn() + Send + Sync>);

impl Trigger for Interrupt {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        (self.0)();
        Ok(())
    }
}

/// Where the guest's output goes.
pub struct Output {
    screen: PatientFile,
    log: Option<PatientFile>,
}

impl Output {
    /// Output to `screen`.
    pub fn new(screen: File) -> Self {
        // A terminal that is shared with another program may be non-blocking.
        Self { screen: PatientFile::new(screen), log: None }
    }
}

impl Write for Output {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        // The guest runs on if nobody reads its console any more.
        let _ = self.screen.write_all(data);
        if let Some(log) = &mut self.log {
            let _ = log.write_all(data);
        }
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct State<W: Write> {
    uart: Serial<Interrupt, NoEvents, W>,
    pending: VecDeque<u8>,
}

impl<W: Write> State<W> {
    fn refill(&mut self) {
        while self.uart.fifo_capacity() > 0 && !self.pending.is_empty() {
            let count = self.uart.fifo_capacity().min(self.pending.len());
            let chunk: Vec<u8> = self.pending.iter().take(count).copied().collect();
            match self.uart.enqueue_raw_bytes(&chunk) {
                // Loop-back mode takes nothing.
                Ok(0) | Err(_) => break,
                Ok(taken) => drop(self.pending.drain(..taken)),
            }
        }
    }
}

/// The serial console.
pub struct Console<W: Write + Send = Output> {
    state: Mutex<State<W>>,
    room: Condvar,
}

impl<W: Write + Send> Console<W> {
    /// A console that writes to `output` and calls `interrupt` for an edge on its interrupt line.
    pub fn new(output: W, interrupt: impl Fn() + Send + Sync + 'static) -> Self {
        let uart = Serial::new(Interrupt(Box::new(interrupt)), output);
        Self { state: Mutex::new(State { uart, pending: VecDeque::new() }), room: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State<W>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Input for the guest. What does not fit waits here; beyond that it is dropped, or this waits if `patient`.
    pub fn input(&self, mut data: &[u8], patient: bool) {
        let mut state = self.lock();
        while !data.is_empty() {
            let room = PENDING_LIMIT.saturating_sub(state.pending.len());
            let (now, later) = data.split_at(room.min(data.len()));
            state.pending.extend(now);
            state.refill();
            data = later;
            if !data.is_empty() {
                if !patient {
                    return;
                }
                state = self.room.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }
}

impl Console {
    /// Copies all further output, byte for byte, to `log`.
    pub fn log_to(&self, log: PatientFile) {
        self.lock().uart.writer_mut().log = Some(log);
    }
}

impl<W: Write + Send> BusDevice for Console<W> {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        let mut state = self.lock();
        if let [value] = data {
            *value = state.uart.read(offset as u8);
            if offset == DATA_REGISTER && !state.pending.is_empty() {
                state.refill();
                self.room.notify_all();
            }
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let [value] = data {
            // Output errors are dealt with in `Output`.
            let _ = self.lock().uart.write(offset as u8, *value);
        }
    }
}

/// What typed bytes mean.
#[derive(Debug, PartialEq, Eq)]
enum Typed {
    /// These go to the guest.
    Pass(Vec<u8>),
    /// The user ends the machine.
    Quit,
    /// The user wants to know the escapes.
    Help,
}

/// The escape key, Ctrl-A.
const ESCAPE: u8 = 0x01;

/// Told to the user on Ctrl-A h.
pub const ESCAPE_HELP: &str = "Ctrl-A x ends the machine, Ctrl-A a sends Ctrl-A, all else goes to the guest";

/// Finds the escape sequences in what is typed.
#[derive(Default)]
struct EscapeFilter {
    escaped: bool,
}

impl EscapeFilter {
    fn typed(&mut self, data: &[u8]) -> Vec<Typed> {
        let mut all = Vec::new();
        let mut pass = Vec::new();
        for &byte in data {
            let special = match (std::mem::take(&mut self.escaped), byte) {
                (false, ESCAPE) => {
                    self.escaped = true;
                    continue;
                }
                (true, b'x' | b'X') => Typed::Quit,
                (true, b'h' | b'H' | b'?') => Typed::Help,
                (true, b'a' | ESCAPE) => {
                    pass.push(ESCAPE);
                    continue;
                }
                (true, other) => {
                    pass.extend([ESCAPE, other]);
                    continue;
                }
                (false, other) => {
                    pass.push(other);
                    continue;
                }
            };
            if !pass.is_empty() {
                all.push(Typed::Pass(std::mem::take(&mut pass)));
            }
            all.push(special);
        }
        if !pass.is_empty() {
            all.push(Typed::Pass(pass));
        }
        all
    }
}

/// Moves `source` to the console until its end. With `terminal`, escape sequences are obeyed.
pub fn pump_input(mut source: impl io::Read, console: &Console, terminal: bool, stop: &Arc<Stop>) {
    let mut filter = EscapeFilter::default();
    let mut buffer = [0; 256];
    loop {
        let data = match source.read(&mut buffer) {
            Ok(0) => return,
            Ok(count) => &buffer[..count],
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                std::thread::sleep(std::time::Duration::from_millis(10));
                continue;
            }
            Err(_) => return,
        };
        if !terminal {
            console.input(data, true);
            continue;
        }
        for typed in filter.typed(data) {
            match typed {
                Typed::Pass(bytes) => console.input(&bytes, false),
                Typed::Quit => return stop.request(Outcome::Quit),
                // Nobody to read it is no reason to stop.
                Typed::Help => drop(write!(io::stderr(), "\n{ESCAPE_HELP}\n")),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    const IER: u64 = 1;
    const LSR: u64 = 5;

    fn console() -> (Console<Vec<u8>>, Arc<AtomicUsize>) {
        let interrupts = Arc::new(AtomicUsize::new(0));
        let count = interrupts.clone();
        let console = Console::new(Vec::new(), move || {
            count.fetch_add(1, Ordering::Relaxed);
        });
        (console, interrupts)
    }

    fn read(console: &Console<Vec<u8>>, offset: u64) -> u8 {
        let mut data = [0];
        console.read(offset, &mut data);
        data[0]
    }

    #[test]
    fn input_beyond_the_fifo_arrives_in_order_and_interrupts_again() {
        let (console, interrupts) = console();
        console.write(IER, &[1]);
        let sent: Vec<u8> = (0..1000u32).map(|i| i as u8).collect();
        console.input(&sent, false);
        let mut received = Vec::new();
        while read(&console, LSR) & 1 != 0 {
            received.push(read(&console, 0));
        }
        assert_eq!(received, sent);
        assert!(interrupts.load(Ordering::Relaxed) > 1);
    }

    #[test]
    fn input_nobody_takes_is_bounded() {
        let (console, _) = console();
        console.input(&vec![b'x'; PENDING_LIMIT * 3], false);
        assert!(console.lock().pending.len() <= PENDING_LIMIT);
    }

    #[test]
    fn output_reaches_the_writer() {
        let (console, _) = console();
        for byte in b"hello" {
            console.write(0, &[*byte]);
        }
        assert_eq!(console.lock().uart.writer(), b"hello");
    }

    #[test]
    fn ctrl_c_and_plain_bytes_go_to_the_guest() {
        let mut filter = EscapeFilter::default();
        assert_eq!(filter.typed(b"ls\x03\x04\x1a"), [Typed::Pass(b"ls\x03\x04\x1a".to_vec())]);
    }

    #[test]
    fn the_escape_key_is_seen_across_reads() {
        let mut filter = EscapeFilter::default();
        assert_eq!(filter.typed(b"a\x01"), [Typed::Pass(b"a".to_vec())]);
        assert_eq!(filter.typed(b"xb"), [Typed::Quit, Typed::Pass(b"b".to_vec())]);
        assert_eq!(filter.typed(b"\x01a\x01\x01\x01z"), [Typed::Pass(b"\x01\x01\x01z".to_vec())]);
        assert_eq!(filter.typed(b"\x01h"), [Typed::Help]);
    }
}
