// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Child processes that run a part of a check and tell how it went. A queue belongs to the process that opened it,
//! so each opens its own (the portal's mapping is not inherited: Linux drivers/dma/idxd/cdev.c, VM_DONTCOPY).

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Result, anyhow, bail, ensure};

use crate::memory::Mapping;
use crate::progress::{self, Patience};

/// Figures that a check measured.
#[derive(Default)]
pub struct Findings(Vec<(String, f64, String)>);

impl Findings {
    /// Adds a figure.
    pub fn figure(&mut self, name: &str, value: f64, unit: &str) {
        self.0.push((name.into(), value, unit.into()));
    }

    /// All figures: name, value, unit.
    pub fn figures(&self) -> &[(String, f64, String)] {
        &self.0
    }

    fn encode(&self, outcome: &Result<String>) -> Vec<u8> {
        let mut text = String::new();
        for (name, value, unit) in &self.0 {
            text += &format!("{name}\t{value}\t{unit}\n");
        }
        match outcome {
            Ok(detail) => text += &format!("+{detail}"),
            Err(error) => text += &format!("-{error:#}"),
        }
        // The NUL ends the message: waiting for the end of file would wait for grandchildren too.
        let mut bytes: Vec<u8> = text.bytes().map(|b| if b == 0 { b'?' } else { b }).collect();
        bytes.push(0);
        bytes
    }

    fn decode(message: &str) -> Result<(Findings, String)> {
        let mut findings = Findings::default();
        let mut rest = message;
        loop {
            if let Some(detail) = rest.strip_prefix('+') {
                return Ok((findings, detail.to_string()));
            }
            if let Some(error) = rest.strip_prefix('-') {
                bail!("{error}");
            }
            let Some((line, tail)) = rest.split_once('\n') else { bail!("garbled message {message:?}") };
            rest = tail;
            if let [name, value, unit] = line.split('\t').collect::<Vec<_>>()[..] {
                findings.figure(name, value.parse().unwrap_or(f64::NAN), unit);
            }
        }
    }
}

/// How long one look for a child's answer waits.
pub const STEP: Duration = Duration::from_millis(10);

/// A running child.
pub struct Child {
    pid: libc::pid_t,
    pipe: OwnedFd,
    message: Vec<u8>,
    group: bool,
    status: Option<i32>,
}

/// Starts a child that runs `work`. With `group` it gets a process group of its own, so that [`Child::kill`] reaches
/// its children too.
pub fn spawn(group: bool, work: impl FnOnce(&mut Findings) -> Result<String>) -> Result<Child> {
    let mut ends = [0; 2];
    // SAFETY: `ends` has room for the two descriptors.
    let result = unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) };
    ensure!(result == 0, "pipe: {}", io::Error::last_os_error());
    // SAFETY: the kernel just made both descriptors for us alone.
    let (read_end, write_end) = unsafe { (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])) };
    // SAFETY: this program has a single thread wherever it forks.
    let pid = unsafe { libc::fork() };
    ensure!(pid >= 0, "fork: {}", io::Error::last_os_error());
    if pid == 0 {
        drop(read_end);
        if group {
            // SAFETY: no memory is passed.
            unsafe { libc::setpgid(0, 0) };
        }
        let mut findings = Findings::default();
        let outcome = catch_unwind(AssertUnwindSafe(|| work(&mut findings)))
            .unwrap_or_else(|panic| Err(anyhow!("panicked: {}", panic_text(&*panic))));
        let message = findings.encode(&outcome);
        // SAFETY: the buffer lives over the call. One write: a pipe takes 64 KiB. Then the child ends without
        // running destructors of the parent's objects.
        unsafe {
            libc::write(write_end.as_raw_fd(), message.as_ptr().cast(), message.len());
            libc::_exit(i32::from(outcome.is_err()));
        }
    }
    if group {
        // SAFETY: no memory is passed; done on both sides so that neither has to wait for the other.
        unsafe { libc::setpgid(pid, pid) };
    }
    Ok(Child { pid, pipe: read_end, message: Vec::new(), group, status: None })
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| s.to_string());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "without a message".into())
}

