// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The file (or block device) behind a disk, and how it is named on the command line.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The unit of a virtio disk's capacity and addresses, in bytes. \[V 5.2.4\]
pub const SECTOR_SIZE: u64 = 512;

/// A disk as the command line names it: `FILE[,ro]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskOptions {
    /// The image: a file or a block device.
    pub path: PathBuf,
    /// The guest cannot write.
    pub read_only: bool,
}

/// Why a disk on the command line cannot be understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseDiskError {
    /// No file name.
    #[error("a disk needs a file: FILE or FILE,ro")]
    NoFile,
    /// An option that does not exist.
    #[error("unknown disk option \"{0}\": the only one is \"ro\"")]
    UnknownOption(String),
    /// An option more than once.
    #[error("disk option \"{0}\" is given twice")]
    Twice(&'static str),
}

impl FromStr for DiskOptions {
    type Err = ParseDiskError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut parts = text.split(',');
        let path = parts.next().filter(|path| !path.is_empty()).ok_or(ParseDiskError::NoFile)?;
        let mut read_only = false;
        for option in parts {
            match option {
                "ro" if read_only => return Err(ParseDiskError::Twice("ro")),
                "ro" => read_only = true,
                other => return Err(ParseDiskError::UnknownOption(other.to_owned())),
            }
        }
        Ok(Self { path: path.into(), read_only })
    }
}

/// Why a disk image cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// It cannot be opened.
    #[error("cannot open disk image {path}: {source}{hint}")]
    Open {
        /// The image.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
        /// What may help.
        hint: &'static str,
    },
    /// A directory, a pipe or a device of another kind.
    #[error("disk image {path} is neither a regular file nor a block device")]
    NotADisk {
        /// The image.
        path: PathBuf,
    },
    /// Another process uses it.
    #[error("disk image {path} is in use by another process: end that, or use a copy")]
    InUse {
        /// The image.
        path: PathBuf,
    },
    /// It does not say where it ends.
    #[error("cannot find out the size of disk image {path}: {source}")]
    Size {
        /// The image.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It has no sector.
    #[error(
        "disk image {path} is empty: make it some multiple of 512 bytes long, for example with truncate -s"
    )]
    Empty {
        /// The image.
        path: PathBuf,
    },
}

/// An open disk image.
#[derive(Debug)]
pub struct Disk {
    file: File,
    sectors: u64,
    read_only: bool,
}

impl Disk {
    /// Opens an image and takes a lock on it, shared for a read-only disk, so that two machines do not write one
    /// image. Bytes after the last whole sector cannot be reached.
    ///
    /// # Errors
    ///
    /// [`DiskError`] where the image cannot be opened, is in use or is empty.
    pub fn open(options: &DiskOptions) -> Result<Self, DiskError> {
        let path = || options.path.clone();
        let open = |source| DiskError::Open { path: path(), hint: hint(options, &source), source };
        // Before it is opened: to open a pipe can take for ever.
        let kind = fs::metadata(&options.path).map_err(open)?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(DiskError::NotADisk { path: path() });
        }
        let mut file =
            OpenOptions::new().read(true).write(!options.read_only).open(&options.path).map_err(open)?;
        let lock = if options.read_only { file.try_lock_shared() } else { file.try_lock() };
        // File systems without locks are no reason to refuse.
        if matches!(lock, Err(TryLockError::WouldBlock)) {
            return Err(DiskError::InUse { path: path() });
        }
        // A block device has no length, but an end.
        let size = file.seek(SeekFrom::End(0)).map_err(|source| DiskError::Size { path: path(), source })?;
        let sectors = size / SECTOR_SIZE;
        if sectors == 0 {
            return Err(DiskError::Empty { path: path() });
        }
        Ok(Self { file, sectors, read_only: options.read_only })
    }

    /// The capacity in sectors of 512 bytes.
    pub fn sectors(&self) -> u64 {
        self.sectors
    }

    /// The guest cannot write.
    pub fn read_only(&self) -> bool {
        self.read_only
    }

    /// The byte offset of `sector` if `length` bytes from there are whole sectors of the disk.
    pub(super) fn offset(&self, sector: u64, length: u64) -> Option<u64> {
        let end = sector.checked_add(length / SECTOR_SIZE)?;
        if !length.is_multiple_of(SECTOR_SIZE) || end > self.sectors {
            return None;
        }
        sector.checked_mul(SECTOR_SIZE)
    }

    pub(super) fn read_at(&self, offset: u64, data: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(data, offset)
    }

    pub(super) fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.file.write_all_at(data, offset)
    }

    pub(super) fn flush(&self) -> io::Result<()> {
        if self.read_only { Ok(()) } else { self.file.sync_data() }
    }
}

