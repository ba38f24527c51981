// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Administrative commands, and what becomes of work in flight when the device is stopped, reset or dropped.

use super::*;
use patience::Patience;

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
fn reset_device_clears_the_configuration_and_leaves_the_engines_idle() {
    let machine = Machine::enabled();
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
    machine.wait_for_engines();
    machine.configure();
    assert_eq!(machine.command(ENABLE, 0), 0);
    machine.0.reset();
    machine.wait_for_engines();
    assert_eq!(machine.read64(SWERROR), 0);
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
fn commands_for_one_pasid_leave_the_work_of_others_alone() {
    let machine = Machine::enabled();
    let other = Pasid::new(0x2b);
    for pasid in [pasid(), other] {
        machine.bus().map(pasid, RECORDS);
    }
    machine.bus().on_request(OnRequest::Hold);
    machine.submit(0, &at(fill(BLOCK, DESTINATION, 8), RECORDS));
    drop(machine.bus().wait_for_held(1));
    machine.submit(1, &at(fill(BLOCK, DESTINATION, 8), RECORDS));
    drop(machine.bus().wait_for_held(2));
    assert_eq!(machine.command(ABORT_PASID, 0x2b), 0);
    assert_eq!(machine.command(DRAIN_PASID, 0x2b), 0);
    machine.bus().answer(ResponseCode::Success);
    machine.bus().answer(ResponseCode::Success);
    assert_eq!(machine.wait(pasid(), RECORDS)[0], 1);
    assert_eq!(machine.bus().load(other, RECORDS, 1), [0]);
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
    let mut patience = Patience::default();
    while seen & 0x12 != 0x12 {
        let causes = machine.read32(INTCAUSE);
        assert_ne!(causes & 0x12, 0x12);
        machine.write32(INTCAUSE, causes);
        seen |= causes;
        patience.pause("both causes");
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
    while machine.bus().writes.load(Ordering::SeqCst) == 0 {
        thread::yield_now();
    }
    machine.0.reset();
    let writes = machine.bus().writes.load(Ordering::SeqCst);
    thread::sleep(Duration::from_millis(20));
    assert_eq!(machine.bus().writes.load(Ordering::SeqCst), writes);
    machine.wait_for_engines();
}

#[test]
fn no_thread_outlives_the_device_however_often_it_was_enabled() {
    let machine = Machine::new();
    for _ in 0..200 {
        machine.configure();
        assert_eq!(machine.command(ENABLE, 0), 0);
        assert_eq!(machine.command(RESET, 0), 0);
    }
    let device = Arc::downgrade(&machine.0);
    drop(machine);
    assert!(device.upgrade().is_none());
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
