// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Loading a Linux bzImage and its initramfs, by the 64-bit boot protocol.
//! \[Linux Documentation/arch/x86/boot.rst\]

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use linux_loader::loader::{BzImage, KernelLoader};
use vm_memory::{ByteValued, Bytes, GuestAddress, GuestMemoryBackend, ReadVolatile};

use crate::layout::{self, Window};
use crate::memory::Memory;

/// Distance of the 64-bit entry from the start of the protected-mode part.
const ENTRY_64: u64 = 0x200;
/// `xloadflags`: the kernel has the 64-bit entry.
const XLF_KERNEL_64: u16 = 1;
/// `type_of_loader`: none of the registered ones.
const LOADER_UNREGISTERED: u8 = 0xff;
/// First boot protocol with `xloadflags`.
const PROTOCOL_2_12: u16 = 0x20c;

const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;
const E820_ACPI: u32 = 3;

/// Why the guest cannot be booted. Each is the user's to cure.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read.
    #[error("cannot read {0}: {1}")]
    Read(PathBuf, std::io::Error),
    /// Not a kernel.
    #[error("{0} is not a Linux kernel image (bzImage)")]
    NotAKernel(PathBuf),
    /// A kernel that cannot be entered in 64-bit mode.
    #[error("{0} is not a 64-bit x86 kernel with boot protocol 2.12 or newer")]
    Not64Bit(PathBuf),
    /// The kernel could not be put into memory.
    #[error("cannot load {0}: {1}")]
    Load(PathBuf, linux_loader::loader::Error),
    /// Too little memory.
    #[error(
        "{have} MiB of memory are too little for this kernel and initramfs: give at least --memory {need}M"
    )]
    TooLittleMemory {
        /// MiB the guest has below 3 GiB.
        have: u64,
        /// MiB it needs.
        need: u64,
    },
    /// Kernel and initramfs do not fit below the hole.
    #[error("kernel and initramfs need {0} MiB below 3 GiB: use a smaller initramfs")]
    TooLarge(u64),
    /// Too long a command line.
    #[error("the kernel command line has {have} bytes, the kernel takes {limit}")]
    CommandLineTooLong {
        /// Its length.
        have: usize,
        /// The limit.
        limit: usize,
    },
    /// A zero byte in the command line.
    #[error("the kernel command line contains a zero byte")]
    CommandLineZero,
    /// Boot structures do not fit into guest memory.
    #[error("cannot write boot structures: {0}")]
    Memory(#[from] vm_memory::GuestMemoryError),
}

/// What to boot.
#[derive(Clone, Debug)]
pub struct Payload {
    /// bzImage.
    pub kernel: PathBuf,
    /// initramfs, if any.
    pub initrd: Option<PathBuf>,
    /// Kernel command line.
    pub command_line: String,
}

/// A payload whose files are open and checked.
pub struct Opened {
    kernel: File,
    kernel_path: PathBuf,
    header: setup_header,
    initrd: Option<(File, u64, PathBuf)>,
    initrd_address: u64,
    command_line: Vec<u8>,
}

fn open(path: &Path) -> Result<(File, u64), Error> {
    let read = |e| Error::Read(path.to_path_buf(), e);
    let file = File::open(path).map_err(read)?;
    let metadata = file.metadata().map_err(read)?;
    if metadata.is_dir() {
        return Err(read(std::io::Error::from(std::io::ErrorKind::IsADirectory)));
    }
    Ok((file, metadata.len()))
}

