// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A file that is to be written, once all else that the user asked for turns out to be possible.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use crate::stop;

/// How long one look at a pipe that is full waits.
const PAUSE: Duration = Duration::from_millis(2);
/// How many of them a pipe gets once a signal has asked for the end.
const LAST_PAUSES: u32 = 100;

/// An open file that is as it was before until [`keep`](Self::keep) is called; without that call, none is left where
/// there was none.
#[derive(Debug)]
pub struct OutputFile {
    file: File,
    /// Where to remove it, if it is new.
    new: Option<PathBuf>,
}

impl OutputFile {
    /// Opens or creates `path` for writing, without waiting for anybody.
    ///
    /// # Errors
    ///
    /// It can be neither, or is a pipe that nobody reads.
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::open_as_it_is(path).map_err(|e| {
            let is_pipe = || fs::metadata(path).is_ok_and(|m| m.file_type().is_fifo());
            if e.raw_os_error() == Some(libc::ENXIO) && is_pipe() {
                io::Error::other("nobody reads this pipe: start its reader first")
            } else {
                e
            }
        })
    }

    fn open_as_it_is(path: &Path) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.write(true).custom_flags(libc::O_NONBLOCK);
        match options.clone().create_new(true).open(path) {
            Ok(file) => Ok(Self::new(file, Some(path.into()))),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                // A link to where nothing is yet: what is made there is new.
                let dangles = !path.exists();
                let file = options.create(true).truncate(false).open(path)?;
                let made = if dangles { fs::canonicalize(path).ok() } else { None };
                Ok(Self::new(file, made))
            }
            Err(e) => Err(e),
        }
    }

    fn new(file: File, new: Option<PathBuf>) -> Self {
        not_kept().extend(new.clone());
        Self { file, new }
    }

    /// The file, emptied.
    ///
    /// # Errors
    ///
    /// It cannot be emptied.
    pub fn keep(mut self) -> io::Result<PatientFile> {
        let file = self.file.try_clone()?;
        // Pipes and devices have no length.
        if file.metadata()?.is_file() {
            file.set_len(0)?;
        }
        if let Some(path) = self.new.take() {
            not_kept().retain(|other| *other != path);
        }
        Ok(PatientFile(file))
    }
}

/// New files that nobody has kept yet.
fn not_kept() -> MutexGuard<'static, Vec<PathBuf>> {
    static NOT_KEPT: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());
    NOT_KEPT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Removes the new files that nobody has kept, for a process that ends without dropping anything.
pub fn remove_what_is_not_kept() {
    for path in not_kept().drain(..) {
        let _ = fs::remove_file(path);
    }
}

/// A file that may be a pipe whose reader is slow: writing waits for it, but not when a signal has asked for the end.
#[derive(Debug)]
pub struct PatientFile(File);

impl PatientFile {
    /// From a file, which may be non-blocking.
    pub fn new(file: File) -> Self {
        Self(file)
    }
}

impl Write for PatientFile {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let mut pauses = 0;
        loop {
            match self.0.write(data) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    pauses += u32::from(stop::end_requested());
                    if pauses > LAST_PAUSES {
                        return Err(io::Error::new(
                            io::ErrorKind::TimedOut,
                            "its reader has stopped reading",
                        ));
                    }
                    thread::sleep(PAUSE);
                }
                result => return result,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl Drop for OutputFile {
    fn drop(&mut self) {
        if let Some(path) = self.new.take() {
            // Nobody is there to be told of a failure.
            let _ = fs::remove_file(&path);
            not_kept().retain(|other| *other != path);
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
        let dangling = directory.path().join("dangling");
        std::os::unix::fs::symlink(directory.path().join("nowhere"), &dangling).unwrap();
        for path in [&old, &new, &dangling] {
            drop(OutputFile::open(path).unwrap());
        }
        assert!(fs::symlink_metadata(&dangling).is_ok() && !directory.path().join("nowhere").exists());
        assert_eq!(fs::read_to_string(&old).unwrap(), "before");
        assert!(!new.exists());
        for path in [&old, &new] {
            OutputFile::open(path).unwrap().keep().unwrap().write_all(b"now").unwrap();
            assert_eq!(fs::read_to_string(path).unwrap(), "now");
        }
    }

    #[test]
    fn a_pipe_without_a_reader_is_refused_and_one_with_a_reader_is_written() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pipe");
        let name = std::ffi::CString::new(path.to_str().unwrap()).unwrap();
        // SAFETY: a string with its terminator.
        assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
        let error = OutputFile::open(&path).unwrap_err().to_string();
        assert!(error.contains("start its reader"), "{error}");
        let reader = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&path).unwrap();
        let mut file = OutputFile::open(&path).unwrap().keep().unwrap();
        // More than a pipe takes, so that writing has to wait for the reader.
        let sent = vec![7; 1 << 20];
        thread::scope(|scope| {
            // Gone with this closure, however it ends: the writer fails then.
            let mut reader = reader;
            scope.spawn(|| {
                file.write_all(&sent).unwrap();
                drop(file);
            });
            let (mut received, mut patience) = (Vec::<u8>::new(), patience::Patience::default());
            while received.len() < 1 << 20 {
                let mut part = [0; 4096];
                match io::Read::read(&mut reader, &mut part) {
                    Ok(length) if length > 0 => received.extend(&part[..length]),
                    _ => patience.pause("what was sent"),
                }
            }
            assert!(received.iter().all(|byte| *byte == 7));
        });
    }

    #[test]
    fn devices_can_be_written_and_directories_cannot() {
        OutputFile::open(Path::new("/dev/null")).unwrap().keep().unwrap().write_all(b"x").unwrap();
        assert!(Path::new("/dev/null").exists());
        assert!(OutputFile::open(Path::new("/")).is_err());
        assert!(OutputFile::open(Path::new("/nonexistent/file")).is_err());
    }
}
