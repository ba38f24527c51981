// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Where the lab keeps things: downloads outside the tree, consoles under `target/`.

use std::ffi::CString;
use std::fs::{self, File, TryLockError};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::say;

/// The directory of everything downloaded; one `xtask` at a time works in it.
pub struct Cache {
    root: PathBuf,
    _lock: File,
}

impl Cache {
    /// Opens `given`, or else `$XDG_CACHE_HOME/vsva` or `~/.cache/vsva`, waiting while another `xtask` holds it.
    pub fn open(given: Option<&Path>) -> Result<Self> {
        let root = match given {
            Some(path) => std::path::absolute(path)?,
            None => default_root()?,
        };
        let remedy =
            || format!("cannot use the cache directory {}: name another with --cache DIR", root.display());
        fs::create_dir_all(&root).with_context(remedy)?;
        let lock = File::create(root.join("lock")).with_context(remedy)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                say::line("waiting for another xtask to finish with the cache");
                lock.lock().with_context(remedy)?;
            }
            Err(TryLockError::Error(e)) => return Err(e).with_context(remedy),
        }
        Ok(Self { root, _lock: lock })
    }

    /// A path inside the cache.
    pub fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Refuses to start what needs `bytes` on a disk that has less.
    pub fn need_space(&self, bytes: u64) -> Result<()> {
        need_space(&self.root, bytes, "name another directory with --cache DIR")
    }

    /// Whether nothing has been unpacked into it yet.
    pub fn is_new(&self) -> bool {
        !self.root.join("kernels").exists()
    }
}

/// Refuses to start what needs `bytes` in `directory`, or where it will be, on a disk that has less.
pub fn need_space(directory: &Path, bytes: u64, remedy: &str) -> Result<()> {
    let existing = directory.ancestors().find(|path| path.exists()).unwrap_or(directory);
    let free = free_space(existing)?;
    if free < bytes {
        bail!(
            "{} has {} free and {} are needed: free some room or {remedy}",
            directory.display(),
            say::size(free),
            say::size(bytes)
        );
    }
    Ok(())
}

fn default_root() -> Result<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    match (set("XDG_CACHE_HOME"), set("HOME")) {
        (Some(cache), _) => Ok(cache.join("vsva")),
        (None, Some(home)) => Ok(home.join(".cache/vsva")),
        (None, None) => bail!("neither XDG_CACHE_HOME nor HOME is set: name a directory with --cache DIR"),
    }
}

fn free_space(path: &Path) -> Result<u64> {
    let c_path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: an all-zero statvfs is a valid value of this plain C structure.
    let mut stat: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: the path ends in NUL and the structure outlives the call.
    if unsafe { libc::statvfs(c_path.as_ptr(), &mut stat) } != 0 {
        return Err(std::io::Error::last_os_error()).with_context(|| path.display().to_string());
    }
    Ok(stat.f_bavail * stat.f_frsize)
}

/// The directory of the workspace.
pub fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}

/// Where the consoles of the run `name` are kept: a fresh directory under `target/lab`.
pub fn run_directory(name: &str) -> Result<PathBuf> {
    let path = workspace().join("target/lab").join(name);
    if path.exists() {
        fs::remove_dir_all(&path).with_context(|| path.display().to_string())?;
    }
    fs::create_dir_all(&path).with_context(|| path.display().to_string())?;
    Ok(path)
}

/// Keeps the consoles of the run `name` beside those of its repetition, under a longer name.
pub fn keep_run_directory(name: &str, suffix: &str) -> Result<PathBuf> {
    let kept = run_directory(&format!("{name}-{suffix}"))?;
    // Over the empty directory just made.
    fs::rename(workspace().join("target/lab").join(name), &kept)
        .with_context(|| kept.display().to_string())?;
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_is_too_small_is_refused_with_the_remedy() {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::open(Some(directory.path())).unwrap();
        cache.need_space(1).unwrap();
        let message = cache.need_space(u64::MAX).unwrap_err().to_string();
        assert!(message.contains("--cache DIR"), "{message}");
    }
}