impl Payload {
    /// Opens the files and checks all that can be checked without a machine, for one with `low_ram` bytes of RAM below
    /// the hole.
    pub fn open(&self, low_ram: u64) -> Result<Opened, Error> {
        let path = &self.kernel;
        let (mut kernel, _) = open(path)?;
        let mut header = setup_header::default();
        let mut bytes = vec![0; size_of::<setup_header>()];
        kernel.seek(SeekFrom::Start(0x1f1)).map_err(|e| Error::Read(path.clone(), e))?;
        match kernel.read_exact(&mut bytes) {
            Ok(()) => header.as_mut_slice().copy_from_slice(&bytes),
            Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => {
                return Err(Error::NotAKernel(path.clone()));
            }
            Err(e) => return Err(Error::Read(path.clone(), e)),
        }
        if header.header != u32::from_le_bytes(*b"HdrS") || header.boot_flag != 0xaa55 {
            return Err(Error::NotAKernel(path.clone()));
        }
        if header.version < PROTOCOL_2_12 || header.xloadflags & XLF_KERNEL_64 == 0 {
            return Err(Error::Not64Bit(path.clone()));
        }
        let initrd = match &self.initrd {
            Some(path) => {
                let (file, size) = open(path)?;
                Some((file, size, path.clone()))
            }
            None => None,
        };
        let initrd_address = initrd_address(&header, low_ram, initrd.as_ref().map_or(0, |i| i.1))?;
        let command_line = self.command_line.trim().as_bytes().to_vec();
        let limit = (header.cmdline_size as usize).min(layout::COMMAND_LINE_SIZE - 1);
        if command_line.len() > limit {
            return Err(Error::CommandLineTooLong { have: command_line.len(), limit });
        }
        if command_line.contains(&0) {
            return Err(Error::CommandLineZero);
        }
        Ok(Opened { kernel, kernel_path: path.clone(), header, initrd, initrd_address, command_line })
    }
}

/// Where the initramfs goes: as high as the kernel and the RAM below the hole allow.
fn initrd_address(header: &setup_header, low_ram: u64, size: u64) -> Result<u64, Error> {
    // The decompressed kernel needs `init_size` at its preferred address or where it was loaded.
    let preferred = header.pref_address;
    let kernel_end = preferred.max(layout::KERNEL_START).saturating_add(u64::from(header.init_size));
    let limit = low_ram.min(u64::from(header.initrd_addr_max) + 1);
    let size = size.next_multiple_of(0x1000);
    // Some slack for the kernel's own start: its page tables, memory map and unpacked initramfs.
    let need = kernel_end.saturating_add(size.saturating_mul(2)).saturating_add(32 << 20);
    if low_ram < need {
        let mib = need.div_ceil(1 << 20);
        return Err(if need > layout::HOLE_START {
            Error::TooLarge(mib)
        } else {
            Error::TooLittleMemory { have: low_ram >> 20, need: mib }
        });
    }
    match limit.checked_sub(size) {
        Some(address) if address >= kernel_end => Ok(address & !0xfff),
        _ => Err(Error::TooLarge((kernel_end + size).div_ceil(1 << 20))),
    }
}

