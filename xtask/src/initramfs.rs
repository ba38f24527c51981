// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The two initramfs images: level 1, which runs `vsva`, and the guest.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::cpio::Archive;
use crate::modules::Module;

const LEVEL1_INIT: &str = include_str!("scripts/level1.sh");
const GUEST_INIT: &str = include_str!("scripts/guest.sh");

/// What level 1 runs.
pub struct Level1<'a> {
    /// A static busybox.
    pub busybox: &'a Path,
    /// KVM and what it needs.
    pub modules: &'a [Module],
    /// The static `vsva`.
    pub vsva: &'a Path,
    /// Its arguments; files in them are the names given in `files`.
    pub arguments: &'a [String],
    /// Files to add, with the names under `/lab` that they get.
    pub files: &'a [(&'a str, &'a [u8])],
}

impl Level1<'_> {
    /// The image.
    pub fn pack(&self) -> Result<Vec<u8>> {
        let mut archive = base(LEVEL1_INIT, self.busybox, self.modules)?;
        archive.file("lab/vsva", 0o755, &read(self.vsva)?);
        for (name, contents) in self.files {
            archive.file(&format!("lab/{name}"), 0o644, contents);
        }
        // What vsva says for itself belongs to level 1's console, not to the guest's.
        let words: Vec<_> = self.arguments.iter().map(|a| quoted(a)).collect();
        let run = format!("exec /lab/vsva {} 2>/dev/ttyS0\n", words.join(" "));
        archive.file("lab/run", 0o644, run.as_bytes());
        Ok(archive.finish())
    }
}

/// What the guest runs.
pub struct Guest<'a> {
    /// A static busybox.
    pub busybox: &'a Path,
    /// Drivers, in the order in which to load them.
    pub modules: &'a [Module],
    /// The static guest program.
    pub program: &'a Path,
    /// A directory tree to add, such as a package and its libraries.
    pub tree: Option<&'a Path>,
    /// A shell script, run once everything is mounted and loaded.
    pub script: &'a str,
}

impl Guest<'_> {
    /// The image.
    pub fn pack(&self) -> Result<Vec<u8>> {
        let mut archive = base(GUEST_INIT, self.busybox, self.modules)?;
        archive.file("bin/guest", 0o755, &read(self.program)?);
        archive.file("lab/run", 0o644, self.script.as_bytes());
        if let Some(tree) = self.tree {
            add_programs(&mut archive, tree)?;
        }
        Ok(archive.finish())
    }
}

fn base(init: &str, busybox: &Path, modules: &[Module]) -> Result<Archive> {
    let mut archive = Archive::default();
    // The kernel opens it for init before anything is mounted.
    archive.character_device("dev/console", 0o600, (5, 1));
    for directory in ["bin", "proc", "sys", "tmp", "lab/modules"] {
        archive.directory(directory);
    }
    archive.file("bin/busybox", 0o755, &read(busybox)?);
    archive.file("init", 0o755, init.as_bytes());
    let mut order = String::new();
    for module in modules {
        order += &format!("{}\n", module.file);
        archive.file(&format!("lab/modules/{}", module.file), 0o644, &module.object);
    }
    archive.file("lab/modules/order", 0o644, order.as_bytes());
    Ok(archive)
}

/// The programs and shared libraries of unpacked packages; data, documentation and plug-ins stay out.
fn add_programs(archive: &mut Archive, tree: &Path) -> Result<()> {
    for directory in ["usr/bin", "usr/lib/x86_64-linux-gnu"] {
        let mut entries: Vec<PathBuf> = fs::read_dir(tree.join(directory))
            .with_context(|| tree.display().to_string())?
            .filter_map(|e| Some(e.ok()?.path()))
            .collect();
        entries.sort();
        for path in entries {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let kind = fs::symlink_metadata(&path)?;
            if kind.is_symlink() {
                archive.symlink(&format!("{directory}/{name}"), &fs::read_link(&path)?.to_string_lossy());
            } else if kind.is_file() {
                archive.file(&format!("{directory}/{name}"), 0o755, &read(&path)?);
            }
        }
    }
    archive.symlink("lib64", "usr/lib/x86_64-linux-gnu");
    archive.symlink("lib", "usr/lib");
    Ok(())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// One word for a shell, whatever is in it.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_survive_the_shell() {
        for word in ["plain", "console=ttyS0 intel_iommu=on", "it's", "$HOME `x` \"y\" \\"] {
            let script = format!("printf %s {}", quoted(word));
            let output = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
            assert_eq!(String::from_utf8(output.stdout).unwrap(), word);
        }
    }

    #[test]
    fn an_image_holds_init_and_the_modules_in_order() {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("program");
        fs::write(&program, "x").unwrap();
        let module = |file: &str| Module { file: file.into(), object: vec![1] };
        let image = Guest {
            busybox: &program,
            modules: &[module("b.ko"), module("a.ko")],
            program: &program,
            tree: None,
            script: "guest demo\n",
        }
        .pack()
        .unwrap();
        let holds = |text: &str| image.windows(text.len()).any(|w| w == text.as_bytes());
        assert!(holds("b.ko\na.ko\n"));
        assert!(holds("lab/modules/a.ko\0"));
        assert!(holds("guest demo\n"));
        assert!(holds(GUEST_INIT));
    }

    #[test]
    fn a_missing_file_is_named() {
        let missing = Path::new("/no/such/busybox");
        let guest = Guest { busybox: missing, modules: &[], program: missing, tree: None, script: "" };
        assert!(guest.pack().unwrap_err().to_string().contains("/no/such/busybox"));
    }
}
