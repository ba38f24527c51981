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
    fn name(self) -> &'static str {
        match self {
            Self::Assigned => "demo",
            Self::Emulated => "demo-emulated",
        }
    }

    fn arguments(self) -> &'static [&'static str] {
        match self {
            Self::Assigned => &["--device", "dsa,host=soft", "--figures"],
            Self::Emulated => &["--device", "dsa"],
        }
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
    let outcome = lab.boot(&Boot {
        name: device.name(),
        kernel,
        append: "intel_iommu=sm_on",
        modules: &MODULES,
        tree: None,
        script: &format!("guest disk\nguest demo --only={only}\n"),
        programs: 2,
        arguments: device.arguments(),
        trace,
        cpus: 2,
        memory_mib: 2048,
        disk: true,
    })?;
    if device == Device::Assigned {
        let nested = nested::find(&outcome.vsva);
        for (name, passed, detail) in nested::checks(nested.as_ref(), only.is_empty()) {
            report.check(&format!("{}: {name}", device.name()), passed, detail);
        }
        report.nested = nested;
    }
    judge(report, device.name(), outcome, Expect { sva: true, domain: None });
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
    judge(report, "accel-config", outcome, Expect { sva: true, domain: None });
    Ok(())
}
