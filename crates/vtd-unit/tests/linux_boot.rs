// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What Linux did to a VT-d unit from boot to power-off, replayed: every register access in order, each descriptor in
//! the guest's queue, and after each step the registers as Linux expects them (dmar.c:qi_submit_sync,
//! iommu.h:IOMMU_WAIT_OP).

mod common;

use std::str::FromStr;

use common::{Guest, SOURCE_ID, entry};
use vm_memory::{Bytes, GuestAddress};
use vtd_spec::registers::offset;
use vtd_spec::{DomainId, InvalidationQueueAddress, RootTableAddress, TranslationTableMode};
use vtd_unit::{Requester, UnitConfig};

const TRACES: [(&str, &str); 4] = [
    ("cm=on", include_str!("traces/linux-6.1.192-cm1.trace")),
    ("cm=on", include_str!("traces/linux-6.12.117-cm1.trace")),
    ("cm=off", include_str!("traces/linux-7.3.4-cm0.trace")),
    ("cm=on", include_str!("traces/linux-7.3.4-cm1.trace")),
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Read { at: u64, bytes: usize },
    Write { at: u64, bytes: usize, value: u64 },
    Descriptor([u64; 4]),
}

fn steps(trace: &str) -> Vec<Step> {
    let number = |text: &str| u64::from_str_radix(text, 16).unwrap();
    let step = |line: &str| match line.split(' ').collect::<Vec<_>>()[..] {
        ["r", at, bytes] => Step::Read { at: number(at), bytes: bytes.parse().unwrap() },
        ["w", at, bytes, value] => {
            Step::Write { at: number(at), bytes: bytes.parse().unwrap(), value: number(value) }
        }
        ["d", low, high] => Step::Descriptor([number(low), number(high), 0, 0]),
        _ => panic!("not a step: {line}"),
    };
    trace.lines().filter(|line| !line.starts_with('#')).map(step).collect()
}

/// The bits of GSTS that Linux polls for: commands taken, and the one-shot ones done for good.
#[derive(Default)]
struct Status {
    persistent: u32,
    pointers: u32,
}

impl Status {
    const POINTERS: u32 = 1 << 30 | 1 << 24;

    fn command(&mut self, value: u32) {
        self.persistent = value & !Self::POINTERS;
        self.pointers |= value & Self::POINTERS;
    }

    fn expected(&self) -> u32 {
        self.persistent | self.pointers
    }
}

struct Replay {
    guest: Guest,
    status: Status,
    /// Written but not yet behind the tail: status addresses of their waits.
    waits: Vec<u64>,
    tail: u64,
    descriptors: usize,
    commands: Vec<u32>,
}

impl Replay {
    fn new(options: &str) -> Self {
        let guest = Guest::powered_up(&UnitConfig::from_str(options).unwrap());
        Self {
            guest,
            status: Status::default(),
            waits: Vec::new(),
            tail: 0,
            descriptors: 0,
            commands: Vec::new(),
        }
    }

    fn run(&mut self, step: Step) {
        match step {
            Step::Read { at, bytes } => self.read(at, bytes),
            Step::Descriptor(qwords) => self.descriptor(qwords),
            Step::Write { at, bytes, value } => {
                self.guest.unit.write(at, &value.to_le_bytes()[..bytes]);
                self.written(at, value);
            }
        }
        assert_eq!(self.guest.read32(offset::FSTS), 0, "an error or a fault at {step:?}");
        assert_eq!(self.guest.read32(offset::PRS), 0);
    }

    fn read(&self, at: u64, bytes: usize) {
        let mut data = [0; 8];
        self.guest.unit.read(at, &mut data[..bytes]);
        let value = u64::from_le_bytes(data);
        let capabilities = self.guest.unit.capabilities();
        match at {
            offset::VER => assert_eq!(value, 0x10),
            offset::CAP => assert_eq!(value, capabilities.cap.into_bits()),
            offset::ECAP => assert_eq!(value, capabilities.ecap.into_bits()),
            offset::GSTS => assert_eq!(value, u64::from(self.status.expected())),
            // Read back after they were unmasked, with nothing pending.
            offset::FECTL | offset::PECTL | offset::FSTS => assert_eq!(value, 0),
            _ => panic!("Linux reads {at:#x}"),
        }
    }

    fn descriptor(&mut self, qwords: [u64; 4]) {
        let queue = InvalidationQueueAddress::from_bits(self.guest.read64(offset::IQA));
        for (index, qword) in qwords.into_iter().enumerate() {
            self.guest.store(queue.iqa() + self.tail + 8 * index as u64, qword);
        }
        if qwords[0] & 0xf == 5 {
            assert_eq!(qwords[0], 0x2_0000_0025, "a wait with status write");
            self.guest.memory.write_obj(1u32, GuestAddress(qwords[1])).unwrap();
            self.waits.push(qwords[1]);
        }
        self.tail = (self.tail + 32) % queue.size();
        self.descriptors += 1;
    }

