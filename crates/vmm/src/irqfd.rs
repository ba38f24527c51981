// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Interrupts routed past the unit: KVM delivers a message itself when an eventfd is signalled, by whatever thread, process or
//! kernel driver has it. What it delivers is what the unit makes of the message; the unit says when that changes.
//!
//! A route belongs to a function and a message of its MSI-X table. It is made when the message is sent first, asked again
//! (all of them at once) when software invalidates interrupt entries or turns remapping on or off, and taken away where the
//! message is blocked: then the function sends it through the unit, which records why.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vtd_spec::Descriptor;
use vtd_unit::{Message, Observer, SourceId, Unit};

use crate::ioapic::PINS;
use crate::memory::Memory;

/// Interrupt numbers of KVM's that routes get: behind the I/O APIC's pins, as many as KVM takes (`KVM_MAX_IRQ_ROUTES`).
const GSIS: Range<u32> = PINS as u32..4096;

/// What is asked of KVM.
pub trait Routing: Send + Sync {
    /// Replaces all routes by `routes`: interrupt number to message. When it returns, no other is in use.
    ///
    /// # Errors
    ///
    /// KVM refuses; those before stay.
    fn set_routes(&self, routes: &BTreeMap<u32, Message>) -> io::Result<()>;

    /// From now on a signal to `eventfd` is the interrupt `gsi`.
    ///
    /// # Errors
    ///
    /// KVM refuses.
    fn attach(&self, eventfd: &EventFd, gsi: u32) -> io::Result<()>;

    /// The reverse of [`Self::attach`].
    fn detach(&self, eventfd: &EventFd, gsi: u32);
}

struct Route {
    gsi: u32,
    eventfd: EventFd,
}

#[derive(Default)]
struct State {
    routes: HashMap<(SourceId, Message), Route>,
    /// What the routes deliver.
    targets: BTreeMap<u32, Message>,
}

/// See the module's documentation.
pub struct IrqfdRouter {
    unit: Unit<Memory>,
    routing: Arc<dyn Routing>,
    gsis: Range<u32>,
    state: Mutex<State>,
    /// What the routes deliver may be another by now.
    stale: AtomicBool,
    itself: Weak<Self>,
}

impl IrqfdRouter {
    /// A router with no routes, which hears of changes as long as it is kept.
    pub fn new(unit: Unit<Memory>, routing: Arc<dyn Routing>) -> Arc<Self> {
        Self::with_gsis(unit, routing, GSIS)
    }

