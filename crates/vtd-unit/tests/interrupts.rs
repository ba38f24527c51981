// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Interrupt remapping: requests of functions, by format and by table entry.

mod common;

use common::{Guest, SOURCE_ID, entry as entry_bits};
use vtd_spec::registers::offset;
use vtd_spec::tables::DeliveryMode;
use vtd_spec::{InterruptRemapEntry, Pasid, RemappableRequest, SourceId};
use vtd_unit::{Message, UnitConfig};

const TABLE: u64 = 0x30_0000;
const COMPATIBILITY: Message = Message { address: 0xfee0_1000, data: 0x31 };

fn guest() -> Guest {
    let guest = Guest::with_config(&UnitConfig { ir: true, eim: true, ..UnitConfig::default() });
    guest.write64(offset::IRTA, TABLE | 7);
    guest.command(1 << 24);
    guest.command(1 << 25);
    guest
}

/// Interrupt `handle` in remappable format.
fn request(handle: u16, subhandle: Option<u16>) -> Message {
    let request =
        RemappableRequest { handle, shv: subhandle.is_some(), data: subhandle.unwrap_or(0).into() }.message();
    Message { address: request.address, data: request.data }
}

fn entry() -> InterruptRemapEntry {
    InterruptRemapEntry::new()
        .with_p(true)
        .with_vector(0x55)
        .with_dlm(DeliveryMode::Fixed.into_bits())
        .with_destination(3, false)
        .with_svt(1)
        .with_sid(SOURCE_ID)
}

fn write(guest: &Guest, index: u64, entry: InterruptRemapEntry) {
    let [low, high] = entry.to_qwords();
    guest.store(TABLE + index * 16, low);
    guest.store(TABLE + index * 16 + 8, high);
}

#[test]
fn a_remappable_request_is_delivered_as_its_entry_says() {
    let guest = guest();
    write(&guest, 9, entry());
    guest.endpoint.message(request(9, None));
    guest.endpoint.message(request(4, Some(5)));
    let expected = Message { address: 0xfee0_3000, data: 0x4055 };
    assert_eq!(guest.messages.take(), [expected, expected]);
    assert_eq!(guest.take_fault_reason(), None);
}

#[test]
fn a_dword_written_to_the_interrupt_range_is_a_request() {
    let guest = guest();
    write(&guest, 9, entry());
    let message = request(9, None);
    guest.endpoint.write(Default::default(), message.address, &message.data.to_le_bytes()).unwrap();
    assert_eq!(guest.messages.take().len(), 1);
}

#[test]
fn compatibility_format_passes_only_while_it_is_let_through() {
    let guest = guest();
    guest.endpoint.message(COMPATIBILITY);
    assert_eq!(guest.take_fault_reason(), Some(0x25));
    guest.messages.take();
    guest.write32(offset::GCMD, guest.read32(offset::GSTS) & 0x96ff_ffff | 1 << 23);
    guest.endpoint.message(COMPATIBILITY);
    assert_eq!(guest.messages.take(), [COMPATIBILITY]);
    guest.command_off(1 << 25);
    guest.command_off(1 << 23);
    guest.endpoint.message(COMPATIBILITY);
    assert_eq!(guest.messages.take(), [COMPATIBILITY], "remapping is off");
}

