// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The accelerator against a guest that writes its registers, configuration space and portals as it likes, with memory that
//! changes meanwhile. What must hold: nothing panics, a reset ends all work, and the device works after it.

use std::sync::Arc;

use arbitrary::Arbitrary;
use dsa::Dsa;
use pci::PciFunction;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vtd_unit::{SourceId, Unit, UnitConfig};

use crate::deaf::Deaf;
use crate::steps::steps;
use crate::until::until;

type Memory = GuestMemoryMmap<()>;

const MEMORY: u64 = 1 << 20;
/// Where completion records, descriptor lists, and data are.
const RECORDS: u64 = 0x1000;
const LIST: u64 = 0x4000;
const DATA: u64 = 0x1_0000;
const GENCTRL: u64 = 0x88;
const GENSTS: u64 = 0x90;
const CMD: u64 = 0xa0;
const CMDSTATUS: u64 = 0xa8;
const WQCFG: u64 = 0x500;
const GRPCFG: u64 = 0x800;
const ENABLE: u32 = 1;
const RESET: u32 = 5;
const ENABLE_QUEUE: u32 = 6;

/// One run.
#[derive(Arbitrary, Debug)]
pub struct Input {
    /// Start with queues that take descriptors.
    prepared: bool,
    #[arbitrary(with = steps::<_, 128>)]
    actions: Vec<Action>,
}

/// Where a descriptor points.
#[derive(Arbitrary, Debug)]
enum Address {
    Data(u16),
    Aligned(u8),
    Record(u8),
    List(u8),
    Edge(u8),
    Any(u64),
}

impl Address {
    fn get(&self) -> u64 {
        match self {
            Self::Data(at) => DATA + u64::from(*at),
            Self::Aligned(page) => DATA + u64::from(page & 0x1f) * 0x1000,
            Self::Record(at) => RECORDS + u64::from(*at) * 32,
            Self::List(at) => LIST + u64::from(at & 0x3f) * 64,
            Self::Edge(before) => MEMORY - u64::from(*before),
            Self::Any(address) => *address,
        }
    }
}

/// A descriptor as drivers make them, or with something that is not right.
#[derive(Arbitrary, Debug)]
struct Work {
    operation: u8,
    record: u8,
    source: Address,
    destination: Address,
    size: u16,
    /// What the operation can also do: check its result, or read its seed from memory.
    also: bool,
    number: u8,
    /// The twist, where this is small.
    plain: u8,
    twist: Twist,
}

#[derive(Arbitrary, Debug)]
enum Twist {
    Operation(u8),
    Flags(u32),
    Record(Address),
    Size(u32),
    Third(Address),
    Byte { at: u8, value: u8 },
}