    fn with_gsis(unit: Unit<Memory>, routing: Arc<dyn Routing>, gsis: Range<u32>) -> Arc<Self> {
        let router = Arc::new_cyclic(|itself| Self {
            unit,
            routing,
            gsis,
            state: Mutex::default(),
            stale: AtomicBool::new(false),
            itself: itself.clone(),
        });
        router.unit.add_observer(&(Arc::clone(&router) as Arc<dyn Observer>));
        router
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a message of a function by its route, which is made if there is none. False where it has none: it is blocked, or
    /// KVM takes no more. Then it goes through the unit.
    pub fn signal(&self, source_id: SourceId, message: Message) -> bool {
        if !message.is_to_local_apics() {
            return false;
        }
        let mut state = self.state();
        if !self.has_route(&mut state, source_id, message) {
            return false;
        }
        // Under the lock: what a refreshed route no longer delivers is not signalled after it. The counter of an eventfd is full
        // only where nobody takes it.
        state.routes.get(&(source_id, message)).is_some_and(|route| route.eventfd.write(1).is_ok())
    }

    /// The eventfd of a function's message, for whoever signals it without this router: a vhost backend, or VFIO. It stays the
    /// message's until the message is blocked.
    ///
    /// # Errors
    ///
    /// It cannot be duplicated.
    pub fn eventfd(&self, source_id: SourceId, message: Message) -> io::Result<Option<EventFd>> {
        let mut state = self.state();
        if !self.has_route(&mut state, source_id, message) {
            return Ok(None);
        }
        state.routes.get(&(source_id, message)).map(|route| route.eventfd.try_clone()).transpose()
    }

    /// Whether there is a route, as things are now; it is made if there is none.
    fn has_route(&self, state: &mut State, source_id: SourceId, message: Message) -> bool {
        self.refresh(state);
        state.routes.contains_key(&(source_id, message)) || self.add(state, source_id, message)
    }

    fn add(&self, state: &mut State, source_id: SourceId, message: Message) -> bool {
        let Ok(target) = self.unit.remapped(source_id, message) else { return false };
        if state.targets.len() == self.gsis.len() {
            // Messages are the guest's to choose: those in use come back by themselves.
            let routes = std::mem::take(&mut state.routes);
            routes.values().for_each(|route| self.routing.detach(&route.eventfd, route.gsi));
            state.targets.clear();
        }
        let Some(gsi) = self.gsis.clone().find(|gsi| !state.targets.contains_key(gsi)) else { return false };
        let added = EventFd::new(EFD_NONBLOCK).and_then(|eventfd| {
            state.targets.insert(gsi, target);
            self.routing.set_routes(&state.targets)?;
            self.routing.attach(&eventfd, gsi)?;
            Ok(eventfd)
        });
        match added {
            Ok(eventfd) => {
                state.routes.insert((source_id, message), Route { gsi, eventfd });
                true
            }
            Err(error) => {
                state.targets.remove(&gsi);
                tracing::debug!(?message, %error, "no route for an interrupt");
                false
            }
        }
    }

    /// Asks what becomes of every message, where that may have changed, and has KVM deliver that.
    fn refresh(&self, state: &mut State) {
        if !self.stale.swap(false, Ordering::AcqRel) {
            return;
        }
        let State { routes, targets } = state;
        let before = targets.clone();
        routes.retain(|(source_id, message), route| match self.unit.remapped(*source_id, *message) {
            Ok(target) => {
                targets.insert(route.gsi, target);
                true
            }
            Err(_) => {
                self.routing.detach(&route.eventfd, route.gsi);
                targets.remove(&route.gsi);
                false
            }
        });
        if *targets == before {
            return;
        }
        if let Err(error) = self.routing.set_routes(targets) {
            tracing::debug!(%error, "interrupt routes not set: they are made anew");
            routes.drain().for_each(|(_, route)| self.routing.detach(&route.eventfd, route.gsi));
            targets.clear();
        }
    }
}

impl Observer for IrqfdRouter {
    fn invalidated(&self, descriptor: &Descriptor) {
        if matches!(descriptor, Descriptor::InterruptEntryCache(_)) {
            self.stale.store(true, Ordering::Release);
        }
    }

    fn mirrors_tables(&self) -> bool {
        false
    }

    fn is_behind(&self) -> bool {
        self.stale.load(Ordering::Acquire)
    }

    fn complete(&self, _page_request_drain: bool) {
        self.refresh(&mut self.state());
    }

    fn remapping_changed(&self) {}

    fn interrupts_changed(&self) {
        self.stale.store(true, Ordering::Release);
        // KVM waits for its readers when routes change: nothing for the thread of a processor.
        let router = self.itself.clone();
        self.unit.executor().execute(Box::new(move || {
            if let Some(router) = router.upgrade() {
                router.refresh(&mut router.state());
            }
        }));
    }
}

impl Drop for IrqfdRouter {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        state.routes.drain().for_each(|(_, route)| self.routing.detach(&route.eventfd, route.gsi));
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use vm_memory::{Bytes, GuestAddress};
    use vtd_spec::InterruptRemapEntry;
    use vtd_spec::registers::offset;
    use vtd_unit::{Notify, UnitConfig};

    use super::*;
    use crate::memory::{self, MemoryOptions};

    const DEVICE: SourceId = SourceId::new(0, 3, 0);
    const TABLE: u64 = 0x2000;
    const QUEUE: u64 = 0x3000;
    const STATUS: u64 = 0x4000;
    /// Remappable format, entry 3. [S 5.1.2.2]
    const REMAPPABLE: Message = Message { address: 0xfee0_0010 | 3 << 5, data: 0 };
    const PLAIN: Message = Message { address: 0xfee0_1000, data: 0x31 };

