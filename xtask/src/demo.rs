// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The main job: a stock guest whose process shares its address space with a device.

use std::path::Path;

use anyhow::Result;

use crate::judge::{Expect, judge};
use crate::kernel::Kernel;
use crate::lab::{Boot, Lab};
use crate::nested;
use crate::report::Report;

/// The drivers of the accelerator and of the disk, and a RAM disk to page out to.
pub const MODULES: [&str; 5] = ["virtio_pci", "virtio_blk", "idxd_bus", "idxd", "brd"];

/// Where the accelerator of the demo is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Device {
    /// Behind a software host's unit, which assigns it to the guest.
    Assigned,
    /// Behind the guest's unit.
    Emulated,
}

impl Device {
    /// What its runs are called.
    fn name(self, virtual_command: bool) -> &'static str {
        match (self, virtual_command) {
            (Self::Assigned, false) => "demo",
            (Self::Emulated, false) => "demo-emulated",
            (Self::Assigned, true) => "vcmd",
            (Self::Emulated, true) => "vcmd-emulated",
        }
    }

    fn arguments(self, virtual_command: bool) -> Vec<&'static str> {
        let mut arguments = match self {
            Self::Assigned => vec!["--device", "dsa,host=soft", "--figures"],
            Self::Emulated => vec!["--device", "dsa"],
        };
        if virtual_command {
            // Without caching mode no guest of the time uses it.
            arguments.extend(["--iommu", "vcmd=on,cm=on"]);
        }
        arguments
    }
}

/// Boots the kernel with a software DSA and a disk, and runs the guest program's checks: all of them, or those that
/// `only` names. `trace` gets what passes between guest and host.
pub fn demo(
    lab: &Lab,
    kernel: &Kernel,
    device: Device,
    only: &str,
    trace: Option<&Path>,
    report: &mut Report,
) -> Result<()> {
    run(lab, kernel, device, false, only, trace, report)
}

/// The demo, in both ways, with a kernel of the series' time, which allocates PASIDs by the virtual command and tears their
/// entries down as one does that caching mode was announced to.
pub fn virtual_command(lab: &Lab, report: &mut Report) -> Result<()> {
    let kernel = lab.supplies.series_kernel()?;
    for device in [Device::Assigned, Device::Emulated] {
        run(lab, &kernel, device, true, "", None, report)?;
    }
    Ok(())
}

fn run(
    lab: &Lab,
    kernel: &Kernel,
    device: Device,
    virtual_command: bool,
    only: &str,
    trace: Option<&Path>,
    report: &mut Report,
) -> Result<()> {
    let name = device.name(virtual_command);
    let outcome = lab.boot(&Boot {
        name,
        kernel,
        append: "intel_iommu=sm_on",
        modules: &MODULES,
        tree: None,
        script: &format!("guest disk\nguest demo --only={only}\n"),
        programs: 2,
        arguments: &device.arguments(virtual_command),
        trace,
        cpus: 2,
        memory_mib: 2048,
        disk: true,
    })?;
    if device == Device::Assigned {
        let nested = nested::find(&outcome.vsva);
        for (name, passed, detail) in nested::checks(nested.as_ref(), only.is_empty()) {
            report.check(&format!("{}: {name}", device.name(virtual_command)), passed, detail);
        }
        if !virtual_command {
            report.nested = nested;
        }
    }
    judge(report, name, outcome, Expect { sva: true, domain: None, virtual_command });
    Ok(())
}

/// The same with the queues brought up by Debian's `accel-config`, and the checks of the operations.
pub fn accel_config(lab: &Lab, kernel: &Kernel, report: &mut Report) -> Result<()> {
    let tree = lab.supplies.tools("accel-config")?;
    let outcome = lab.boot(&Boot {
        name: "accel-config",
        kernel,
        append: "intel_iommu=sm_on",
        modules: &MODULES,
        tree: Some(&tree),
        script: "export PATH=/bin:/usr/bin\nguest accel-config\n",
        programs: 1,
        arguments: &["--device", "dsa"],
        trace: None,
        cpus: 2,
        memory_mib: 2048,
        disk: false,
    })?;
    judge(report, "accel-config", outcome, Expect { sva: true, ..Expect::default() });
    Ok(())
}
