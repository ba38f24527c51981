// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The disk against a guest that writes its registers, rings and descriptors as it likes, while the device works. What must
//! hold: nothing panics, the image keeps its length, and an image that is read-only its bytes, a reset ends all work, and the
//! disk works after it.

use std::io::Write;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use arbitrary::Arbitrary;
use pci::{CapabilityId, PciFunction};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm::virtio::{Disk, DiskOptions, VirtioBlock};
use vtd_unit::{Endpoint, SourceId, Unit, UnitConfig};

use crate::deaf::Deaf;
use crate::steps::steps;
use crate::until::until;

type Memory = GuestMemoryMmap<()>;

const MEMORY: u64 = 1 << 19;
const DESCRIPTORS: u64 = 0x1000;
const DRIVER: u64 = 0x2000;
const DEVICE: u64 = 0x3000;
const HEADERS: u64 = 0x4000;
const INDIRECT: u64 = 0x5000;
const DATA: u64 = 0x1_0000;
const QUEUE: u16 = 16;
const SECTORS: u64 = 64;

/// Offsets in the BAR, as the device's capabilities give them.
const COMMON: u64 = 0;
const NOTIFY: u64 = 0x3000;
const STATUS: u64 = COMMON + 0x14;
const TABLE: u64 = 0x4000;
/// VIRTIO_F_VERSION_1 and VIRTIO_F_ACCESS_PLATFORM.
const REQUIRED: u64 = 3 << 32;
const READY: u8 = 0xf;

/// One run.
#[derive(Arbitrary, Debug)]
pub struct Input {
    read_only: bool,
    /// Start with a queue that takes requests.
    prepared: bool,
    #[arbitrary(with = steps::<_, 96>)]
    actions: Vec<Action>,
}

/// Where a descriptor points.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Address {
    Header(u8),
    Status(u8),
    Data(u8),
    Indirect(u8),
    Edge(u8),
    Any(u64),
}

