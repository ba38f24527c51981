// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Writing an initramfs: the "newc" cpio format (Documentation/driver-api/early-userspace/buffer-format.rst).

use std::collections::HashSet;

/// An archive under construction. Directories above an entry are added where they are missing.
#[derive(Default)]
pub struct Archive {
    bytes: Vec<u8>,
    inode: u32,
    directories: HashSet<String>,
}

const DIRECTORY: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;
const CHARACTER_DEVICE: u32 = 0o020_000;

impl Archive {
    /// Adds an empty directory.
    pub fn directory(&mut self, path: &str) {
        if path.is_empty() || self.directories.contains(path) {
            return;
        }
        self.parents(path);
        self.directories.insert(path.to_owned());
        self.entry(path, DIRECTORY | 0o755, (0, 0), &[]);
    }

    /// Adds a file; `mode` is its permission bits.
    pub fn file(&mut self, path: &str, mode: u32, contents: &[u8]) {
        self.parents(path);
        self.entry(path, FILE | mode, (0, 0), contents);
    }

    /// Adds a symbolic link.
    pub fn symlink(&mut self, path: &str, target: &str) {
        self.parents(path);
        self.entry(path, SYMLINK | 0o777, (0, 0), target.as_bytes());
    }

    /// Adds a character device with its major and minor number.
    pub fn character_device(&mut self, path: &str, mode: u32, number: (u32, u32)) {
        self.parents(path);
        self.entry(path, CHARACTER_DEVICE | mode, number, &[]);
    }

    /// The whole archive.
    pub fn finish(mut self) -> Vec<u8> {
        self.inode = 0;
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        self.bytes
    }

    fn parents(&mut self, path: &str) {
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.directory(parent);
        }
    }

    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), contents: &[u8]) {
        let (uid, gid, links, time, checksum) = (0, 0, 1, 0, 0);
        let size = u32::try_from(contents.len()).expect("an initramfs entry is smaller than 4 GiB");
        let name_size = name.len() as u32 + 1;
        let fields =
            [self.inode, mode, uid, gid, links, time, size, 0, 0, device.0, device.1, name_size, checksum];
        self.inode += 1;
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(contents);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Name, mode, device and contents.
    type Entry = (String, u32, (u32, u32), Vec<u8>);

    /// Each entry, read back by the format's description.
    fn entries(mut bytes: &[u8]) -> Vec<Entry> {
        let mut entries = vec![];
        loop {
            assert_eq!(&bytes[..6], b"070701");
            let field = |i: usize| {
                let text = std::str::from_utf8(&bytes[6 + 8 * i..14 + 8 * i]).unwrap();
                u32::from_str_radix(text, 16).unwrap()
            };
            let (mode, size, device, name_size) =
                (field(1), field(6) as usize, (field(9), field(10)), field(11) as usize);
            let name = String::from_utf8(bytes[110..110 + name_size - 1].to_vec()).unwrap();
            assert_eq!(bytes[110 + name_size - 1], 0);
            let data = (110 + name_size).next_multiple_of(4);
            if name == "TRAILER!!!" {
                assert_eq!(bytes.len(), data);
                return entries;
            }
            entries.push((name, mode, device, bytes[data..data + size].to_vec()));
            bytes = &bytes[(data + size).next_multiple_of(4)..];
        }
    }

    #[test]
    fn entries_read_back_as_they_were_added() {
        let mut archive = Archive::default();
        archive.character_device("dev/console", 0o600, (5, 1));
        archive.file("lab/bin/a", 0o755, b"12345");
        archive.symlink("init", "lab/bin/a");
        let found = entries(&archive.finish());
        let expected = [
            ("dev", 0o040_755, (0, 0), &b""[..]),
            ("dev/console", 0o020_600, (5, 1), b""),
            ("lab", 0o040_755, (0, 0), b""),
            ("lab/bin", 0o040_755, (0, 0), b""),
            ("lab/bin/a", 0o100_755, (0, 0), b"12345"),
            ("init", 0o120_777, (0, 0), b"lab/bin/a"),
        ];
        assert_eq!(found.len(), expected.len());
        for (found, (name, mode, device, contents)) in found.iter().zip(expected) {
            assert_eq!(
                (found.0.as_str(), found.1, found.2, found.3.as_slice()),
                (name, mode, device, contents)
            );
        }
    }

    #[test]
    fn a_directory_is_added_once() {
        let mut archive = Archive::default();
        archive.directory("a/b");
        archive.directory("a/b");
        archive.directory("a");
        assert_eq!(entries(&archive.finish()).len(), 2);
    }
}
