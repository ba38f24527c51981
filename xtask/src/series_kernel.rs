// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A kernel of the series' time, from Debian's source: Debian's own are built without `INTEL_IOMMU_SVM` until 7.2, and since
//! 6.4 none allocates PASIDs by the virtual command.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::apt::Apt;
use crate::cache::Cache;
use crate::kernel::Kernel;
use crate::process::{self, Guarded, TICK};
use crate::say::{self, Step};
use crate::sources::Mirror;
use crate::unpack::{self, made};

const SUITE: &str = "bookworm";
const SOURCE: &str = "linux-source-6.1";
/// What is added to the version, so that its release says what it is.
const LOCAL_VERSION: &str = "-sva";
const CONFIG: &str = include_str!("series_kernel.config");
/// The source and what is built of it, with the packages.
const NEED: u64 = 3 << 30;

/// Stable kernels since the end of 2025 refuse SVA on x86 (CVE-2025-71089), because a device's cache may go on using tables of
/// the kernel's own addresses that it has freed. No device here is told of those.
const REFUSAL_FILE: &str = "drivers/iommu/iommu.c";
const REFUSAL: &str = "\tif (IS_ENABLED(CONFIG_X86))\n\t\treturn ERR_PTR(-EOPNOTSUPP);\n";

/// What building it takes, by the package and by a command that succeeds where it is there.
const TOOLS: [(&str, &str); 6] = [
    ("make", "make --version"),
    ("gcc", "gcc --version"),
    ("flex", "flex --version"),
    ("bison", "bison --version"),
    ("bc", "bc --version"),
    ("libelf-dev", "echo '#include <gelf.h>' | gcc -E -"),
];

/// Builds it, unless it is in the cache as it would be built now.
pub fn fetch(cache: &Cache, mirror: Option<&Mirror>) -> Result<Kernel> {
    let apt = Apt::open(cache, mirror, SUITE)?;
    let package = apt.newest(SUITE, SOURCE)?;
    let name = format!("kernels/{SOURCE}{LOCAL_VERSION}_{}", package.file_version());
    let recipe = format!("{CONFIG}{REFUSAL}");
    let kept = cache.path(&name);
    if kept.exists() && fs::read_to_string(kept.join("recipe")).is_ok_and(|old| old != recipe) {
        fs::remove_dir_all(&kept).with_context(|| kept.display().to_string())?;
    }
    let tree = made(cache, &name, NEED, |work, tree| {
        install_tools()?;
        let source = work.join("source");
        fs::create_dir(&source)?;
        for deb in apt.download(&[&package], work)? {
            unpack::unpack(&deb, &source)?;
            fs::remove_file(deb)?;
        }
        let archive = source.join(format!("usr/src/{SOURCE}.tar.xz"));
        let mut tar = Command::new("tar");
        process::run(tar.arg("-xf").arg(&archive).arg("-C").arg(&source), "install tar and xz-utils")?;
        build(&source.join(SOURCE), &work.join("build"), tree)?;
        Ok(fs::write(tree.join("recipe"), recipe)?)
    })?;
    let release = fs::read_to_string(tree.join("release"))?;
    Ok(Kernel { user_sva: true, ..Kernel::in_tree(&tree, &release)? })
}

fn missing_tools() -> Vec<&'static str> {
    let there = |command: &str| {
        let mut shell = Command::new("sh");
        shell.args(["-c", command]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        shell.status().is_ok_and(|status| status.success())
    };
    TOOLS.iter().filter(|(_, command)| !there(command)).map(|(package, _)| *package).collect()
}

/// Installs what is missing, where this user may.
fn install_tools() -> Result<()> {
    let missing = missing_tools();
    if missing.is_empty() {
        return Ok(());
    }
    let remedy = format!("building a kernel needs {0}: sudo apt install {0}", missing.join(" "));
    // SAFETY: no memory is passed.
    if unsafe { libc::geteuid() } != 0 {
        bail!("{remedy}");
    }
    let step = Step::begin(&format!("installing {}", missing.join(", ")));
    let apt = |arguments: &[&str]| {
        let mut command = Command::new("apt-get");
        process::output(command.args(arguments).env("DEBIAN_FRONTEND", "noninteractive"), &remedy)
    };
    apt(&["update"]).context(remedy.clone())?;
    apt(&[&["install", "-y", "--no-install-recommends"], &missing[..]].concat()).context(remedy.clone())?;
    step.done("installed");
    Ok(())
}

