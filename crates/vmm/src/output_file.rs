// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A file that is to be written, once all else that the user asked for turns out to be possible.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

/// An open file that is as it was before until [`keep`](Self::keep) is called; without that call, none is left where
/// there was none.
#[derive(Debug)]
pub struct OutputFile {
    file: File,
    /// Where to remove it, if it is new.
    new: Option<PathBuf>,
}

impl OutputFile {
    /// Opens or creates `path` for writing.
    ///
    /// # Errors
    ///
    /// It can be neither.
    pub fn open(path: &Path) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.write(true);
        match options.clone().create_new(true).open(path) {
            Ok(file) => Ok(Self { file, new: Some(path.into()) }),
            // Or a link to where nothing is yet.
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                Ok(Self { file: options.create(true).truncate(false).open(path)?, new: None })
            }
            Err(e) => Err(e),
        }
    }

    /// The file, emptied.
    ///
    /// # Errors
    ///
    /// It cannot be emptied.
    pub fn keep(mut self) -> io::Result<File> {
        let file = self.file.try_clone()?;
        // Pipes and devices have no length.
        if file.metadata()?.is_file() {
            file.set_len(0)?;
        }
        self.new = None;
        Ok(file)
    }
}

impl Drop for OutputFile {
    fn drop(&mut self) {
        if let Some(path) = self.new.take() {
            // Nobody is there to be told of a failure.
            let _ = fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn nothing_changes_until_the_file_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let (old, new) = (directory.path().join("old"), directory.path().join("new"));
        fs::write(&old, "before").unwrap();
        for path in [&old, &new] {
            drop(OutputFile::open(path).unwrap());
        }
        assert_eq!(fs::read_to_string(&old).unwrap(), "before");
        assert!(!new.exists());
        for path in [&old, &new] {
            OutputFile::open(path).unwrap().keep().unwrap().write_all(b"now").unwrap();
            assert_eq!(fs::read_to_string(path).unwrap(), "now");
        }
    }

    #[test]
    fn devices_can_be_written_and_directories_cannot() {
        OutputFile::open(Path::new("/dev/null")).unwrap().keep().unwrap().write_all(b"x").unwrap();
        assert!(Path::new("/dev/null").exists());
        assert!(OutputFile::open(Path::new("/")).is_err());
        assert!(OutputFile::open(Path::new("/nonexistent/file")).is_err());
    }
}
