// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Kernel modules for an initramfs: found by name, decompressed, in the order in which to load them.
//!
//! What a module needs is read from the module itself (`depends=` in its `.modinfo` section), as depmod does: the
//! packages hold no `modules.dep`, which is made when they are installed.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process;

/// A module, ready to be loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Module {
    /// Its file name, without any compression suffix.
    pub file: String,
    /// The ELF object.
    pub object: Vec<u8>,
}

/// The modules of one kernel.
pub struct Modules<'a> {
    files: BTreeMap<String, PathBuf>,
    busybox: &'a Path,
}

impl<'a> Modules<'a> {
    /// Lists the modules under `directory`; `busybox` decompresses them.
    pub fn open(directory: &Path, busybox: &'a Path) -> Result<Self> {
        let mut files = BTreeMap::new();
        let mut pending = vec![directory.to_owned()];
        while let Some(directory) = pending.pop() {
            for entry in fs::read_dir(&directory).with_context(|| directory.display().to_string())? {
                let entry = entry?;
                if entry.file_type()?.is_dir() {
                    pending.push(entry.path());
                } else if let Some(name) = module_name(&entry.file_name().to_string_lossy()) {
                    files.insert(name, entry.path());
                }
            }
        }
        Ok(Self { files, busybox })
    }

    /// Whether the kernel has this as a module, not built in or left out.
    pub fn has(&self, name: &str) -> bool {
        self.files.contains_key(name)
    }

    /// The named modules and all that they need, each after what it needs.
    pub fn in_order(&self, names: &[&str]) -> Result<Vec<Module>> {
        order(names, |name| {
            let Some(path) = self.files.get(name) else {
                bail!("this kernel has no module {name}: give one of Debian's generic flavour");
            };
            let object = self.read(path)?;
            let needs = depends(&object);
            Ok((Module { file: format!("{name}.ko"), object }, needs))
        })
    }

    fn read(&self, path: &Path) -> Result<Vec<u8>> {
        let applet = match path.extension().and_then(|e| e.to_str()) {
            Some("xz") => "unxz",
            Some("gz") => "gunzip",
            Some("ko") => return fs::read(path).with_context(|| path.display().to_string()),
            _ => bail!("{} is compressed in a way that the lab cannot undo", path.display()),
        };
        let mut command = Command::new(self.busybox);
        command.args([applet, "-c"]).arg(path);
        Ok(process::output(&mut command, "is it an amd64 machine?")?.stdout)
    }
}

/// `kvm_amd` of `kvm-amd.ko.xz`: names use underscores, files either.
fn module_name(file: &str) -> Option<String> {
    let (stem, suffix) = file.split_once(".ko")?;
    matches!(suffix, "" | ".xz" | ".gz" | ".zst").then(|| stem.replace('-', "_"))
}

/// Depth first, each once, those needed before those that need them.
fn order<T>(names: &[&str], mut load: impl FnMut(&str) -> Result<(T, Vec<String>)>) -> Result<Vec<T>> {
    enum Visit<T> {
        Enter(String),
        Leave(T),
    }
    let mut seen = HashSet::new();
    let mut ordered = vec![];
    let mut stack: Vec<_> = names.iter().rev().map(|n| Visit::Enter((*n).to_owned())).collect();
    while let Some(visit) = stack.pop() {
        match visit {
            Visit::Leave(item) => ordered.push(item),
            Visit::Enter(name) => {
                if !seen.insert(name.clone()) {
                    continue;
                }
                let (item, needs) = load(&name)?;
                stack.push(Visit::Leave(item));
                stack.extend(needs.into_iter().rev().map(Visit::Enter));
            }
        }
    }
    Ok(ordered)
}

/// The names in a module's `depends=` entry. The entries of `.modinfo` are C strings one after the other, so each
/// stands behind a NUL.
fn depends(object: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = object.windows(KEY.len()).position(|w| w == KEY) else { return vec![] };
    let value = object[at + KEY.len()..].split(|b| *b == 0).next().unwrap_or_default();
    let value = String::from_utf8_lossy(value);
    value.split(',').filter(|n| !n.is_empty()).map(|n| n.replace('-', "_")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_are_known_by_their_underscored_names() {
        assert_eq!(module_name("kvm-amd.ko.xz").as_deref(), Some("kvm_amd"));
        assert_eq!(module_name("idxd.ko").as_deref(), Some("idxd"));
        assert_eq!(module_name("modules.order"), None);
        assert_eq!(module_name("a.ko.txt"), None);
    }

    #[test]
    fn needs_are_read_from_the_module() {
        assert_eq!(
            depends(b"\x7fELF..\0license=GPL\0depends=kvm,irq-bypass\0retpoline=Y\0"),
            ["kvm", "irq_bypass"]
        );
        assert_eq!(depends(b"\0depends=\0name=a\0"), Vec::<String>::new());
        assert_eq!(depends(b"no module"), Vec::<String>::new());
    }

    #[test]
    fn what_is_needed_is_loaded_first_and_once() {
        let needs = |name: &str| -> Vec<String> {
            let list: &[&str] = match name {
                "idxd" => &["idxd_bus", "dca"],
                "idxd_bus" => &["dca"],
                _ => &[],
            };
            list.iter().map(|n| (*n).to_owned()).collect()
        };
        let ordered = order(&["idxd", "idxd_bus", "crc"], |name| Ok((name.to_owned(), needs(name)))).unwrap();
        assert_eq!(ordered, ["dca", "idxd_bus", "idxd", "crc"]);
    }

    #[test]
    fn a_missing_module_is_an_error_that_names_it() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("dca.ko"), b"\0depends=gone\0").unwrap();
        let modules = Modules::open(directory.path(), Path::new("busybox")).unwrap();
        assert!(modules.has("dca"));
        let message = modules.in_order(&["dca"]).unwrap_err().to_string();
        assert!(message.contains("no module gone"), "{message}");
    }
}