/// Configures and builds the kernel of `source` in `build`, and puts image, modules and release into `tree`.
fn build(source: &Path, build: &Path, tree: &Path) -> Result<()> {
    let step = Step::begin("building a kernel of the series' time: some minutes");
    let file = source.join(REFUSAL_FILE);
    let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    // Older sources do not have it.
    fs::write(&file, text.replace(REFUSAL, ""))?;
    fs::create_dir(build)?;
    let config = build.join("wanted.config");
    fs::write(&config, format!("{CONFIG}CONFIG_LOCALVERSION=\"{LOCAL_VERSION}\"\n"))?;

    let log = build.join("make.log");
    make(source, build, &log, &[&format!("KCONFIG_ALLCONFIG={}", config.display()), "allnoconfig"])?;
    let chosen = fs::read_to_string(build.join(".config"))?;
    let lost: Vec<_> = lost(CONFIG, &chosen).collect();
    if !lost.is_empty() {
        bail!("{SOURCE} cannot be configured with {}", lost.join(", "));
    }
    let jobs = std::thread::available_parallelism().map_or(1, |n| n.get());
    make(source, build, &log, &[&format!("-j{jobs}"), "bzImage", "modules"])?;

    let release = fs::read_to_string(build.join("include/config/kernel.release"))?.trim().to_owned();
    let modules = tree.join("lib/modules").join(&release).join("kernel");
    fs::create_dir_all(&modules)?;
    for module in files_with_suffix(build, ".ko")? {
        fs::copy(&module, modules.join(module.file_name().context("a file")?))?;
    }
    fs::create_dir(tree.join("boot"))?;
    fs::copy(build.join("arch/x86/boot/bzImage"), tree.join(format!("boot/vmlinuz-{release}")))?;
    fs::write(tree.join("release"), &release)?;
    step.done(&format!("{release} is built"));
    Ok(())
}

/// The lines of `wanted` that `chosen` does not have: Kconfig drops silently what it cannot have.
fn lost<'a>(wanted: &'a str, chosen: &'a str) -> impl Iterator<Item = &'a str> {
    let is_set = |line: &&str| chosen.lines().any(|other| other == *line);
    wanted.lines().filter(|line| line.starts_with("CONFIG_")).filter(move |line| !is_set(line))
}

/// Runs make, with a line of progress every quarter of a minute.
fn make(source: &Path, build: &Path, log: &Path, arguments: &[&str]) -> Result<()> {
    let file = fs::File::create(log)?;
    let mut command = Command::new("make");
    command.arg("-C").arg(source).arg(format!("O={}", build.display())).args(arguments);
    // Nothing of who built it, and when.
    command.env("KBUILD_BUILD_USER", "vsva").env("KBUILD_BUILD_HOST", "lab");
    command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
    let mut child = Guarded::spawn(&mut command, "install make")?;
    let mut told = Instant::now();
    let status = loop {
        if let Some(status) = child.status()? {
            break status;
        }
        process::check_interrupt()?;
        std::thread::sleep(TICK);
        if told.elapsed() > Duration::from_secs(15) {
            told = Instant::now();
            let steps = fs::read_to_string(log).unwrap_or_default().lines().count();
            eprintln!("    {steps} steps of the build");
        }
    };
    if !status.success() {
        let text = fs::read_to_string(log).unwrap_or_default();
        bail!("the kernel cannot be built: {}", process::first_error(&text));
    }
    Ok(())
}

fn files_with_suffix(directory: &Path, suffix: &str) -> Result<Vec<PathBuf>> {
    let (mut found, mut pending) = (vec![], vec![directory.to_owned()]);
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(&directory).with_context(|| directory.display().to_string())? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                pending.push(entry.path());
            } else if entry.file_name().to_string_lossy().ends_with(suffix) {
                found.push(entry.path());
            }
        }
    }
    if found.is_empty() {
        say::line(&format!("{}: no file ends in {suffix}", directory.display()));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_kconfig_drops_is_noticed() {
        let wanted = "# a comment\nCONFIG_A=y\nCONFIG_B=m\nCONFIG_C=y\n";
        let chosen = "CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C=y\nCONFIG_D=y\n";
        assert_eq!(lost(wanted, chosen).collect::<Vec<_>>(), ["CONFIG_B=m"]);
    }

    #[test]
    fn the_kernel_has_what_the_series_needs() {
        for option in ["INTEL_IOMMU_SVM=y", "INTEL_IDXD_SVM=y", "INTEL_IDXD=m", "IRQ_REMAP=y"] {
            assert!(CONFIG.lines().any(|line| line == format!("CONFIG_{option}")), "{option}");
        }
    }

    #[test]
    fn modules_are_found_wherever_they_are() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir_all(directory.path().join("drivers/dma")).unwrap();
        for file in ["drivers/dma/idxd.ko", "drivers/dma/idxd.o", "vmlinux"] {
            fs::write(directory.path().join(file), "").unwrap();
        }
        let found = files_with_suffix(directory.path(), ".ko").unwrap();
        assert_eq!(found, [directory.path().join("drivers/dma/idxd.ko")]);
    }
}
