// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The device as a driver and its users see it: registers, commands, portals, completion records.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use vtd_unit::{Pasid, ResponseCode};

use super::*;
use crate::bus::PciState;
use crate::descriptor::tests::descriptor;
use crate::descriptor::{Descriptor, flag, opcode};
use crate::registers::{
    CMDSTATUS, GENCAP, GENCFG, GENCTRL, GENSTS, GRPCFG, INTCAUSE, MSIXPERM, OPCAP, SWERROR, VERSION, WQCAP,
    WQCFG,
};
use crate::testing::{OnRequest, PAGE, PATIENCE, TestBus, noise, pasid};
use crate::work_queue::tests::PCI;

const RECORD: u32 = flag::RECORD_ADDRESS_VALID | flag::REQUEST_RECORD;
const BLOCK: u32 = RECORD | flag::BLOCK_ON_FAULT;
const SOURCE: u64 = 0x1000_0000;
const DESTINATION: u64 = 0x2000_0000;
const RECORDS: u64 = 0x4000_0000;

/// CMD codes.
const ENABLE: u32 = 1;
const DISABLE: u32 = 2;
const DRAIN_ALL: u32 = 3;
const ABORT_ALL: u32 = 4;
const RESET: u32 = 5;
const ENABLE_QUEUE: u32 = 6;
const DISABLE_QUEUE: u32 = 7;
const DRAIN_QUEUE: u32 = 8;
const ABORT_QUEUE: u32 = 9;
const RESET_QUEUE: u32 = 10;
const DRAIN_PASID: u32 = 11;
const ABORT_PASID: u32 = 12;

/// Dedicated, block on fault, priority 5, PASID enabled.
const MODE: u32 = 0x1000_0053;

struct Machine(Arc<Device<TestBus>>);

impl Drop for Machine {
    fn drop(&mut self) {
        self.0.shut_down();
    }
}

impl Machine {
    fn new() -> Self {
        let bus = TestBus::new();
        let requests = Arc::clone(&bus.requests);
        Self(Device::new(bus, requests))
    }

    /// Two groups: queues 0 and 1 with engines 0 to 2, queue 2 with engine 3. Enabled, with PASID 0x2a for queues 0
    /// and 2, and PASID 0x2b for queue 1.
    fn enabled() -> Self {
        let machine = Self::new();
        machine.configure();
        machine.write32(GENCTRL, 3);
        assert_eq!(machine.command(ENABLE, 0), 0);
        for queue in 0..3 {
            assert_eq!(machine.command(ENABLE_QUEUE, queue), 0);
        }
        machine
    }

    fn configure(&self) {
        for (queue, pasid) in [0x2a, 0x2b, 0x2a].into_iter().enumerate() {
            let at = WQCFG + 64 * queue as u64;
            self.write32(at, 16);
            self.write32(at + 8, MODE | pasid << 8);
            self.write32(at + 12, 21 | 5 << 5);
        }
        for (group, queues, engines) in [(0, 3, 7), (1, 4, 8)] {
            self.write64(GRPCFG + 64 * group, queues);
            self.write64(GRPCFG + 64 * group + 32, engines);
        }
    }

    fn bus(&self) -> &TestBus {
        &self.0.bus
    }

    fn read64(&self, offset: u64) -> u64 {
        let mut data = [0; 8];
        self.0.read_registers(offset, &mut data);
        u64::from_le_bytes(data)
    }