impl Child {
    /// Waits for the child's message and its end; a child is killed when nothing gets on any more.
    pub fn join(&mut self) -> Result<(Findings, String)> {
        self.join_with(Patience::of_its_watcher(), || {})
    }

    /// The same with another patience; `each_sleep` is called after each sleep of [`STEP`].
    pub fn join_with(&mut self, patience: Patience, each_sleep: impl FnMut()) -> Result<(Findings, String)> {
        let answered = self.receive(patience, each_sleep);
        let status = self.kill_and_reap(!matches!(answered, Ok(true)));
        match answered {
            Err(error) if status.is_none() => Err(error.context("the process is stuck in the kernel")),
            Err(error) => Err(error),
            Ok(true) => {
                let (findings, detail) = Findings::decode(&String::from_utf8_lossy(&self.message))?;
                ensure!(
                    status.is_some(),
                    "{detail} - but the process is stuck in the kernel and does not end"
                );
                Ok((findings, detail))
            }
            Ok(false) => match status {
                None => bail!("the process died or hung without an answer and is stuck in the kernel"),
                Some(status) if libc::WIFSIGNALED(status) => {
                    bail!("the process was killed by signal {}", libc::WTERMSIG(status))
                }
                Some(status) => bail!("the process ended with status {status:#x} and said nothing"),
            },
        }
    }

    /// Waits for a message. False if the child died before it sent one.
    fn receive(&mut self, mut patience: Patience, mut each_sleep: impl FnMut()) -> Result<bool> {
        let mut ended = false;
        loop {
            let mut poll = libc::pollfd { fd: self.pipe.as_raw_fd(), events: libc::POLLIN, revents: 0 };
            // A short step, to notice a child that died while its children hold the pipe open.
            let step = if ended { 0 } else { STEP.as_millis() as i32 };
            // SAFETY: `poll` is one valid entry.
            let ready = unsafe { libc::poll(&mut poll, 1, step) };
            if ready > 0 {
                let mut part = [0u8; 4096];
                // SAFETY: `part` has the length given.
                let n = unsafe { libc::read(self.pipe.as_raw_fd(), part.as_mut_ptr().cast(), part.len()) };
                if n <= 0 {
                    return Ok(false);
                }
                self.message.extend_from_slice(&part[..n as usize]);
                if self.message.last() == Some(&0) {
                    self.message.pop();
                    return Ok(true);
                }
            } else if ended {
                return Ok(false);
            } else {
                // What it wrote just before it ended, after the poll above, is still to be read.
                ended = self.ended();
                if !ended {
                    each_sleep();
                    patience.slept(STEP, progress::steps(), "an answer")?;
                }
            }
        }
    }

    /// Whether the child has ended (it stays to be reaped).
    fn ended(&self) -> bool {
        // SAFETY: a zeroed siginfo is valid; the call fills it.
        unsafe {
            let mut info: libc::siginfo_t = std::mem::zeroed();
            let flags = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
            libc::waitid(libc::P_PID, self.pid as libc::id_t, &mut info, flags) == 0 && info.si_pid() != 0
        }
    }

    /// Kills the child at once and waits until it is gone; false if it does not go away.
    pub fn kill(&mut self) -> bool {
        self.kill_and_reap(true).is_some()
    }

