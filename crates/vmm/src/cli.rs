// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The command line.

use std::path::{Path, PathBuf};

use clap::{Args, CommandFactory, Parser, Subcommand};

use crate::devices::{self, DeviceOptions, MAX_DEVICES};
use crate::files::{self, Named};
use crate::machine::MAX_PROCESSORS;
use crate::memory::{HUGE_PAGE, MemoryOptions};
use crate::sandbox::Sandbox;
use crate::virtio::DiskOptions;
use crate::{layout, remapping, trace};

/// Exit status when the guest powers off.
pub const STATUS_POWER_OFF: u8 = 0;
/// Exit status when the machine cannot be built or cannot go on.
pub const STATUS_ERROR: u8 = 1;
/// Exit status for a wrong command line.
pub const STATUS_USAGE: u8 = 2;
/// Exit status when the guest resets: a reboot, or a panic with `panic=-1`.
pub const STATUS_RESET: u8 = 3;
/// Exit status when the user ends the machine with Ctrl-A x.
pub const STATUS_QUIT: u8 = 4;

const AFTER_HELP: &str = "\
Options of --iommu, comma-separated. Switches take on or off, those with a star are off by default; numbers are
shown with their defaults, with which a current Linux shares address spaces:
  cm                   caching mode: software announces entries that become present
  smts fsts            scalable mode; first stage
  fs1gp fs5lp          first stage with 1 GiB pages; with 5 levels
  ssts* ssads* nest*   second stage; its accessed and dirty bits; first stage nested on it
  pasid pss=19         requests with PASID; PASID width in bits, less one
  dt prs pds sms       device-TLBs; page requests; drain of page requests; stop markers
  nwfs smpwc c pt      no-write flag; coherent page walks; coherent tables; pass-through
  srs* eafs* rps*      privileged requests; extended accessed flag; RID_PASID field
  vcmd*                virtual command, by which guests from 5.7 to 6.3 allocate PASIDs: on, early for those
                       before 5.15, early1 for those before 5.12
  ir* eim*             interrupt remapping; with 32-bit APIC ids
  esrtps psi           root pointer invalidates; page-selective invalidation
  mamv=18 haw=48       largest address mask; host address width
  fault-records=8      fault recording registers
  iotlb-entries=8192   translations that a function may have cached
  structure-entries=1024
                       tables that a function may have cached

The console is the terminal: Ctrl-C goes to the guest, Ctrl-A x ends the machine, Ctrl-A h lists the escapes.

Exit status: 0 the guest powered off; 1 the machine could not be built or could not go on; 2 wrong command
line; 3 the guest reset itself (a reboot, or a kernel panic with panic=-1 on its command line); 4 ended with
Ctrl-A x; 128+N ended by signal N. VSVA_LOG=debug in the environment shows what guest and devices do wrong.";

/// Virtual machines whose devices share their processes' address spaces.
#[derive(Debug, Parser)]
#[command(name = "vsva", version)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a Linux kernel in a virtual machine with an Intel VT-d unit in scalable mode
    #[command(after_help = AFTER_HELP)]
    Run(Box<RunArgs>),
    /// Say what this machine has: a usable KVM, an IOMMU, iommufd
    Check(CheckArgs),
}

