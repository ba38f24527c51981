// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Bring-up of groups, engines and dedicated user work queues through sysfs, as `accel-config` does it
//! [Documentation/ABI/stable/sysfs-driver-dma-idxd; Linux drivers/dma/idxd/sysfs.c].

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::descriptor::Opcode;
use crate::portal::{Limits, Queue};
use crate::progress::{self, Patience};

const BUS: &str = "/sys/bus/dsa";
/// The most queues that are brought up.
pub const MAX_QUEUES: usize = 8;

/// A DSA device as the driver shows it.
#[derive(Clone, Debug)]
pub struct Device {
    name: String,
    /// Largest transfer the device allows, in bytes.
    pub max_transfer: u64,
    /// Largest batch the device allows.
    pub max_batch: u64,
    queues: usize,
    engines: usize,
    groups: usize,
    entries: u64,
}

impl Device {
    /// Waits for the driver to find a device, and reads what it has.
    pub fn find() -> Result<Device> {
        let mut patience = Patience::of_a_check();
        let name = loop {
            match first_device() {
                Some(name) => break name,
                None if patience.sleep(Duration::from_millis(20), "a device").is_ok() => {}
                None if Path::new(BUS).exists() => {
                    bail!(
                        "the idxd driver has no device: is there a DSA on the PCI bus? (see the kernel's log)"
                    )
                }
                None => {
                    bail!("no idxd driver: {BUS} is missing; list idxd.ko (and idxd_bus.ko) in /modules.list")
                }
            }
        };
        let number = |attribute: &str| -> Result<u64> { Ok(read(&device_path(&name, attribute))?.parse()?) };
        Ok(Device {
            max_transfer: number("max_transfer_size")?,
            max_batch: number("max_batch_size")?,
            queues: number("max_work_queues")? as usize,
            engines: number("max_engines")? as usize,
            groups: number("max_groups")? as usize,
            entries: number("max_work_queues_size")?,
            name,
        })
    }

    /// How many queues are used.
    pub fn queue_count(&self) -> usize {
        self.queues.min(MAX_QUEUES)
    }

    /// An attribute of the device.
    pub fn attribute(&self, attribute: &str) -> Result<String> {
        read(&device_path(&self.name, attribute))
    }

    /// The PCI function's directory.
    pub fn pci_path(&self) -> Result<PathBuf> {
        let path = std::fs::canonicalize(device_path(&self.name, ""))?;
        Ok(path.parent().context("the device has no parent")?.to_path_buf())
    }