    fn kill_and_reap(&mut self, at_once: bool) -> Option<i32> {
        if self.status.is_some() {
            return self.status;
        }
        if at_once {
            // SAFETY: the child has not been reaped, so the pid is still ours.
            unsafe { libc::kill(self.pid, libc::SIGKILL) };
        }
        let mut patience = Patience::of_a_check();
        let status = loop {
            let mut status = 0;
            // SAFETY: `status` outlives the call.
            match unsafe { libc::waitpid(self.pid, &mut status, libc::WNOHANG) } {
                0 if patience.sleep(Duration::from_millis(1), "its end").is_ok() => {}
                0 => {
                    // It answered but does not end.
                    // SAFETY: the child has not been reaped, so the pid is still ours.
                    unsafe { libc::kill(self.pid, libc::SIGKILL) };
                    break None;
                }
                _ => break Some(status),
            }
        };
        self.status = status;
        if self.group {
            // SAFETY: the group was made for this child; when it is empty the call fails harmlessly.
            unsafe { libc::kill(-self.pid, libc::SIGKILL) };
        }
        status
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if self.status.is_none() {
            self.kill();
        }
    }
}

/// Meeting points for processes, in memory that they share.
pub struct Meeting(Mapping);

impl Meeting {
    /// Makes the memory; processes forked afterwards share it.
    pub fn new() -> Result<Meeting> {
        Ok(Meeting(Mapping::shared(crate::memory::PAGE)?))
    }

    /// Counter `point` (0 to 1023).
    pub fn counter(&self, point: usize) -> &AtomicU32 {
        // SAFETY: the mapping has 1024 aligned counters, is shared, and lives as long as `self`.
        unsafe { AtomicU32::from_ptr(self.0.pointer().cast::<u32>().add(point % 1024)) }
    }

    /// Announces arrival at `point` and waits until `everyone` has arrived.
    pub fn meet(&self, point: usize, everyone: u32) -> Result<()> {
        self.counter(point).fetch_add(1, Ordering::SeqCst);
        progress::made();
        self.wait(point, everyone)
    }

    /// Waits until counter `point` has reached `value`.
    pub fn wait(&self, point: usize, value: u32) -> Result<()> {
        self.wait_with(Patience::of_a_check(), point, value)
    }

    fn wait_with(&self, mut patience: Patience, point: usize, value: u32) -> Result<()> {
        while self.counter(point).load(Ordering::SeqCst) < value {
            let what = format!("another process to get to meeting point {point}");
            patience.sleep(Duration::from_micros(500), &what)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_hands_back_detail_and_figures() {
        let mut child = spawn(true, |f| {
            f.figure("latency", 2.5, "us");
            Ok("did\nit".into())
        })
        .unwrap();
        let (findings, detail) = child.join().unwrap();
        assert_eq!(detail, "did\nit");
        assert_eq!(findings.figures(), [("latency".to_string(), 2.5, "us".to_string())]);
    }

    #[test]
    fn errors_panics_signals_and_hangs_are_told_apart() {
        let failure_with = |patience, work: fn() -> Result<String>| {
            let outcome = spawn(true, |_| work()).unwrap().join_with(patience, || {});
            format!("{:#}", outcome.err().unwrap())
        };
        let failure = |work| failure_with(Patience::of_its_watcher(), work);
        assert!(failure(|| bail!("no queue")).contains("no queue"));
        assert!(failure(|| panic!("oh")).contains("panicked: oh"));
        let killed = failure(|| {
            // SAFETY: ends this process only.
            unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
            Ok(String::new())
        });
        assert!(killed.contains("signal 9"), "{killed}");
        let hang = failure_with(Patience::none(), || {
            loop {
                std::thread::sleep(Duration::from_secs(60));
            }
        });
        assert!(hang.contains("no progress") && hang.contains("an answer"), "{hang}");
    }

    #[test]
    fn processes_meet() {
        let meeting = Meeting::new().unwrap();
        let mut child = spawn(true, |_| meeting.meet(3, 2).map(|()| "met".into())).unwrap();
        meeting.meet(3, 2).unwrap();
        assert_eq!(child.join().unwrap().1, "met");
        assert!(meeting.wait_with(Patience::none(), 4, 1).is_err());
    }
}
