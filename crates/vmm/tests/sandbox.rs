// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a process in the sandbox can no longer do: each case is a process of its own, this program again.

use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Output};
use std::thread;

use landlock::{ABI, Access, AccessFs, CompatLevel, Compatible, Ruleset, RulesetAttr};
use vmm::sandbox::{self, Role, Sandbox};

const CASE: &str = "VSVA_SANDBOX_CASE";

/// Whether this kernel has Landlock. The question costs a ruleset, which a process in the sandbox may still make.
fn has_landlock() -> bool {
    let all = AccessFs::from_all(ABI::V1);
    let ruleset = Ruleset::default().set_compatibility(CompatLevel::HardRequirement).handle_access(all);
    ruleset.and_then(|ruleset| ruleset.create()).is_ok()
}

fn begin_and_give_up(removable: &[&Path]) {
    sandbox::begin(Sandbox::On).unwrap();
    sandbox::give_up_files(removable).unwrap();
}

/// Runs a system call on a thread of a role; the process is to end there.
fn on_a_thread(role: Role, call: fn()) {
    begin_and_give_up(&[]);
    thread::spawn(move || {
        sandbox::narrow(role);
        println!("narrowed");
        call();
        println!("done");
    })
    .join()
    .unwrap();
}

fn sleep_and_lock() {
    let lock = std::sync::Mutex::new(Vec::new());
    (0..1000).for_each(|n| lock.lock().unwrap().push(vec![n; 1000]));
    thread::sleep(std::time::Duration::from_millis(1));
}

/// glibc opens one when a thread allocates first, so that this fails and does not end the process.
fn opens_nothing() {
    let error = File::open("/dev/null").unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EACCES));
}

fn case(name: &str) {
    let directory = std::env::temp_dir();
    let opens = || File::open("/etc/passwd").is_ok();
    match name {
        "files" => {
            let output = directory.join(format!("vsva-sandbox-{}", std::process::id()));
            fs::write(&output, "").unwrap();
            begin_and_give_up(&[&output]);
            assert_eq!(opens(), !has_landlock());
            assert_eq!(fs::write(&output, "more").is_ok(), !has_landlock());
            // What was made is removed all the same.
            fs::remove_file(&output).unwrap();
            println!("done");
        }
        "program" => {
            begin_and_give_up(&[]);
            let _ = Command::new("/bin/true").status();
            println!("done");
        }
        "socket" => {
            begin_and_give_up(&[]);
            let _ = std::net::TcpListener::bind("127.0.0.1:0");
            println!("done");
        }
        "processor computes" => on_a_thread(Role::Processor, sleep_and_lock),
        "processor starts a thread" => on_a_thread(Role::Processor, || drop(thread::spawn(|| ()))),
        "processor opens a file" => on_a_thread(Role::Processor, opens_nothing),
        "disk computes" => on_a_thread(Role::Disk, sleep_and_lock),
        "disk opens a file" => on_a_thread(Role::Disk, opens_nothing),
        "off" => {
            sandbox::begin(Sandbox::Off).unwrap();
            sandbox::give_up_files(&[]).unwrap();
            assert!(opens() && Command::new("/bin/true").status().unwrap().success());
            println!("done");
        }
        other => panic!("no case {other}"),
    }
}

fn run(name: &str) -> Output {
    Command::new(std::env::current_exe().unwrap()).env(CASE, name).output().unwrap()
}

fn main() {
    if let Ok(name) = std::env::var(CASE) {
        return case(&name);
    }
    for (name, allowed) in [
        ("files", true),
        ("program", false),
        ("socket", false),
        ("processor computes", true),
        ("processor starts a thread", false),
        ("processor opens a file", true),
        ("disk computes", true),
        ("disk opens a file", true),
        ("off", true),
    ] {
        let output = run(name);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        assert_eq!(out.contains("done"), allowed, "{name}: {out} {err}");
        if allowed {
            assert!(output.status.success(), "{name}: {err}");
        } else {
            // A thread starts with all signals blocked: there is nobody to say it then.
            let told = output.status.code() == Some(128 + libc::SIGSYS) && err.contains("made system call");
            assert!(
                told || output.status.signal() == Some(libc::SIGSYS),
                "{name}: {:?} {err}",
                output.status
            );
        }
        println!("test {name} ... ok");
    }
}
