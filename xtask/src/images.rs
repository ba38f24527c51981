// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a boot is made from, and what it leaves: initramfs images, a disk, a trace.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::initramfs;
use crate::lab::{Boot, Lab};
use crate::level1::Outer;
use crate::modules::Modules;
use crate::process;

/// The size of the disk image that a guest gets.
const DISK_BYTES: usize = 16 << 20;
/// The trace's name where `vsva` writes it, which level 1's script knows, and what `vsva` adds for trace viewers.
pub const TRACE: &str = "trace";
const VIEWER_SUFFIX: &str = ".trace.json";
/// The disk by which it leaves level 1, and its size: an upper bound, which takes no room.
pub const TRACE_DISK: &str = "trace.disk";
pub const TRACE_DISK_BYTES: u64 = 1 << 30;

/// The files of a boot whose names `vsva` is told, wherever it runs.
pub struct Names {
    /// The kernel.
    pub kernel: String,
    /// Its initramfs.
    pub initrd: String,
    /// The disk.
    pub disk: String,
    /// The trace.
    pub trace: String,
}

impl Names {
    /// Those of files in `directory`, with the kernel at `kernel`.
    pub fn new(kernel: &Path, directory: &Path) -> Self {
        let text = |path: &Path| path.display().to_string();
        let inside = |name: &str| text(&directory.join(name));
        Self { kernel: text(kernel), initrd: inside("initrd"), disk: inside("disk"), trace: inside(TRACE) }
    }
}

/// The guest's initramfs.
pub fn guest(lab: &Lab, boot: &Boot) -> Result<Vec<u8>> {
    let modules = Modules::open(&boot.kernel.modules, &lab.supplies.busybox)?;
    let names: Vec<_> = boot.modules.iter().copied().filter(|name| modules.has(name)).collect();
    initramfs::Guest {
        busybox: &lab.supplies.busybox,
        modules: &modules.in_order(&names)?,
        program: &lab.binaries.guest,
        tree: boot.tree,
        script: boot.script,
    }
    .pack()
}

/// Level 1's initramfs, which holds the guest's: it goes into `images`, and is given with its size in bytes.
pub fn level1(lab: &Lab, outer: &Outer, boot: &Boot, images: &Path) -> Result<(PathBuf, usize)> {
    let available = Modules::open(&outer.kernel.modules, &lab.supplies.busybox)?;
    let mut modules = vec!["kvm_amd"];
    if boot.trace.is_some() {
        // For the disk that takes the trace out.
        modules.extend(["virtio_pci", "virtio_blk"].iter().filter(|name| available.has(name)));
    }
    let kernel = fs::read(&boot.kernel.image)?;
    let image = guest(lab, boot)?;
    let disk_bytes = DISK_BYTES.to_string();
    let mut files: Vec<(&str, &[u8])> = vec![("kernel", &kernel), ("initrd", &image)];
    if boot.disk {
        files.push(("disk-bytes", disk_bytes.as_bytes()));
    }
    if lab.exits {
        files.push(("exits", b""));
    }
    let image = initramfs::Level1 {
        busybox: &lab.supplies.busybox,
        modules: &available.in_order(&modules)?,
        vsva: &lab.binaries.vsva,
        arguments: &boot.arguments_of_vsva(&Names::new(Path::new("/lab/kernel"), Path::new("/lab"))),
        files: &files,
    }
    .pack()?;
    let path = images.join("level1.cpio");
    write(&path, &image)?;
    Ok((path, image.len()))
}

/// The guest's initramfs and disk, for a `vsva` that runs on this machine.
pub fn here(lab: &Lab, boot: &Boot, images: &Path) -> Result<Names> {
    let names = Names::new(&boot.kernel.image, images);
    write(Path::new(&names.initrd), &guest(lab, boot)?)?;
    if boot.disk {
        write(Path::new(&names.disk), &[0; DISK_BYTES])?;
    }
    Ok(names)
}

/// Writes a file; an error says what may be the matter.
pub fn write(path: &Path, contents: &[u8]) -> Result<()> {
    fs::write(path, contents).with_context(|| format!("cannot write {}: is the disk full?", path.display()))
}

/// Puts the trace files where they are wanted. Level 1 left them on a disk, as an archive.
pub fn bring_trace(busybox: &Path, images: &Path, path: &Path) -> Result<()> {
    let disk = images.join(TRACE_DISK);
    if disk.exists() {
        let mut command = Command::new(busybox);
        command.args(["tar", "-x", "-C"]).arg(images).arg("-f").arg(&disk);
        process::run(&mut command, "did level 1 come to its end?")?;
    }
    for suffix in ["", VIEWER_SUFFIX] {
        let [from, to] = [&images.join(TRACE), path].map(|p| {
            let mut name: OsString = p.as_os_str().to_owned();
            name.push(suffix);
            PathBuf::from(name)
        });
        fs::copy(&from, &to).with_context(|| format!("cannot put the trace into {}", to.display()))?;
        eprintln!("    the trace: {}", to.display());
    }
    Ok(())
}