impl Work {
    fn bytes(&self) -> [u8; 64] {
        const KNOWN: [u8; 16] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0x10, 0x11, 0x20, 7, 8, 0x11];
        /// Where a third buffer is: a delta record, the other half of a dualcast.
        const THIRD: u64 = DATA + 0x4_0000;
        /// A valid record is wanted.
        const RECORD: u32 = 0xc;
        const CHECK_RESULT: u32 = 1 << 7;
        const READ_SEED: u32 = 1 << 16;
        const DELTA_ENTRY: u32 = 10;
        let operation = KNOWN[usize::from(self.operation) % KNOWN.len()];
        let (mut source, mut destination) = (self.source.get(), self.destination.get());
        let mut size = 1 + u32::from(self.size) % 0x2000;
        let (mut flags, number) = (RECORD, u32::from(self.number));
        let mut bytes = [0; 64];
        match operation {
            0 | 2 => (source, destination, size) = (0, 0, 0),
            1 => {
                (source, destination) = (LIST + u64::from(self.number & 0x1f) * 64, 0);
                size = 2 + size % 16;
            }
            5 | 6 if self.also => {
                flags |= CHECK_RESULT;
                bytes[40] = self.number & 1;
            }
            7 => {
                (source, destination, size) = (source & !7, destination & !7, size & !7);
                bytes[40..48].copy_from_slice(&THIRD.to_le_bytes());
                bytes[48..52].copy_from_slice(&(80 + number * DELTA_ENTRY).to_le_bytes());
                if self.also {
                    flags |= CHECK_RESULT;
                    bytes[56] = self.number & 3;
                }
            }
            8 => {
                (source, destination, size) = (THIRD, destination & !7, size & !7);
                bytes[40..44].copy_from_slice(&((1 + number) * DELTA_ENTRY).to_le_bytes());
            }
            9 => bytes[40..48].copy_from_slice(&(THIRD | destination & 0xfff).to_le_bytes()),
            0x10 | 0x11 => {
                if operation == 0x10 {
                    destination = 0;
                }
                bytes[40..44].copy_from_slice(&(number << 20).to_le_bytes());
                if self.also {
                    flags |= READ_SEED;
                    bytes[48..56].copy_from_slice(&(RECORDS + u64::from(self.number) * 4).to_le_bytes());
                }
            }
            0x20 => source = 0,
            _ => {}
        }
        bytes[4..8].copy_from_slice(&(flags | u32::from(operation) << 24).to_le_bytes());
        bytes[8..16].copy_from_slice(&self.record().to_le_bytes());
        bytes[16..24].copy_from_slice(&source.to_le_bytes());
        bytes[24..32].copy_from_slice(&destination.to_le_bytes());
        bytes[32..36].copy_from_slice(&size.to_le_bytes());
        if self.is_twisted() {
            match &self.twist {
                Twist::Operation(operation) => bytes[7] = *operation,
                Twist::Flags(more) => {
                    let flags = flags ^ more & 0xff_ffff;
                    bytes[4..7].copy_from_slice(&flags.to_le_bytes()[..3]);
                }
                Twist::Record(_) => {}
                Twist::Size(size) => bytes[32..36].copy_from_slice(&size.to_le_bytes()),
                Twist::Third(address) => bytes[40..48].copy_from_slice(&address.get().to_le_bytes()),
                Twist::Byte { at, value } => bytes[usize::from(at % 64)] = *value,
            }
        }
        bytes
    }

    fn is_twisted(&self) -> bool {
        self.plain < 0x60
    }

    fn record(&self) -> u64 {
        match &self.twist {
            Twist::Record(address) if self.is_twisted() => address.get(),
            _ => RECORDS + u64::from(self.record) * 32,
        }
    }
}

#[derive(Arbitrary, Debug)]
enum Action {
    Submit { queue: u8, work: Work, at_once: bool },
    List { at: u8, work: Work },
    Portal { offset: u16, bytes: Vec<u8> },
    Register { offset: u16, value: u32, wide: Option<u32> },
    RegisterBytes { offset: u16, bytes: Vec<u8> },
    Queue { queue: u8, word: u8, value: u32 },
    Group { group: u8, word: u8, value: u64 },
    Command { code: u8, operand: u32 },
    Read { bar: bool, offset: u16, bytes: u8 },
    Config { offset: u8, value: u32 },
    Store { at: Address, value: u64 },
    Prepare,
    Reset,
}

struct Machine {
    memory: Arc<Memory>,
    dsa: Arc<Dsa<Memory>>,
    _unit: Unit<Memory>,
}

/// Runs one input. Panics where something that must hold does not.
pub fn run(input: &Input) {
    let memory = Arc::new(Memory::from_ranges(&[(GuestAddress(0), MEMORY as usize)]).unwrap());
    let unit = Unit::new(&UnitConfig::default(), Arc::clone(&memory), Arc::new(Deaf)).unwrap();
    let dsa = Dsa::new(|sink| unit.endpoint(SourceId::new(0, 1, 0), sink).unwrap()).unwrap();
    let machine = Machine { memory, dsa, _unit: unit };
    if input.prepared {
        machine.prepare();
    }
    input.actions.iter().for_each(|action| machine.act(action));
    machine.works_after_a_reset();
}

impl Machine {
    fn write32(&self, offset: u64, value: u32) {
        self.dsa.bar_write(0, offset, &value.to_le_bytes());
    }

    fn read32(&self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.dsa.bar_read(0, offset, &mut data);
        u32::from_le_bytes(data)
    }

    /// Two groups of two queues each; without PASIDs, and translation is off.
    fn prepare(&self) {
        // Memory space and bus mastering.
        self.dsa.config_write(4, &6u16.to_le_bytes());
        for queue in 0..4 {
            let at = WQCFG + 64 * queue;
            self.write32(at, 16);
            // Dedicated, priority 5.
            self.write32(at + 8, 0x51);
            self.write32(at + 12, 16 | 5 << 5);
        }
        for (group, queues, engines) in [(0, 3u64, 3u64), (1, 12, 12)] {
            self.dsa.bar_write(0, GRPCFG + 64 * group, &queues.to_le_bytes());
            self.dsa.bar_write(0, GRPCFG + 64 * group + 32, &engines.to_le_bytes());
        }
        self.write32(GENCTRL, 3);
        self.write32(CMD, ENABLE << 20);
        (0..4).for_each(|queue| self.write32(CMD, ENABLE_QUEUE << 20 | queue));
    }

