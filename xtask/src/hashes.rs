// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The hashes of a directory's files, kept beside it: damage is noticed before what is damaged is used.

use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use crate::process;

const NEEDS_COREUTILS: &str = "install coreutils and findutils";

/// Writes the hashes of all files in `directory` to `list`.
pub fn write(directory: &Path, list: &Path) -> Result<()> {
    const HASH_ALL: &str = r"find . \( -type f -o -type l -xtype f \) -print0 | xargs -0 -r b2sum --";
    let out =
        File::create(list).with_context(|| format!("cannot write {}: is the disk full?", list.display()))?;
    let mut command = Command::new("sh");
    command.args(["-c", HASH_ALL]).current_dir(directory).stdin(Stdio::null()).stdout(out);
    let status = command.status().with_context(|| format!("cannot run sh: {NEEDS_COREUTILS}"))?;
    process::check_interrupt()?;
    anyhow::ensure!(status.success(), "{} cannot be hashed: is the disk full?", directory.display());
    Ok(())
}

/// What of `directory` is not as `list` has it, if anything: a file that was changed, cut off or lost, or the list itself.
pub fn damage(directory: &Path, list: &Path) -> Result<Option<String>> {
    if !std::fs::metadata(list).is_ok_and(|list| list.len() > 0) {
        return Ok(Some("it has no hashes".to_owned()));
    }
    let mut command = Command::new("b2sum");
    command.args(["--check", "--quiet", "--strict"]).arg(list).current_dir(directory).stdin(Stdio::null());
    let output = command.output().with_context(|| format!("cannot run b2sum: {NEEDS_COREUTILS}"))?;
    process::check_interrupt()?;
    let first = String::from_utf8_lossy(&output.stdout).lines().next().map(str::to_owned);
    Ok((!output.status.success()).then(|| first.unwrap_or_else(|| "its hashes cannot be read".to_owned())))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_file_that_is_changed_cut_or_lost_is_noticed() {
        let whole = || {
            let directory = tempfile::tempdir().unwrap();
            let tree = directory.path().join("tree");
            fs::create_dir_all(tree.join("a b")).unwrap();
            fs::write(tree.join("a b/file"), "contents").unwrap();
            fs::write(tree.join("other"), "x").unwrap();
            std::os::unix::fs::symlink("other", tree.join("link")).unwrap();
            let list = directory.path().join("tree.b2");
            write(&tree, &list).unwrap();
            assert_eq!(damage(&tree, &list).unwrap(), None);
            (directory, tree, list)
        };
        type Harm = fn(&Path, &Path);
        let harms: [(Harm, &str); 5] = [
            (|tree, _| fs::write(tree.join("a b/file"), "c0ntents").unwrap(), "a b/file"),
            (|tree, _| fs::write(tree.join("a b/file"), "").unwrap(), "a b/file"),
            (|tree, _| fs::remove_file(tree.join("link")).unwrap(), "link"),
            (|_, list| fs::write(list, "nonsense").unwrap(), "hashes"),
            (|_, list| fs::remove_file(list).unwrap(), "no hashes"),
        ];
        for (harm, told) in harms {
            let (_directory, tree, list) = whole();
            harm(&tree, &list);
            let what = damage(&tree, &list).unwrap().unwrap();
            assert!(what.contains(told), "{what}");
        }
    }
}
