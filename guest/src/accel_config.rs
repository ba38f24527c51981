// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The same bring-up as in `sysfs`, done by Debian's `accel-config`.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::sysfs::Device;

fn run(program: &str, arguments: &[String]) -> Result<String> {
    let output =
        Command::new(program).args(arguments).output().with_context(|| format!("starting {program}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_string();
    let all = format!("{} {}", text(&output.stdout), text(&output.stderr));
    if !output.status.success() {
        bail!("accel-config {}: {}: {}", arguments.join(" "), output.status, all.trim());
    }
    Ok(all.trim().to_string())
}

fn program() -> Result<&'static str> {
    ["/usr/bin/accel-config", "/bin/accel-config", "/usr/sbin/accel-config", "/sbin/accel-config"]
        .into_iter()
        .find(|path| Path::new(path).exists())
        .context("accel-config is not in the initramfs")
}

/// Configures engines, groups and queues, enables device and queues, and lists them.
pub fn bring_up(device: &Device) -> Result<String> {
    let program = program()?;
    let groups = device.group_count().min(device.engine_count()).min(device.queue_count()).max(1);
    let name = device.name();
    let number = name.trim_start_matches(|c: char| !c.is_ascii_digit());
    for engine in 0..device.engine_count() {
        let target = format!("{name}/engine{number}.{engine}");
        run(program, &["config-engine".into(), target, format!("--group-id={}", engine % groups)])?;
    }
    for queue in 0..device.queue_count() {
        let mut arguments = vec!["config-wq".to_string(), device.full_name(queue)];
        arguments.push(format!("--group-id={}", queue % groups));
        arguments.push(format!("--wq-size={}", device.queue_entries()));
        arguments.push(format!("--name=app{queue}"));
        for fixed in ["mode=dedicated", "priority=10", "block-on-fault=1", "type=user", "driver-name=user"] {
            arguments.push(format!("--{fixed}"));
        }
        run(program, &arguments)?;
    }
    run(program, &["enable-device".into(), name.into()])?;
    for queue in 0..device.queue_count() {
        run(program, &["enable-wq".into(), device.full_name(queue)])?;
    }
    let list = run(program, &["list".into()])?;
    ensure!(list.contains("wq"), "accel-config list shows no queue: {list}");
    let version = run(program, &["--version".into()]).unwrap_or_default();
    Ok(format!("accel-config {version} enabled {name} with {} queues", device.queue_count()))
}

/// Disables queues and device.
pub fn tear_down(device: &Device) -> Result<String> {
    let program = program()?;
    for queue in 0..device.queue_count() {
        run(program, &["disable-wq".into(), device.full_name(queue)])?;
    }
    run(program, &["disable-device".into(), device.name().into()])?;
    ensure!(device.attribute("state")? == "disabled", "the device is still enabled");
    Ok("queues and device disabled".into())
}
