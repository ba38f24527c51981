// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::devices::DeviceOptions;
use crate::machine::MAX_PROCESSORS;
use crate::remapping;
use crate::virtio::DiskOptions;

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
Options of --iommu, comma-separated; switches take on or off, the defaults are those with which a current Linux
shares address spaces:
  cm               caching mode: software announces entries that become present
  smts fsts        scalable mode; first stage
  fs1gp fs5lp      first stage with 1 GiB pages; with 5 levels
  pasid pss=N      requests with PASID; PASID width in bits, less one
  dt prs pds sms   device-TLBs; page requests; drain of page requests; stop markers
  nwfs smpwc c pt  no-write flag; coherent page walks; coherent tables; pass-through
  srs eafs rps     privileged requests; extended accessed flag; RID_PASID field
  ir eim           interrupt remapping; with 32-bit APIC ids
  esrtps psi       root pointer invalidates; page-selective invalidation
  mamv=N haw=N     largest address mask; host address width
  fault-records=N iotlb-entries=N

The console is the terminal: Ctrl-C goes to the guest, Ctrl-A x ends the machine, Ctrl-A h lists the escapes.

Exit status: 0 the guest powered off; 1 the machine could not be built or could not go on; 2 wrong command
line; 3 the guest reset itself (a reboot, or a kernel panic with panic=-1 on its command line); 4 ended with
Ctrl-A x; 128+N ended by signal N. VSVA_LOG=debug in the environment shows what guest and devices do wrong.";

/// Virtual machines whose devices share their processes' address spaces.
#[derive(Debug, Parser)]
#[command(name = "vsva", version, max_term_width = 110)]
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

    /// RAM, with K, M, G or T
    #[arg(long, value_name = "SIZE", default_value = "1G", value_parser = parse_size)]
    pub memory: u64,

    /// The remapping unit: `off`, or options such as `cm=off,pss=15` (see below)
    #[arg(long, value_name = "OPTIONS", default_value = "on", value_parser = parse_iommu)]
    pub iommu: remapping::Choice,

    /// A device behind the unit: `dsa`, an Intel Data Streaming Accelerator; with `,host=soft` it belongs to a
    /// software host with a remapping unit of its own and is assigned to the guest; may be repeated
    #[arg(long = "device", value_name = "DEVICE[,host=HOST]")]
    pub devices: Vec<DeviceOptions>,

    /// A virtio disk behind the unit: an image or block device, with `,ro` read-only; may be repeated
    #[arg(long = "disk", value_name = "FILE[,ro]")]
    pub disks: Vec<DiskOptions>,

    /// Also write the console's output to a file
    #[arg(long, value_name = "FILE")]
    pub console_log: Option<PathBuf>,

    /// Record what passes between the guest and the host of assigned devices: JSON lines in FILE, and in
    /// FILE.trace.json for trace viewers (Perfetto, chrome://tracing)
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,

    /// At the end, print to standard error what the host of assigned devices did: one line, VSVA-NESTED and JSON
    #[arg(long)]
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
        Ok(())
    }
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
    let shift = match text[digits.len()..].to_ascii_uppercase().as_str() {
        "" | "B" => 0,
        "K" | "KB" | "KIB" => 10,
        "M" | "MB" | "MIB" => 20,
        "G" | "GB" | "GIB" => 30,
        "T" | "TB" | "TIB" => 40,
        other => return Err(format!("unknown unit {other:?}, use K, M, G or T (as in 512M)")),
    };
    let number: u64 = digits.parse().map_err(|_| "not a size, write one like 512M or 4G".to_string())?;
    let size = number.checked_mul(1 << shift).filter(|size| *size <= 1 << 46).ok_or("too large")?;
    if size == 0 || size % 4096 != 0 {
        return Err("not a positive multiple of 4K".into());
    }
    Ok(size)
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
    use clap::CommandFactory;

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
    fn help_names_each_option_of_the_unit() {
        let error = parse_iommu("warp=on").unwrap_err();
        let (_, names) = error.split_once("known are: ").unwrap();
        let help: Vec<_> = AFTER_HELP.split([' ', '=', ',', '\n']).collect();
        for name in names.split(", ") {
            assert!(help.contains(&name), "{name}");
        }
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

    #[test]
    fn what_only_assigned_devices_have_names_them() {
        let check = |args: &[&str]| {
            let Command::Run(run) = parse(&[&["run", "--kernel", "k"], args].concat()).unwrap().command
            else {
                panic!("not run");
            };
            run.check()
        };
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