    fn read32(&self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.0.read_registers(offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn write32(&self, offset: u64, value: u32) {
        self.0.write_registers(offset, &value.to_le_bytes());
    }

    fn write64(&self, offset: u64, value: u64) {
        self.0.write_registers(offset, &value.to_le_bytes());
    }

    /// Starts a command, with an interrupt at its end.
    fn start(&self, code: u32, operand: u32) {
        self.write32(CMD, 1 << 31 | code << 20 | operand);
    }

    fn is_active(&self) -> bool {
        self.read32(CMDSTATUS) >> 31 == 1
    }

    /// Waits as Linux does: the interrupt, its cause, then the status.
    fn finish(&self, interrupts_before: usize) -> u32 {
        self.bus().wait_for_interrupts(interrupts_before + 1);
        // An interrupt of a software error may have come first.
        let end = Instant::now() + PATIENCE;
        while self.read32(INTCAUSE) & 2 == 0 {
            assert!(Instant::now() < end, "the command does not end");
            thread::sleep(Duration::from_millis(1));
        }
        self.write32(INTCAUSE, 2);
        self.read32(CMDSTATUS)
    }

    fn command(&self, code: u32, operand: u32) -> u32 {
        let before = self.bus().interrupts().len();
        self.start(code, operand);
        self.finish(before)
    }

    /// Stores a descriptor to the queue's portal, 8 bytes at a time.
    fn submit(&self, queue: u64, descriptor: &Descriptor) {
        for (n, part) in descriptor.0.chunks(8).enumerate() {
            self.0.write_portal(queue * 0x4000 + 0x1000 + n as u64 * 8, part);
        }
    }

    /// Waits until the status byte at `address` is not 0.
    fn wait(&self, pasid: Option<Pasid>, address: u64) -> Vec<u8> {
        let end = Instant::now() + PATIENCE;
        loop {
            let record = self.bus().load(pasid, address, 32);
            if record[0] != 0 {
                return record;
            }
            assert!(Instant::now() < end, "no completion");
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Submits to queue 0 and waits; the record is at [`RECORDS`].
    fn run(&self, mut descriptor: Descriptor) -> Vec<u8> {
        descriptor.0[8..16].copy_from_slice(&RECORDS.to_le_bytes());
        self.bus().store(pasid(), RECORDS, &[0; 32]);
        self.submit(0, &descriptor);
        self.wait(pasid(), RECORDS)
    }

    /// The software error register, cleared.
    fn take_error(&self) -> [u64; 3] {
        let error = [0, 8, 16].map(|n| self.read64(SWERROR + n));
        self.write64(SWERROR, error[0] & 3);
        error
    }

    fn wait_for_error(&self) -> [u64; 3] {
        let end = Instant::now() + PATIENCE;
        while self.read64(SWERROR) & 1 == 0 {
            assert!(Instant::now() < end, "no software error");
            thread::sleep(Duration::from_millis(1));
        }
        self.take_error()
    }

    fn threads_alive(&self) -> usize {
        self.0.lock().engines.iter().filter(|engine| engine.alive).count()
    }

    fn wait_for_threads(&self, count: usize) {
        let end = Instant::now() + PATIENCE;
        while self.threads_alive() != count {
            assert!(Instant::now() < end, "{} threads", self.threads_alive());
            thread::sleep(Duration::from_millis(1));
        }
    }
}

fn at(mut descriptor: Descriptor, record: u64) -> Descriptor {
    descriptor.0[8..16].copy_from_slice(&record.to_le_bytes());
    descriptor
}

fn set(mut descriptor: Descriptor, at: usize, bytes: &[u8]) -> Descriptor {
    descriptor.0[at..at + bytes.len()].copy_from_slice(bytes);
    descriptor
}

fn fill(flags: u32, destination: u64, size: u32) -> Descriptor {
    descriptor(opcode::FILL, flags, u64::MAX, destination, size)
}

fn no_op() -> Descriptor {
    descriptor(opcode::NO_OP, RECORD, 0, 0, 0)
}

#[test]
fn capabilities_read_as_announced() {
    let machine = Machine::new();
    assert_eq!(machine.read32(VERSION), 0x100);
    let gencap = machine.read64(GENCAP);
    assert_eq!(gencap, 0x815f_0017);
    assert_eq!((gencap >> 16 & 0x1f, gencap >> 21 & 0xf), (31, 10));
    assert_eq!(machine.read64(WQCAP), 0x004a_0000_0108_0080);
    assert_eq!(machine.read64(0x30), 4);
    assert_eq!(machine.read64(0x38), 4);
    assert_eq!(machine.read64(OPCAP), 0x1_0003_03ff);
    assert_eq!(machine.read64(0x60), 0x0004_0005_0008);
    assert_eq!(machine.read64(0xb0), 0x1ffe);
    for offset in [0x48, 0x50, 0x58, 0x68, 0xe0, 0xf0, 0x100, 0xe000, 0xfff8] {
        assert_eq!(machine.read64(offset), 0, "{offset:#x}");
    }
    let mut byte = [0];
    machine.0.read_registers(GENCAP + 2, &mut byte);
    assert_eq!(byte, [0x5f]);
}

#[test]
fn registers_take_aligned_accesses_of_up_to_8_bytes_only() {
    let machine = Machine::new();
    machine.0.write_registers(GENCTRL, &[3]);
    assert_eq!(machine.read32(GENCTRL), 3);
    machine.0.write_registers(GENCFG + 1, &[0x10]);
    assert_eq!(machine.read32(GENCFG), 0x1000);
    machine.0.write_registers(GENCTRL + 1, &[0xff, 0xff]);
    machine.0.write_registers(GENCTRL, &[0; 3]);
    machine.0.write_registers(GENCTRL, &[]);
    machine.0.write_registers(GENCTRL, &[0; 16]);
    assert_eq!(machine.read32(GENCTRL), 3);
    // Half a write of CMD is no command.
    machine.0.write_registers(CMD, &[0, 0]);
    assert_eq!(machine.read32(CMDSTATUS), 0);
    machine.0.write_registers(u64::MAX - 7, &[0; 8]);
    let mut data = [1; 8];
    machine.0.read_registers(u64::MAX - 3, &mut data);
    assert_eq!(data[..4], [0; 4]);
}

#[test]
fn tables_are_locked_while_the_device_or_queue_is_enabled() {
    let machine = Machine::enabled();
    machine.write32(GENCFG, 0x1000);
    machine.write64(GRPCFG, 0);
    machine.write32(GRPCFG + 40, 9);
    machine.write32(WQCFG, 1);
    machine.write32(WQCFG + 8, 0);
    assert_eq!(machine.read32(GENCFG), 0);
    assert_eq!(machine.read64(GRPCFG), 3);
    assert_eq!(machine.read32(GRPCFG + 40), 0);
    assert_eq!(machine.read32(WQCFG), 16);
    assert_eq!(machine.read32(WQCFG + 8), MODE | 0x2a00);
    assert_eq!(machine.read32(WQCFG + 24), 1 << 30);
    assert_eq!(machine.command(DRAIN_QUEUE, 1), 0);
    assert_eq!(machine.command(RESET_QUEUE, 1), 0);
    // Reset leaves the size, and nothing of the rest.
    assert_eq!([0, 4, 8, 12, 24].map(|n| machine.read32(WQCFG + n)), [16, 0, 0, 0, 0]);
    assert_eq!(machine.read64(WQCFG + 32), 0x1_0003_03ff);
    machine.write32(WQCFG, 1);
    machine.write32(WQCFG + 8, MODE);
    assert_eq!([0, 8].map(|n| machine.read32(WQCFG + n)), [16, MODE]);
}

#[test]
fn enable_device_checks_its_configuration() {
    let error = |change: &dyn Fn(&Machine)| {
        let machine = Machine::new();
        machine.configure();
        change(&machine);
        let status = machine.command(ENABLE, 0);
        assert_eq!(machine.read32(GENSTS), u32::from(status == 0));
        status
    };
    let pci = |pci: PciState| move |machine: &Machine| *machine.bus().pci.lock().unwrap() = pci;
    assert_eq!(error(&|_| {}), 0);
    assert_eq!(error(&pci(PciState { bus_master: false, ..PCI })), 0x12);
    assert_eq!(error(&pci(PciState { pri_allocation: 0, ..PCI })), 0x13);
    assert_eq!(error(&pci(PciState { pri_allocation: 513, ..PCI })), 0x13);
    assert_eq!(error(&pci(PciState { pri: false, pri_allocation: 0, ..PCI })), 0);
    assert_eq!(error(&|machine| machine.write32(WQCFG, 97)), 0x14);
    assert_eq!(error(&|machine| machine.write32(WQCFG, 96)), 0);
    assert_eq!(error(&|machine| machine.write64(GRPCFG + 64 + 32, 0)), 0x15);
    assert_eq!(error(&|machine| machine.write64(GRPCFG + 3 * 64 + 32, 8)), 0x15);
    assert_eq!(error(&|machine| machine.write64(GRPCFG + 64, 6)), 0x16);
    assert_eq!(error(&|machine| machine.write64(GRPCFG, 1)), 0x16);
    assert_eq!(error(&|machine| machine.write64(GRPCFG, 0x13)), 0x16);
    assert_eq!(error(&|machine| machine.write64(GRPCFG + 64 + 32, 9)), 0x17);
}

#[test]
fn commands_fail_with_their_errors() {
    let machine = Machine::new();
    machine.configure();
    assert_eq!(machine.command(0, 0), 0x01);
    assert_eq!(machine.command(13, 0), 0x01);
    assert_eq!(machine.command(ENABLE, 1), 0x04);
    assert_eq!(machine.command(DISABLE, 0), 0x31);
    assert_eq!(machine.command(ENABLE_QUEUE, 0), 0x20);
    assert_eq!(machine.command(DRAIN_QUEUE, 1), 0x32);
    assert_eq!(machine.command(DRAIN_ALL, 0), 0);
    assert_eq!(machine.command(ABORT_ALL, 0), 0);
    assert_eq!(machine.command(ENABLE, 0), 0);
    assert_eq!(machine.command(ENABLE, 0), 0x10);
    assert_eq!(machine.command(ENABLE_QUEUE, 8), 0x02);
    assert_eq!(machine.command(ENABLE_QUEUE, 7), 0x22);
    assert_eq!(machine.command(ENABLE_QUEUE, 0), 0);
    assert_eq!(machine.command(ENABLE_QUEUE, 0), 0x21);
    assert_eq!(machine.command(DISABLE_QUEUE, 3), 0x32);
    assert_eq!(machine.command(ABORT_QUEUE, 2), 0x32);
    assert_eq!(machine.command(RESET_QUEUE, 0x100), 0x02);
    assert_eq!(machine.command(RESET_QUEUE, 2), 0);
    assert_eq!(machine.command(DISABLE_QUEUE, 1), 0);
    machine.bus().pci.lock().unwrap().pri = false;
    assert_eq!(machine.command(ENABLE_QUEUE, 0), 0x25);
    machine.bus().pci.lock().unwrap().pasid = false;
    assert_eq!(machine.command(ENABLE_QUEUE, 2), 0x25);
    machine.write32(WQCFG + 2 * 64 + 8, 0x1000_0051);
    assert_eq!(machine.command(ENABLE_QUEUE, 2), 0x26);
    assert_eq!(machine.command(DISABLE, 0), 0);
    assert_eq!(machine.read32(GENSTS), 0);
}

#[test]
fn a_command_without_interrupt_can_be_polled() {
    let machine = Machine::new();
    machine.write32(CMD, RESET << 20);
    assert_eq!(machine.read32(CMDSTATUS), 0);
    assert!(machine.bus().interrupts().is_empty());
    assert_eq!(machine.read32(INTCAUSE), 0);
}

#[test]
fn reset_device_clears_the_configuration_and_ends_the_threads() {
    let machine = Machine::enabled();
    assert_eq!(machine.threads_alive(), 4);
    machine.write32(MSIXPERM, 8);
    machine.0.update(|state, effects| state.report(&Default::default(), effects));
    machine.take_error();
    machine.0.update(|state, effects| state.report(&Default::default(), effects));
    let before = machine.bus().interrupts().len();
    machine.start(RESET, 0);
    assert_eq!(machine.finish(before), 0);
    for offset in [GENSTS, GENCFG, GENCTRL, INTCAUSE, WQCFG, WQCFG + 8, WQCFG + 24, GRPCFG, MSIXPERM] {
        assert_eq!(machine.read32(offset), 0, "{offset:#x}");
    }
    assert_eq!(machine.read64(SWERROR) & 1, 1);
    machine.wait_for_threads(0);
    machine.configure();
    assert_eq!(machine.command(ENABLE, 0), 0);
    assert_eq!(machine.threads_alive(), 4);
    machine.0.reset();
    machine.wait_for_threads(0);
    assert_eq!(machine.read64(SWERROR), 0);
}

#[test]
fn descriptors_are_executed_and_recorded() {
    let machine = Machine::enabled();
    let data = noise(1, 10_000);
    machine.bus().store(pasid(), SOURCE + 3, &data);
    let record = machine.run(descriptor(opcode::MEMORY_MOVE, BLOCK, SOURCE + 3, DESTINATION + 77, 10_000));
    assert_eq!(record, [&[1][..], &[0; 31]].concat());
    assert!(machine.bus().load(pasid(), DESTINATION + 77, 10_000) == data);
    let record = machine.run(descriptor(opcode::CRC_GENERATION, BLOCK, SOURCE + 3, 0, 10_000));
    assert_eq!(record[0], 1);
    let crc = crate::crc::tests::reference(0, &data, false, false);
    assert_eq!(record[16..20], crc.to_le_bytes());
    assert_eq!(machine.run(no_op())[0], 1);
    assert_eq!(machine.run(descriptor(opcode::DRAIN, RECORD, 0, 0, 0))[0], 1);
    assert_eq!(machine.take_error(), [0; 3]);
}

#[test]
fn a_work_queue_reaches_the_memory_of_its_pasid_only() {
    let machine = Machine::enabled();
    machine.bus().on_request(OnRequest::Answer(ResponseCode::InvalidRequest));
    let other = Pasid::new(0x2b);
    machine.bus().store(pasid(), SOURCE, &[1; 64]);
    machine.bus().store(other, SOURCE, &[2; 64]);
    for pasid in [pasid(), other] {
        machine.bus().map(pasid, DESTINATION);
        machine.bus().map(pasid, RECORDS);
    }
    // The PASID and privilege of the descriptor are ignored.
    let copy = descriptor(opcode::MEMORY_MOVE, RECORD, SOURCE, DESTINATION, 64);
    let copy = at(set(copy, 0, &[0x2a, 0, 0, 0x80]), RECORDS);
    machine.submit(1, &copy);
    assert_eq!(machine.wait(other, RECORDS)[0], 1);
    assert_eq!(machine.bus().load(other, DESTINATION, 64), [2; 64]);
    assert_eq!(machine.bus().load(pasid(), DESTINATION, 64), [0; 64]);
}

#[test]
fn page_faults_are_reported_or_requested_as_the_descriptor_says() {
    let machine = Machine::enabled();
    machine.bus().map(pasid(), DESTINATION);
    let record = machine.run(fill(RECORD, DESTINATION + 0x800, 0x1000));
    assert_eq!(record[0], 0x83);
    assert_eq!(record[4..8], 0x800_u32.to_le_bytes());
    assert_eq!(record[8..16], (DESTINATION + PAGE).to_le_bytes());
    assert_eq!(machine.bus().sent.lock().unwrap().len(), 0);

    machine.bus().on_request(OnRequest::Answer(ResponseCode::InvalidRequest));
    let record = machine.run(fill(BLOCK, DESTINATION + 0x800, 0x1000));
    assert_eq!((record[0], &record[4..8]), (0x84, &0x800_u32.to_le_bytes()[..]));

    machine.bus().on_request(OnRequest::Map);
    assert_eq!(machine.run(fill(BLOCK, DESTINATION + 0x800, 0x1000))[0], 1);
    let sent = machine.bus().sent.lock().unwrap().clone();
    assert_eq!(sent.len(), 2);
    for request in sent {
        assert_eq!((request.address, request.requester.pasid), (DESTINATION + PAGE, pasid()));
        assert!(request.write && !request.read && !request.requester.privileged);
    }
}

#[test]
fn completion_records_are_brought_in_whatever_the_flags_say() {
    let machine = Machine::enabled();
    machine.submit(0, &at(no_op(), RECORDS));
    assert_eq!(machine.wait(pasid(), RECORDS)[0], 1);
    assert_eq!(machine.bus().sent.lock().unwrap().len(), 1);

    machine.bus().on_request(OnRequest::Answer(ResponseCode::InvalidRequest));
    machine.submit(0, &at(no_op(), RECORDS + PAGE));
    let [first, _, address] = machine.wait_for_error();
    assert_eq!(first, 0x2a << 40 | 0x1a << 8 | 1 << 5 | 0b1101);
    assert_eq!(address & !0xfff, RECORDS + PAGE);

    machine.bus().on_request(OnRequest::Answer(ResponseCode::ResponseFailure));
    machine.submit(0, &at(fill(BLOCK, DESTINATION, 1), RECORDS));
    let error = machine.wait_for_error();
    assert_eq!((error[0] >> 8 & 0xff, error[2]), (0x22, DESTINATION));

    // Page requests are off now.
    machine.submit(0, &at(no_op(), RECORDS + PAGE));
    assert_eq!(machine.wait_for_error()[0] >> 8 & 0xff, 0x1a);
    assert_eq!(machine.bus().sent.lock().unwrap().len(), 3);
}

#[test]
fn errors_without_a_completion_record_go_to_the_software_error_register() {
    let machine = Machine::enabled();
    machine.write32(INTCAUSE, u32::MAX);
    let before = machine.bus().interrupts().len();
    machine.submit(0, &at(no_op(), RECORDS + 16));
    machine.bus().wait_for_interrupts(before + 1);
    assert_eq!(machine.read32(INTCAUSE), 1);
    let [first, _, address] = machine.take_error();
    assert_eq!((first >> 8 & 0xff, address), (0x1b, RECORDS + 16));
    machine.write32(INTCAUSE, 1);

    machine.submit(0, &descriptor(opcode::FILL, 1 << 20, 0, DESTINATION, 8));
    let [first, second, _] = machine.wait_for_error();
    assert_eq!((first >> 8 & 0xff, first >> 32 & 0xff, first & 0x80), (0x11, 4, 0x80));
    assert_eq!(second >> 32, 1 << 20);
    machine.submit(0, &descriptor(opcode::FILL, 0, 0, DESTINATION, 8));
    assert_eq!(machine.wait_for_error()[0] >> 8 & 0xff, 0x03);
}

#[test]
fn successes_are_recorded_on_request_only() {
    let machine = Machine::enabled();
    machine.bus().map(pasid(), RECORDS);
    machine.submit(0, &at(fill(flag::RECORD_ADDRESS_VALID | flag::BLOCK_ON_FAULT, DESTINATION, 8), RECORDS));
    machine.submit(0, &at(descriptor(opcode::DRAIN, RECORD, 0, 0, 0), RECORDS + 32));
    machine.wait(pasid(), RECORDS + 32);
    assert_eq!(machine.bus().load(pasid(), RECORDS, 32), [0; 32]);
    assert_eq!(machine.bus().load(pasid(), DESTINATION, 8), [0xff; 8]);
    machine.submit(0, &at(fill(flag::RECORD_ADDRESS_VALID, DESTINATION, 0), RECORDS));
    assert_eq!(machine.wait(pasid(), RECORDS)[0], 0x13);
}

#[test]
fn rejected_descriptors_name_their_flags() {
    let machine = Machine::enabled();
    let record = machine.run(fill(RECORD | 1 << 20 | flag::FENCE, DESTINATION, 1));
    assert_eq!(record[0], 0x11);
    assert_eq!(record[16..20], (1_u32 << 20 | 1).to_le_bytes());
    assert_eq!(machine.run(descriptor(0x55, RECORD, 0, 0, 0))[0], 0x10);
    assert_eq!(machine.run(set(no_op(), 63, &[1]))[0], 0x12);
}

#[test]
fn completion_interrupts_need_permission() {
    let machine = Machine::new();
    machine.configure();
    machine.write32(GENCFG, 1 << 12);
    assert_eq!(machine.command(ENABLE, 0), 0);
    assert_eq!(machine.command(ENABLE_QUEUE, 0), 0);
    let with_handle =
        |handle| set(descriptor(opcode::NO_OP, RECORD | flag::REQUEST_INTERRUPT, 0, 0, 0), 36, &[handle]);
    let before = machine.bus().interrupts().len();
    for handle in [3, 9, 255] {
        assert_eq!(machine.run(with_handle(handle))[0], 0x19);
        let [first, second, _] = machine.wait_for_error();
        assert_eq!((first >> 8 & 0xff, second >> 32), (0x19, handle.into()));
    }
    assert_eq!(machine.bus().interrupts().len(), before);
    machine.write32(MSIXPERM + 3 * 8, 0x2a << 12 | 8);
    assert_eq!(machine.run(with_handle(3))[0], 1);
    machine.bus().wait_for_interrupts(before + 1);
    assert_eq!(machine.bus().interrupts()[before..], [3]);
    machine.write32(MSIXPERM + 3 * 8, 0x2a << 12 | 8 | 4);
    assert_eq!(machine.run(with_handle(3))[0], 1);
    assert_eq!(machine.command(DRAIN_ALL, 0), 0);
    assert_eq!(machine.bus().interrupts()[before + 1..], [0]);
    // Without the user-mode interrupt enable the flag is reserved.
    let machine = Machine::enabled();
    machine.write32(MSIXPERM + 3 * 8, 0x2a << 12 | 8);
    let record = machine.run(with_handle(3));
    assert_eq!((record[0], record[16]), (0x11, 0x10));
}

/// Stores a list of descriptors at [`SOURCE`], with records at [`RECORDS`] + 0x1000 on, 32 bytes each.
fn store_list(machine: &Machine, members: &[Descriptor]) {
    for (n, member) in members.iter().enumerate() {
        let member = at(*member, RECORDS + 0x1000 + n as u64 * 32);
        machine.bus().store(pasid(), SOURCE + n as u64 * 64, &member.0);
        machine.bus().store(pasid(), RECORDS + 0x1000 + n as u64 * 32, &[0; 32]);
    }
}

fn batch(count: u32) -> Descriptor {
    descriptor(opcode::BATCH, RECORD, SOURCE, 0, count)
}

fn member_statuses(machine: &Machine, count: u64) -> Vec<u8> {
    (0..count).map(|n| machine.bus().load(pasid(), RECORDS + 0x1000 + n * 32, 1)[0]).collect()
}

#[test]
fn a_batch_executes_its_list() {
    let machine = Machine::enabled();
    let members: Vec<Descriptor> =
        (0..20).map(|n| fill(BLOCK, DESTINATION + n * 0x1800, n as u32 + 1)).collect();
    store_list(&machine, &members);
    let record = machine.run(batch(20));
    assert_eq!((record[0], record[4]), (1, 20));
    assert_eq!(member_statuses(&machine, 20), [1; 20]);
    for n in 0..20 {
        assert_eq!(machine.bus().load(pasid(), DESTINATION + n * 0x1800 + n, 2), [0xff, 0]);
    }
    assert_eq!(machine.run(batch(33))[0], 0x14);
}

#[test]
fn a_batch_tells_of_failures_and_a_fence_stops_at_them() {
    let machine = Machine::enabled();
    let bad = fill(RECORD, DESTINATION, 0);
    let fence = |descriptor: Descriptor| set(descriptor, 4, &[descriptor.0[4] | 1]);
    store_list(&machine, &[no_op(), bad, no_op(), batch(2), no_op()]);
    let record = machine.run(batch(5));
    assert_eq!((record[0], record[4]), (5, 5));
    assert_eq!(member_statuses(&machine, 5), [1, 0x13, 1, 0x10, 1]);

    store_list(&machine, &[no_op(), fence(no_op()), bad, no_op(), fence(no_op()), no_op()]);
    let record = machine.run(batch(6));
    assert_eq!((record[0], record[4]), (5, 4));
    assert_eq!(member_statuses(&machine, 6), [1, 1, 0x13, 1, 0, 0]);

    // An unexpected result of a comparison counts as a failure.
    let compare = descriptor(opcode::COMPARE, RECORD | flag::CHECK_RESULT, SOURCE, SOURCE, 8);
    store_list(&machine, &[set(compare, 40, &[1]), fence(no_op())]);
    assert_eq!(machine.run(batch(2))[0], 5);
    assert_eq!(member_statuses(&machine, 2), [2, 0]);
}

#[test]
fn errors_of_a_batchs_members_name_their_index() {
    let machine = Machine::enabled();
    store_list(&machine, &[no_op(), no_op(), no_op()]);
    machine.bus().store(pasid(), SOURCE + 2 * 64, &fill(0, DESTINATION, 0).0);
    assert_eq!(machine.run(batch(3))[0], 5);
    let [first, second, _] = machine.wait_for_error();
    assert_eq!((first >> 8 & 0xff, first & 0x10, second & 0xffff), (0x13, 0x10, 2));
}

#[test]
fn a_batch_list_that_faults_is_requested_or_reported() {
    let machine = Machine::enabled();
    let list = SOURCE + PAGE - 3 * 64;
    for n in 0..3 {
        machine.bus().store(pasid(), list + n * 64, &at(no_op(), RECORDS + 0x1000 + n * 32).0);
    }
    machine.bus().map(pasid(), RECORDS + 0x1000);
    machine.bus().on_request(OnRequest::Answer(ResponseCode::InvalidRequest));
    let record = machine.run(descriptor(opcode::BATCH, RECORD, list, 0, 5));
    assert_eq!((record[0], record[4]), (6, 3));
    assert_eq!(record[8..16], (SOURCE + PAGE).to_le_bytes());
    assert_eq!(machine.bus().sent.lock().unwrap().len(), 1);
    // A page of zeroes is a list of no-ops.
    machine.bus().on_request(OnRequest::Map);
    let record = machine.run(descriptor(opcode::BATCH, RECORD, list, 0, 5));
    assert_eq!((record[0], record[4]), (1, 5));
}

#[test]
fn a_full_queue_drops_descriptors_with_an_error() {
    let machine = Machine::enabled();
    machine.bus().on_request(OnRequest::Hold);
    // Queue 2 has one engine, which is kept busy.
    machine.submit(2, &at(fill(BLOCK, DESTINATION, 8), RECORDS));
    drop(machine.bus().wait_for_held(1));
    for n in 0..16 {
        machine.submit(2, &at(no_op(), RECORDS + 32 + n * 32));
    }
    assert_eq!(machine.take_error(), [0; 3]);
    machine.submit(2, &at(no_op(), RECORDS));
    let [first, ..] = machine.wait_for_error();
    assert_eq!((first >> 8 & 0xff, first >> 16 & 0xff), (0x53, 2));
    machine.bus().on_request(OnRequest::Map);
    machine.bus().answer(ResponseCode::Success);
    assert_eq!(machine.command(DRAIN_QUEUE, 4), 0);
    for n in 0..17 {
        assert_eq!(machine.bus().load(pasid(), RECORDS + n * 32, 1), [1], "{n}");
    }
}

#[test]
fn descriptors_for_disabled_queues_are_dropped() {
    let machine = Machine::enabled();
    assert_eq!(machine.command(DISABLE_QUEUE, 1 << 1), 0);
    machine.submit(0, &at(no_op(), RECORDS));
    machine.wait(pasid(), RECORDS);
    machine.submit(1, &at(no_op(), RECORDS + 32));
    machine.submit(7, &at(no_op(), RECORDS + 32));
    assert_eq!(machine.command(DRAIN_ALL, 0), 0);
    assert_eq!(machine.bus().load(Pasid::new(0x2b), RECORDS + 32, 32), [0; 32]);
    assert_eq!(machine.command(DISABLE, 0), 0);
    machine.submit(0, &at(no_op(), RECORDS + 64));
    assert_eq!(machine.command(RESET, 0), 0);
    assert_eq!(machine.bus().load(pasid(), RECORDS + 64, 32), [0; 32]);
}

#[test]
fn several_page_requests_are_in_flight_within_the_allocation() {
    let machine = Machine::enabled();
    machine.bus().pci.lock().unwrap().pri_allocation = 2;
    machine.bus().on_request(OnRequest::Hold);
    machine.bus().map(pasid(), RECORDS);
    for n in 0..3 {
        machine.submit(0, &at(fill(BLOCK, DESTINATION + n * PAGE, 8), RECORDS + n * 32));
    }
    let held = machine.bus().wait_for_held(2).clone();
    assert_ne!(held[0].group, held[1].group);
    thread::sleep(Duration::from_millis(30));
    assert_eq!(machine.bus().wait_for_held(2).len(), 2);
    machine.bus().answer(ResponseCode::Success);
    drop(machine.bus().wait_for_held(2));
    machine.bus().answer(ResponseCode::InvalidRequest);
    machine.bus().answer(ResponseCode::Success);
    assert_eq!(machine.command(DRAIN_QUEUE, 1), 0);
    let mut statuses: Vec<u8> = (0..3).map(|n| machine.bus().load(pasid(), RECORDS + n * 32, 1)[0]).collect();
    statuses.sort_unstable();
    assert_eq!(statuses, [1, 1, 0x84]);
}

#[test]
fn responses_to_nobody_or_with_another_pasid_are_dropped() {
    let machine = Machine::enabled();
    machine.bus().on_request(OnRequest::Hold);
    machine.submit(0, &at(fill(BLOCK, DESTINATION, 8), RECORDS));
    let request = machine.bus().wait_for_held(1)[0];
    let mut other = request;
    other.requester.pasid = Pasid::new(0x2b);
    machine.bus().respond(&other, ResponseCode::InvalidRequest);
    other = request;
    other.group ^= 1;
    machine.bus().respond(&other, ResponseCode::InvalidRequest);
    other.group = u16::MAX;
    machine.bus().respond(&other, ResponseCode::ResponseFailure);
    machine.bus().on_request(OnRequest::Map);
    machine.bus().answer(ResponseCode::Success);
    assert_eq!(machine.wait(pasid(), RECORDS)[0], 1);
}

#[test]
fn drain_waits_for_a_blocked_descriptor_without_holding_up_registers() {
    for (code, operand) in
        [(DRAIN_QUEUE, 1), (DRAIN_ALL, 0), (DRAIN_PASID, 0x2a), (DISABLE_QUEUE, 1), (DISABLE, 0)]
    {
        let machine = Machine::enabled();
        machine.bus().map(pasid(), RECORDS);
        machine.bus().on_request(OnRequest::Hold);
        machine.submit(0, &at(fill(BLOCK, DESTINATION, 8), RECORDS));
        drop(machine.bus().wait_for_held(1));
        let before = machine.bus().interrupts().len();
        machine.start(code, operand);
        thread::sleep(Duration::from_millis(20));
        assert!(machine.is_active(), "{code}");
        assert_eq!(machine.bus().interrupts().len(), before);
        // Another queue is not concerned.
        if code == DRAIN_QUEUE {
            machine.bus().store(Pasid::new(0x2b), RECORDS, &[0; 32]);
            machine.submit(1, &at(no_op(), RECORDS));
            machine.wait(Pasid::new(0x2b), RECORDS);
        }
        // As after the death of the process.
        machine.bus().answer(ResponseCode::InvalidRequest);
        assert_eq!(machine.finish(before), 0);
        assert_eq!(machine.bus().load(pasid(), RECORDS, 1), [0x84]);
    }
    let machine = Machine::enabled();
    assert_eq!(machine.command(DRAIN_PASID, 0x77), 0);
}

#[test]
fn abort_and_reset_abandon_a_blocked_descriptor() {
    for (code, operand) in
        [(ABORT_QUEUE, 1), (ABORT_ALL, 0), (ABORT_PASID, 0x2a), (RESET_QUEUE, 1), (RESET, 0)]
    {
        let machine = Machine::enabled();
        machine.bus().map(pasid(), RECORDS);
        machine.bus().on_request(OnRequest::Hold);
        for n in 0..8 {
            machine.submit(0, &at(fill(BLOCK, DESTINATION, 8), RECORDS + n * 32));
        }
        drop(machine.bus().wait_for_held(3));
        assert_eq!(machine.command(code, operand), 0);
        let writes = machine.bus().writes.load(Ordering::SeqCst);
        let interrupts = machine.bus().interrupts().len();
        // Late answers change nothing.
        for _ in 0..3 {
            machine.bus().answer(ResponseCode::Success);
        }
        thread::sleep(Duration::from_millis(20));
        assert_eq!(machine.bus().writes.load(Ordering::SeqCst), writes, "{code}");
        assert_eq!(machine.bus().interrupts().len(), interrupts);
        assert_eq!(machine.bus().load(pasid(), RECORDS, 8 * 32), [0; 8 * 32]);
        if matches!(code, ABORT_QUEUE | ABORT_ALL | ABORT_PASID) {
            // The queue goes on.
            machine.bus().on_request(OnRequest::Map);
            assert_eq!(machine.run(fill(BLOCK, DESTINATION, 8))[0], 1);
        }
    }
}

#[test]
fn abandoned_page_requests_count_until_they_are_answered() {
    let machine = Machine::enabled();
    machine.bus().pci.lock().unwrap().pri_allocation = 1;
    machine.bus().map(pasid(), RECORDS);
    machine.bus().on_request(OnRequest::Hold);
    machine.submit(0, &at(fill(BLOCK, DESTINATION, 8), RECORDS));
    drop(machine.bus().wait_for_held(1));
    assert_eq!(machine.command(ABORT_QUEUE, 1), 0);
    machine.submit(0, &at(fill(BLOCK, DESTINATION, 8), RECORDS));
    thread::sleep(Duration::from_millis(20));
    assert_eq!(machine.bus().sent.lock().unwrap().len(), 1);
    machine.bus().answer(ResponseCode::InvalidRequest);
    machine.bus().answer(ResponseCode::Success);
    assert_eq!(machine.wait(pasid(), RECORDS)[0], 1);
}

#[test]
fn a_drain_operation_waits_for_earlier_descriptors() {
    let machine = Machine::enabled();
    machine.bus().map(pasid(), RECORDS);
    machine.bus().on_request(OnRequest::Hold);
    machine.submit(0, &at(fill(BLOCK, DESTINATION, 8), RECORDS));
    drop(machine.bus().wait_for_held(1));
    machine.submit(0, &at(descriptor(opcode::DRAIN, RECORD, 0, 0, 0), RECORDS + 32));
    machine.submit(0, &at(no_op(), RECORDS + 64));
    assert_eq!(machine.wait(pasid(), RECORDS + 64)[0], 1);
    thread::sleep(Duration::from_millis(20));
    assert_eq!(machine.bus().load(pasid(), RECORDS + 32, 1), [0]);
    machine.bus().answer(ResponseCode::Success);
    assert_eq!(machine.wait(pasid(), RECORDS + 32)[0], 1);
    assert_eq!(machine.bus().load(pasid(), RECORDS, 1), [1]);
    // An abort ends the waiting.
    machine.submit(0, &at(fill(BLOCK, DESTINATION + PAGE, 8), RECORDS + 96));
    drop(machine.bus().wait_for_held(1));
    machine.submit(0, &at(descriptor(opcode::DRAIN, RECORD, 0, 0, 0), RECORDS + 128));
    assert_eq!(machine.command(RESET_QUEUE, 1), 0);
}

#[test]
fn a_command_while_another_is_active_is_an_error() {
    let machine = Machine::enabled();
    machine.bus().on_request(OnRequest::Hold);
    machine.submit(0, &at(fill(BLOCK, DESTINATION, 8), RECORDS));
    drop(machine.bus().wait_for_held(1));
    let before = machine.bus().interrupts().len();
    machine.start(DRAIN_ALL, 0);
    machine.start(DISABLE, 0);
    assert_eq!(machine.take_error()[0], 0x5201);
    machine.bus().on_request(OnRequest::Map);
    machine.bus().answer(ResponseCode::Success);
    assert_eq!(machine.finish(before + 1), 0);
    assert_eq!(machine.read32(GENSTS), 1);
}

#[test]
fn a_configuration_change_halts_the_device_until_it_is_reset() {
    let machine = Machine::enabled();
    machine.bus().on_request(OnRequest::Hold);
    machine.submit(0, &at(fill(BLOCK, DESTINATION, 8), RECORDS));
    drop(machine.bus().wait_for_held(1));
    let before = machine.bus().interrupts().len();
    machine.start(DRAIN_ALL, 0);
    machine.0.configuration_changed();
    machine.bus().wait_for_interrupts(before + 1);
    assert_eq!(machine.read32(GENSTS), 3);
    assert_eq!(machine.take_error()[0], 0x5101);
    // The halt and the end of the command are never acknowledged together.
    let mut seen = 0;
    let end = Instant::now() + PATIENCE;
    while seen & 0x12 != 0x12 {
        let causes = machine.read32(INTCAUSE);
        assert_ne!(causes & 0x12, 0x12);
        machine.write32(INTCAUSE, causes);
        seen |= causes;
        assert!(Instant::now() < end);
    }
    assert_eq!(machine.read32(CMDSTATUS), 5);
    assert_eq!(machine.command(ENABLE, 0), 5);
    machine.submit(0, &at(no_op(), RECORDS));
    assert_eq!(machine.command(RESET, 0), 0);
    assert_eq!(machine.read32(GENSTS), 0);
    assert_eq!(machine.bus().load(pasid(), RECORDS, 1), [0]);
    machine.configure();
    assert_eq!(machine.command(ENABLE, 0), 0);
    machine.0.reset();
    machine.0.configuration_changed();
    assert_eq!(machine.read32(GENSTS), 0);
}

#[test]
fn reset_returns_after_the_last_access() {
    let machine = Machine::enabled();
    for n in 0..16 {
        machine.submit(0, &at(fill(BLOCK, DESTINATION + n * 0x20_0000, 1 << 21), RECORDS));
    }
    drop(machine.bus().requests.clone());
    machine.0.reset();
    let writes = machine.bus().writes.load(Ordering::SeqCst);
    thread::sleep(Duration::from_millis(20));
    assert_eq!(machine.bus().writes.load(Ordering::SeqCst), writes);
    machine.wait_for_threads(0);
}

#[test]
fn dropping_the_device_ends_a_blocked_engine() {
    let machine = Machine::enabled();
    machine.bus().on_request(OnRequest::Hold);
    machine.submit(0, &at(fill(BLOCK, DESTINATION, 8), RECORDS));
    drop(machine.bus().wait_for_held(1));
    let device = Arc::downgrade(&machine.0);
    drop(machine);
    assert!(device.upgrade().is_none());
}

#[test]
fn engines_serve_the_queues_of_a_group_by_priority() {
    let machine = Machine::new();
    for (queue, priority) in [(0, 1), (1, 3)] {
        machine.write32(WQCFG + 64 * queue, 16);
        machine.write32(WQCFG + 64 * queue + 8, 0x1000_0001 | priority << 4);
        machine.write32(WQCFG + 64 * queue + 12, 21 | 5 << 5);
    }
    machine.write64(GRPCFG, 3);
    machine.write64(GRPCFG + 32, 1);
    machine.0.update(|state, effects| {
        state.device = DeviceState::Enabled;
        for queue in 0..2 {
            state.queues[queue].state = crate::work_queue::QueueState::Enabled;
            for _ in 0..8 {
                state.submit(queue, no_op(), effects);
            }
        }
        let order: Vec<usize> = std::iter::from_fn(|| state.next_job(0)).map(|job| job.queue).collect();
        assert_eq!(order.len(), 16);
        assert_eq!(order[..8].iter().filter(|queue| **queue == 1).count(), 6);
        assert!(state.next_job(1).is_none());
        state.engines[0].running = None;
        state.device = DeviceState::Disabled;
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn any_64_bytes_complete_or_are_reported(
        mut bytes in prop::array::uniform32(any::<u16>()),
        known in any::<bool>(),
        plain in any::<bool>(),
        small in any::<bool>(),
    ) {
        if known {
            let codes = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0x10, 0x11, 0x20];
            bytes[3] = bytes[3] & 0xff | codes[usize::from(bytes[3] >> 8) % 13] << 8;
        }
        if plain {
            bytes[2] = 0x000c;
            bytes[3] &= 0xff00;
            bytes[4] &= !0x1f;
        }
        if small {
            bytes[16] &= 0x0ff8;
            bytes[17] = 0;
        }
        let mut descriptor = Descriptor([0; 64]);
        for (to, from) in descriptor.0.chunks_mut(2).zip(bytes) {
            to.copy_from_slice(&from.to_le_bytes());
        }
        let machine = Machine::enabled();
        machine.submit(0, &descriptor);
        prop_assert_eq!(machine.command(DRAIN_ALL, 0), 0);
        let recorded = descriptor.has(flag::RECORD_ADDRESS_VALID)
            && machine.bus().load(pasid(), descriptor.record_address(), 1) != [0];
        let reported = machine.read64(SWERROR) & 1 == 1;
        let silent = descriptor.flags() & flag::REQUEST_RECORD == 0;
        prop_assert!(recorded || reported || silent);
    }
}
