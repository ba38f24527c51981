// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Wrong use of the command: one line on standard error, a status that says so, and nothing left behind.

use std::ffi::{CString, OsStr};
use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::SystemTime;

/// A header that passes for a bzImage of 4 KiB which is unpacked at 1 MiB, and nothing that could run.
fn kernel() -> Vec<u8> {
    let mut image = vec![0; 0x1000];
    image[0x1f1] = 1;
    image[0x1f4..0x1f8].copy_from_slice(&0xc0u32.to_le_bytes());
    image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&0x20fu16.to_le_bytes());
    image[0x211] = 1;
    image[0x214..0x218].copy_from_slice(&0x10_0000u32.to_le_bytes());
    image[0x22c..0x230].copy_from_slice(&0x7fff_ffffu32.to_le_bytes());
    image[0x236] = 1;
    image[0x238..0x23c].copy_from_slice(&2047u32.to_le_bytes());
    image[0x258..0x260].copy_from_slice(&0x10_0000u64.to_le_bytes());
    image[0x260..0x264].copy_from_slice(&0x10_0000u32.to_le_bytes());
    image
}

/// A directory with a file of each kind that can be named wrongly, and good ones.
fn directory() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let image = kernel();
    fs::write(at("kernel"), &image).unwrap();
    fs::write(at("cut"), &image[..0xf00]).unwrap();
    fs::write(at("elf"), b"\x7fELF".repeat(1024)).unwrap();
    fs::write(at("empty"), b"").unwrap();
    fs::write(at("initrd"), b"070701").unwrap();
    fs::write(at("disk"), [0x5a; 4096]).unwrap();
    fs::write(at("locked"), [0; 4096]).unwrap();
    File::create(at("huge")).unwrap().set_len(1 << 40).unwrap();
    let pipe = CString::new(at("pipe").into_os_string().into_encoded_bytes()).unwrap();
    // SAFETY: a string with its terminator.
    assert_eq!(unsafe { libc::mkfifo(pipe.as_ptr(), 0o600) }, 0);
    directory
}

/// Names, sizes and times of change.
fn state(directory: &Path) -> Vec<(String, u64, SystemTime)> {
    let mut all: Vec<_> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            let metadata = entry.metadata().unwrap();
            (entry.file_name().into_string().unwrap(), metadata.len(), metadata.modified().unwrap())
        })
        .collect();
    all.sort();
    all
}

/// The line that the command says, and its status.
fn refused(directory: &Path, args: &[impl AsRef<OsStr>]) -> (String, i32) {
    let before = state(directory);
    let output = Command::new(env!("CARGO_BIN_EXE_vsva"))
        .args(args)
        .current_dir(directory)
        .stdin(Stdio::null())
        .env_remove("VSVA_LOG")
        .output()
        .unwrap();
    assert_eq!(state(directory), before);
    assert!(output.stdout.is_empty());
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(text.matches('\n').count(), 1, "{text}");
    assert!(text.starts_with("vsva: "), "{text}");
    (text, output.status.code().unwrap())
}

#[test]
fn a_wrong_command_line_is_one_line_with_status_2() {
    let directory = directory();
    let cases: &[(&[&str], &str)] = &[
        (&["--cpus", "0"], "1..=254"),
        (&["--cpus", "255"], "1..=254"),
        (&["--memory", "lots"], "512M"),
        (&["--memory", "1X"], "use K, M, G or T"),
        (&["--memory", "0"], "4K"),
        (&["--memory", "9999T"], "too large"),
        (&["--memory", "1M,hugepages=on"], "multiple of 2M"),
        (&["--memory", "1G,hugepages"], "hugepages=on"),
        (&["--nonsense"], "--nonsense"),
        (&["--kernel", "kernel"], "multiple times"),
        (&["--device", "warp"], "known is \"dsa\""),
        (&["--device", "dsa,fast"], "has the option \"host\""),
        (&["--device", "dsa,host=hard"], "soft"),
        (&["--device", "dsa,host=soft,host=soft"], "twice"),
        (&["--iommu", "warp=on"], "structure-entries"),
        (&["--iommu", "cm=perhaps"], "on or off"),
        (&["--iommu", "cm=on,cm=off"], "twice"),
        (&["--iommu", "off,cm=on"], "stands alone"),
        (&["--iommu", "dt=off"], "needs dt"),
        (&["--iommu", "nest=on"], "needs ssts"),
        (&["--iommu", "pss=20"], "0 to 19"),
        (&["--iommu", "haw=32", "--memory", "8G"], "larger haw"),
        (&["--disk", "disk,rw"], "ro"),
        (&["--disk", "disk", "--disk", "disk"], "same file"),
        (&["--disk", "disk", "--console-log", "disk"], "same file"),
        (&["--device", "dsa,host=soft", "--trace", "kernel"], "same file"),
        (&["--device", "dsa", "--trace", "trace"], "dsa,host=soft"),
        (&["--figures"], "dsa,host=soft"),
    ];
    for (args, word) in cases {
        let (line, status) = refused(directory.path(), &[&["run", "--kernel", "kernel"], *args].concat());
        assert!(status == 2 && line.contains(word) && line.contains("vsva run --help"), "{args:?}: {line}");
    }
    let (line, status) = refused(directory.path(), &["run"]);
    assert!(status == 2 && line.contains("--kernel"), "{line}");
    let (line, status) = refused(directory.path(), &["walk"]);
    assert!(status == 2 && line.contains("(see vsva --help)"), "{line}");
}