    /// The operations that the device lacks, of those that the checks use.
    pub fn missing_operations(&self) -> Result<Vec<&'static str>> {
        let capabilities = parse_op_cap(&self.attribute("op_cap")?)?;
        // Linux hides batch of version 1 devices here, for its own write() path only (sysfs.c:op_cap_show_common).
        let hidden = self.attribute("version")? == "0x100";
        let lacks = |opcode: Opcode| {
            let bit = opcode as usize;
            !(capabilities[bit / 32] >> (bit % 32) & 1 == 1 || (hidden && opcode == Opcode::Batch))
        };
        Ok(Opcode::ALL.into_iter().filter(|(opcode, _)| lacks(*opcode)).map(|(_, name)| name).collect())
    }

    /// Configures engines, groups and queues, and enables the device and all queues.
    pub fn bring_up(&self) -> Result<String> {
        if self.enabled() && (0..self.queue_count()).all(|queue| self.node(queue).exists()) {
            return Ok(format!("{} and its queues were enabled already", self.name));
        }
        let groups = self.groups.min(self.engines).min(self.queue_count());
        ensure!(groups > 0, "the device has no group, engine or work queue");
        for engine in 0..self.engines {
            let path = device_path(&self.name, &format!("engine{}/group_id", self.child(engine)));
            write(&path, &(engine % groups).to_string())?;
        }
        for queue in 0..self.queue_count() {
            self.configure(queue, true)?;
        }
        self.bind("idxd", &self.name)?;
        for queue in 0..self.queue_count() {
            self.enable(queue)?;
        }
        Ok(format!(
            "{}: {} queues of {} entries in {groups} groups with {} engines; transfers up to {} MiB, batches up to {}",
            self.name,
            self.queue_count(),
            self.queue_entries(),
            self.engines,
            self.max_transfer >> 20,
            self.max_batch
        ))
    }

    /// Writes one queue's configuration; it must be disabled.
    pub fn configure(&self, queue: usize, block_on_fault: bool) -> Result<()> {
        let groups = self.groups.min(self.engines).min(self.queue_count()).max(1);
        let name = format!("app{queue}");
        // The order matters: writing the type clears the name.
        let settings: [(&str, String); 10] = [
            ("group_id", (queue % groups).to_string()),
            ("mode", "dedicated".into()),
            ("size", self.queue_entries().to_string()),
            ("priority", "10".into()),
            ("type", "user".into()),
            ("name", name),
            ("driver_name", "user".into()),
            ("block_on_fault", u8::from(block_on_fault).to_string()),
            ("max_transfer_size", self.max_transfer.to_string()),
            ("max_batch_size", self.max_batch.to_string()),
        ];
        for (attribute, value) in settings {
            // The size cannot change while the device is enabled, and stays over a queue's disable.
            if attribute == "size" && self.enabled() {
                continue;
            }
            // Since 6.7; before, any driver may bind any queue.
            if attribute == "driver_name" && !self.queue_path(queue, attribute).exists() {
                continue;
            }
            write(&self.queue_path(queue, attribute), &value)?;
        }
        Ok(())
    }

    /// Enables a configured queue and waits for its character device.
    pub fn enable(&self, queue: usize) -> Result<()> {
        self.bind("user", &format!("wq{}", self.child(queue)))?;
        let node = self.node(queue);
        let mut patience = Patience::of_a_check();
        while !node.exists() {
            let what = format!("{} to appear (is devtmpfs on /dev?)", node.display());
            patience.sleep(Duration::from_millis(2), &what)?;
        }
        Ok(())
    }

    /// Disables a queue.
    pub fn disable(&self, queue: usize) -> Result<()> {
        write(&Path::new(BUS).join("drivers/user/unbind"), &format!("wq{}", self.child(queue)))
    }

    /// Opens a queue, binding this process's address space to it.
    pub fn open(&self, queue: usize) -> Result<Queue> {
        ensure!(queue < self.queue_count(), "queue {queue} is needed, the device has {}", self.queue_count());
        let number =
            |attribute: &str| -> Result<u64> { Ok(read(&self.queue_path(queue, attribute))?.parse()?) };
        let limits = Limits {
            max_transfer: number("max_transfer_size")?,
            max_batch: number("max_batch_size")?,
            depth: number("size")? as usize,
        };
        Queue::open(&self.node(queue), limits)
    }

    /// Names of the queues for `accel-config`, such as `dsa0/wq0.0`.
    pub fn full_name(&self, queue: usize) -> String {
        format!("{}/wq{}", self.name, self.child(queue))
    }

    /// The device's name, such as `dsa0`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Number of engines.
    pub fn engine_count(&self) -> usize {
        self.engines
    }

    /// Number of groups.
    pub fn group_count(&self) -> usize {
        self.groups
    }

    /// Entries that each queue gets.
    pub fn queue_entries(&self) -> u64 {
        (self.entries / self.queue_count().max(1) as u64).clamp(1, 16)
    }

    fn enabled(&self) -> bool {
        self.attribute("state").is_ok_and(|state| state == "enabled")
    }

    fn node(&self, queue: usize) -> PathBuf {
        PathBuf::from(format!("/dev/dsa/wq{}", self.child(queue)))
    }

    /// `0.3` for the third child of dsa0.
    fn child(&self, number: usize) -> String {
        format!("{}.{number}", self.name.trim_start_matches(|c: char| !c.is_ascii_digit()))
    }

    fn queue_path(&self, queue: usize, attribute: &str) -> PathBuf {
        device_path(&self.name, &format!("wq{}/{attribute}", self.child(queue)))
    }

    fn bind(&self, driver: &str, device: &str) -> Result<()> {
        let bound = write(&Path::new(BUS).join("drivers").join(driver).join("bind"), device);
        bound.with_context(|| {
            let status = self.attribute("cmd_status").unwrap_or_default();
            format!("enabling {device} failed, {}", decode_cmd_status(&status))
        })
    }
}

fn first_device() -> Option<String> {
    let mut names: Vec<String> = std::fs::read_dir(Path::new(BUS).join("devices"))
        .ok()?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.strip_prefix("dsa").is_some_and(|n| n.parse::<u32>().is_ok()))
        .collect();
    names.sort();
    names.into_iter().next()
}

fn device_path(name: &str, attribute: &str) -> PathBuf {
    Path::new(BUS).join("devices").join(name).join(attribute)
}

/// Reads an attribute without the line's end.
pub fn read(path: &Path) -> Result<String> {
    let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    Ok(text.trim_end().to_string())
}

/// Writes an attribute.
pub fn write(path: &Path, value: &str) -> Result<()> {
    std::fs::write(path, value).with_context(|| format!("writing {value:?} to {}", path.display()))?;
    progress::made();
    Ok(())
}

