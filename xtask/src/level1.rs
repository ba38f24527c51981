// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Level 1: a kernel with KVM under QEMU's emulation, for machines whose own KVM does not serve.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::images::{self, TRACE_DISK, TRACE_DISK_BYTES};
use crate::kernel::Kernel;
use crate::machine::{self, Kvm};
use crate::qemu::Qemu;
use crate::{say, vmlinux};

/// What it says every ten seconds.
pub const ALIVE: &str = "VSVA-ALIVE";
/// Its processors. One, because QEMU's emulation of SVM does not bear two: after a VMRUN that injects an interrupt,
/// it leaves `exception_index` at its vector until the next exit (target/i386/tcg/system/svm_helper.c:helper_vmrun, seen
/// in 10.2), and where another thread stops the processor meanwhile, the guest gets the interrupt a second time. With two
/// processors guests hung or triple-faulted now and then, with one none did (docs/lab.md).
const CPUS: &str = "1";
/// What it needs beside the guest's memory, for itself, `vsva` and the images, in MiB.
const OWN_MIB: u64 = 1024;
/// Its command line. Its own watchdogs measure with the wall's clock, and so would the check that its timer works.
const APPEND: &str = "console=ttyS0 loglevel=5 panic=-1 mitigations=off no_timer_check nowatchdog tsc=reliable \
                      rcupdate.rcu_cpu_stall_suppress=1 sysctl.kernel.hung_task_timeout_secs=0 \
                      workqueue.watchdog_thresh=0";

/// Where guests run, from the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Level1 {
    /// In level 1 where the machine's KVM does not serve.
    Auto,
    /// Always in level 1.
    Always,
    /// Never in level 1.
    Never,
}

impl Level1 {
    /// Whether guests run in level 1 on this machine; an error where that is refused and the machine itself is none.
    pub fn decide(self) -> Result<bool> {
        Ok(match (self, machine::kvm()?) {
            (Self::Auto | Self::Never, Kvm::Usable) => {
                say::line("guests run on this machine's KVM");
                false
            }
            (Self::Always, _) => true,
            (Self::Auto, Kvm::Unusable(why)) => {
                say::line(&format!("{why}: guests run in level 1, under QEMU's emulation"));
                true
            }
            (Self::Never, Kvm::Unusable(why)) => {
                bail!("this machine's KVM does not serve: {why}; leave out --level1 never")
            }
        })
    }
}

/// Level 0 and 1.
pub struct Outer {
    /// What emulates.
    pub qemu: Qemu,
    /// What is emulated.
    pub kernel: Kernel,
}

impl Outer {
    /// A command that boots the image `initrd`, of `size` bytes, for a guest of `guest_mib` MiB. The consoles of
    /// level 1 and of the guest become `level1.log` and `guest.log` in `directory`, QEMU's own words `qemu.log`.
    /// With `trace` there is a disk for it among `images`.
    pub fn command(
        &self,
        initrd: &Path,
        size: usize,
        guest_mib: u64,
        trace: Option<&Path>,
        directory: &Path,
    ) -> Result<Command> {
        let memory = guest_mib + OWN_MIB + 2 * (size as u64 >> 20);
        let serial = |name: &str| format!("file:{}", directory.join(name).display());
        let kernel = self.unpacked_kernel(initrd)?;
        let errors = File::create(directory.join("qemu.log"))?;
        let mut command = self.qemu.command();
        command
            .args(["-machine", "q35", "-accel", "tcg", "-cpu", "max,+svm", "-smp", CPUS])
            .args(["-m", &format!("{memory}M"), "-nodefaults", "-no-user-config", "-display", "none"])
            .arg("-no-reboot")
            .args(["-serial", &serial("level1.log"), "-serial", &serial("guest.log")])
            .arg("-kernel")
            .arg(&kernel)
            .arg("-initrd")
            .arg(initrd)
            .args(["-append", APPEND])
            .stdin(Stdio::null())
            .stdout(errors.try_clone()?)
            .stderr(errors);
        if let Some(images) = trace {
            let disk = images.join(TRACE_DISK);
            File::create(&disk)?.set_len(TRACE_DISK_BYTES)?;
            command.arg("-drive").arg(format!("file={},format=raw,if=virtio", disk.display()));
        }
        Ok(command)
    }

    /// Its kernel beside `initrd`, unpacked where that can be: under emulation it takes a second to unpack itself.
    fn unpacked_kernel(&self, initrd: &Path) -> Result<PathBuf> {
        let image = &self.kernel.image;
        let packed = fs::read(image).with_context(|| image.display().to_string())?;
        let Some(kernel) = vmlinux::unpack(&packed) else { return Ok(image.clone()) };
        let path = initrd.with_file_name("level1.vmlinux");
        images::write(&path, &kernel)?;
        Ok(path)
    }
}
