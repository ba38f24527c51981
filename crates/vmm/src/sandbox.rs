// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What `vsva run` gives up before a guest runs, so that a guest that has taken over a part of it gets no further: new
//! privileges; all files but those that it has open (Landlock); all system calls that it does not make (seccomp), fewer
//! still on the threads that a guest is nearest to.
//!
//! The process begins with the system calls of all its threads, and each thread that starts inherits that. A virtual
//! processor's thread and a disk's give up more for themselves.

use std::io::{self, Write};
use std::mem::MaybeUninit;
use std::path::Path;
use std::ptr;
use std::sync::OnceLock;

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr,
};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};

use crate::kvm;

/// Option `--sandbox`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Sandbox {
    /// What is not needed is given up; a system call beyond ends the process.
    #[default]
    On,
    /// System calls beyond are made, and told in the kernel's log.
    Log,
    /// Nothing is given up.
    Off,
}

/// What a thread is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It runs a virtual processor, with the register accesses of all devices.
    Processor,
    /// It serves a disk.
    Disk,
}

/// Why something cannot be given up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file of the command line, or a Landlock that answers otherwise than it should.
    #[error("cannot give up files: {0}; --sandbox off does without")]
    Files(#[from] landlock::RulesetError),
    /// A directory that is needed later.
    #[error("cannot keep access to {0}: {1}; --sandbox off does without")]
    Path(String, landlock::PathFdError),
    /// seccomp.
    #[error("cannot give up system calls: {0}; --sandbox off does without")]
    SystemCalls(String),
    /// prctl.
    #[error("cannot give up new privileges: {0}; --sandbox off does without")]
    Privileges(io::Error),
}

/// How the process was begun; nothing where nobody has.
static CHOICE: OnceLock<Sandbox> = OnceLock::new();

fn choice() -> Sandbox {
    CHOICE.get().copied().unwrap_or(Sandbox::Off)
}

/// What any Rust program does on any thread: memory, locks, time, signals, files that it has open.
const COMMON: &[libc::c_long] = &[
    libc::SYS_brk,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_close,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_fcntl,
    libc::SYS_fstat,
    libc::SYS_futex,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_gettid,
    libc::SYS_lseek,
    libc::SYS_madvise,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_nanosleep,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_prctl,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_restart_syscall,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_sigaltstack,
    libc::SYS_tgkill,
    libc::SYS_tkill,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_rseq,
    // KVM_RUN, interrupts, the terminal.
    libc::SYS_ioctl,
];

/// Interrupts that are routed past the unit: any thread may make the first route, or give one up.
const ROUTES: &[libc::c_long] = &[libc::SYS_eventfd2, libc::SYS_dup, libc::SYS_dup3];

/// A disk's image.
const DISK: &[libc::c_long] = &[
    libc::SYS_fdatasync,
    libc::SYS_fsync,
    libc::SYS_fallocate,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_preadv2,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_pwritev2,
    libc::SYS_sync_file_range,
];

/// What fails on threads that give up more, and does not end the process: glibc looks up the number of processors in a file
/// when a thread allocates first, and does without.
const REFUSED: &[libc::c_long] = &[libc::SYS_open, libc::SYS_openat];

/// What building the machine, its other threads and its end take.
const PROCESS: &[libc::c_long] = &[
    libc::SYS_access,
    libc::SYS_clone,
    libc::SYS_clone3,
    libc::SYS_dup2,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_wait,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_flock,
    libc::SYS_ftruncate,
    libc::SYS_getcwd,
    libc::SYS_geteuid,
    libc::SYS_getpgrp,
    libc::SYS_getpgid,
    libc::SYS_getuid,
    libc::SYS_kill,
    libc::SYS_landlock_add_rule,
    libc::SYS_landlock_create_ruleset,
    libc::SYS_landlock_restrict_self,
    libc::SYS_lstat,
    libc::SYS_membarrier,
    libc::SYS_memfd_create,
    libc::SYS_newfstatat,
    libc::SYS_pipe2,
    libc::SYS_readlink,
    libc::SYS_readlinkat,
    libc::SYS_rename,
    libc::SYS_renameat,
    libc::SYS_renameat2,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_sched_setaffinity,
    libc::SYS_seccomp,
    libc::SYS_set_tid_address,
    libc::SYS_stat,
    libc::SYS_statx,
    libc::SYS_sysinfo,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_uname,
    libc::SYS_unlink,
    libc::SYS_unlinkat,
];

fn filter(
    lists: &[&[libc::c_long]],
    within: SeccompAction,
    beyond: SeccompAction,
) -> Result<BpfProgram, Error> {
    let rules = lists.iter().flat_map(|list| list.iter().map(|call| (*call, vec![]))).collect();
    let told = |error: &dyn std::fmt::Display| Error::SystemCalls(error.to_string());
    let filter = SeccompFilter::new(rules, beyond, within, TargetArch::x86_64);
    filter.map_err(|e| told(&e))?.try_into().map_err(|e: seccompiler::BackendError| told(&e))
}

fn apply(lists: &[&[libc::c_long]]) -> Result<(), Error> {
    let beyond = match choice() {
        Sandbox::Off => return Ok(()),
        Sandbox::Log => SeccompAction::Log,
        Sandbox::On => SeccompAction::Trap,
    };
    let filter = filter(lists, SeccompAction::Allow, beyond)?;
    seccompiler::apply_filter(&filter).map_err(|e| Error::SystemCalls(e.to_string()))
}