/// `op_cap` as 32-bit words, lowest first. Linux prints 32-bit groups, highest first, with commas
/// (sysfs.c:op_cap_show_common); kernels before 6.0 printed four 64-bit words, lowest first, with spaces.
fn parse_op_cap(text: &str) -> Result<[u32; 8]> {
    let mut words = [0; 8];
    let text = text.trim();
    if text.contains(',') {
        for (word, group) in words.iter_mut().zip(text.rsplit(',')) {
            *word = u32::from_str_radix(group, 16).with_context(|| format!("op_cap {text:?}"))?;
        }
    } else {
        for (n, group) in text.split_whitespace().take(4).enumerate() {
            let digits = group.trim_start_matches("0x");
            let value = u64::from_str_radix(digits, 16).with_context(|| format!("op_cap {text:?}"))?;
            words[2 * n] = value as u32;
            words[2 * n + 1] = (value >> 32) as u32;
        }
    }
    Ok(words)
}

/// `cmd_status` in words: the device's error codes [D 5.8.3] and the driver's own (uapi idxd.h:idxd_scmd_stat).
fn decode_cmd_status(text: &str) -> String {
    let Ok(code) = u32::from_str_radix(text.trim().trim_start_matches("0x"), 16) else {
        return format!("cmd_status unreadable ({text:?})");
    };
    let meaning = match code {
        0 => "no error",
        0x01 => "undefined command",
        0x02 => "invalid queue index",
        0x03 => "hardware error",
        0x04 => "reserved field",
        0x05 => "device halted",
        0x10 => "device is not disabled",
        0x11 => "unspecified error in the configuration",
        0x12 => "bus mastering is off",
        0x13 => "page request allocation",
        0x14 => "queue sizes exceed the total",
        0x15 => "group with queues but no engines, or with engines but no queues",
        0x16 => "queue in several groups, in none, or of size 0",
        0x17 => "engine in several groups",
        0x18 => "read buffers or bandwidth",
        0x19 => "event log",
        0x1a => "ATS required or forbidden",
        0x1b => "PASID of event log or bitmap",
        0x20 => "device is not enabled",
        0x21 => "queue is not disabled",
        0x22 => "queue size is 0",
        0x23 => "priority is 0",
        0x24 => "queue mode is not supported",
        0x25 => "block on fault needs the capability and PRI enabled",
        0x26 => "PASID enable: PCI PASID is off",
        0x27 => "maximum batch size",
        0x28 => "maximum transfer size",
        0x2a => "privileged mode",
        0x2c => "ATS disable is not supported",
        0x2d => "operation configuration beyond the capabilities",
        0x2e => "PRS disable",
        0x31 => "device is not enabled",
        0x32 => "a queue is not enabled",
        0x8000_0010 => "device is enabled",
        0x8000_0020 => "device is not enabled",
        0x8000_0021 => "queue is enabled",
        0x8002_0000 => "DMA device could not be registered",
        0x8003_0000 => "queue has no group",
        0x8004_0000 => "queue has no name",
        0x8005_0000 => "SVA is not available",
        0x8006_0000 => "queue has no threshold",
        0x8007_0000 => "portal could not be mapped",
        0x8008_0000 => "queue resources could not be allocated",
        0x8009_0000 => "per-CPU data could not be allocated",
        0x800a_0000 => "DMA channel could not be registered",
        0x800b_0000 => "character device could not be made",
        0x800c_0000 => "shared queues are not supported",
        0x800d_0000 => "no queue is configured",
        0x800e_0000 => "queue has no size",
        0x800f_0000 => "privileged mode is not available",
        0x8010_0000 => "interrupt could not be set up",
        0x8011_0000 => "user queues need SVA: intel_iommu=on with scalable mode",
        0x8012_0000 => "event log could not be set up",
        0x8020_0000 => "queue's driver_name does not match",
        _ => "unknown code",
    };
    format!("cmd_status {code:#x}: {meaning}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn op_cap_is_read_in_both_formats() {
        let groups = "00000000,00000000,00000000,00000000,00000000,00000000,00000001,003f03ff\n";
        let mut expected = [0; 8];
        expected[0] = 0x003f_03ff;
        expected[1] = 1;
        assert_eq!(parse_op_cap(groups).unwrap(), expected);
        assert_eq!(parse_op_cap("0x1003f03ff 0x0 0x0 0x0\n").unwrap(), expected);
        assert!(parse_op_cap("x,y").is_err());
    }

    #[test]
    fn command_status_is_explained() {
        assert_eq!(
            decode_cmd_status("0x25\n"),
            "cmd_status 0x25: block on fault needs the capability and PRI enabled"
        );
        assert!(decode_cmd_status("0x80110000").contains("intel_iommu=on"));
        assert!(decode_cmd_status("").contains("unreadable"));
    }
}