    struct Deaf;

    impl Notify for Deaf {
        fn message(&self, _message: Message) {}
    }

    /// What KVM would deliver.
    #[derive(Default)]
    struct Fake {
        routes: Mutex<BTreeMap<u32, Message>>,
        attached: Mutex<BTreeMap<i32, (EventFd, u32)>>,
        refuses: AtomicBool,
    }

    impl Fake {
        /// The messages of the eventfds that were signalled since.
        fn delivered(&self) -> Vec<Message> {
            let routes = self.routes.lock().unwrap();
            let attached = self.attached.lock().unwrap();
            attached
                .values()
                .filter(|(eventfd, _)| eventfd.read().is_ok())
                .map(|(_, gsi)| routes[gsi])
                .collect()
        }
    }

    impl Routing for Fake {
        fn set_routes(&self, routes: &BTreeMap<u32, Message>) -> io::Result<()> {
            if self.refuses.load(Ordering::Relaxed) {
                return Err(io::Error::other("no"));
            }
            assert!(routes.keys().all(|gsi| GSIS.contains(gsi)));
            *self.routes.lock().unwrap() = routes.clone();
            Ok(())
        }

        fn attach(&self, eventfd: &EventFd, gsi: u32) -> io::Result<()> {
            assert!(self.routes.lock().unwrap().contains_key(&gsi), "routed before it is attached");
            let same = eventfd.try_clone()?;
            assert!(self.attached.lock().unwrap().insert(eventfd.as_raw_fd(), (same, gsi)).is_none());
            Ok(())
        }

        fn detach(&self, eventfd: &EventFd, gsi: u32) {
            let (_, attached) = self.attached.lock().unwrap().remove(&eventfd.as_raw_fd()).unwrap();
            assert_eq!(attached, gsi);
        }
    }

    struct Machine {
        memory: Arc<Memory>,
        unit: Unit<Memory>,
        kvm: Arc<Fake>,
        router: Arc<IrqfdRouter>,
        tail: u64,
    }

    impl Machine {
        fn new() -> Self {
            let memory = memory::allocate(MemoryOptions::ordinary(1 << 20)).unwrap();
            let config: UnitConfig = "ir=on,eim=on".parse().unwrap();
            let unit = Unit::new(&config, memory.clone(), Arc::new(Deaf)).unwrap();
            let kvm = Arc::new(Fake::default());
            let router = IrqfdRouter::new(unit.clone(), kvm.clone());
            Self { memory, unit, kvm, router, tail: 0 }
        }

        fn entry(&self, vector: u8, destination: u32) {
            let entry = InterruptRemapEntry::new()
                .with_p(true)
                .with_vector(vector)
                .with_destination(destination, true);
            for (word, value) in entry.to_qwords().into_iter().enumerate() {
                let at = GuestAddress(TABLE + 3 * 16 + word as u64 * 8);
                self.memory.write_obj(value, at).unwrap();
            }
        }

        fn write64(&self, at: u64, value: u64) {
            self.unit.write(at, &value.to_le_bytes());
        }

        fn command(&self, command: u32, done: u32) {
            self.unit.write(offset::GCMD, &command.to_le_bytes());
            patience::eventually("the command", || {
                let mut status = [0; 4];
                self.unit.read(offset::GSTS, &mut status);
                u32::from_le_bytes(status) & done == done
            });
        }

        /// Queue, table, remapping.
        fn remap(&self) {
            self.write64(offset::IQA, QUEUE);
            self.command(1 << 26, 1 << 26);
            self.write64(offset::IRTA, TABLE | 1 << 11 | 7);
            self.command(1 << 26 | 1 << 24, 1 << 24);
            self.command(1 << 26 | 1 << 25, 1 << 25);
        }

        /// An interrupt entry cache invalidation and a wait, until it is complete.
        fn invalidate(&mut self) {
            self.memory.write_obj(0u32, GuestAddress(STATUS)).unwrap();
            for qword in [4u64 | 1 << 4 | 3 << 32, 0, 5 | 1 << 5 | 1 << 32, STATUS] {
                self.memory.write_obj(qword, GuestAddress(QUEUE + self.tail)).unwrap();
                self.tail += 8;
            }
            self.write64(offset::IQT, self.tail);
            patience::eventually("the wait", || {
                self.memory.read_obj::<u32>(GuestAddress(STATUS)).unwrap() == 1
            });
        }

