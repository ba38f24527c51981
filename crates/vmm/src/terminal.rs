// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The user's terminal: raw while the guest owns it, and as it was before on every way out, panics and fatal signals
//! included.

use std::io::{self, IsTerminal};
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::{Mutex, Once, PoisonError};

/// The settings to restore; null while the terminal is as the user left it. Leaked, so that a signal handler may
/// read it at any time.
static SAVED: AtomicPtr<libc::termios> = AtomicPtr::new(ptr::null_mut());

/// Held by whoever makes the terminal raw again, or gives it back for good: the latter counts, in whatever order they
/// come. Signal handlers and panics do without.
static LAST_WORD: Mutex<()> = Mutex::new(());

/// The raw settings, leaked too; null before they were first set.
static RAW: AtomicPtr<libc::termios> = AtomicPtr::new(ptr::null_mut());

/// Signals whose default is to end the process and that nothing else is done with: what `signals` waits for is not here.
const FATAL_SIGNALS: [libc::c_int; 14] = [
    libc::SIGSEGV,
    libc::SIGBUS,
    libc::SIGILL,
    libc::SIGFPE,
    libc::SIGABRT,
    libc::SIGTRAP,
    libc::SIGALRM,
    libc::SIGVTALRM,
    libc::SIGPROF,
    libc::SIGXCPU,
    libc::SIGXFSZ,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGPWR,
];

/// Standard input in raw mode. Restores the terminal when dropped.
pub struct RawMode(());

/// Whether no other process group has the terminal: one that is not our session's has no groups. Safe in signal
/// handlers.
fn is_foreground() -> bool {
    // SAFETY: plain calls without pointers.
    let (owner, own) = unsafe { (libc::tcgetpgrp(libc::STDIN_FILENO), libc::getpgrp()) };
    owner < 0 || owner == own
}

/// Puts the terminal back as it was. Does nothing if it is, or if the shell has taken it back already: to change it from
/// the background would stop the process. Safe in signal handlers.
pub fn restore() {
    let saved = SAVED.swap(ptr::null_mut(), Ordering::AcqRel);
    if !saved.is_null() && is_foreground() {
        // SAFETY: non-null values of SAVED come from Box::leak and are never freed; tcsetattr only reads it and is
        // async-signal-safe.
        unsafe { libc::tcsetattr(libc::STDIN_FILENO, libc::TCSANOW, saved) };
    }
}

/// Makes the terminal raw again if the guest owns it: after the process was stopped and continued, the shell has set
/// it to its own taste.
pub fn resume() {
    let _guard = LAST_WORD.lock().unwrap_or_else(PoisonError::into_inner);
    let raw = RAW.load(Ordering::Acquire);
    if !SAVED.load(Ordering::Acquire).is_null() && !raw.is_null() && is_ours() {
        // SAFETY: non-null values of RAW come from Box::leak and are never freed; tcsetattr only reads it.
        unsafe { libc::tcsetattr(libc::STDIN_FILENO, libc::TCSANOW, raw) };
    }
}

extern "C" fn restore_and_die(signal: libc::c_int) {
    restore();
    // SAFETY: raise is async-signal-safe; the handler was reset by SA_RESETHAND, so this is the signal's own death.
    unsafe { libc::raise(signal) };
}

fn install_handlers() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let previous = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            restore();
            previous(info);
        }));
        for signal in FATAL_SIGNALS {
            // SAFETY: all-zero is a valid sigaction; the handler touches an atomic and calls async-signal-safe
            // functions only.
            unsafe {
                let mut action: libc::sigaction = MaybeUninit::zeroed().assume_init();
                action.sa_sigaction = restore_and_die as *const () as usize;
                action.sa_flags = libc::SA_RESETHAND | libc::SA_ONSTACK | libc::SA_NODEFER;
                libc::sigaction(signal, &action, ptr::null_mut());
            }
        }
    });
}

/// Whether standard input is a terminal that we may change: one of a background job is not (changing it would stop
/// the process).
pub fn is_ours() -> bool {
    io::stdin().is_terminal() && is_foreground()
}

impl RawMode {
    /// Makes standard input raw: each key goes to the guest as it is typed, Ctrl-C and Ctrl-Z too, and the guest
    /// echoes. Output processing stays on.
    pub fn enter() -> io::Result<Self> {
        install_handlers();
        let mut settings = MaybeUninit::uninit();
        // SAFETY: tcgetattr fills the structure or fails.
        if unsafe { libc::tcgetattr(libc::STDIN_FILENO, settings.as_mut_ptr()) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: filled above.
        let settings = unsafe { settings.assume_init() };
        let mut raw = settings;
        // SAFETY: cfmakeraw only changes the structure.
        unsafe { libc::cfmakeraw(&mut raw) };
        raw.c_oflag = settings.c_oflag;
        RAW.store(Box::leak(Box::new(raw)), Ordering::Release);
        SAVED.store(Box::leak(Box::new(settings)), Ordering::Release);
        // SAFETY: a valid structure for an open terminal.
        if unsafe { libc::tcsetattr(libc::STDIN_FILENO, libc::TCSANOW, &raw) } != 0 {
            let error = io::Error::last_os_error();
            SAVED.store(ptr::null_mut(), Ordering::Release);
            return Err(error);
        }
        Ok(Self(()))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        let _guard = LAST_WORD.lock().unwrap_or_else(PoisonError::into_inner);
        restore();
    }
}
