// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Unpacked packages: a directory of the cache per set of packages, complete or not there.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::cache::Cache;
use crate::hashes;
use crate::process;
use crate::say;

/// Parts of kernel packages that no guest of the lab has a device for, and that are most of their size.
const LEFT_OUT: [&str; 7] = [
    "*/kernel/drivers/gpu",
    "*/kernel/drivers/media",
    "*/kernel/drivers/net/wireless",
    "*/kernel/drivers/staging",
    "*/kernel/sound",
    "*/usr/share/doc",
    "*/usr/share/locale",
];

/// The directory `name` of the cache; where it is missing or damaged, `download` puts packages into an empty directory and
/// they are unpacked over each other. `need` is what that takes at most, in bytes.
pub fn unpacked(
    cache: &Cache,
    name: &str,
    need: u64,
    download: impl FnOnce(&Path) -> Result<Vec<PathBuf>>,
) -> Result<PathBuf> {
    made(cache, name, need, |work, tree| {
        let archives = work.join("archives");
        fs::create_dir(&archives)?;
        let debs = download(&archives)?;
        if debs.is_empty() {
            bail!("apt downloaded nothing for {name}");
        }
        for deb in &debs {
            unpack(deb, tree)?;
            fs::remove_file(deb)?;
        }
        Ok(())
    })
}

/// The directory `name` of the cache; where it is missing or damaged, `make` fills an empty one: the second that it is given,
/// beside the first, which is for its work. `need` is what that takes at most, in bytes.
pub fn made(
    cache: &Cache,
    name: &str,
    need: u64,
    make: impl FnOnce(&Path, &Path) -> Result<()>,
) -> Result<PathBuf> {
    let complete = cache.path(name);
    let list = cache.path(&format!("{name}.b2"));
    if complete.exists() {
        let Some(what) = hashes::damage(&complete, &list)? else { return Ok(complete) };
        say::line(&format!("{} is damaged ({what}): it is made again", complete.display()));
        fs::remove_dir_all(&complete).with_context(|| complete.display().to_string())?;
    }
    cache.need_space(need)?;
    let parent = complete.parent().context("a directory inside the cache")?;
    fs::create_dir_all(parent)?;
    // Removed on every way out; what is whole is renamed out of it first.
    let work = tempfile::tempdir_in(parent)?;
    let tree = work.path().join("tree");
    fs::create_dir(&tree)?;
    make(work.path(), &tree)?;
    // The hashes first: a tree without them would be taken for damaged, hashes without a tree are nothing.
    hashes::write(&tree, &list)?;
    fs::rename(&tree, &complete).with_context(|| complete.display().to_string())?;
    Ok(complete)
}

/// Unpacks a package into a directory, without what no guest has a use for.
pub fn unpack(deb: &Path, tree: &Path) -> Result<()> {
    process::check_interrupt()?;
    let mut contents = Command::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(deb)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot run dpkg-deb: install dpkg")?;
    let pipe = contents.stdout.take().context("dpkg-deb has no output")?;
    let mut tar = Command::new("tar");
    tar.args(["-x", "--no-same-owner", "--no-same-permissions", "-C"]).arg(tree);
    tar.args(LEFT_OUT.map(|pattern| format!("--exclude={pattern}")));
    let status = tar.stdin(pipe).status().context("cannot run tar: install tar")?;
    let unpacked = contents.wait()?;
    process::check_interrupt()?;
    if !status.success() || !unpacked.success() {
        bail!("{} cannot be unpacked: is the disk full?", deb.display());
    }
    Ok(())
}
