// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The device as a driver and its users see it: registers, commands, portals, completion records.

mod batches;
mod commands;
mod descriptors;
mod page_requests;
mod registers;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use patience::Patience;
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
use crate::testing::{OnRequest, PAGE, TestBus, noise, pasid};
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
        let device = Device::new(bus, requests);
        device.start_engines().unwrap();
        Self(device)
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
        let mut patience = Patience::default();
        while self.read32(INTCAUSE) & 2 == 0 {
            patience.pause("the command's end");
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
        let mut patience = Patience::default();
        loop {
            let record = self.bus().load(pasid, address, 32);
            if record[0] != 0 {
                return record;
            }
            patience.pause("completion");
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
        let mut patience = Patience::default();
        while self.read64(SWERROR) & 1 == 0 {
            patience.pause("software error");
        }
        self.take_error()
    }

    /// Until all engines wait for work.
    fn wait_for_engines(&self) {
        let mut patience = Patience::default();
        while !self.0.lock().engines.iter().all(|engine| engine.idle && engine.running.is_none()) {
            patience.pause("idle engines");
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
