// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Children: run to the end, or watched; none outlives the lab.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// How often a child under way is looked at.
pub const TICK: Duration = Duration::from_millis(100);

static INTERRUPTED: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// From here on Ctrl-C and a request to end only set a flag, so that whatever is under way is cleaned up; a second
/// one ends the process at once.
pub fn catch_interrupts() -> Result<()> {
    let flag = Arc::clone(INTERRUPTED.get_or_init(Arc::default));
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        signal_hook::flag::register_conditional_shutdown(signal, 130, Arc::clone(&flag))?;
        signal_hook::flag::register(signal, Arc::clone(&flag))?;
    }
    Ok(())
}

/// Fails once the user has asked to stop.
pub fn check_interrupt() -> Result<()> {
    if INTERRUPTED.get().is_some_and(|flag| flag.load(Ordering::Relaxed)) {
        bail!("interrupted");
    }
    Ok(())
}

/// A child that is killed when this value is dropped, and by the kernel when this process dies in any other way.
pub struct Guarded(Child);

impl Guarded {
    /// Starts `command`, whose first word must exist: `remedy` says what to do where it does not.
    pub fn spawn(command: &mut Command, remedy: &str) -> Result<Self> {
        // SAFETY: prctl is async-signal-safe and touches no memory of this process.
        unsafe {
            command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            });
        }
        let program = command.get_program().to_string_lossy().into_owned();
        let child = command.spawn().with_context(|| format!("cannot run {program}: {remedy}"))?;
        Ok(Self(child))
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.0.id()
    }

    /// The exit status, once there is one.
    pub fn status(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.0.try_wait()?)
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // Both fail only on a child that has ended and been waited for.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs `command` to its end and gives its output; a failure carries the first error line it printed.
pub fn output(command: &mut Command, remedy: &str) -> Result<Output> {
    check_interrupt()?;
    let program = command.get_program().to_string_lossy().into_owned();
    let output =
        command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {program}: {remedy}"))?;
    check_interrupt()?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        bail!("{program} failed ({}): {}", output.status, first_error(&text));
    }
    Ok(output)
}

/// Runs `command` with its output going where ours goes.
pub fn run(command: &mut Command, remedy: &str) -> Result<()> {
    check_interrupt()?;
    let program = command.get_program().to_string_lossy().into_owned();
    let arguments: Vec<_> = command.get_args().map(|a| a.to_string_lossy().into_owned()).collect();
    let status =
        command.stdin(Stdio::null()).status().with_context(|| format!("cannot run {program}: {remedy}"))?;
    check_interrupt()?;
    if !status.success() {
        bail!("{program} {} failed ({status})", arguments.join(" "));
    }
    Ok(())
}

/// The line that says why: apt marks errors with `E:`, most others with `error`.
pub fn first_error(text: &str) -> &str {
    let mut lines = text.lines().map(str::trim).filter(|l| !l.is_empty());
    lines
        .clone()
        .find(|l| l.starts_with("E:") || l.to_ascii_lowercase().contains("error"))
        .or_else(|| lines.next_back())
        .unwrap_or("it printed no reason")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn a_missing_program_is_named_with_its_remedy() {
        let error = output(&mut Command::new("no-such-program"), "install it").unwrap_err();
        assert_eq!(error.to_string(), "cannot run no-such-program: install it");
    }

    #[test]
    fn a_failure_carries_the_error_line() {
        let error =
            output(Command::new("sh").args(["-c", "echo W: no >&2; echo E: refused >&2; exit 3"]), "")
                .unwrap_err();
        assert!(error.to_string().ends_with("E: refused"), "{error}");
    }

    #[test]
    fn a_dropped_child_is_gone() {
        let child = Guarded::spawn(Command::new("sleep").arg("600"), "").unwrap();
        let directory = format!("/proc/{}", child.0.id());
        assert!(Path::new(&directory).exists());
        drop(child);
        assert!(!Path::new(&directory).exists());
    }
}
