// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The user's terminal is raw while the guest owns it, and as it was on every way out.
//!
//! Each case runs this program again, with a terminal of its own, as the process that owns it.

use std::fs::File;
use std::io::{self, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use patience::Patience;
use vmm::output_file::PatientFile;
use vmm::signals;
use vmm::stop::{Outcome, Stop};
use vmm::terminal::RawMode;

/// What the program does when it is run again.
const ROLE: &str = "VMM_TEST_ROLE";

fn main() {
    if let Ok(role) = std::env::var(ROLE) {
        return owner(&role);
    }
    let cases: [(&str, fn()); 7] = [
        ("a_terminal_is_raw_until_the_machine_ends", a_terminal_is_raw_until_the_machine_ends),
        ("a_terminal_of_no_session_is_raw_too", a_terminal_of_no_session_is_raw_too),
        ("ending_signals_are_requests_and_restore", ending_signals_are_requests_and_restore),
        ("a_second_signal_ends_at_once_and_restores", a_second_signal_ends_at_once_and_restores),
        ("fatal_signals_restore_and_kill", fatal_signals_restore_and_kill),
        ("a_panic_on_any_thread_restores", a_panic_on_any_thread_restores),
        (
            "a_signal_ends_a_write_to_a_pipe_that_nobody_empties",
            a_signal_ends_a_write_to_a_pipe_that_nobody_empties,
        ),
    ];
    for (name, case) in cases {
        case();
        println!("test {name} ... ok");
    }
}

/// The process that owns the terminal.
fn owner(role: &str) {
    let stop = Arc::new(Stop::default());
    signals::install(stop.clone()).unwrap();
    let raw = RawMode::enter().unwrap();
    println!("ready");
    io::stdout().flush().unwrap();
    match role {
        "line" => drop(io::stdin().read_exact(&mut [0])),
        "request" => {
            let Outcome::Signal(signal) = stop.wait() else { std::process::exit(1) };
            drop(raw);
            std::process::exit(signal);
        }
        "stubborn" => loop {
            thread::park();
        },
        // It has written all that the pipe takes, and waits for somebody to read.
        "full" => {
            let (_reader, writer) = io::pipe().unwrap();
            // SAFETY: the descriptor is open; the command takes an integer.
            assert_eq!(unsafe { libc::fcntl(writer.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) }, 0);
            let mut file = PatientFile::new(File::from(OwnedFd::from(writer)));
            let error = file.write_all(&[0; 1 << 20]).unwrap_err();
            assert_eq!((error.kind(), stop.requested()), (io::ErrorKind::TimedOut, true));
        }
        "panic" => {
            io::stdin().read_exact(&mut [0]).unwrap();
            thread::spawn(|| panic!("on purpose")).join().unwrap_err();
            // Still alive, and the terminal is the user's.
            std::mem::forget(raw);
        }
        _ => unreachable!("{role}"),
    }
}

/// A terminal, its two ends.
struct Terminal {
    master: File,
    slave: File,
}

#[derive(Debug, PartialEq, Eq)]
struct Settings {
    flags: [libc::tcflag_t; 4],
    characters: [libc::cc_t; libc::NCCS],
}

impl Settings {
    fn is_raw(&self) -> bool {
        let [input, _, _, local] = self.flags;
        local & (libc::ICANON | libc::ECHO | libc::ISIG) == 0 && input & libc::IXON == 0
    }
}

impl Terminal {
    fn new() -> Self {
        let (mut master, mut slave) = (0, 0);
        let none = std::ptr::null_mut();
        // SAFETY: two places for descriptors; the other arguments may be null.
        let result = unsafe { libc::openpty(&mut master, &mut slave, none, none.cast(), none.cast()) };
        assert_eq!(result, 0);
        // SAFETY: the descriptors were just made and nobody else has them.
        unsafe { Self { master: File::from_raw_fd(master), slave: File::from_raw_fd(slave) } }
    }

    fn settings(&self) -> Settings {
        let mut settings = MaybeUninit::<libc::termios>::uninit();
        // SAFETY: tcgetattr fills the structure or fails.
        let settings = unsafe {
            assert_eq!(libc::tcgetattr(self.slave.as_raw_fd(), settings.as_mut_ptr()), 0);
            settings.assume_init()
        };
        Settings {
            flags: [settings.c_iflag, settings.c_oflag, settings.c_cflag, settings.c_lflag],
            characters: settings.c_cc,
        }
    }

    /// Runs the owner until it is ready, lets `act` happen to it, and waits for its end. Checks the settings on the way.
    fn owned_by(role: &str, act: impl Fn(&mut Self, &Child)) -> ExitStatus {
        Self::used_by(role, true, act)
    }

    /// The same, as the terminal of the owner's session or not.
    fn used_by(role: &str, controlling: bool, act: impl Fn(&mut Self, &Child)) -> ExitStatus {
        let mut terminal = Self::new();
        let before = terminal.settings();
        assert!(!before.is_raw());
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.env(ROLE, role).stdin(terminal.slave.try_clone().unwrap());
        command.stdout(Stdio::piped()).stderr(Stdio::null());
        // SAFETY: between fork and exec only system calls that are async-signal-safe.
        unsafe {
            command.pre_exec(move || {
                let no_core = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
                libc::setrlimit(libc::RLIMIT_CORE, &no_core);
                if libc::setsid() < 0
                    || controlling && libc::ioctl(libc::STDIN_FILENO, libc::TIOCSCTTY, 0) < 0
                {
                    return Err(io::Error::last_os_error());
                }
                Ok(())
            });
        }
        let mut child = command.spawn().unwrap();
        let mut ready = [0; 6];
        child.stdout.as_mut().unwrap().read_exact(&mut ready).unwrap();
        assert!(terminal.settings().is_raw(), "{role}");
        act(&mut terminal, &child);
        let mut patience = Patience::default();
        let status = loop {
            match child.try_wait().unwrap() {
                Some(status) => break status,
                None => patience.pause(role),
            }
        };
        assert_eq!(terminal.settings(), before, "{role}: {status}");
        status
    }
}

fn send(child: &Child, signal: libc::c_int) {
    // SAFETY: a plain call; the child has not been waited for.
    assert_eq!(unsafe { libc::kill(child.id() as libc::pid_t, signal) }, 0);
}

fn a_terminal_is_raw_until_the_machine_ends() {
    // Ctrl-C is a byte like any other.
    let status = Terminal::owned_by("line", |terminal, _| terminal.master.write_all(b"\x03").unwrap());
    assert_eq!(status.code(), Some(0));
}

fn a_terminal_of_no_session_is_raw_too() {
    let status = Terminal::used_by("line", false, |terminal, _| terminal.master.write_all(b"\x03").unwrap());
    assert_eq!(status.code(), Some(0));
}

fn ending_signals_are_requests_and_restore() {
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT] {
        let status = Terminal::owned_by("request", |_, child| send(child, signal));
        assert_eq!(status.code(), Some(signal));
    }
}

fn a_second_signal_ends_at_once_and_restores() {
    let status = Terminal::owned_by("stubborn", |_, child| {
        send(child, libc::SIGTERM);
        // Two that wait at the same time would be one.
        thread::sleep(Duration::from_millis(100));
        send(child, libc::SIGTERM);
    });
    assert_eq!(status.code(), Some(128 + libc::SIGTERM));
}

fn fatal_signals_restore_and_kill() {
    for signal in [libc::SIGSEGV, libc::SIGBUS, libc::SIGABRT, libc::SIGXFSZ, libc::SIGUSR1, libc::SIGALRM] {
        let status = Terminal::owned_by("stubborn", |_, child| send(child, signal));
        assert_eq!(status.signal(), Some(signal));
    }
}

fn a_signal_ends_a_write_to_a_pipe_that_nobody_empties() {
    let status = Terminal::owned_by("full", |_, child| send(child, libc::SIGTERM));
    assert_eq!(status.code(), Some(0));
}

fn a_panic_on_any_thread_restores() {
    let status = Terminal::owned_by("panic", |terminal, _| terminal.master.write_all(b"x").unwrap());
    assert_eq!(status.code(), Some(0));
}