impl Address {
    fn get(self) -> u64 {
        match self {
            Self::Header(at) => HEADERS + u64::from(at & 15) * 16,
            Self::Status(at) => HEADERS + 0x800 + u64::from(at),
            Self::Data(page) => DATA + u64::from(page) * 512,
            Self::Indirect(at) => INDIRECT + u64::from(at) * 16,
            Self::Edge(before) => MEMORY - u64::from(before),
            Self::Any(address) => address,
        }
    }
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Length {
    Sectors(u8),
    Bytes(u16),
    Any(u32),
}

impl Length {
    fn get(self) -> u32 {
        match self {
            Self::Sectors(count) => u32::from(count) * 512,
            Self::Bytes(count) => u32::from(count),
            Self::Any(length) => length,
        }
    }
}

/// A request as drivers make them, in the ring or in a table of its own.
#[derive(Arbitrary, Debug)]
struct Request {
    kind: u8,
    any_kind: Option<u32>,
    sector: u8,
    any_sector: Option<u64>,
    head: u8,
    pieces: [(Address, Length); 2],
    count: u8,
    writable: bool,
    indirect: bool,
}

#[derive(Arbitrary, Debug)]
enum Action {
    Request(Request),
    Descriptor {
        indirect: bool,
        index: u8,
        address: Address,
        length: Length,
        flags: u8,
        next: u8,
    },
    Publish {
        head: u16,
        count: u8,
    },
    Store {
        at: Address,
        value: u64,
    },
    Ring {
        driver: bool,
        offset: u8,
        value: u16,
    },
    Common {
        offset: u8,
        value: u32,
        wide: Option<u32>,
    },
    Bar {
        offset: u16,
        bytes: Vec<u8>,
    },
    Read {
        offset: u16,
        length: u8,
    },
    Vector {
        vector: u8,
        word: u8,
        value: u32,
    },
    Config {
        offset: u8,
        length: u8,
        value: u32,
    },
    /// A register of the BAR through configuration space.
    Window {
        offset: u16,
        length: u8,
        value: u32,
    },
    Start {
        size: u8,
        features: u64,
        queue_vector: u16,
    },
    Status(u8),
    BusMaster(bool),
    Kick,
    /// Until the device has nothing more to do.
    Settle,
    Reset,
}

struct Machine {
    memory: Arc<Memory>,
    file: tempfile::NamedTempFile,
    disk: VirtioBlock<Endpoint<Memory>>,
    /// The capabilities of the configuration window and of MSI-X.
    window: u16,
    msix: u16,
    _unit: Unit<Memory>,
}

/// Runs one input. Panics where something that must hold does not.
pub fn run(input: &Input) {
    let mut machine = Machine::new(input.read_only);
    if input.prepared {
        machine.prepare();
    }
    input.actions.iter().for_each(|action| machine.act(action));
    machine.works_after_a_reset();
    assert_eq!(machine.file.as_file().metadata().unwrap().len(), SECTORS * 512);
    if input.read_only {
        let mut image = vec![0; SECTORS as usize * 512];
        machine.file.as_file().read_exact_at(&mut image, 0).unwrap();
        assert!(image == image_of(), "a disk that the guest only reads");
    }
}

fn image_of() -> Vec<u8> {
    (0..SECTORS * 512).map(|at| (at / 512) as u8 ^ (at as u8).wrapping_mul(7)).collect()
}

impl Machine {
    fn new(read_only: bool) -> Self {
        let memory = Arc::new(Memory::from_ranges(&[(GuestAddress(0), MEMORY as usize)]).unwrap());
        let unit = Unit::new(&UnitConfig::default(), Arc::clone(&memory), Arc::new(Deaf)).unwrap();
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&image_of()).unwrap();
        let disk = Disk::open(&DiskOptions { path: file.path().to_owned(), read_only }).unwrap();
        let endpoint = unit.endpoint(SourceId::new(0, 1, 0), Arc::new(())).unwrap();
        let disk = VirtioBlock::new(endpoint, disk).unwrap();
        let (window, msix) = (last(&disk, CapabilityId::VENDOR), last(&disk, CapabilityId::MSIX));
        Self { memory, file, disk, window, msix, _unit: unit }
    }

    fn bar(&self, offset: u64, bytes: &[u8]) {
        self.disk.bar_write(0, offset, bytes);
    }

    fn status(&self) -> u8 {
        let mut status = [0];
        self.disk.bar_read(0, STATUS, &mut status);
        status[0]
    }

    fn prepare(&self) {
        // Memory space and bus mastering, MSI-X, its two vectors.
        self.disk.config_write(4, &[6, 4]);
        self.disk.config_write(self.msix + 2, &[0, 0x80]);
        for vector in 0..2 {
            self.bar(TABLE + vector * 16, &0xfee0_0000_u64.to_le_bytes());
            self.bar(TABLE + vector * 16 + 8, &[0x40 + vector as u8, 0, 0, 0, 0, 0, 0, 0]);
        }
        self.memory.write_slice(&[0; 0x2000], GuestAddress(DRIVER)).unwrap();
        self.start(QUEUE, u64::MAX, 1);
    }

    fn start(&self, size: u16, features: u64, vector: u16) {
        let mut offered = [[0; 4]; 2];
        self.bar(STATUS, &[0]);
        self.bar(STATUS, &[3]);
        for (half, offered) in offered.iter_mut().enumerate() {
            self.bar(COMMON, &(half as u32).to_le_bytes());
            self.disk.bar_read(0, COMMON + 4, offered);
            let wanted = (features | REQUIRED) >> (32 * half);
            let taken = u32::from_le_bytes(*offered) & wanted as u32;
            self.bar(COMMON + 8, &(half as u32).to_le_bytes());
            self.bar(COMMON + 0xc, &taken.to_le_bytes());
        }
        self.bar(STATUS, &[0xb]);
        self.bar(COMMON + 0x16, &[0, 0]);
        self.bar(COMMON + 0x18, &size.to_le_bytes());
        self.bar(COMMON + 0x1a, &vector.to_le_bytes());
        for (register, area) in [(0x20, DESCRIPTORS), (0x28, DRIVER), (0x30, DEVICE)] {
            self.bar(COMMON + register, &area.to_le_bytes());
        }
        self.bar(COMMON + 0x1c, &[1, 0]);
        self.bar(STATUS, &[READY]);
    }