#[test]
fn requests_are_blocked_for_the_specified_reasons() {
    let other = SourceId::new(0, 9, 0);
    let reserved =
        InterruptRemapEntry::from_qwords([entry().to_qwords()[0] | 1 << 13, entry().to_qwords()[1]]);
    let cases = [
        (0x20, entry(), Message { data: 1 << 16, ..request(9, Some(0)) }),
        (0x21, entry(), request(256, None)),
        (0x22, entry().with_p(false), request(9, None)),
        (0x24, reserved, request(9, None)),
        (0x24, entry().with_svt(3), request(9, None)),
        (0x24, entry().with_dlm(3), request(9, None)),
        (0x24, entry().with_im(true), request(9, None)),
        (0x26, entry().with_sid(other), request(9, None)),
    ];
    for (reason, entry, message) in cases {
        let guest = guest();
        write(&guest, 9, entry);
        guest.endpoint.message(message);
        assert_eq!(guest.take_fault_reason(), Some(reason), "{entry:?} {message:x?}");
        let messages = guest.messages.take();
        assert_eq!(messages.len(), 1, "the fault event alone");
        assert_eq!(messages[0].data, 0x41);
        write(&guest, 9, entry.with_fpd(true));
        guest.endpoint.message(message);
        let suppressed = matches!(reason, 0x22 | 0x24 | 0x26);
        assert_eq!(guest.take_fault_reason(), if suppressed { None } else { Some(reason) });
    }
}

#[test]
fn a_table_outside_memory_blocks_and_names_the_index() {
    let guest = guest();
    guest.write64(offset::IRTA, 0x7000_0000_0007);
    guest.command(1 << 24);
    guest.endpoint.message(request(9, None));
    let record = guest.take_fault(0).unwrap();
    assert_eq!(record.fr(), 0x23);
    assert_eq!(guest.read64(0x220), 9 << 48);
}

#[test]
fn a_32_bit_destination_survives_in_extended_mode() {
    let guest = guest();
    guest.write64(offset::IRTA, TABLE | 0x807);
    guest.command(1 << 24);
    write(&guest, 9, entry().with_destination(0x1_0203, true));
    guest.endpoint.message(request(9, None));
    assert_eq!(guest.messages.take(), [Message { address: 0x1_0200_fee0_3000, data: 0x4055 }]);
    guest.endpoint.message(COMPATIBILITY);
    assert_eq!(guest.take_fault_reason(), Some(0x25), "compatibility format has no place in extended mode");
}

#[test]
fn a_table_beyond_the_host_address_width_has_no_entries() {
    let guest = guest();
    // The last one ends where the width does: it is just not in memory.
    let tables = [(0x21, 1 << 48 | 7), (0x21, 0xffff_ffff_ffff_f007), (0x23, 0xffff_ffff_f007)];
    for (reason, table) in tables {
        guest.write64(offset::IRTA, table);
        guest.command(1 << 24);
        guest.endpoint.message(request(255, None));
        assert_eq!(guest.take_fault_reason(), Some(reason), "{table:#x}");
    }
}

#[test]
fn a_message_outside_the_interrupt_range_is_an_ordinary_write() {
    let guest = guest();
    guest.bind(Pasid::ZERO);
    let page = guest.page();
    guest.map(Pasid::ZERO, 0x9000, page, entry_bits::USER);
    guest.endpoint.message(Message { address: 0x9004, data: 0x1234_5678 });
    assert_eq!(guest.load(page), 0x1234_5678 << 32);
    assert_eq!(guest.take_fault_reason(), None);
    // Not FEEx_xxxx either, and not mapped: the write's own fault.
    for address in [0xa000, 0x1_fee0_0000] {
        guest.endpoint.message(Message { address, data: 0 });
        let record = guest.take_fault(0).or_else(|| guest.take_fault(1)).unwrap();
        guest.write32(offset::FSTS, 1);
        assert_eq!(record.fr(), 0x71, "SFS.2 at {address:#x}");
    }
    assert!(guest.messages.take().iter().all(|message| message.data == 0x41), "fault events alone");
}

