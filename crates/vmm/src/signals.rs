// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Signals: those that end the machine, and the one that takes a processor out of KVM.

use std::io;
use std::mem::MaybeUninit;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

use crate::stop::{Outcome, Stop, request_end};
use crate::{output_file, terminal};

const ENDING: [libc::c_int; 4] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT];

/// After so many sleeps a process that a signal has asked to end is ended.
const LAST_SLEEPS: u32 = 500;
const LAST_SLEEP: Duration = Duration::from_millis(10);

/// The signal that makes KVM_RUN return.
pub fn kick() -> libc::c_int {
    SIGRTMIN()
}

extern "C" fn nothing(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

fn end_at_once(signal: libc::c_int) -> ! {
    terminal::restore();
    output_file::remove_what_is_not_kept();
    // SAFETY: ends the process without running anything else of it.
    unsafe { libc::_exit(128 + signal) }
}

/// Turns SIGINT, SIGTERM, SIGHUP and SIGQUIT into a request to stop; a second one ends the process at once, and so does the first
/// one after a while. SIGCONT
/// makes the terminal raw again. To be called before any other thread starts, so that all threads inherit the mask.
pub fn install(stop: Arc<Stop>) -> io::Result<()> {
    register_signal_handler(kick(), nothing).map_err(|e| io::Error::from_raw_os_error(e.errno()))?;
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigemptyset initialises the set, the other calls take it.
    let set = unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        let mut set = set.assume_init();
        for signal in ENDING {
            libc::sigaddset(&mut set, signal);
        }
        libc::sigaddset(&mut set, libc::SIGCONT);
        let result = libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
        if result != 0 {
            return Err(io::Error::from_raw_os_error(result));
        }
        set
    };
    thread::Builder::new().name("signals".into()).spawn(move || {
        loop {
            let mut signal = 0;
            // SAFETY: an initialised set and a place for the result.
            if unsafe { libc::sigwait(&set, &mut signal) } != 0 {
                return;
            }
            if signal == libc::SIGCONT {
                terminal::resume();
                continue;
            }
            if stop.requested() {
                end_at_once(signal);
            }
            request_end();
            stop.request(Outcome::Signal(signal));
            // Whatever holds the others up, such as a pipe that nobody empties, does not hold this up.
            let last_resort = thread::Builder::new().name("last resort".into()).spawn(move || {
                (0..LAST_SLEEPS).for_each(|_| thread::sleep(LAST_SLEEP));
                end_at_once(signal);
            });
            if last_resort.is_err() {
                end_at_once(signal);
            }
        }
    })?;
    Ok(())
}
