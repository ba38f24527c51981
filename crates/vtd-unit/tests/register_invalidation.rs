// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Register-based invalidation, by software that knows no queue: CCMD, IVA and IOTLB. [S 11.4.6]

mod common;

use std::str::FromStr;
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use common::{CONTEXT_TABLE, Guest, ROOT_TABLE, SOURCE_ID};
use patience::eventually;
use vtd_spec::registers::offset;
use vtd_spec::{
    AddressWidth, ContextCommand, Descriptor, DomainId, InvalidateAddress, IotlbInvalidate,
    LegacyContextEntry, SourceId,
};
use vtd_unit::{Access, DmaError, Observer, Requester, UnitConfig};

const IVA: u64 = 0xf00;
const IOTLB: u64 = 0xf08;
const DOMAIN: DomainId = DomainId(4);
const ADDRESS: u64 = 0x1234_5000;
const NONE: Requester = Requester { pasid: None, privileged: false };

/// A guest in legacy mode with no queue and one page mapped, which its function has cached.
struct Legacy {
    guest: Guest,
    leaf: u64,
}

impl Legacy {
    fn new(options: &str) -> Self {
        let guest = Guest::powered_up(&UnitConfig::from_str(options).unwrap());
        let tables = [(); 3].map(|()| guest.page());
        let context = LegacyContextEntry::new()
            .with_p(true)
            .with_did(DOMAIN)
            .with_aw(AddressWidth::Bits39.into_bits())
            .with_ssptptr(tables[0]);
        let [low, high] = context.to_qwords();
        let at = CONTEXT_TABLE + u64::from(SOURCE_ID.devfn()) * 16;
        guest.store(at + 8, high);
        guest.store(at, low);
        guest.store(ROOT_TABLE, CONTEXT_TABLE | 1);
        guest.store(tables[0] + (ADDRESS >> 30 & 0x1ff) * 8, tables[1] | 3);
        guest.store(tables[1] + (ADDRESS >> 21 & 0x1ff) * 8, tables[2] | 3);
        let leaf = tables[2] + (ADDRESS >> 12 & 0x1ff) * 8;
        guest.store(leaf, guest.page() | 3);
        guest.write64(offset::RTADDR, ROOT_TABLE);
        guest.command(1 << 30);
        guest.command(1 << 31);
        let legacy = Self { guest, leaf };
        legacy.write().unwrap();
        legacy
    }

    fn write(&self) -> Result<(), DmaError> {
        self.guest.endpoint.write(NONE, ADDRESS, &[7])
    }

    fn unmap(&self) {
        self.guest.store(self.leaf, 0);
    }

    fn context_command(&self, command: ContextCommand) -> ContextCommand {
        self.guest.write64(offset::CCMD, command.with_icc(true).into_bits());
        ContextCommand::from_bits(self.guest.read64(offset::CCMD))
    }

    fn iotlb(&self, address: InvalidateAddress, iotlb: IotlbInvalidate) -> IotlbInvalidate {
        self.guest.write64(IVA, address.into_bits());
        self.guest.write64(IOTLB, iotlb.with_ivt(true).into_bits());
        IotlbInvalidate::from_bits(self.guest.read64(IOTLB))
    }
}

fn page(address: u64, am: u8) -> InvalidateAddress {
    InvalidateAddress::new().with_addr(address).with_am(am)
}

fn granularity(iirg: u8) -> IotlbInvalidate {
    IotlbInvalidate::new().with_iirg(iirg).with_did(DOMAIN.0).with_dw(true).with_dr(true)
}

#[test]
fn the_registers_show_what_was_written_but_for_write_only_fields() {
    let guest = Guest::powered_up(&UnitConfig::default());
    let all = |register: u64| {
        // By halves and in one, without the bit that starts.
        guest.write32(register, !0);
        guest.write32(register + 4, !(1 << 31));
        let halves = guest.read64(register);
        guest.write64(register, !(1 << 63));
        assert_eq!(guest.read64(register), halves);
        halves
    };
    assert_eq!(all(offset::CCMD), ContextCommand::new().with_did(!0).with_cirg(3).into_bits());
    let iotlb = IotlbInvalidate::new().with_did(!0).with_dw(true).with_dr(true).with_iirg(3);
    assert_eq!(all(IOTLB), iotlb.into_bits());
    assert_eq!(all(IVA), 0, "write-only");
}

#[test]
fn an_iotlb_command_removes_what_it_covers_and_says_so() {
    for (address, command) in [
        (page(0, 0), granularity(1)),
        (page(0, 0), granularity(2)),
        (page(ADDRESS, 0), granularity(3)),
        (page(ADDRESS & !0xf_ffff, 8), granularity(3)),
        // Bits beyond MGAW and of the domain beyond ND are nothing.
        (page(ADDRESS | 1 << 60, 0), granularity(3)),
        (page(ADDRESS, 0).with_ih(true), granularity(3)),
    ] {
        let legacy = Legacy::new("");
        legacy.unmap();
        legacy.write().expect("nothing was invalidated, so this unit still has the page cached");
        let done = legacy.iotlb(address, command);
        assert!(!done.ivt());
        assert_eq!((done.iaig(), done.iirg()), (command.iirg(), command.iirg()));
        assert!(legacy.write().is_err(), "{address:?} {command:?}");
    }
}

