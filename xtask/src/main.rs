// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The lab and the developer commands: `cargo xtask demo`, `cargo xtask test`, and what they are made of.

mod apt;
mod binaries;
mod cache;
mod checks;
mod console;
mod coverage;
mod cpio;
mod demo;
mod download;
mod exits;
mod floors;
mod hang;
mod hashes;
mod images;
mod initramfs;
mod judge;
mod kernel;
mod lab;
mod level1;
mod machine;
mod matrix;
mod modules;
mod nested;
mod own_time;
mod process;
mod qemu;
mod report;
mod say;
mod series_kernel;
mod sources;
mod supplies;
mod tail;
mod unpack;
mod version;
mod vmlinux;
mod watch;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::error::ErrorKind;
use clap::{Args, Parser, Subcommand};

use crate::binaries::{Binaries, Build, Coming};
use crate::cache::Cache;
use crate::demo::Device;
use crate::kernel::{Kernel, Want};
use crate::lab::Lab;
use crate::level1::Level1;
use crate::report::Report;
use crate::sources::Mirror;
use crate::supplies::Supplies;

/// The lab of vsva: boots stock Debian guests behind the virtual IOMMU, with or without hardware KVM.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// The main job: a stock guest whose process shares its address space with a device
    Demo {
        #[command(flatten)]
        lab: LabOptions,
        /// Only checks of the guest program whose name contains one of these
        #[arg(long, value_name = "NAME,...", default_value = "", hide_default_value = true, value_parser = plain_names)]
        only: String,
        /// The accelerator emulated behind the guest's own unit, instead of assigned to it by a software host
        #[arg(long)]
        emulated: bool,
        /// Bring vsva's trace back: JSON lines in FILE, and FILE.trace.json for trace viewers
        #[arg(long, value_name = "FILE", conflicts_with = "emulated")]
        trace: Option<PathBuf>,
    },
    /// Every test: formatting, lints, documentation, the crates' tests, then guests in the lab
    Test {
        #[command(flatten)]
        lab: LabOptions,
        /// Boot every kernel with every command line (no5lvl, iommu.strict=1, iommu=pt), and kernels that hang, too; the
        /// results go to target/lab/matrix-COMMIT.json
        #[arg(long)]
        matrix: bool,
    },
    /// Formatting, clippy and documentation, all without a warning
    Check,
    /// How much of what a guest reaches the fuzz targets' inputs reach, by file
    Coverage,
    /// Download and unpack all that the demo needs, and with --matrix all that the tests need
    Fetch {
        #[command(flatten)]
        lab: LabOptions,
        /// The kernels of the compatibility matrix too
        #[arg(long)]
        matrix: bool,
    },
    /// Boot one kernel that reads and writes a disk through the unit
    Boot {
        #[command(flatten)]
        lab: LabOptions,
        /// Only kernels of this series, such as 6.12
        #[arg(long, value_name = "A.B", value_parser = series)]
        series: Option<(u32, u32)>,
        /// Words for the guest's command line, beside intel_iommu=on
        #[arg(long, default_value = "")]
        append: String,
    },
    /// Boot the matrix of kernels and command lines
    Matrix(LabOptions),
    /// A kernel of the series' time, built from Debian's source with SVA: it allocates PASIDs by the virtual command
    Vcmd(LabOptions),
    /// Boot kernels that hang: the lab must tell
    Hang(LabOptions),
    /// The operations of the accelerator, with its queues brought up by Debian's accel-config
    AccelConfig(LabOptions),
}

/// What a first run takes in the cache at its peak, in bytes: package lists, a kernel and its packages, busybox; and what
/// QEMU adds where the machine has none that serves.
const CACHE_BYTES: u64 = 260 << 20;
const CACHE_BYTES_WITH_QEMU: u64 = CACHE_BYTES + (180 << 20);

