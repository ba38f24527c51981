// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Loading a Linux bzImage and its initramfs, by the 64-bit boot protocol.
//! \[Linux Documentation/arch/x86/boot.rst\]

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use linux_loader::loader::{BzImage, KernelLoader};
use vm_memory::{ByteValued, Bytes, GuestAddress, GuestMemoryBackend, ReadVolatile};

use crate::layout::{self, Window};
use crate::memory::Memory;

/// Distance of the 64-bit entry from the start of the protected-mode part.
const ENTRY_64: u64 = 0x200;
/// Unit in which `setup_sects` counts, in bytes.
const SECTOR: u64 = 512;
/// What a `setup_sects` of 0 stands for.
const SETUP_SECTORS: u8 = 4;
/// Unit in which `syssize` counts, in bytes.
const PARAGRAPH: u64 = 16;
/// `loadflags`: the protected-mode part is loaded at 1 MiB, which makes a bzImage of a zImage.
const LOADED_HIGH: u8 = 1;
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
    /// A directory, a pipe or a device: nothing with a length that could be loaded.
    #[error("{0} is not a regular file: kernel and initramfs must be such")]
    NotAFile(PathBuf),
    /// Not a kernel.
    #[error("{0} is not a Linux kernel image: give a bzImage, such as /boot/vmlinuz-* (vmlinux is none)")]
    NotAKernel(PathBuf),
    /// A kernel whose end is missing.
    #[error("{path} is cut off after {have} of {need} bytes: copy or build the kernel again")]
    CutOff {
        /// The kernel.
        path: PathBuf,
        /// Bytes that are there.
        have: u64,
        /// Bytes that its header tells of.
        need: u64,
    },
    /// Nothing in the initramfs.
    #[error("the initramfs {0} is empty: build it again, or leave --initrd out")]
    EmptyInitrd(PathBuf),
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
    #[error("kernel and initramfs need {0} MiB below 3 GiB: use smaller ones")]
    TooLarge(u64),
    /// Too long a command line.
    #[error("the kernel command line has {have} bytes, the kernel takes {limit}: shorten --append")]
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
    // Before it is opened: to open a pipe can take for ever.
    if !fs::metadata(path).map_err(read)?.is_file() {
        return Err(Error::NotAFile(path.to_path_buf()));
    }
    let file = File::open(path).map_err(read)?;
    let size = file.metadata().map_err(read)?.len();
    Ok((file, size))
}