    fn act(&self, action: &Action) {
        match action {
            Action::Submit { queue, work, at_once } => {
                let record = GuestAddress(work.record());
                // What was written there before is no answer.
                let _ = self.memory.write_obj(0u8, record);
                self.dsa.bar_write(2, u64::from(queue & 7) * 0x4000, &work.bytes());
                if !at_once {
                    self.settle(record);
                }
            }
            Action::List { at, work } => {
                self.store(LIST + u64::from(at & 0x3f) * 64, &work.bytes());
            }
            Action::Portal { offset, bytes } => {
                self.dsa.bar_write(2, u64::from(*offset) << 1, &bytes[..bytes.len().min(64)]);
            }
            Action::Register { offset, value, wide } => {
                let mut bytes = value.to_le_bytes().to_vec();
                wide.iter().for_each(|high| bytes.extend(high.to_le_bytes()));
                self.dsa.bar_write(0, u64::from(offset & 0xffc), &bytes);
            }
            Action::RegisterBytes { offset, bytes } => {
                self.dsa.bar_write(0, u64::from(*offset), &bytes[..bytes.len().min(16)]);
            }
            Action::Queue { queue, word, value } => {
                self.write32(WQCFG + 64 * u64::from(queue & 7) + 4 * u64::from(word & 15), *value);
            }
            Action::Group { group, word, value } => {
                let at = GRPCFG + 64 * u64::from(group & 3) + 8 * u64::from(word & 7);
                self.dsa.bar_write(0, at, &value.to_le_bytes());
            }
            Action::Command { code, operand } => {
                self.write32(CMD, u32::from(code % 16) << 20 | operand & 0xf_ffff | operand & 1 << 31);
            }
            Action::Read { bar, offset, bytes } => {
                let bar = if *bar { 0 } else { 2 };
                self.dsa.bar_read(bar, u64::from(*offset), &mut vec![0; usize::from(*bytes)]);
            }
            Action::Config { offset, value } => {
                let at = u16::from(*offset) * 4;
                self.dsa.config_write(at, &value.to_le_bytes());
                self.dsa.config_read(at, &mut [0; 4]);
            }
            Action::Store { at, value } => self.store(at.get(), &value.to_le_bytes()),
            Action::Prepare => self.prepare(),
            Action::Reset => self.dsa.reset(),
        }
    }

    fn store(&self, at: u64, bytes: &[u8]) {
        // Where there is no memory nothing is written.
        let _ = self.memory.write_slice(bytes, GuestAddress(at));
    }

    /// Gives an engine the time that most descriptors take; some never write a record.
    fn settle(&self, record: GuestAddress) {
        for _ in 0..100 {
            if self.memory.read_obj::<u8>(record).unwrap_or(1) != 0 {
                break;
            }
            std::thread::yield_now();
        }
    }

    /// A reset by command, one by configuration space, and a move.
    fn works_after_a_reset(&self) {
        self.write32(CMD, RESET << 20);
        self.dsa.reset();
        assert_eq!(self.read32(GENSTS) & 3, 0, "disabled");
        self.prepare();
        until("a command that never ends", || self.read32(CMDSTATUS) >> 31 == 0);
        assert_eq!(self.read32(CMDSTATUS) & 0xff, 0, "enabled as on the first day");
        self.store(RECORDS, &[0; 32]);
        self.store(DATA, b"whatever was before");
        self.store(DATA + 0x1000, &[0; 19]);
        let mut descriptor = [0; 64];
        descriptor[4..8].copy_from_slice(&(0x0300_0000u32 | 0xc).to_le_bytes());
        for (at, value) in [(8, RECORDS), (16, DATA), (24, DATA + 0x1000), (32, 19)] {
            descriptor[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        self.dsa.bar_write(2, 0, &descriptor);
        let status = || self.memory.read_obj::<u8>(GuestAddress(RECORDS)).unwrap();
        until("a move that never ends", || status() != 0);
        assert_eq!(status(), 1);
        let mut moved = [0; 19];
        self.memory.read_slice(&mut moved, GuestAddress(DATA + 0x1000)).unwrap();
        assert_eq!(&moved, b"whatever was before");
    }
}