        fn signal(&self, message: Message) -> Option<Message> {
            let signalled = self.router.signal(DEVICE, message);
            let delivered = self.kvm.delivered();
            assert_eq!(delivered.len(), usize::from(signalled));
            delivered.first().copied()
        }
    }

    /// To an x2APIC id, as KVM takes it with `KVM_X2APIC_API_USE_32BIT_IDS`.
    fn to(vector: u32, destination: u32) -> Message {
        let (low, high) = (u64::from(destination & 0xff), u64::from(destination & !0xff));
        Message { address: 0xfee0_0000 | low << 12 | high << 32, data: 0x4000 | vector }
    }

    #[test]
    fn a_route_delivers_what_the_unit_makes_of_the_message() {
        let mut machine = Machine::new();
        assert_eq!(machine.signal(PLAIN), Some(PLAIN), "nothing is remapped");
        machine.entry(0x41, 0x1234);
        machine.remap();
        assert_eq!(machine.signal(PLAIN), None, "blocked: the unit is to say why");
        let first = machine.signal(REMAPPABLE).unwrap();
        assert_eq!((first.address, first.data & 0xff), (to(0x41, 0x1234).address, 0x41));
        // The entry is cached until it is invalidated, as far as software knows.
        machine.entry(0x52, 7);
        machine.invalidate();
        let second = machine.signal(REMAPPABLE).unwrap();
        assert_eq!((second.address, second.data & 0xff), (to(0x52, 7).address, 0x52));
        assert_eq!(machine.kvm.attached.lock().unwrap().len(), 1, "the eventfd is the same");
        // Taken away where it is blocked, and with the router.
        machine.memory.write_obj(0u64, GuestAddress(TABLE + 3 * 16)).unwrap();
        machine.invalidate();
        assert_eq!(machine.signal(REMAPPABLE), None);
        assert!(machine.kvm.attached.lock().unwrap().is_empty());
    }

    #[test]
    fn turning_remapping_off_changes_routes_that_were_made_with_it_on() {
        let machine = Machine::new();
        machine.entry(0x41, 1);
        machine.remap();
        assert!(machine.signal(REMAPPABLE).is_some());
        machine.unit.write(offset::GCMD, &(1u32 << 26).to_le_bytes());
        patience::eventually("the route follows", || machine.signal(REMAPPABLE) == Some(REMAPPABLE));
    }

    #[test]
    fn an_eventfd_can_be_given_away_and_is_the_routes() {
        let machine = Machine::new();
        let eventfd = machine.router.eventfd(DEVICE, PLAIN).unwrap().unwrap();
        eventfd.write(1).unwrap();
        assert_eq!(machine.kvm.delivered(), [PLAIN]);
        drop(machine.router);
        assert!(machine.kvm.attached.lock().unwrap().is_empty());
    }

    #[test]
    fn more_messages_than_kvm_takes_go_round() {
        let machine = Machine::new();
        for number in 0..2 * GSIS.len() as u32 {
            let message =
                Message { address: 0xfee0_0000 | u64::from(number >> 8) << 12, data: number & 0xff };
            assert!(machine.router.signal(DEVICE, message), "{number}");
            assert_eq!(machine.kvm.delivered(), [message]);
        }
        assert!(machine.kvm.attached.lock().unwrap().len() <= GSIS.len());
        assert!(!machine.router.signal(DEVICE, Message { address: 0x1000, data: 0 }), "no interrupt");
    }

    #[test]
    fn what_kvm_refuses_goes_through_the_unit() {
        let machine = Machine::new();
        machine.kvm.refuses.store(true, Ordering::Relaxed);
        assert_eq!(machine.signal(PLAIN), None);
        machine.kvm.refuses.store(false, Ordering::Relaxed);
        assert_eq!(machine.signal(PLAIN), Some(PLAIN));
    }
}