impl Payload {
    /// Opens the files and checks all that can be checked without a machine, for one with `low_ram` bytes of RAM below
    /// the hole.
    pub fn open(&self, low_ram: u64) -> Result<Opened, Error> {
        let path = &self.kernel;
        let (mut kernel, have) = open(path)?;
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
        if header.header != u32::from_le_bytes(*b"HdrS")
            || header.boot_flag != 0xaa55
            || header.loadflags & LOADED_HIGH == 0
        {
            return Err(Error::NotAKernel(path.clone()));
        }
        if header.version < PROTOCOL_2_12 || header.xloadflags & XLF_KERNEL_64 == 0 {
            return Err(Error::Not64Bit(path.clone()));
        }
        let setup = setup_size(&header);
        let need = setup + u64::from(header.syssize) * PARAGRAPH;
        if have < need {
            return Err(Error::CutOff { path: path.clone(), have, need });
        }
        let initrd = match &self.initrd {
            Some(path) => {
                let (file, size) = open(path)?;
                if size == 0 {
                    return Err(Error::EmptyInitrd(path.clone()));
                }
                Some((file, size, path.clone()))
            }
            None => None,
        };
        let initrd_size = initrd.as_ref().map_or(0, |i| i.1);
        let initrd_address = initrd_address(&header, have - setup, low_ram, initrd_size)?;
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

/// Length of the real-mode part, boot sector included, which is not loaded.
fn setup_size(header: &setup_header) -> u64 {
    let sectors = if header.setup_sects == 0 { SETUP_SECTORS } else { header.setup_sects };
    (u64::from(sectors) + 1) * SECTOR
}

/// Where the initramfs goes: as high as the kernel, of which `image` bytes are loaded, and the RAM below the hole allow.
fn initrd_address(header: &setup_header, image: u64, low_ram: u64, size: u64) -> Result<u64, Error> {
    // The decompressed kernel needs `init_size` at its preferred address or where it was loaded.
    let preferred = header.pref_address;
    let unpacked_end = preferred.max(layout::KERNEL_START).saturating_add(u64::from(header.init_size));
    let kernel_end = unpacked_end.max(layout::KERNEL_START.saturating_add(image));
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
    use std::ffi::CString;
    use std::io::Write;

    use super::*;

    fn header() -> setup_header {
        setup_header {
            header: 0x5372_6448,
            boot_flag: 0xaa55,
            version: 0x20f,
            xloadflags: XLF_KERNEL_64,
            loadflags: LOADED_HIGH,
            code32_start: 0x10_0000,
            setup_sects: 1,
            syssize: (0xc00 / PARAGRAPH) as u32,
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
        for path in ["/", "/dev/zero"] {
            assert!(matches!(payload(Path::new(path), "").open(1 << 30), Err(Error::NotAFile(_))));
        }
        for bytes in [&b""[..], b"short", &[0u8; 4096], &b"\x7fELF".repeat(1024)] {
            assert!(matches!(payload(file(bytes).path(), "").open(1 << 30), Err(Error::NotAKernel(_))));
        }
        let old = image(setup_header { version: 0x204, ..header() });
        assert!(matches!(payload(old.path(), "").open(1 << 30), Err(Error::Not64Bit(_))));
        let small = image(setup_header { xloadflags: 0, ..header() });
        assert!(matches!(payload(small.path(), "").open(1 << 30), Err(Error::Not64Bit(_))));
        let low = image(setup_header { loadflags: 0, ..header() });
        assert!(matches!(payload(low.path(), "").open(1 << 30), Err(Error::NotAKernel(_))));
        assert!(payload(image(header()).path(), "quiet").open(1 << 30).is_ok());
    }

    #[test]
    fn a_pipe_is_refused_without_waiting_for_its_writer() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pipe");
        let name = CString::new(path.to_str().unwrap()).unwrap();
        // SAFETY: a string with its terminator.
        assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
        assert!(matches!(payload(&path, "").open(1 << 30), Err(Error::NotAFile(_))));
    }

    #[test]
    fn a_kernel_that_is_cut_off_is_refused() {
        let kernel = image(header());
        kernel.as_file().set_len(0xfff).unwrap();
        assert!(matches!(
            payload(kernel.path(), "").open(1 << 30),
            Err(Error::CutOff { have: 0xfff, need: 0x1000, .. })
        ));
        // A signature may follow.
        kernel.as_file().set_len(0x1234).unwrap();
        assert!(payload(kernel.path(), "").open(1 << 30).is_ok());
        // No number of sectors means four.
        let short = image(setup_header { setup_sects: 0, ..header() });
        assert!(matches!(payload(short.path(), "").open(1 << 30), Err(Error::CutOff { need: 0x1600, .. })));
    }

    #[test]
    fn a_file_that_is_larger_than_memory_is_refused_before_it_is_loaded() {
        let kernel = image(header());
        kernel.as_file().set_len(1 << 40).unwrap();
        assert!(matches!(payload(kernel.path(), "").open(3 << 30), Err(Error::TooLarge(_))));
        kernel.as_file().set_len(600 << 20).unwrap();
        assert!(matches!(payload(kernel.path(), "").open(512 << 20), Err(Error::TooLittleMemory { .. })));
    }

    #[test]
    fn an_initramfs_without_contents_is_refused() {
        let (kernel, initrd) = (image(header()), file(b""));
        let with = |path: &Path| Payload { initrd: Some(path.into()), ..payload(kernel.path(), "") };
        assert!(matches!(with(initrd.path()).open(1 << 30), Err(Error::EmptyInitrd(_))));
        assert!(matches!(with(Path::new("/")).open(1 << 30), Err(Error::NotAFile(_))));
        assert!(matches!(with(Path::new("/nonexistent")).open(1 << 30), Err(Error::Read(..))));
        assert!(with(file(b"x").path()).open(1 << 30).is_ok());
    }

    #[test]
    fn an_image_that_passes_its_checks_can_be_loaded() {
        let kernel = image(header());
        let memory = crate::memory::allocate(crate::memory::MemoryOptions::ordinary(128 << 20)).unwrap();
        let initrd = file(&[7; 5000]);
        let payload = Payload { initrd: Some(initrd.path().into()), ..payload(kernel.path(), "a b") };
        let entry =
            payload.open(128 << 20).unwrap().load(&memory, &layout::ram(128 << 20), 0xe_0000).unwrap();
        assert_eq!(entry, layout::KERNEL_START + ENTRY_64);
        let params: boot_params = memory.read_obj(layout::ZERO_PAGE).unwrap();
        let (at, size) = (params.hdr.ramdisk_image, params.hdr.ramdisk_size);
        assert_eq!(size, 5000);
        let mut loaded = vec![0; 5001];
        memory.read_slice(&mut loaded, GuestAddress(at.into())).unwrap();
        assert_eq!((&loaded[..5000], loaded[5000]), (&[7; 5000][..], 0));
        let mut line = [0xff; 4];
        memory.read_slice(&mut line, layout::COMMAND_LINE).unwrap();
        assert_eq!(&line, b"a b\0");
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
        let at = initrd_address(&header(), 0, 3 << 30, 10 << 20).unwrap();
        assert_eq!(at, (2 << 30) - (10 << 20));
        let at = initrd_address(&header(), 0, 256 << 20, (10 << 20) - 5).unwrap();
        assert_eq!(at, 246 << 20);
    }

    #[test]
    fn too_little_memory_names_what_is_needed() {
        let Err(Error::TooLittleMemory { have: 64, need }) = initrd_address(&header(), 0, 64 << 20, 10 << 20)
        else {
            panic!("64 MiB accepted");
        };
        assert!(initrd_address(&header(), 0, need << 20, 10 << 20).is_ok());
        assert!(matches!(initrd_address(&header(), 0, 3 << 30, 2 << 30), Err(Error::TooLarge(_))));
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
