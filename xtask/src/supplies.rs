// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What every boot needs from elsewhere: packages of Debian, through the cache.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Result, bail};

use crate::apt::Apt;
use crate::cache::Cache;
use crate::kernel::{Kernel, Want};
use crate::level1::Outer;
use crate::modules::Modules;
use crate::qemu::Qemu;
use crate::series_kernel;
use crate::sources::Mirror;
use crate::unpack::unpacked;

/// The suite of what is no kernel: busybox, and tools for the guest.
const TOOLS_SUITE: &str = "trixie";

/// What every boot needs from elsewhere.
pub struct Supplies {
    cache: Cache,
    mirror: Option<Mirror>,
    /// A static busybox.
    pub busybox: PathBuf,
    /// What guests run in; none where the machine's own KVM serves.
    pub outer: Option<Outer>,
}

impl Supplies {
    /// Gets it all. `kernel` is what level 1 runs too where it has KVM as a module, else the newest of `suite`. Without
    /// a mirror the machine itself must have the rest.
    pub fn fetch(
        cache: Cache,
        mirror: Option<Mirror>,
        in_level1: bool,
        kernel: &Kernel,
        suite: &str,
    ) -> Result<Self> {
        let busybox = busybox(&cache, mirror.as_ref())?;
        let mut supplies = Self { cache, mirror, busybox, outer: None };
        if in_level1 {
            let qemu = Qemu::find(&supplies.cache, supplies.mirror.as_ref())?;
            let has_kvm = Modules::open(&kernel.modules, &supplies.busybox)?.has("kvm_amd");
            let kernel =
                if has_kvm { kernel.clone() } else { supplies.kernel(&Want { suite, series: None })? };
            supplies.outer = Some(Outer { qemu, kernel });
        }
        Ok(supplies)
    }

    /// A kernel from the same mirror.
    pub fn kernel(&self, want: &Want) -> Result<Kernel> {
        Kernel::fetch(&self.cache, self.mirror.as_ref(), want)
    }

    /// A kernel of the series' time, built here.
    pub fn series_kernel(&self) -> Result<Kernel> {
        series_kernel::fetch(&self.cache, self.mirror.as_ref())
    }

    /// A package of the tools' suite with all that it needs, unpacked.
    pub fn tools(&self, package: &str) -> Result<PathBuf> {
        let apt = Apt::open(&self.cache, self.mirror.as_ref(), TOOLS_SUITE)?;
        let name = format!("tools/{package}_{}", apt.newest(TOOLS_SUITE, package)?.file_version());
        unpacked(&self.cache, &name, 200 << 20, |_| apt.download_with_dependencies(package, TOOLS_SUITE))
    }
}

/// A static busybox: Debian's, or the machine's own where there is no apt.
fn busybox(cache: &Cache, mirror: Option<&Mirror>) -> Result<PathBuf> {
    let has_apt = Command::new("apt-get").arg("--version").stdout(Stdio::null()).status().is_ok();
    if mirror.is_none() || !has_apt {
        return own_busybox();
    }
    let apt = Apt::open(cache, mirror, TOOLS_SUITE)?;
    let package = apt.newest(TOOLS_SUITE, "busybox-static")?;
    let name = format!("tools/busybox_{}", package.file_version());
    let tree = unpacked(cache, &name, 8 * package.size, |into| apt.download(&[&package], into))?;
    Ok(tree.join("usr/bin/busybox"))
}

fn own_busybox() -> Result<PathBuf> {
    const LOADER: &[u8] = b"/ld-linux";
    let path = std::env::var_os("PATH").unwrap_or_default();
    for candidate in std::env::split_paths(&path).map(|directory| directory.join("busybox")) {
        if fs::read(&candidate).is_ok_and(|elf| !elf.windows(LOADER.len()).any(|w| w == LOADER)) {
            return Ok(candidate);
        }
    }
    bail!("there is neither apt with a Debian mirror nor a static busybox here: install busybox-static")
}