#[derive(Args, Clone)]
struct LabOptions {
    /// The Debian suite whose newest generic kernel the guest is
    #[arg(long, default_value = "trixie-backports", value_parser = suite)]
    suite: String,
    /// The Debian mirror; without it the one that this machine's apt is set up with
    #[arg(long, value_name = "URL")]
    mirror: Option<String>,
    /// A bzImage of your own for the guest
    #[arg(long, value_name = "FILE", requires = "guest_modules")]
    guest_kernel: Option<PathBuf>,
    /// Its directory of modules, named as its release: /lib/modules/RELEASE
    #[arg(long, value_name = "DIR", requires = "guest_kernel")]
    guest_modules: Option<PathBuf>,
    /// Where downloads are kept; without it $XDG_CACHE_HOME/vsva or ~/.cache/vsva
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    /// Whether the guest runs in level 1, a kernel with KVM under QEMU's emulation
    #[arg(long, value_enum, default_value = "auto")]
    level1: Level1,
    /// Take static vsva and guest programs from this directory instead of building them
    #[arg(long, value_name = "DIR")]
    binaries: Option<PathBuf>,
    /// Count the guest's exits by kind: they are among the figures
    #[arg(long)]
    exits: bool,
    /// Write checks and figures to this file as JSON too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

impl LabOptions {
    /// Fails early for a kernel in which user SVA cannot work.
    fn prepare_with_sva(&self) -> Result<(Lab, Kernel)> {
        self.prepare(None, true)
    }

    /// The guest's kernel, and all else that booting it needs from elsewhere. What can be refused without a download
    /// is refused first.
    fn fetch(&self, series: Option<(u32, u32)>, sva: bool) -> Result<(Supplies, Kernel)> {
        if let Some(json) = &self.json {
            report::check_writable(json)?;
        }
        let given = match (&self.guest_kernel, &self.guest_modules) {
            (Some(image), Some(modules)) => Some(Kernel::given(image, modules)?),
            _ => None,
        };
        let in_level1 = self.level1.decide()?;
        let cache = Cache::open(self.cache.as_deref())?;
        if cache.is_new() {
            cache.need_space(if in_level1 { CACHE_BYTES_WITH_QEMU } else { CACHE_BYTES })?;
        }
        let mirror = Mirror::choose(self.mirror.as_deref(), Path::new("/etc/apt"));
        let kernel = match given {
            Some(kernel) => kernel,
            None => Kernel::fetch(&cache, mirror.as_ref(), &Want { suite: &self.suite, series })?,
        };
        if sva && !kernel.has_sva() {
            bail!("{}: user SVA needs Linux 7.2 or newer: name another kernel or suite", kernel.release);
        }
        Ok((Supplies::fetch(cache, mirror, in_level1, &kernel, &self.suite)?, kernel))
    }

    /// Where the results of the matrix go.
    fn results(&self) -> Result<PathBuf> {
        let path = self.json.clone().map_or_else(matrix::results, Ok)?;
        say::line(&format!("the results: {}", path.display()));
        Ok(path)
    }

    /// The guest's kernel and a lab that can boot it.
    fn prepare(&self, series: Option<(u32, u32)>, sva: bool) -> Result<(Lab, Kernel)> {
        // Downloads wait for others, and a build for nobody.
        let binaries = match &self.binaries {
            Some(directory) => Coming::Given(Binaries::in_directory(directory)?),
            None => Coming::Built(Build::begin()?),
        };
        let (supplies, kernel) = self.fetch(series, sva)?;
        let binaries = binaries.finish()?;
        if self.exits && supplies.outer.is_none() {
            bail!("exits are counted in level 1: pass --level1 always too");
        }
        Ok((Lab { supplies, binaries, exits: self.exits }, kernel))
    }
}

fn series(text: &str) -> Result<(u32, u32), String> {
    version::series(text).ok_or_else(|| "give a series such as 6.12".to_owned())
}

/// It becomes part of a path and of a line for apt.
fn suite(text: &str) -> Result<String, String> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if text.starts_with(|c: char| c.is_ascii_lowercase()) && text.chars().all(plain) {
        Ok(text.to_owned())
    } else {
        Err("give the name of a Debian suite, such as trixie-backports".to_owned())
    }
}

/// They become part of a script in the guest.
fn plain_names(text: &str) -> Result<String, String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == ',';
    if text.chars().all(plain) {
        Ok(text.to_owned())
    } else {
        Err("give names of checks, with commas".to_owned())
    }
}

fn older_kernels(supplies: &Supplies) -> Result<Vec<Kernel>> {
    matrix::OLDER.iter().map(|want| supplies.kernel(want)).collect()
}

