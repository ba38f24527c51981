// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! `vsva check`: what this machine has.

use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use serde::Serialize;

use crate::kvm::{self, Virtualization};
use crate::memory;

/// One thing that was looked at.
#[derive(Debug, Serialize)]
pub struct Item {
    /// What.
    pub name: &'static str,
    /// `vsva run` works without it unless it is `kvm` or `virtualization`.
    pub needed: bool,
    /// Whether it is there and usable.
    pub ok: bool,
    /// What was found, in a line.
    pub detail: String,
}

impl Item {
    fn needed(name: &'static str, result: Result<String, String>) -> Self {
        Self { needed: true, ..Self::optional(name, result) }
    }

    fn optional(name: &'static str, result: Result<String, String>) -> Self {
        let ok = result.is_ok();
        Self { name, needed: false, ok, detail: result.unwrap_or_else(|e| e) }
    }
}

fn kernel() -> Result<String, String> {
    fs::read_to_string("/proc/sys/kernel/osrelease").map(|s| s.trim().to_string()).map_err(|e| e.to_string())
}

fn virtualization() -> Result<String, String> {
    match kvm::virtualization() {
        Some(Virtualization::Vmx) => Ok("vmx (Intel VT-x)".into()),
        Some(Virtualization::Svm) => Ok("svm (AMD-V)".into()),
        None => Err("the processor shows neither vmx nor svm".into()),
    }
}

fn kvm_usable() -> Result<String, String> {
    // In the order in which things go wrong; `open` has the best message for each.
    let kvm = kvm::open_any().map_err(|e| e.to_string())?;
    let probe = kvm::probe(&kvm);
    kvm::open().map_err(|e| match &probe {
        Ok(()) => format!("{e} (a real-mode probe ran)"),
        Err(probe) => format!("{e} (and {probe})"),
    })?;
    probe.map_err(|e| e.to_string())?;
    Ok(format!("a probe guest ran; at most {} processors", kvm.get_max_vcpus()))
}

fn iommu() -> Result<String, String> {
    let mut names: Vec<_> = fs::read_dir("/sys/class/iommu")
        .map(|entries| entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect())
        .unwrap_or_default();
    names.sort();
    if names.is_empty() {
        return Err("none in /sys/class/iommu (with VT-d: intel_iommu=on)".into());
    }
    Ok(format!("{} unit(s): {}", names.len(), names.join(", ")))
}

fn node(path: &str, remedy: &str) -> Result<String, String> {
    match fs::OpenOptions::new().read(true).write(true).open(path) {
        Ok(_) => Ok(path.into()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Err(format!("no {path} ({remedy})")),
        Err(e) => Err(format!("{path}: {e}")),
    }
}

fn vfio() -> Result<String, String> {
    let devices = fs::read_dir("/dev/vfio/devices").map(|d| d.flatten().count()).unwrap_or(0);
    if devices > 0 {
        return Ok(format!("{devices} device(s) in /dev/vfio/devices"));
    }
    if Path::new("/dev/vfio/vfio").exists() {
        return Ok("/dev/vfio/vfio (group interface; no device cdev)".into());
    }
    Err("no /dev/vfio (load vfio-pci)".into())
}

/// Guest RAM is a memory file that asks for huge pages; stock kernels give such files none.
fn huge_pages() -> Result<String, String> {
    match memory::shmem_huge_pages() {
        Ok(chosen) if ["never", "deny"].contains(&chosen.as_str()) => Err(format!(
            "none for guest memory ({chosen}), it would be quicker with: echo advise | sudo tee \
             /sys/kernel/mm/transparent_hugepage/shmem_enabled"
        )),
        Ok(chosen) => Ok(format!("for guest memory, {chosen}")),
        Err(_) => Err("this kernel has no transparent huge pages".into()),
    }
}

/// Looks at everything.
pub fn items() -> Vec<Item> {
    vec![
        Item::optional("kernel", kernel()),
        Item::needed("virtualization", virtualization()),
        Item::needed("kvm", kvm_usable()),
        Item::optional("huge pages", huge_pages()),
        Item::optional("iommu", iommu()),
        Item::optional("iommufd", node("/dev/iommu", "CONFIG_IOMMUFD")),
        Item::optional("vfio", vfio()),
    ]
}

fn table(items: &[Item]) -> String {
    let width = items.iter().map(|i| i.name.len()).max().unwrap_or(0);
    let mut text = String::new();
    for item in items {
        let mark = match (item.ok, item.needed) {
            (true, _) => "yes",
            (false, true) => "NO",
            (false, false) => "no",
        };
        text += &format!("{:width$}  {mark:3}  {}\n", item.name, item.detail);
    }
    let ready = items.iter().all(|i| i.ok || !i.needed);
    text += if ready {
        "\nvsva run works here.\n"
    } else {
        "\nvsva run does not work here; cargo xtask demo does, it brings its own machine.\n"
    };
    text
}

/// Prints what was found. The exit status is 0 if `vsva run` works here, 1 if not.
pub fn main(json: bool) -> ExitCode {
    let items = items();
    let ready = items.iter().all(|i| i.ok || !i.needed);
    let text = if json {
        format!("{:#}\n", serde_json::json!({ "ready": ready, "items": items }))
    } else {
        table(&items)
    };
    // Whoever does not read on has the exit status.
    let _ = io::stdout().write_all(text.as_bytes());
    ExitCode::from(u8::from(!ready))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_aligned_and_says_whether_run_works() {
        let items = [
            Item::needed("kvm", Err("no /dev/kvm".into())),
            Item::optional("virtualization", Ok("vmx".into())),
        ];
        let text = table(&items);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0].find("NO"), lines[1].find("yes"));
        assert_eq!(lines[0].find("no /dev"), lines[1].find("vmx"));
        assert!(text.contains("does not work"));
    }

    #[test]
    fn every_item_is_looked_at_without_failing() {
        let names: Vec<_> = items().iter().map(|i| i.name).collect();
        assert_eq!(names, ["kernel", "virtualization", "kvm", "huge pages", "iommu", "iommufd", "vfio"]);
    }
}