/// Arguments of `vsva run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Linux kernel (bzImage)
    #[arg(long, value_name = "FILE")]
    pub kernel: PathBuf,

    /// Initramfs
    #[arg(long, value_name = "FILE")]
    pub initrd: Option<PathBuf>,

    /// Kernel command line
    #[arg(
        long,
        value_name = "STRING",
        default_value = "console=ttyS0 panic=-1 intel_iommu=on",
        allow_hyphen_values = true
    )]
    pub append: String,

    /// Number of processors
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=MAX_PROCESSORS as i64))]
    pub cpus: u8,

    /// RAM in bytes, or with K, M, G or T as in 512M; with ,hugepages=on it is made
    /// of 2 MiB pages of the host's pool (vm.nr_hugepages), which walks are quicker on
    #[arg(long, verbatim_doc_comment, value_name = "SIZE[,hugepages=on]", default_value = "1G", value_parser = parse_memory)]
    pub memory: MemoryOptions,

    /// The remapping unit: off, or options such as cm=off,pss=15 (see below)
    #[arg(long, value_name = "OPTIONS", default_value = "on", value_parser = parse_iommu)]
    pub iommu: remapping::Choice,

    /// A device behind the unit, may be repeated: dsa, an Intel Data Streaming
    /// Accelerator; with ,host=soft it belongs to a software host with a
    /// remapping unit of its own and is assigned to the guest
    #[arg(long = "device", verbatim_doc_comment, value_name = "DEVICE[,host=HOST]")]
    pub devices: Vec<DeviceOptions>,

    /// A virtio disk behind the unit, may be repeated: an image or a block device;
    /// with ,ro the guest only reads
    #[arg(long = "disk", verbatim_doc_comment, value_name = "FILE[,ro]")]
    pub disks: Vec<DiskOptions>,

    /// Also write the console's output to a file
    #[arg(long, value_name = "FILE")]
    pub console_log: Option<PathBuf>,

    /// Record what passes between the guest and the host of assigned devices:
    /// JSON lines in FILE, and in FILE.trace.json the same for trace viewers
    /// (Perfetto, chrome://tracing)
    #[arg(long, verbatim_doc_comment, value_name = "FILE")]
    pub trace: Option<PathBuf>,

    /// Give up what the machine does not need: new privileges, files that it has not
    /// open, system calls (fewer still on processors and disks); log tells of system
    /// calls in the kernel's log, and makes them
    #[arg(
        long,
        verbatim_doc_comment,
        value_name = "on|log|off",
        value_enum,
        default_value_t,
        hide_possible_values = true
    )]
    pub sandbox: Sandbox,

    /// At the end, print to standard error what the host of assigned devices did:
    /// one line, VSVA-NESTED and JSON
    #[arg(long, verbatim_doc_comment)]
    pub figures: bool,
}

impl RunArgs {
    /// Says what arguments ask for together and cannot have, in one line.
    ///
    /// # Errors
    ///
    /// That line.
    pub fn check(&self) -> Result<(), String> {
        let wanted = [(self.trace.is_some(), "--trace"), (self.figures, "--figures")];
        if let Some((_, option)) = wanted.iter().find(|(wanted, _)| *wanted)
            && !self.devices.iter().any(|device| device.is_assigned())
        {
            return Err(format!(
                "{option} would have nothing to show without a device that a host assigns to the guest: add \
                 --device dsa,host=soft"
            ));
        }
        if self.devices.len() + self.disks.len() > MAX_DEVICES {
            return Err(devices::Error::Full.to_string());
        }
        let (reach, end) = (1u64 << self.iommu.config.haw, layout::ram_end(self.memory.size));
        if self.iommu.visible && end > reach {
            return Err(format!(
                "--iommu haw={} reaches {} GiB, and memory ends at {} GiB: give less --memory or a larger haw",
                self.iommu.config.haw,
                reach >> 30,
                end.div_ceil(1 << 30)
            ));
        }
        files::conflict(&self.files()).map_or(Ok(()), Err)
    }

    /// All files that the arguments name.
    fn files(&self) -> Vec<Named> {
        let mut files = Vec::new();
        let mut add = |option, path: &Path, written| files.push(Named { option, path: path.into(), written });
        add("--kernel", &self.kernel, false);
        if let Some(path) = &self.initrd {
            add("--initrd", path, false);
        }
        for disk in &self.disks {
            add("--disk", &disk.path, !disk.read_only);
        }
        if let Some(path) = &self.console_log {
            add("--console-log", path, true);
        }
        if let Some(path) = &self.trace {
            add("--trace", path, true);
            add("--trace", &trace::viewer_path(path), true);
        }
        files
    }
}

/// Whether there is a command of this name.
pub fn has_command(name: &str) -> bool {
    Cli::command().find_subcommand(name).is_some()
}