#[test]
fn what_cannot_be_used_is_one_line_with_status_1() {
    let directory = directory();
    let locked = File::open(directory.path().join("locked")).unwrap();
    locked.lock().unwrap();
    let long = "x".repeat(2048);
    let cases: &[(&[&str], &str)] = &[
        (&["--kernel", "missing"], "missing"),
        (&["--kernel", "."], "regular file"),
        (&["--kernel", "/dev/zero"], "regular file"),
        (&["--kernel", "empty"], "bzImage"),
        (&["--kernel", "elf"], "bzImage"),
        (&["--kernel", "huge"], "bzImage"),
        (&["--kernel", "cut"], "cut off after 3840 of 4096 bytes"),
        (&["--kernel", "kernel", "--initrd", "missing"], "missing"),
        (&["--kernel", "kernel", "--initrd", "."], "regular file"),
        (&["--kernel", "kernel", "--initrd", "empty"], "is empty"),
        (&["--kernel", "kernel", "--initrd", "huge"], "use smaller ones"),
        (&["--kernel", "kernel", "--memory", "8M"], "at least --memory 34M"),
        (&["--kernel", "kernel", "--memory", "40T"], "less --memory"),
        (&["--kernel", "kernel", "--append", &long], "shorten --append"),
        (&["--kernel", "pipe"], "regular file"),
        (&["--kernel", "kernel", "--initrd", "pipe"], "regular file"),
        (&["--kernel", "kernel", "--disk", "pipe"], "block device"),
        (&["--kernel", "kernel", "--console-log", "pipe"], "start its reader"),
        (&["--kernel", "kernel", "--device", "dsa,host=soft", "--trace", "pipe"], "start its reader"),
        (&["--kernel", "kernel", "--disk", "missing"], "truncate"),
        (&["--kernel", "kernel", "--disk", "."], "block device"),
        (&["--kernel", "kernel", "--disk", ".,ro"], "block device"),
        (&["--kernel", "kernel", "--disk", "/dev/zero"], "block device"),
        (&["--kernel", "kernel", "--disk", "empty"], "is empty"),
        (&["--kernel", "kernel", "--disk", "locked"], "in use"),
        (&["--kernel", "kernel", "--disk", "locked,ro"], "in use"),
        (&["--kernel", "kernel", "--console-log", "none/log"], "none/log"),
        (&["--kernel", "kernel", "--device", "dsa,host=soft", "--trace", "none/trace"], "none/trace"),
        // The trace itself can be created, the file beside it cannot.
        (&["--kernel", "kernel", "--device", "dsa,host=soft", "--trace", "."], "trace ."),
    ];
    for (args, word) in cases {
        let (line, status) = refused(directory.path(), &[&["run"], *args].concat());
        assert!(status == 1 && line.contains(word), "{args:?}: {line}");
    }
}

/// The host lacks what the unit promises, which shows late; on a machine without KVM that shows before. In either case the
/// files that would have been written are as they were.
#[test]
fn a_machine_that_cannot_be_built_leaves_its_output_files_alone() {
    let directory = directory();
    fs::write(directory.path().join("log"), "of an earlier run").unwrap();
    let args = ["run", "--kernel", "kernel", "--initrd", "initrd", "--memory", "64M", "--iommu", "srs=on"];
    let files = ["--device", "dsa,host=soft", "--trace", "trace", "--console-log", "log", "--disk", "disk"];
    let (_, status) = refused(directory.path(), &[&args[..], &files].concat());
    assert_eq!(status, 1);
}

#[test]
fn nobody_to_read_is_no_panic() {
    for (args, status) in
        [(&["run"][..], 2), (&["run", "--kernel", "/nonexistent"], 1), (&["run", "--help"], 0)]
    {
        let full = || File::options().write(true).open("/dev/full").unwrap();
        let result = Command::new(env!("CARGO_BIN_EXE_vsva"))
            .args(args)
            .stdout(full())
            .stderr(full())
            .status()
            .unwrap();
        assert_eq!(result.code(), Some(status), "{args:?}");
    }
}
