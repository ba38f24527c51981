// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Other kernels and command lines: each boots behind the unit, and reads and writes a disk through it.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use crate::cache;

use crate::judge::{Expect, judge};
use crate::kernel::{Kernel, Want};
use crate::lab::{Boot, Lab};
use crate::process;
use crate::report::Report;

/// Kernels that are booted beside the demo's own.
pub const OLDER: [Want; 2] =
    [Want { suite: "bookworm", series: Some((6, 1)) }, Want { suite: "trixie", series: Some((6, 12)) }];

/// A command line and the default domain that it makes.
type Variant = (&'static str, &'static str, Option<&'static str>);

const PLAIN: Variant = ("", "", None);
const VARIANTS: [Variant; 3] = [
    ("no5lvl", "no5lvl", None),
    ("strict", "iommu.strict=1", Some("DMA")),
    ("pt", "iommu=pt", Some("identity")),
];

/// Where the results of the matrix go unless the user says otherwise: a file that names the commit.
pub fn results() -> Result<PathBuf> {
    let git = |arguments: &[&str]| {
        let mut command = Command::new("git");
        process::output(
            command.args(arguments).current_dir(cache::workspace()),
            "install git, or pass --json FILE",
        )
    };
    let commit =
        String::from_utf8_lossy(&git(&["rev-parse", "--short=12", "HEAD"])?.stdout).trim().to_owned();
    let changed = !git(&["status", "--porcelain", "--untracked-files=no"])?.stdout.is_empty();
    let directory = cache::workspace().join("target/lab");
    fs::create_dir_all(&directory)?;
    Ok(directory.join(format!("matrix-{commit}{}.json", if changed { "-changed" } else { "" })))
}

/// Boots each of `kernels`; with `variants` also with each command line.
pub fn matrix(lab: &Lab, kernels: &[Kernel], variants: bool, report: &mut Report) -> Result<()> {
    for kernel in kernels {
        boot(lab, kernel, PLAIN, report)?;
        for variant in VARIANTS.into_iter().filter(|_| variants) {
            boot(lab, kernel, variant, report)?;
        }
    }
    Ok(())
}

fn boot(lab: &Lab, kernel: &Kernel, (label, append, domain): Variant, report: &mut Report) -> Result<()> {
    let release = kernel.release.trim_end_matches("-amd64");
    let name = if label.is_empty() { release.to_owned() } else { format!("{release} {label}") };
    disk(lab, kernel, &name, append, domain, report)
}

/// Boots a kernel with a disk behind the unit, and checks what it reads and writes.
pub fn disk(
    lab: &Lab,
    kernel: &Kernel,
    name: &str,
    append: &str,
    domain: Option<&'static str>,
    report: &mut Report,
) -> Result<()> {
    let outcome = lab.boot(&Boot {
        name: &name.replace(' ', "-"),
        kernel,
        append,
        modules: &["virtio_pci", "virtio_blk"],
        tree: None,
        script: "guest disk\n",
        programs: 1,
        arguments: &[],
        trace: None,
        cpus: 2,
        memory_mib: 1024,
        disk: true,
    })?;
    judge(report, name, outcome, Expect { domain, ..Expect::default() });
    Ok(())
}
