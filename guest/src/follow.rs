// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Brings the kernel's log to the console, through the serial port's driver and in few pieces: a byte that the kernel
//! prints there itself costs a virtual machine two exits. What programs wrote to /dev/kmsg comes too, so everything keeps
//! the order in which it was made. Of what the kernel says, mere information is left out unless it is about the subject.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, Result};

/// The end of the guest's report, behind which nothing is worth waiting for.
const END: &str = "VSVA-FACT end ";
/// KERN_NOTICE: above that, the kernel merely informs.
const NOTICE: u32 = 5;
/// What of that is brought all the same.
const SUBJECTS: [&str; 5] = ["DMAR", "iommu", "idxd", "Linux version", "Command line"];
/// A record of /dev/kmsg is at most this long. \[Linux kernel/printk/internal.h: PRINTK_MESSAGE_MAX\]
const LONGEST: usize = 8192;
/// As much is written at once.
const PIECE: usize = 4096;

/// Follows the log from its beginning until the guest's report ends, writing to `console`, a terminal.
///
/// # Errors
///
/// The log cannot be read, or the console not written.
pub fn follow(console: &Path) -> Result<()> {
    let mut log = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/kmsg")
        .context("opening /dev/kmsg")?;
    let name = console.display().to_string();
    let mut console =
        OpenOptions::new().write(true).open(console).with_context(|| format!("opening {name}"))?;
    let mut record = vec![0; LONGEST];
    let mut text = String::new();
    let mut ended = false;
    while !ended {
        match log.read(&mut record) {
            Ok(length) => {
                if let Some(line) = line(&String::from_utf8_lossy(&record[..length])) {
                    text += &line;
                    ended = line.contains(END);
                }
            }
            Err(e) if e.kind() == ErrorKind::WouldBlock => {
                write(&mut console, &mut text).with_context(|| format!("writing to {name}"))?;
                wait_for(&log);
            }
            // Records were overwritten before they were read: the report's own count tells whether one of its was lost.
            Err(e) if e.raw_os_error() == Some(libc::EPIPE) => text += "guest: the log was quicker\n",
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e).context("reading /dev/kmsg"),
        }
        if text.len() >= PIECE {
            write(&mut console, &mut text).with_context(|| format!("writing to {name}"))?;
        }
    }
    write(&mut console, &mut text).with_context(|| format!("writing to {name}"))?;
    // SAFETY: no memory is passed.
    unsafe { libc::tcdrain(console.as_raw_fd()) };
    Ok(())
}

fn write(console: &mut File, text: &mut String) -> std::io::Result<()> {
    console.write_all(text.as_bytes())?;
    text.clear();
    Ok(())
}

/// Waits until there is something to read, or something is wrong, which the next read tells.
fn wait_for(log: &File) {
    let mut poll = libc::pollfd { fd: log.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: `poll` is one valid entry.
    unsafe { libc::poll(&mut poll, 1, -1) };
}

/// A record `priority,sequence,microseconds,flags;text` as a line with its time, unless it is left out. Continuation
/// lines, which hold the device's name and the like, are left out too. \[Linux Documentation/ABI/testing/dev-kmsg\]
fn line(record: &str) -> Option<String> {
    let (prefix, text) = record.split_once(';')?;
    let mut fields = prefix.split(',');
    let priority: u32 = fields.next()?.parse().ok()?;
    let time: u64 = fields.nth(1)?.parse().ok()?;
    let text = text.lines().next().unwrap_or_default();
    let (facility, level) = (priority >> 3, priority & 7);
    let wanted = facility != 0 || level <= NOTICE || SUBJECTS.iter().any(|subject| text.contains(subject));
    wanted.then(|| format!("[{:5}.{:06}] {}\n", time / 1_000_000, time % 1_000_000, unescaped(text)))
}

/// What was written, where the kernel says `\x5c` for a backslash, and the like for bytes beyond ASCII. Control characters
/// stay as it says them. \[Linux kernel/printk/printk.c: append_char\]
fn unescaped(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("\\x") {
        let code = rest.get(at + 2..at + 4).and_then(|digits| u8::from_str_radix(digits, 16).ok());
        bytes.extend_from_slice(&rest.as_bytes()[..at]);
        match code.filter(|code| *code == b'\\' || *code >= 0x80) {
            Some(code) => {
                bytes.push(code);
                rest = &rest[at + 4..];
            }
            None => {
                bytes.extend_from_slice(b"\\x");
                rest = &rest[at + 2..];
            }
        }
    }
    bytes.extend_from_slice(rest.as_bytes());
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_get_their_time_and_lose_prefix_and_continuation() {
        assert_eq!(
            line("6,339,5140900,-;DMAR: Host address width 46\n SUBSYSTEM=pci\n").as_deref(),
            Some("[    5.140900] DMAR: Host address width 46\n")
        );
        assert_eq!(line("no record"), None);
    }

    #[test]
    fn what_the_kernel_escapes_is_as_it_was_written() {
        assert_eq!(
            line(r#"14,1,0,-;VSVA-CHECK {"detail":"writing \x5c"user\x5c" \xe2\x86\x92 \x1b \x5"}"#)
                .as_deref(),
            Some("[    0.000000] VSVA-CHECK {\"detail\":\"writing \\\"user\\\" \u{2192} \\x1b \\x5\"}\n")
        );
    }

    #[test]
    fn mere_information_of_the_kernel_is_left_out() {
        assert_eq!(line("6,1,0,-;Zone ranges:\n"), None);
        assert!(line("4,1,0,-;------------[ cut here ]------------\n").is_some());
        assert!(line("14,1,0,-;VSVA-CHECK {}\n").is_some(), "what programs say is not the kernel's");
    }
}
