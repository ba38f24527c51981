// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The files that the command line names, against each other: what one option writes, no other may use.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// A file and the option that names it.
#[derive(Clone, Debug)]
pub struct Named {
    /// The option.
    pub option: &'static str,
    /// The file.
    pub path: PathBuf,
    /// Whether it is written.
    pub written: bool,
}

/// What makes two names one file.
#[derive(PartialEq, Eq)]
enum Identity {
    Existing { device: u64, inode: u64 },
    BlockDevice(u64),
    Missing(PathBuf),
}

/// `None` for what many may use at once, such as /dev/null.
fn identity(path: &Path) -> Option<Identity> {
    match fs::metadata(path) {
        Ok(metadata) if metadata.file_type().is_block_device() => {
            Some(Identity::BlockDevice(metadata.rdev()))
        }
        Ok(metadata) if metadata.is_file() => {
            Some(Identity::Existing { device: metadata.dev(), inode: metadata.ino() })
        }
        Ok(_) => None,
        Err(_) => Some(Identity::Missing(std::path::absolute(path).unwrap_or_else(|_| path.into()))),
    }
}

/// Two of the files that are the same one, if one of the two is written: a line for the user.
pub fn conflict(files: &[Named]) -> Option<String> {
    let mut seen: Vec<(&Named, Identity)> = Vec::new();
    for file in files {
        let Some(identity) = identity(&file.path) else { continue };
        let other = seen.iter().find(|(other, id)| *id == identity && (file.written || other.written));
        if let Some((other, _)) = other {
            return Some(format!(
                "{} {} and {} {} are the same file, which would be overwritten while it is used: name another one",
                other.option,
                other.path.display(),
                file.option,
                file.path.display()
            ));
        }
        seen.push((file, identity));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(option: &'static str, path: &Path, written: bool) -> Named {
        Named { option, path: path.into(), written }
    }

    #[test]
    fn a_file_that_is_written_has_one_use() {
        let directory = tempfile::tempdir().unwrap();
        let disk = directory.path().join("disk");
        let link = directory.path().join("link");
        let new = directory.path().join("new");
        fs::write(&disk, "x").unwrap();
        std::os::unix::fs::symlink(&disk, &link).unwrap();
        let read = named("--initrd", &disk, false);
        assert_eq!(conflict(&[read.clone(), named("--disk", &link, false)]), None);
        let line = conflict(&[read, named("--trace", &link, true)]).unwrap();
        assert!(line.contains("--initrd") && line.contains("--trace") && !line.contains('\n'), "{line}");
        assert!(conflict(&[named("--disk", &disk, true), named("--disk", &disk, true)]).is_some());
        assert!(conflict(&[named("--trace", &new, true), named("--console-log", &new, true)]).is_some());
        assert_eq!(conflict(&[named("--trace", &new, true), named("--disk", &disk, true)]), None);
    }

    #[test]
    fn devices_that_take_everything_can_be_named_twice() {
        let null = Path::new("/dev/null");
        assert_eq!(conflict(&[named("--trace", null, true), named("--console-log", null, true)]), None);
    }
}