    fn store(&self, at: u64, bytes: &[u8]) {
        // Where there is no memory nothing is written.
        let _ = self.memory.write_slice(bytes, GuestAddress(at));
    }

    fn word(&self, at: u64) -> u16 {
        self.memory.read_obj(GuestAddress(at)).unwrap()
    }

    fn descriptor(&self, at: u64, address: u64, length: u32, flags: u16, next: u16) {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&address.to_le_bytes());
        bytes[8..12].copy_from_slice(&length.to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        self.store(at, &bytes);
    }

    fn publish(&self, head: u16, count: u16) {
        let index = self.word(DRIVER + 2);
        self.store(DRIVER + 4 + u64::from(index % QUEUE) * 2, &head.to_le_bytes());
        self.store(DRIVER + 2, &index.wrapping_add(count).to_le_bytes());
    }

    fn kick(&self) {
        self.bar(NOTIFY, &[0, 0]);
    }

    /// Header, data and status.
    fn request(&self, request: &Request) {
        const KINDS: [u32; 4] = [0, 1, 4, 8];
        let head = u16::from(request.head) % QUEUE;
        let kind = request.any_kind.unwrap_or(KINDS[usize::from(request.kind) % KINDS.len()]);
        let sector = request.any_sector.unwrap_or(u64::from(request.sector) % SECTORS);
        let header = HEADERS + u64::from(head) * 16;
        self.store(header, &kind.to_le_bytes());
        self.store(header + 8, &sector.to_le_bytes());
        let table = if request.indirect { INDIRECT } else { DESCRIPTORS };
        let first = if request.indirect { 0 } else { head };
        let at = |step: u16| table + u64::from((first + step) % QUEUE) * 16;
        let next = |step: u16| (first + step + 1) % QUEUE;
        self.descriptor(at(0), header, 16, 1, next(0));
        let count = request.count % 3;
        for (step, (address, length)) in (1..).zip(&request.pieces[..usize::from(count)]) {
            let flags = 1 | u16::from(request.writable) << 1;
            self.descriptor(at(step), address.get(), length.get(), flags, next(step));
        }
        let last = u16::from(count) + 1;
        self.descriptor(at(last), HEADERS + 0x800 + u64::from(head), 1, 2, 0);
        if request.indirect {
            let length = u32::from(last + 1) * 16;
            self.descriptor(DESCRIPTORS + u64::from(head) * 16, INDIRECT, length, 4, 0);
        }
        self.publish(head, 1);
        self.kick();
    }