/// Whichever part of the unit is on takes what comes to the interrupt range. \[S 3.14, 5.1.4\]
#[test]
fn what_is_no_interrupt_does_not_pass_the_interrupt_range() {
    let guest = guest();
    let none = vtd_unit::Requester::default();
    for translation in [true, false] {
        if !translation {
            guest.command_off(1 << 31);
        }
        let mut data = [0; 4];
        assert!(guest.endpoint.read(none, 0xfee0_1000, &mut data).is_err());
        assert_eq!(guest.take_fault_reason(), Some(0x29), "translation: {translation}");
        assert!(guest.endpoint.write(none, 0xfee0_1000, &[0; 8]).is_err());
        assert_eq!(guest.take_fault_reason(), Some(0x29), "translation: {translation}");
        guest.endpoint.read(none, 0xfee0_1000, &mut []).unwrap();
        assert_eq!(guest.take_fault_reason(), None, "a zero-length read");
    }
    guest.command_off(1 << 25);
    assert!(guest.endpoint.write(none, 0xfee0_1000, &[0; 8]).is_err(), "there is no memory");
    assert_eq!(guest.take_fault_reason(), None, "all is off");
}

/// Notes what may change the answers.
#[derive(Default)]
struct Changes(std::sync::Mutex<Vec<String>>);

impl vtd_unit::Observer for Changes {
    fn invalidated(&self, descriptor: &vtd_spec::Descriptor) {
        self.0.lock().unwrap().push(format!("{:?}", descriptor.descriptor_type()));
    }
    fn complete(&self, _: bool) {}
    fn remapping_changed(&self) {}
    fn interrupts_changed(&self) {
        self.0.lock().unwrap().push("changed".into());
    }
}

#[test]
fn what_becomes_of_a_message_can_be_asked_and_every_change_of_the_answer_is_heard() {
    let guest = guest();
    write(&guest, 9, entry());
    let changes = std::sync::Arc::new(Changes::default());
    let observer: std::sync::Arc<dyn vtd_unit::Observer> = changes.clone();
    guest.unit.add_observer(&observer);
    let heard = || std::mem::take(&mut *changes.0.lock().unwrap());
    let ask = |message| guest.unit.remapped(SOURCE_ID, message);
    let remapped = Message { address: 0xfee0_3000, data: 0x4055 };
    assert_eq!(ask(request(9, None)), Ok(remapped));
    assert_eq!(ask(request(200, None)).map_err(|reason| reason.code()), Err(0x22));
    assert_eq!(ask(COMPATIBILITY).map_err(|reason| reason.code()), Err(0x25));
    assert_eq!(ask(Message { address: 0x1000, data: 0 }).map_err(|reason| reason.code()), Err(0x29));
    assert_eq!(
        guest.unit.remapped(SourceId::new(0, 9, 0), request(9, None)).map_err(|r| r.code()),
        Err(0x26)
    );
    assert_eq!((guest.messages.take(), guest.take_fault_reason()), (vec![], None), "nothing happens");
    // One entry, by its invalidation.
    write(&guest, 9, entry().with_vector(0x66));
    guest.queue_qwords([4 | 1 << 4 | 9 << 32, 0, 0, 0]);
    guest.submit_wait(0);
    assert_eq!(heard(), ["InterruptEntryCache"]);
    assert_eq!(ask(request(9, None)).unwrap().data & 0xff, 0x66);
    // All of them: compatibility format, no remapping, another table, a reset.
    guest.write32(offset::GCMD, guest.read32(offset::GSTS) & 0x96ff_ffff | 1 << 23);
    assert_eq!((heard(), ask(COMPATIBILITY)), (vec!["changed".into()], Ok(COMPATIBILITY)));
    guest.command_off(1 << 25);
    assert_eq!((heard(), ask(request(9, None))), (vec!["changed".into()], Ok(request(9, None))));
    guest.command(1 << 25);
    heard();
    guest.write64(offset::IRTA, 0x38_0007);
    guest.command(1 << 24);
    assert_eq!(heard(), ["changed"]);
    assert_eq!(ask(request(9, None)).map_err(|reason| reason.code()), Err(0x22));
    guest.unit.reset();
    assert_eq!((heard(), ask(request(9, None))), (vec!["changed".into()], Ok(request(9, None))));
}
