// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the guest runs on: kernel, CPU, IOMMU, device.

use std::ffi::CStr;
use std::fs::OpenOptions;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::memory::Mapping;
use crate::sysfs::{Device, read};

/// ECAP bit 43: scalable mode translation [S 10.4.3; Linux drivers/iommu/intel/iommu.h:ecap_smts].
const ECAP_SMTS: u64 = 1 << 43;

/// Kernel, CPUs, memory, command line: always there.
pub fn system() -> String {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags: Vec<&str> =
        cpu.lines().find(|l| l.starts_with("flags")).unwrap_or("").split_whitespace().collect();
    let has = |flag| if flags.contains(&flag) { "yes" } else { "no" };
    let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let memory =
        memory.lines().next().unwrap_or("").split_whitespace().nth(1).and_then(|n| n.parse::<u64>().ok());
    format!(
        "Linux {} {}, {} CPUs, {} MiB; la57 {}, 1 GiB pages {}, movdir64b {}, enqcmd {}; command line: {}",
        release(),
        version(),
        cpu.lines().filter(|l| l.starts_with("processor")).count(),
        memory.unwrap_or(0) >> 10,
        has("la57"),
        has("pdpe1gb"),
        has("movdir64b"),
        has("enqcmd"),
        std::fs::read_to_string("/proc/cmdline").unwrap_or_default().trim()
    )
}

/// The IOMMU as the driver shows it; an error if there is none.
pub fn iommu() -> Result<String> {
    let unit = Path::new("/sys/class/iommu/dmar0/intel-iommu");
    ensure!(unit.exists(), "the kernel uses no VT-d unit: is intel_iommu=on on its command line?");
    let register = |name: &str| -> Result<u64> { Ok(u64::from_str_radix(&read(&unit.join(name))?, 16)?) };
    let (capability, extended) = (register("cap")?, register("ecap")?);
    let groups = std::fs::read_dir("/sys/kernel/iommu_groups").map(Iterator::count).unwrap_or(0);
    ensure!(groups > 0, "the kernel put no device into an IOMMU group");
    Ok(format!(
        "VT-d {}, cap {capability:#x}, ecap {extended:#x}, scalable mode {}, {groups} IOMMU groups",
        read(&unit.join("version")).unwrap_or_default(),
        if extended & ECAP_SMTS != 0 { "supported" } else { "not supported" }
    ))
}

/// What SVA needs of the IOMMU.
pub fn scalable_mode() -> Result<()> {
    let extended = read(Path::new("/sys/class/iommu/dmar0/intel-iommu/ecap"))?;
    let extended = u64::from_str_radix(&extended, 16).context("ecap")?;
    ensure!(extended & ECAP_SMTS != 0, "the unit has no scalable mode (ecap {extended:#x})");
    Ok(())
}

/// The DSA's PCI function.
pub fn device(device: &Device) -> Result<String> {
    let pci = device.pci_path()?;
    let attribute = |name: &str| read(&pci.join(name)).unwrap_or_else(|_| "?".into());
    let group = std::fs::canonicalize(pci.join("iommu_group")).context("the DSA is in no IOMMU group")?;
    Ok(format!(
        "{} is {}:{} at {}, IOMMU group {} of type {}, {} groups, {} engines, version {}, gen_cap {}, op_cap {}, user PASIDs {}",
        device.name(),
        attribute("vendor"),
        attribute("device"),
        pci.file_name().unwrap_or_default().to_string_lossy(),
        group.file_name().unwrap_or_default().to_string_lossy(),
        read(&group.join("type")).unwrap_or_default(),
        device.group_count(),
        device.engine_count(),
        device.attribute("version").unwrap_or_default(),
        device.attribute("gen_cap").unwrap_or_default(),
        device.attribute("op_cap").unwrap_or_default(),
        device.attribute("pasid_enabled").unwrap_or_default()
    ))
}

/// The PASIDs in the queues' configuration registers, of those queues that have one [D 9.2.20: WQCFG at the offset in
/// OFFSETS 31:16, in units of 256 bytes, stride 2^(n+5) with n from WQCAP 27:24; PASID enable is bit 28 of byte 8].
pub fn queue_pasids(device: &Device) -> Result<Vec<Option<u32>>> {
    let path = device.pci_path()?.join("resource0");
    let file = OpenOptions::new().read(true).write(true).open(&path)?;
    let length = file.metadata()?.len() as usize;
    let registers = Mapping::file(&file, length, true, false).context("mmap of resource0")?;
    let register = |offset: usize| -> Result<u32> {
        ensure!(offset + 4 <= length && offset.is_multiple_of(4), "register {offset:#x} is outside the BAR");
        // SAFETY: inside the mapping and aligned, as just checked; reads of these registers have no effect.
        Ok(unsafe { registers.pointer().add(offset).cast::<u32>().read_volatile() })
    };
    let capability = u64::from(register(0x20)?) | u64::from(register(0x24)?) << 32;
    let queues = (capability >> 16 & 0xff) as usize;
    let stride = 1usize << ((capability >> 24 & 0xf) + 5);
    let table = (register(0x60)? >> 16) as usize * 0x100;
    (0..queues)
        .map(|n| {
            let word = register(table + n * stride + 8)?;
            Ok((word >> 28 & 1 == 1).then_some(word >> 8 & 0xf_ffff))
        })
        .collect()
}

fn release() -> String {
    uname(|names| &names.release)
}

fn version() -> String {
    uname(|names| &names.version)
}

fn uname(field: fn(&libc::utsname) -> &[libc::c_char; 65]) -> String {
    // SAFETY: a zeroed utsname is valid; the call fills it with C strings.
    unsafe {
        let mut names: libc::utsname = std::mem::zeroed();
        libc::uname(&mut names);
        CStr::from_ptr(field(&names).as_ptr()).to_string_lossy().into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_system_is_described() {
        let text = system();
        assert!(text.starts_with("Linux ") && text.contains("la57"), "{text}");
    }
}