fn run(task: Task) -> Result<()> {
    process::catch_interrupts()?;
    let mut report = Report::default();
    match task {
        Task::Check => checks::check(),
        Task::Coverage => coverage::coverage(),
        Task::Demo { lab: options, only, emulated, trace } => {
            if let Some(path) = &trace {
                report::check_writable(path)?;
            }
            let (lab, kernel) = options.prepare_with_sva()?;
            let device = if emulated { Device::Emulated } else { Device::Assigned };
            demo::demo(&lab, &kernel, device, &only, trace.as_deref(), &mut report)?;
            report.conclude(options.json.as_deref())
        }
        Task::Hang(options) => {
            let (lab, kernel) = options.prepare(None, false)?;
            hang::hang(&lab, &kernel, &mut report)?;
            report.conclude(options.json.as_deref())
        }
        Task::Vcmd(options) => {
            let (lab, _) = options.prepare(None, false)?;
            demo::virtual_command(&lab, &mut report)?;
            report.conclude(options.json.as_deref())
        }
        Task::AccelConfig(options) => {
            let (lab, kernel) = options.prepare_with_sva()?;
            demo::accel_config(&lab, &kernel, &mut report)?;
            report.conclude(options.json.as_deref())
        }
        Task::Fetch { lab: options, matrix } => {
            let (supplies, _) = options.fetch(None, false)?;
            if matrix {
                older_kernels(&supplies)?;
                supplies.tools("accel-config")?;
                supplies.series_kernel()?;
            }
            say::line("everything is there");
            Ok(())
        }
        Task::Boot { lab: options, series, append } => {
            let (lab, kernel) = options.prepare(series, false)?;
            matrix::disk(&lab, &kernel, "boot", &append, None, &mut report)?;
            report.conclude(options.json.as_deref())
        }
        Task::Matrix(options) => {
            let (lab, kernel) = options.prepare(None, false)?;
            let mut kernels = older_kernels(&lab.supplies)?;
            kernels.push(kernel);
            matrix::matrix(&lab, &kernels, true, &mut report)?;
            demo::virtual_command(&lab, &mut report)?;
            report.conclude(Some(&options.results()?))
        }
        Task::Test { lab: options, matrix: variants } => {
            if let Some(json) = &options.json {
                report::check_writable(json)?;
            }
            checks::check()?;
            checks::cargo_test()?;
            checks::fuzz()?;
            let (lab, kernel) = options.prepare_with_sva()?;
            for device in [Device::Assigned, Device::Emulated] {
                demo::demo(&lab, &kernel, device, "", None, &mut report)?;
            }
            demo::accel_config(&lab, &kernel, &mut report)?;
            let mut kernels = older_kernels(&lab.supplies)?;
            if variants {
                kernels.push(kernel);
            }
            matrix::matrix(&lab, &kernels, variants, &mut report)?;
            if !variants {
                return report.conclude(options.json.as_deref());
            }
            demo::virtual_command(&lab, &mut report)?;
            hang::hang(&lab, kernels.last().context("there is a kernel")?, &mut report)?;
            report.conclude(Some(&options.results()?))
        }
    }
}

/// What a wrong command line gets: the first paragraph of clap's text, as one line.
fn one_line(text: &str) -> String {
    let paragraph: Vec<_> = text.lines().map(str::trim).take_while(|line| !line.is_empty()).collect();
    paragraph.join(" ").trim_start_matches("error: ").to_owned()
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) if e.use_stderr() && e.kind() != ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            eprintln!("error: {} (see cargo xtask help)", one_line(&e.to_string()));
            return ExitCode::from(2);
        }
        Err(help) => help.exit(),
    };
    match run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e:#}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn wrong_use_is_told_in_one_line() {
        for (arguments, told) in [
            (vec!["demo", "--frobnicate"], "unexpected argument '--frobnicate' found"),
            (
                vec!["demo", "--guest-kernel", "x"],
                "the following required arguments were not provided: --guest-modules <DIR>",
            ),
            (vec!["demo", "--suite", "../x"], "give the name of a Debian suite"),
            (vec!["demo", "--only", "a;b"], "give names of checks"),
        ] {
            let arguments = [vec!["xtask"], arguments].concat();
            let line = one_line(&Cli::try_parse_from(arguments).err().unwrap().to_string());
            assert!(line.contains(told) && !line.contains('\n') && !line.contains("error:"), "{line}");
        }
    }

    #[test]
    fn a_kernel_without_its_modules_is_refused() {
        assert!(Cli::try_parse_from(["xtask", "demo", "--guest-kernel", "vmlinuz"]).is_err());
        assert!(Cli::try_parse_from(["xtask", "boot", "--series", "new"]).is_err());
        assert!(Cli::try_parse_from(["xtask", "boot", "--series", "6.12", "--suite", "trixie"]).is_ok());
    }
}