/// Gives up new privileges and the system calls that no thread makes. To be called before any other thread starts.
///
/// # Errors
///
/// The kernel refuses.
pub fn begin(sandbox: Sandbox) -> Result<(), Error> {
    let _ = CHOICE.set(sandbox);
    if sandbox == Sandbox::Off {
        return Ok(());
    }
    // SAFETY: no memory is passed.
    if unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } != 0 {
        return Err(Error::Privileges(io::Error::last_os_error()));
    }
    tell_of_violations();
    apply(&[COMMON, ROUTES, DISK, PROCESS, REFUSED])
}

/// Gives up all files that are not open, and the network, for this thread and those that it starts: but KVM, what the
/// kernel says of its memory, and the directories of `removable`, from which a file may have to be removed. Where the
/// kernel has no Landlock nothing is given up.
///
/// # Errors
///
/// The kernel refuses, or a directory is not there.
pub fn give_up_files(removable: &[&Path]) -> Result<(), Error> {
    if choice() == Sandbox::Off {
        return Ok(());
    }
    let abi = ABI::V5;
    let open = |path: &Path| PathFd::new(path).map_err(|e| Error::Path(path.display().to_string(), e));
    let mut ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(abi))?
        .handle_access(AccessNet::from_all(abi))?
        .create()?;
    let device = AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::IoctlDev;
    let memory = AccessFs::ReadFile | AccessFs::ReadDir;
    for (path, access) in [(kvm::DEVICE, device), ("/sys/kernel/mm", memory)] {
        // What is not there is told where it is needed.
        if Path::new(path).exists() {
            ruleset = ruleset.add_rule(PathBeneath::new(open(Path::new(path))?, access))?;
        }
    }
    for path in removable {
        let directory = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        ruleset = ruleset.add_rule(PathBeneath::new(open(directory)?, AccessFs::RemoveFile))?;
    }
    let status = ruleset.restrict_self()?;
    tracing::debug!(?status, "files are given up");
    Ok(())
}

/// Has [`REFUSED`] fail on this thread. A filter of its own, which needs the calls that apply the next one.
fn refuse() -> Result<(), Error> {
    if choice() != Sandbox::On {
        return Ok(());
    }
    let filter = filter(&[REFUSED], SeccompAction::Errno(libc::EACCES as u32), SeccompAction::Allow)?;
    seccompiler::apply_filter(&filter).map_err(|e| Error::SystemCalls(e.to_string()))
}

/// Gives up what this thread does not do. A thread that cannot is as its process.
pub fn narrow(role: Role) {
    let narrowed = refuse().and_then(|()| match role {
        Role::Processor => apply(&[COMMON, ROUTES, REFUSED]),
        Role::Disk => apply(&[COMMON, ROUTES, DISK, REFUSED]),
    });
    if let Err(error) = narrowed {
        tracing::warn!(%error, ?role, "a thread keeps the system calls of its process");
    }
}

/// Where the number of the system call is in the signal's information. \[Linux include/uapi/asm-generic/siginfo.h: _sigsys\]
const SYSTEM_CALL: usize = 24;

extern "C" fn violation(signal: libc::c_int, information: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel passes a siginfo_t, which is 128 bytes long.
    let call = unsafe { information.cast::<u8>().add(SYSTEM_CALL).cast::<libc::c_int>().read() };
    crate::terminal::restore();
    let mut line = [0; 128];
    let mut rest = &mut line[..];
    let told = writeln!(
        rest,
        "vsva: a thread made system call {call}, which it gave up: please report this; --sandbox off does without"
    );
    let left = rest.len();
    if told.is_ok() {
        // SAFETY: a valid range; write is async-signal-safe.
        unsafe { libc::write(libc::STDERR_FILENO, line.as_ptr().cast(), line.len() - left) };
    }
    crate::output_file::remove_what_is_not_kept();
    // SAFETY: ends the process without running anything else of it.
    unsafe { libc::_exit(128 + signal) }
}

fn tell_of_violations() {
    // SAFETY: all-zero is a valid sigaction; the handler is sound on any thread.
    unsafe {
        let mut action: libc::sigaction = MaybeUninit::zeroed().assume_init();
        action.sa_sigaction = violation as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        libc::sigaction(libc::SIGSYS, &action, ptr::null_mut());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_list_makes_a_filter_and_the_lists_do_not_overlap() {
        let lists = [COMMON, ROUTES, DISK, PROCESS, REFUSED];
        filter(&lists, SeccompAction::Allow, SeccompAction::Trap).unwrap();
        let mut all: Vec<_> = lists.concat();
        all.sort_unstable();
        let count = all.len();
        all.dedup();
        assert_eq!(all.len(), count);
        for call in [libc::SYS_execve, libc::SYS_ptrace, libc::SYS_socket, libc::SYS_mount, libc::SYS_bpf] {
            assert!(!all.contains(&call));
        }
        assert!(!COMMON.contains(&libc::SYS_openat) && !COMMON.contains(&libc::SYS_clone3));
    }

    #[test]
    fn nothing_is_given_up_unless_it_was_begun() {
        assert_eq!(choice(), Sandbox::Off);
        narrow(Role::Processor);
        give_up_files(&[]).unwrap();
        assert!(std::fs::read_dir("/").is_ok());
    }
}