fn hint(options: &DiskOptions, error: &io::Error) -> &'static str {
    if error.kind() == io::ErrorKind::NotFound && !options.read_only {
        return " (truncate -s 1G FILE makes one)";
    }
    let denied = matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem);
    if denied && !options.read_only && can_read(&options.path) {
        " (add \",ro\" for a disk that the guest only reads)"
    } else {
        ""
    }
}

fn can_read(path: &Path) -> bool {
    File::open(path).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(size: usize) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(size as u64).unwrap();
        file
    }

    fn options(file: &tempfile::NamedTempFile, read_only: bool) -> DiskOptions {
        DiskOptions { path: file.path().to_owned(), read_only }
    }

    #[test]
    fn the_command_line_form_is_a_file_and_an_optional_ro() {
        let parse = |text: &str| text.parse::<DiskOptions>();
        assert_eq!(parse("a.img"), Ok(DiskOptions { path: "a.img".into(), read_only: false }));
        assert_eq!(parse("/d/a.img,ro"), Ok(DiskOptions { path: "/d/a.img".into(), read_only: true }));
        assert_eq!(parse(""), Err(ParseDiskError::NoFile));
        assert_eq!(parse(",ro"), Err(ParseDiskError::NoFile));
        assert_eq!(parse("a.img,ro,ro"), Err(ParseDiskError::Twice("ro")));
        assert_eq!(parse("a.img,rw"), Err(ParseDiskError::UnknownOption("rw".into())));
        assert_eq!(
            parse("a.img,").unwrap_err().to_string(),
            "unknown disk option \"\": the only one is \"ro\""
        );
    }

    #[test]
    fn the_capacity_is_whole_sectors_and_requests_stay_inside() {
        let file = image(3 * 512 + 100);
        let disk = Disk::open(&options(&file, false)).unwrap();
        assert_eq!(disk.sectors(), 3);
        assert_eq!(disk.offset(1, 1024), Some(512));
        assert_eq!(disk.offset(3, 0), Some(1536));
        assert_eq!(disk.offset(2, 1024), None);
        assert_eq!(disk.offset(0, 100), None);
        assert_eq!(disk.offset(u64::MAX, 512), None);
        assert_eq!(disk.offset(u64::MAX / 512, 512), None);
        // Each power of two and its neighbours, with lengths that fit and lengths that do not.
        for sector in (0..64).flat_map(|bit| [(1u64 << bit) - 1, 1 << bit, (1 << bit) + 1]) {
            for length in [0, 1, 512, 1024, 1 << 32, u64::MAX - 511] {
                let inside = length % 512 == 0 && u128::from(sector) + u128::from(length) / 512 <= 3;
                assert_eq!(disk.offset(sector, length).is_some(), inside, "{sector:#x} {length:#x}");
            }
        }
    }

    #[test]
    fn what_cannot_be_a_disk_is_refused_with_a_reason() {
        let missing = DiskOptions { path: "/nonexistent/disk.img".into(), read_only: false };
        assert!(matches!(Disk::open(&missing), Err(DiskError::Open { .. })));
        let short = image(511);
        let error = Disk::open(&options(&short, false)).unwrap_err();
        assert!(error.to_string().contains("is empty"), "{error}");
        for (path, read_only) in [("/", false), ("/", true), ("/dev/zero", true)] {
            assert!(matches!(
                Disk::open(&DiskOptions { path: path.into(), read_only }),
                Err(DiskError::NotADisk { .. })
            ));
        }
    }

    #[test]
    fn one_writer_or_many_readers() {
        let file = image(512);
        let writer = Disk::open(&options(&file, false)).unwrap();
        assert!(matches!(Disk::open(&options(&file, true)), Err(DiskError::InUse { .. })));
        drop(writer);
        let _reader = Disk::open(&options(&file, true)).unwrap();
        assert!(Disk::open(&options(&file, true)).is_ok());
        assert!(matches!(Disk::open(&options(&file, false)), Err(DiskError::InUse { .. })));
    }
}