    fn written(&mut self, at: u64, value: u64) {
        let guest = &self.guest;
        match at {
            offset::IQT => {
                assert_eq!(value, self.tail);
                for address in self.waits.drain(..) {
                    guest.await_status(address);
                }
                // The status is written by the last descriptor, so nothing is left to fetch.
                assert_eq!(guest.read64(offset::IQH), value);
            }
            offset::GCMD => {
                self.status.command(value as u32);
                self.commands.push(value as u32);
                assert_eq!(guest.read32(offset::GSTS), self.status.expected());
                self.dma();
            }
            // These read back as written.
            offset::IQA | offset::IRTA | offset::RTADDR | offset::PQA => {
                assert_eq!(guest.read64(at), value);
            }
            offset::PQH | offset::PQT => assert_eq!(guest.read64(at), value),
            offset::FEDATA | offset::FEADDR | offset::FEUADDR | offset::FECTL => {
                assert_eq!(u64::from(guest.read32(at)), value);
            }
            offset::PEDATA | offset::PEADDR | offset::PEUADDR | offset::PECTL => {
                assert_eq!(u64::from(guest.read32(at)), value);
            }
            offset::FSTS => assert_eq!(value, 0),
            _ => panic!("Linux writes {at:#x}"),
        }
    }

    /// With translation on, the traced endpoint's DMA goes through the tables that the traced root pointer names (as
    /// pasid.c writes them: AW set, no PWSNP where the unit has no SMPWC); with it off, nowhere but straight.
    fn dma(&self) {
        const IOVA: u64 = 0xffff_f000;
        let guest = &self.guest;
        let enabled = self.status.persistent & 1 << 31 != 0;
        let page = guest.page();
        guest.store(page, 0x1234_5678_9abc_def0);
        if enabled {
            let root = RootTableAddress::from_bits(guest.read64(offset::RTADDR));
            assert_eq!(root.ttm(), TranslationTableMode::Scalable);
            let context = guest.page();
            guest.store(root.rta() + u64::from(SOURCE_ID.bus()) * 16, context | 1);
            let snooped = guest.unit.capabilities().ecap.smpwc();
            let directory = guest.page();
            let at = context + u64::from(SOURCE_ID.devfn()) * 32;
            guest.store(at, directory | 7 << 9 | 0xd);
            let table = guest.page();
            guest.store(directory, table | 1);
            let mut tables = [0; 4];
            tables.fill_with(|| guest.page());
            let flags = entry::USER | if snooped { 0 } else { entry::A | entry::D };
            guest.store(tables[0] + (IOVA >> 39 & 0x1ff) * 8, tables[1] | flags);
            guest.store(tables[1] + (IOVA >> 30 & 0x1ff) * 8, tables[2] | flags);
            guest.store(tables[2] + (IOVA >> 21 & 0x1ff) * 8, tables[3] | flags);
            guest.store(tables[3] + (IOVA >> 12 & 0x1ff) * 8, page | flags);
            let pasid = Guest::first_stage(DomainId(4), tables[0]).with_pwsnp(snooped).with_aw(2);
            for (index, qword) in pasid.to_qwords().into_iter().enumerate() {
                guest.store(table + 8 * index as u64, qword);
            }
            assert_eq!(pasid.pgtt_bits(), 1);
        }
        let address = if enabled { IOVA } else { page };
        let mut data = [0; 8];
        guest.endpoint.read(Requester::default(), address, &mut data).unwrap();
        assert_eq!(u64::from_le_bytes(data), 0x1234_5678_9abc_def0);
        assert_eq!(guest.read32(offset::FSTS), 0);
    }
}

#[test]
fn linux_from_boot_to_power_off_on_the_traced_unit_and_on_the_default_one() {
    // The traced unit had one fault record and none of what SVA needs; Linux must not notice the difference.
    let units = [
        "ir=on,fault-records=1,smpwc=off,c=off,sms=off,fs5lp=off",
        "ir=on",
        "ir=on,eim=on,fault-records=100",
    ];
    for (caching, trace) in TRACES {
        for unit in units {
            let mut replay = Replay::new(&format!("{caching},{unit}"));
            for step in steps(trace) {
                replay.run(step);
            }
            let enabled: Vec<_> = replay.commands.iter().map(|command| command >> 24).collect();
            assert_eq!(enabled, [0x04, 0x05, 0x06, 0x46, 0x86, 0x06], "QIE, SIRTP, IRE, SRTP, TE, TE off");
            assert_eq!(replay.descriptors, if caching == "cm=on" { 72 } else { 32 });
            assert!(replay.guest.messages.take().is_empty(), "nothing went wrong, so nothing interrupts");
        }
    }
}

#[test]
fn the_traces_are_whole() {
    for (_, trace) in TRACES {
        let steps = steps(trace);
        let rings = steps.iter().filter(|step| matches!(step, Step::Write { at: offset::IQT, .. })).count();
        let descriptors = steps.iter().filter(|step| matches!(step, Step::Descriptor(_))).count();
        // The first write of the tail is the reset to 0; every other submits a descriptor and its wait.
        assert_eq!(descriptors, 2 * (rings - 1));
    }
}

/// A guest that does not reset the unit before it boots again (kexec): queue, tables and interrupts are taken over.
#[test]
fn a_second_boot_takes_over_from_the_first() {
    let mut replay = Replay::new("ir=on");
    for step in steps(TRACES[3].1) {
        replay.run(step);
    }
    // dmar.c:dmar_enable_qi finds QIE set by the kernel before and turns it off (iommu.c:init_dmars).
    let guest = &replay.guest;
    guest.write32(offset::GCMD, 0x0200_0000);
    assert_eq!(guest.read32(offset::GSTS) & 1 << 26, 0);
    assert_eq!(guest.read64(offset::IQH), 0);
    guest.write32(offset::GCMD, 0);
    assert_eq!(guest.read32(offset::GSTS) & (1 << 31 | 1 << 26 | 1 << 25), 0);
    (replay.status.persistent, replay.tail) = (0, 0);
    for step in steps(TRACES[2].1).into_iter().skip_while(|step| matches!(step, Step::Read { .. })) {
        replay.run(step);
    }
}