/// Arguments of `vsva check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Parses a size: a number of bytes, or one with K, M, G or T (powers of 1024; an `iB` or `B` may follow). It must be a
/// positive multiple of 4 KiB.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u64 = digits.parse().map_err(|_| "not a size, write one like 512M or 4G".to_string())?;
    let shift = match text[digits.len()..].to_ascii_uppercase().as_str() {
        "" | "B" => 0,
        "K" | "KB" | "KIB" => 10,
        "M" | "MB" | "MIB" => 20,
        "G" | "GB" | "GIB" => 30,
        "T" | "TB" | "TIB" => 40,
        other => return Err(format!("unknown unit {other:?}, use K, M, G or T (as in 512M)")),
    };
    let size = number.checked_mul(1 << shift).filter(|size| *size <= 1 << 46).ok_or("too large")?;
    if size == 0 || size % 4096 != 0 {
        return Err("not a positive multiple of 4K".into());
    }
    Ok(size)
}

/// Parses `SIZE[,hugepages=on|off]`.
fn parse_memory(text: &str) -> Result<MemoryOptions, String> {
    let (size, option) = text.split_once(',').map_or((text, None), |(size, option)| (size, Some(option)));
    let size = parse_size(size)?;
    let huge_pages = match option {
        None | Some("hugepages=off") => false,
        Some("hugepages=on") => true,
        Some(other) => return Err(format!("unknown option {other:?}, write hugepages=on or hugepages=off")),
    };
    if huge_pages && size % HUGE_PAGE != 0 {
        return Err("huge pages make up a multiple of 2M".into());
    }
    Ok(MemoryOptions { size, huge_pages })
}

fn parse_iommu(text: &str) -> Result<remapping::Choice, String> {
    remapping::parse(text).map_err(|e| e.to_string())
}

