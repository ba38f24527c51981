// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The duties of PID 1 in an initramfs: file systems, console, modules, reaping, power-off.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};

/// Whether this process is PID 1.
pub fn is_init() -> bool {
    std::process::id() == 1
}

/// Mounts what the program needs and takes the console. Problems are told on the console, since nobody else listens.
pub fn set_up() {
    let mounts = [
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("devtmpfs", "/dev"),
        ("devpts", "/dev/pts"),
        ("tmpfs", "/tmp"),
    ];
    let mut problems = Vec::new();
    for (kind, target) in mounts {
        if let Err(error) = mount(kind, target) {
            problems.push(format!("{error:#}"));
        }
    }
    take_console();
    for problem in problems {
        println!("guest: {problem}");
    }
}

fn mount(kind: &str, target: &str) -> Result<()> {
    // An initramfs may have the directory already.
    let _ = std::fs::create_dir_all(target);
    let (kind_c, target_c) = (CString::new(kind)?, CString::new(target)?);
    // SAFETY: all strings are C strings that outlive the call.
    let result = unsafe {
        libc::mount(kind_c.as_ptr(), target_c.as_ptr(), kind_c.as_ptr(), libc::MS_NOSUID, std::ptr::null())
    };
    let error = io::Error::last_os_error();
    // EBUSY: the kernel or an earlier stage has mounted it (CONFIG_DEVTMPFS_MOUNT).
    if result == 0 || error.raw_os_error() == Some(libc::EBUSY) {
        return Ok(());
    }
    Err(error).with_context(|| format!("mounting {kind} on {target}"))
}

/// Without a /dev/console in the initramfs the kernel starts PID 1 without standard files.
fn take_console() {
    let Ok(console) = File::options().read(true).write(true).open("/dev/console") else { return };
    for target in 0..3 {
        // SAFETY: both are valid descriptors; the standard ones are to become the console.
        unsafe { libc::dup2(console.as_raw_fd(), target) };
    }
    if console.as_raw_fd() < 3 {
        std::mem::forget(console);
    }
}

/// Loads the modules of a list in order: a path, and parameters behind it. Gives the names loaded.
pub fn load_modules(list: &Path) -> Result<Vec<String>> {
    let text = match std::fs::read_to_string(list) {
        Ok(text) => text,
        // Everything may be built in.
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e).with_context(|| format!("{}", list.display())),
    };
    let mut loaded = Vec::new();
    let mut failed = Vec::new();
    for (path, parameters) in module_lines(&text) {
        match load_module(Path::new(path), parameters) {
            Ok(()) => loaded.push(module_name(path).to_string()),
            Err(error) => failed.push(format!("{path}: {error:#}")),
        }
    }
    ensure!(failed.is_empty(), "{}", failed.join("; "));
    Ok(loaded)
}

fn module_lines(text: &str) -> impl Iterator<Item = (&str, &str)> {
    text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')).map(|line| {
        let (path, parameters) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        (path, parameters.trim())
    })
}

/// `brd` of `/modules/brd.ko.xz`.
fn module_name(path: &str) -> &str {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split(".ko").next().unwrap_or(file)
}

fn load_module(path: &Path, parameters: &str) -> Result<()> {
    let file = File::open(path)?;
    let parameters = CString::new(parameters)?;
    // MODULE_INIT_COMPRESSED_FILE [Linux include/uapi/linux/module.h]: the kernel unpacks it.
    let compressed = path.extension().is_some_and(|e| e == "xz" || e == "zst" || e == "gz");
    let flags = if compressed { 4 } else { 0 };
    // SAFETY: a valid descriptor and a C string that outlives the call.
    let result =
        unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), parameters.as_ptr(), flags) };
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        _ if result == 0 => Ok(()),
        Some(libc::EEXIST) => Ok(()),
        Some(libc::ENODEV) if path.to_string_lossy().contains("idxd") => {
            Err(anyhow!("{error} (idxd needs a CPU that announces MOVDIR64B)"))
        }
        Some(libc::ENOENT) => {
            Err(anyhow!("unknown symbol: a module that it needs must come before it in the list"))
        }
        Some(libc::ENOEXEC) => Err(anyhow!("not a module of this kernel")),
        _ => Err(error.into()),
    }
}

/// Runs `work` in a child, reaps every orphan, and switches the machine off when the child has ended. PID 1 itself must
/// never end: the kernel would panic.
pub fn supervise(work: impl FnOnce() -> i32) -> ! {
    // SAFETY: this program has a single thread.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        std::process::exit(work());
    }
    loop {
        let mut status = 0;
        // SAFETY: `status` outlives the call.
        let ended = unsafe { libc::waitpid(-1, &mut status, libc::WNOHANG) };
        if pid < 0 || ended == pid {
            if libc::WIFSIGNALED(status) {
                println!("guest: the main process was killed by signal {}", libc::WTERMSIG(status));
            }
            break;
        }
        if ended < 0 {
            break;
        }
        if ended == 0 {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    power_off()
}

fn power_off() -> ! {
    // SAFETY: no memory is passed. As PID 1 in an initramfs there is nothing to unmount.
    unsafe {
        libc::tcdrain(1);
        libc::sync();
        libc::reboot(libc::RB_POWER_OFF);
    }
    println!("guest: power-off failed: {}", io::Error::last_os_error());
    loop {
        std::thread::sleep(Duration::from_secs(1));
    }
}

/// A shell on the console's terminal, as session leader, until it ends.
pub fn shell() -> Result<()> {
    use std::os::unix::process::CommandExt;
    use std::process::{Command, Stdio};
    let active = std::fs::read_to_string("/sys/class/tty/console/active").unwrap_or_default();
    let name = active.split_whitespace().next_back().unwrap_or("console");
    let tty = File::options().read(true).write(true).open(Path::new("/dev").join(name))?;
    let program = ["/bin/sh", "/bin/busybox", "/usr/bin/sh"].into_iter().find(|p| Path::new(p).exists());
    let program = program.context("there is no /bin/sh in the initramfs")?;
    let mut command = Command::new(program);
    if program.ends_with("busybox") {
        command.arg("sh");
    }
    command
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("HOME", "/")
        .env("TERM", "vt100")
        .current_dir("/");
    command
        .stdin(Stdio::from(tty.try_clone()?))
        .stdout(Stdio::from(tty.try_clone()?))
        .stderr(Stdio::from(tty));
    // SAFETY: only system calls that are safe between fork and exec.
    unsafe {
        command.pre_exec(|| {
            libc::setsid();
            libc::ioctl(0, libc::TIOCSCTTY, 0);
            Ok(())
        });
    }
    let status = command.status().with_context(|| format!("starting {program}"))?;
    println!("guest: the shell ended with {status}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn module_lists_have_comments_and_parameters() {
        let text = "# modules\n/lib/a.ko\n\n  /lib/brd.ko rd_nr=1 rd_size=65536\n";
        let lines: Vec<_> = module_lines(text).collect();
        assert_eq!(lines, [("/lib/a.ko", ""), ("/lib/brd.ko", "rd_nr=1 rd_size=65536")]);
        assert_eq!((module_name("/lib/brd.ko.xz"), module_name("a.ko")), ("brd", "a"));
    }

    #[test]
    fn no_list_means_no_modules() {
        assert!(load_modules(Path::new("/nonexistent/modules.list")).unwrap().is_empty());
    }
}
