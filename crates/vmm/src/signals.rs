// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Signals: those that end the machine, and the one that takes a processor out of KVM.

use std::io;
use std::mem::MaybeUninit;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

use crate::machine::{Outcome, Stop};
use crate::terminal;

const ENDING: [libc::c_int; 4] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT];

static END_REQUESTED: AtomicBool = AtomicBool::new(false);

/// Whether a signal has asked for the end: then nobody who has stopped reading is waited for any more.
pub fn end_requested() -> bool {
    END_REQUESTED.load(Ordering::Relaxed)
}

/// The signal that makes KVM_RUN return.
pub fn kick() -> libc::c_int {
    SIGRTMIN()
}

extern "C" fn nothing(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}

/// Turns SIGINT, SIGTERM, SIGHUP and SIGQUIT into a request to stop; a second one ends the process at once. SIGCONT
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
                terminal::restore();
                // SAFETY: ends the process without running anything of it; that is what a second signal asks for.
                unsafe { libc::_exit(128 + signal) };
            }
            END_REQUESTED.store(true, Ordering::Relaxed);
            stop.request(Outcome::Signal(signal));
        }
    })?;
    Ok(())
}