/// The memory map that the kernel is given.
pub fn e820(ram: &[Window]) -> Vec<boot_e820_entry> {
    let entry =
        |window: Window, kind: u32| boot_e820_entry { addr: window.base, size: window.size, r#type: kind };
    let mut map =
        vec![entry(Window { base: 0, size: layout::LOW_RAM_END }, E820_RAM), entry(layout::ACPI, E820_ACPI)];
    for range in ram {
        let base = range.base.max(layout::KERNEL_START);
        map.push(entry(Window { base, size: range.end() - base }, E820_RAM));
    }
    map.push(entry(layout::ECAM, E820_RESERVED));
    map.push(entry(layout::REMAPPING_UNIT, E820_RESERVED));
    map.sort_by_key(|e| e.addr);
    map
}

impl Opened {
    /// Puts kernel, initramfs, command line and zero page into memory. Returns the entry address.
    pub fn load(mut self, memory: &Memory, ram: &[Window], rsdp: u64) -> Result<u64, Error> {
        let high = GuestAddress(layout::KERNEL_START);
        let loaded = BzImage::load(memory, Some(high), &mut self.kernel, Some(high))
            .map_err(|e| Error::Load(self.kernel_path.clone(), e))?;

        let mut params = boot_params { hdr: self.header, ..Default::default() };
        params.hdr.type_of_loader = LOADER_UNREGISTERED;
        params.hdr.cmd_line_ptr = layout::COMMAND_LINE.0 as u32;
        params.acpi_rsdp_addr = rsdp;
        memory.write_slice(&self.command_line, layout::COMMAND_LINE)?;
        memory.write_obj(0u8, GuestAddress(layout::COMMAND_LINE.0 + self.command_line.len() as u64))?;

        if let Some((mut file, size, path)) = self.initrd {
            let mut target = memory.get_slice(GuestAddress(self.initrd_address), size as usize)?;
            file.read_exact_volatile(&mut target)
                .map_err(|e| Error::Read(path, std::io::Error::other(e.to_string())))?;
            params.hdr.ramdisk_image = self.initrd_address as u32;
            params.hdr.ramdisk_size = size as u32;
        }

        let map = e820(ram);
        params.e820_entries = map.len() as u8;
        for (to, from) in params.e820_table.iter_mut().zip(map) {
            *to = from;
        }
        memory.write_obj(params, layout::ZERO_PAGE)?;
        Ok(loaded.kernel_load.0 + ENTRY_64)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn header() -> setup_header {
        setup_header {
            header: 0x5372_6448,
            boot_flag: 0xaa55,
            version: 0x20f,
            xloadflags: XLF_KERNEL_64,
            cmdline_size: 2047,
            pref_address: 0x100_0000,
            init_size: 0x300_0000,
            initrd_addr_max: 0x7fff_ffff,
            ..Default::default()
        }
    }

    fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(bytes).unwrap();
        file
    }

    fn image(header: setup_header) -> tempfile::NamedTempFile {
        let mut bytes = vec![0; 0x1f1];
        bytes.extend_from_slice(header.as_slice());
        bytes.resize(0x1000, 0);
        file(&bytes)
    }

    fn payload(kernel: &Path, command_line: &str) -> Payload {
        Payload { kernel: kernel.to_path_buf(), initrd: None, command_line: command_line.into() }
    }

    #[test]
    fn files_that_are_no_kernel_are_refused() {
        assert!(matches!(payload(Path::new("/nonexistent"), "").open(1 << 30), Err(Error::Read(..))));
        assert!(matches!(payload(Path::new("/"), "").open(1 << 30), Err(Error::Read(..))));
        for bytes in [&b""[..], b"short", &[0u8; 4096]] {
            assert!(matches!(payload(file(bytes).path(), "").open(1 << 30), Err(Error::NotAKernel(_))));
        }
        let old = image(setup_header { version: 0x204, ..header() });
        assert!(matches!(payload(old.path(), "").open(1 << 30), Err(Error::Not64Bit(_))));
        let small = image(setup_header { xloadflags: 0, ..header() });
        assert!(matches!(payload(small.path(), "").open(1 << 30), Err(Error::Not64Bit(_))));
        assert!(payload(image(header()).path(), "quiet").open(1 << 30).is_ok());
    }

    #[test]
    fn command_lines_that_the_kernel_cannot_take_are_refused() {
        let kernel = image(header());
        assert!(payload(kernel.path(), &"x".repeat(2047)).open(1 << 30).is_ok());
        assert!(matches!(
            payload(kernel.path(), &"x".repeat(2048)).open(1 << 30),
            Err(Error::CommandLineTooLong { have: 2048, limit: 2047 })
        ));
        assert!(matches!(payload(kernel.path(), "a\0b").open(1 << 30), Err(Error::CommandLineZero)));
    }

    #[test]
    fn initramfs_lies_below_the_kernels_limit_and_above_the_kernel() {
        let at = initrd_address(&header(), 3 << 30, 10 << 20).unwrap();
        assert_eq!(at, (2 << 30) - (10 << 20));
        let at = initrd_address(&header(), 256 << 20, (10 << 20) - 5).unwrap();
        assert_eq!(at, 246 << 20);
    }

    #[test]
    fn too_little_memory_names_what_is_needed() {
        let Err(Error::TooLittleMemory { have: 64, need }) = initrd_address(&header(), 64 << 20, 10 << 20)
        else {
            panic!("64 MiB accepted");
        };
        assert!(initrd_address(&header(), need << 20, 10 << 20).is_ok());
        assert!(matches!(initrd_address(&header(), 3 << 30, 2 << 30), Err(Error::TooLarge(_))));
    }

    #[test]
    fn memory_map_has_all_ram_no_overlap_and_reserves_ecam() {
        let ram = layout::ram(5 << 30);
        let map = e820(&ram);
        for pair in map.windows(2) {
            assert!(pair[0].addr + pair[0].size <= pair[1].addr);
        }
        let total: u64 = map.iter().filter(|e| e.r#type == E820_RAM).map(|e| e.size).sum();
        assert_eq!(total, (5 << 30) - (layout::KERNEL_START - layout::LOW_RAM_END));
        assert!(map.iter().any(|e| e.addr == layout::ECAM.base && e.r#type == E820_RESERVED));
    }
}