    fn act(&self, action: &Action) {
        match action {
            Action::Request(request) => self.request(request),
            Action::Descriptor { indirect, index, address, length, flags, next } => {
                let table = if *indirect { INDIRECT } else { DESCRIPTORS };
                let (flags, next) = (u16::from(flags & 7), u16::from(next % 18));
                self.descriptor(table + u64::from(*index) * 16, address.get(), length.get(), flags, next);
            }
            Action::Publish { head, count } => self.publish(head % 20, u16::from(*count)),
            Action::Store { at, value } => self.store(at.get(), &value.to_le_bytes()),
            Action::Ring { driver, offset, value } => {
                let ring = if *driver { DRIVER } else { DEVICE };
                self.store(ring + u64::from(*offset), &value.to_le_bytes());
            }
            Action::Common { offset, value, wide } => {
                let mut bytes = value.to_le_bytes().to_vec();
                wide.iter().for_each(|high| bytes.extend(high.to_le_bytes()));
                self.bar(COMMON + u64::from(offset & 0x3f), &bytes);
            }
            Action::Bar { offset, bytes } => {
                self.bar(u64::from(offset & 0x7fff), &bytes[..bytes.len().min(64)]);
            }
            Action::Read { offset, length } => {
                self.disk.bar_read(0, u64::from(offset & 0x7fff), &mut vec![0; usize::from(*length)]);
            }
            Action::Vector { vector, word, value } => {
                let at = TABLE + u64::from(vector % 4) * 16 + u64::from(word % 4) * 4;
                self.bar(at, &value.to_le_bytes());
            }
            Action::Config { offset, length, value } => {
                let (at, length) = (u16::from(*offset), usize::from(length % 4) + 1);
                let length = length.min(4 - usize::from(at % 4));
                self.disk.config_write(at, &value.to_le_bytes()[..length]);
                self.disk.config_read(at, &mut [0; 4][..length]);
            }
            Action::Window { offset, length, value } => {
                for (at, value) in [(8, u32::from(*offset)), (12, u32::from(length % 6)), (16, *value)] {
                    self.disk.config_write(self.window + at, &value.to_le_bytes());
                }
                self.disk.config_read(self.window + 16, &mut [0; 4]);
            }
            Action::Start { size, features, queue_vector } => {
                self.start(u16::from(*size), *features, *queue_vector);
            }
            Action::Status(status) => self.bar(STATUS, &[*status]),
            Action::BusMaster(enabled) => self.disk.config_write(4, &[2 | u8::from(*enabled) << 2]),
            Action::Kick => self.kick(),
            Action::Settle => self.settle(),
            Action::Reset => self.disk.reset(),
        }
    }

    /// Waits as long as it may take; a queue that is not served at all has to be given up.
    fn settle(&self) {
        for _ in 0..200 {
            let done = self.word(DRIVER + 2) == self.word(DEVICE + 2);
            if done || self.status() & 0x44 != 4 {
                break;
            }
            std::thread::yield_now();
        }
    }

    /// A reset by register, one by configuration space, and a read.
    fn works_after_a_reset(&mut self) {
        self.bar(STATUS, &[0]);
        assert_eq!(self.status(), 0, "reset");
        self.disk.reset();
        self.prepare();
        assert_eq!(self.status(), READY);
        self.store(DATA, &[0x99; 512]);
        self.request(&Request {
            kind: 0,
            any_kind: None,
            sector: 3,
            any_sector: None,
            head: 5,
            pieces: [(Address::Data(0), Length::Sectors(1)), (Address::Data(1), Length::Sectors(1))],
            count: 1,
            writable: true,
            indirect: false,
        });
        until("a request that never ends", || self.word(DEVICE + 2) == 1);
        let status: u8 = self.memory.read_obj(GuestAddress(HEADERS + 0x805)).unwrap();
        let (mut read, mut sector) = ([0; 512], [0; 512]);
        self.memory.read_slice(&mut read, GuestAddress(DATA)).unwrap();
        // Not before: what a request of the old queue had read from memory may still have gone to the file.
        self.file.as_file().read_exact_at(&mut sector, 3 * 512).unwrap();
        assert!(status == 0 && read == sector, "status {status}");
    }
}

/// Where the last capability of this kind is.
fn last(function: &impl PciFunction, id: CapabilityId) -> u16 {
    let byte = |at: u16| {
        let mut data = [0];
        function.config_read(at, &mut data);
        data[0]
    };
    let next = |at: u8| Some(byte(u16::from(at) + 1)).filter(|next| *next != 0);
    let all = std::iter::successors(Some(byte(0x34)), |at| next(*at));
    all.filter(|at| byte(u16::from(*at)) == id.0).last().map(u16::from).unwrap()
}