/// clap's message as one line.
pub fn one_line(error: &clap::Error) -> String {
    let text = error.to_string();
    let mut lines = text.lines().map(str::trim);
    let mut message = lines.next().unwrap_or_default().trim_start_matches("error: ").to_string();
    // A list that follows a colon (missing arguments) belongs to the sentence.
    if message.ends_with(':') {
        let list: Vec<_> = lines.take_while(|line| !line.is_empty()).collect();
        message = format!("{message} {}", list.join(", "));
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(std::iter::once("vsva").chain(args.iter().copied()))
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn sizes_take_units() {
        for (text, size) in
            [("512M", 512 << 20), ("4G", 4 << 30), ("4g", 4 << 30), ("1GiB", 1 << 30), ("8192", 8192)]
        {
            assert_eq!(parse_size(text), Ok(size), "{text}");
        }
        for text in ["", "M", "0", "0G", "1X", "-1G", "1.5G", "4095", "99999999T", "12 M"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn memory_may_be_asked_for_in_huge_pages() {
        let options = |text| parse_memory(text).map(|m| (m.size, m.huge_pages));
        assert_eq!(options("2G"), Ok((2 << 30, false)));
        assert_eq!(options("2G,hugepages=on"), Ok((2 << 30, true)));
        assert_eq!(options("1M,hugepages=off"), Ok((1 << 20, false)));
        assert!(options("1M,hugepages=on").unwrap_err().contains("2M"));
        assert!(options("2G,huge=on").unwrap_err().contains("hugepages=on"));
    }

    #[test]
    fn help_names_each_option_of_the_unit() {
        let error = parse_iommu("warp=on").unwrap_err();
        let (_, names) = error.split_once("known are: ").unwrap();
        let help: Vec<_> = AFTER_HELP.split([' ', '=', ',', '*', '\n']).collect();
        for name in names.split(", ") {
            assert!(help.contains(&name), "{name}");
        }
    }

    #[test]
    fn help_tells_each_default_of_the_unit() {
        let (_, options) = AFTER_HELP.split_once(":\n").unwrap();
        let (options, _) = options.split_once("\n\n").unwrap();
        let named =
            options.lines().filter_map(|line| line.strip_prefix("  ").filter(|l| !l.starts_with(' ')));
        let mut count = 0;
        for option in named.flat_map(|line| line.split("  ").next().unwrap().split(' ')) {
            let text = match option.strip_suffix('*') {
                Some(name) => format!("{name}=off"),
                None => option.to_owned(),
            };
            assert_eq!(parse_iommu(&text), parse_iommu("on"), "{text}");
            count += 1;
        }
        assert_eq!(count, 31);
    }

    #[test]
    fn wrong_use_is_one_line() {
        for args in [
            &["run"][..],
            &["run", "--kernel", "k", "--cpus", "0"],
            &["run", "--kernel", "k", "--cpus", "255"],
            &["run", "--kernel", "k", "--memory", "lots"],
            &["run", "--kernel", "k", "--nonsense"],
            &["run", "--kernel", "k", "--device", "warp"],
            &["run", "--kernel", "k", "--device", "dsa,host=warp"],
            &["run", "--kernel", "k", "--iommu", "warp=on"],
            &["run", "--kernel", "k", "--disk", "d,rw"],
            &["nonsense"],
        ] {
            let line = one_line(&parse(args).unwrap_err());
            assert!(!line.contains('\n') && line.len() > 10, "{line}");
        }
        assert!(one_line(&parse(&["run"]).unwrap_err()).contains("--kernel"));
    }

    fn check(args: &[&str]) -> Result<(), String> {
        let Command::Run(run) = parse(&[&["run", "--kernel", "k"], args].concat()).unwrap().command else {
            panic!("not run");
        };
        run.check()
    }

    #[test]
    fn a_machine_takes_so_many_devices_and_disks() {
        let devices = ["--device", "dsa"].repeat(MAX_DEVICES - 1);
        let one_more = [&devices[..], &["--disk", "a,ro"]].concat();
        assert_eq!(check(&one_more), Ok(()));
        assert!(check(&[&one_more[..], &["--disk", "b"]].concat()).unwrap_err().contains("too many"));
    }

    #[test]
    fn the_unit_reaches_all_memory() {
        assert_eq!(check(&["--iommu", "haw=32", "--memory", "3G"]), Ok(()));
        let line = check(&["--iommu", "haw=32", "--memory", "4G"]).unwrap_err();
        assert!(line.contains("4 GiB") && line.contains("5 GiB") && !line.contains('\n'), "{line}");
        assert_eq!(check(&["--iommu", "off", "--memory", "512G"]), Ok(()));
    }

    #[test]
    fn a_file_that_is_written_is_used_for_nothing_else() {
        for args in [
            &["--console-log", "k"][..],
            &["--initrd", "i", "--console-log", "./i"],
            &["--disk", "d", "--disk", "d"],
            &["--disk", "d", "--disk", "d,ro"],
            &["--device", "dsa,host=soft", "--trace", "t", "--console-log", "t.trace.json"],
        ] {
            let line = check(args).unwrap_err();
            assert!(line.contains("same file") && !line.contains('\n'), "{line}");
        }
        assert_eq!(check(&["--initrd", "k", "--disk", "d,ro", "--disk", "d,ro"]), Ok(()));
    }

    #[test]
    fn what_only_assigned_devices_have_names_them() {
        assert_eq!(check(&["--device", "dsa"]), Ok(()));
        assert_eq!(
            check(&["--device", "dsa", "--device", "dsa,host=soft", "--trace", "t", "--figures"]),
            Ok(())
        );
        for args in [&["--trace", "t"][..], &["--figures"], &["--trace", "t", "--device", "dsa"]] {
            let line = check(args).unwrap_err();
            assert!(
                line.contains("dsa,host=soft") && line.contains(args[0]) && !line.contains('\n'),
                "{line}"
            );
        }
    }

    #[test]
    fn kernel_arguments_may_begin_with_a_hyphen() {
        let Command::Run(run) = parse(&["run", "--kernel", "k", "--append", "-- x"]).unwrap().command else {
            panic!("not run");
        };
        assert_eq!(run.append, "-- x");
    }
}