#[test]
fn a_context_command_has_the_context_read_again() {
    let device = ContextCommand::new().with_cirg(3).with_sid(SOURCE_ID.0).with_did(DOMAIN.0);
    let masked = device.with_sid(SOURCE_ID.0 | 7).with_fm(3);
    for command in [
        ContextCommand::new().with_cirg(1),
        ContextCommand::new().with_cirg(2).with_did(DOMAIN.0),
        device,
        masked,
    ] {
        let legacy = Legacy::new("");
        legacy.guest.store(CONTEXT_TABLE + u64::from(SOURCE_ID.devfn()) * 16, 0);
        legacy.write().unwrap();
        let done = legacy.context_command(command);
        assert!(!done.icc());
        assert_eq!(done.caig(), command.cirg());
        assert_eq!(legacy.write(), Err(DmaError::Refused { address: ADDRESS }), "{command:?}");
        assert_eq!(legacy.guest.take_fault_reason(), Some(2));
    }
    let legacy = Legacy::new("");
    assert_eq!(legacy.context_command(device.with_sid(SourceId(0x7777).0)).caig(), 3, "of nobody");
}

#[test]
fn the_half_that_holds_the_bit_starts_the_command() {
    let legacy = Legacy::new("");
    legacy.unmap();
    let command = granularity(2).with_ivt(true).into_bits();
    legacy.guest.write32(IOTLB + 4, (command >> 32) as u32);
    assert!(legacy.write().is_err());
    let legacy = Legacy::new("");
    legacy.guest.store(CONTEXT_TABLE + u64::from(SOURCE_ID.devfn()) * 16, 0);
    let command = ContextCommand::new().with_cirg(3).with_sid(SOURCE_ID.0).with_icc(true).into_bits();
    legacy.guest.write32(offset::CCMD, command as u32);
    legacy.write().unwrap();
    legacy.guest.write32(offset::CCMD + 4, (command >> 32) as u32);
    assert!(legacy.write().is_err());
}

#[test]
fn what_is_not_valid_reports_granularity_0() {
    let legacy = Legacy::new("");
    assert_eq!(legacy.context_command(ContextCommand::new().with_cirg(0)).caig(), 0);
    assert_eq!(legacy.iotlb(page(ADDRESS, 0), granularity(0)).iaig(), 0);
    assert_eq!(legacy.iotlb(page(ADDRESS, 19), granularity(3)).iaig(), 0, "beyond MAMV");
    assert_eq!(legacy.iotlb(page(ADDRESS, 63), granularity(3)).iaig(), 0);
    assert_eq!(legacy.iotlb(page(ADDRESS, 63), granularity(1)).iaig(), 1, "AM is of pages only");
    let legacy = Legacy::new("psi=off");
    assert_eq!(legacy.iotlb(page(ADDRESS, 0), granularity(3)).iaig(), 0, "without PSI");
}

#[test]
fn commands_are_ignored_in_scalable_mode_and_with_the_queue_enabled() {
    let scalable = Guest::new();
    let legacy = Legacy::new("");
    legacy.guest.enable_queue();
    for guest in [&scalable, &legacy.guest] {
        guest.write64(offset::CCMD, ContextCommand::new().with_cirg(1).with_icc(true).into_bits());
        let context = ContextCommand::from_bits(guest.read64(offset::CCMD));
        assert_eq!((context.icc(), context.caig()), (false, 0));
        guest.write64(IOTLB, granularity(1).with_ivt(true).into_bits());
        let iotlb = IotlbInvalidate::from_bits(guest.read64(IOTLB));
        assert_eq!((iotlb.ivt(), iotlb.iaig()), (false, 0));
        guest.submit(&common::descriptors::iotlb_domain(DOMAIN));
    }
}

#[test]
fn a_command_is_pending_until_accesses_in_flight_have_ended() {
    let legacy = Legacy::new("");
    let (entered, inside) = mpsc::channel();
    let (leave, left) = mpsc::channel::<()>();
    std::thread::scope(|scope| {
        let guest = &legacy.guest;
        // Gone with this closure, however it ends: a failure lets the access go.
        let leave = leave;
        scope.spawn(move || {
            let hold = &mut |_, _: vm_memory::VolatileSlice<'_, _>| {
                entered.send(()).unwrap();
                let _ = left.recv();
            };
            guest.endpoint.access(NONE, ADDRESS, 8, Access::Write, hold).unwrap();
        });
        inside.recv().unwrap();
        scope.spawn(|| guest.write64(IOTLB, granularity(2).with_ivt(true).into_bits()));
        let pending = || IotlbInvalidate::from_bits(guest.read64(IOTLB)).ivt();
        eventually("the command", pending);
        for _ in 0..20 {
            std::thread::sleep(Duration::from_millis(5));
            assert!(pending());
        }
        // Writing 0 does not call it off.
        guest.write64(IOTLB, granularity(2).into_bits());
        assert!(pending());
        drop(leave);
        eventually("the command's end", || !pending());
        assert_eq!(IotlbInvalidate::from_bits(guest.read64(IOTLB)).iaig(), 2);
    });
}

/// Keeps what it hears; whether it was told to have it in effect.
#[derive(Default)]
struct Listener(Mutex<Vec<Option<Descriptor>>>);

impl Observer for Listener {
    fn invalidated(&self, descriptor: &Descriptor) {
        self.0.lock().unwrap().push(Some(*descriptor));
    }

    fn complete(&self, _: bool) {
        self.0.lock().unwrap().push(None);
    }

    fn remapping_changed(&self) {}
}

/// It may have much to look at, so the command goes on in the background.
#[test]
fn an_observer_hears_the_command_before_it_is_done() {
    let legacy = Legacy::new("");
    let listener = Arc::new(Listener::default());
    let observer: Arc<dyn Observer> = Arc::clone(&listener) as _;
    legacy.guest.unit.add_observer(&observer);
    legacy.context_command(ContextCommand::new().with_cirg(1));
    eventually("the command's end", || !ContextCommand::from_bits(legacy.guest.read64(offset::CCMD)).icc());
    let heard = listener.0.lock().unwrap();
    assert!(matches!(heard[..], [Some(Descriptor::ContextCache(_)), None]), "{heard:?}");
}
