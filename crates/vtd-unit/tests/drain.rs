// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Draining: threads do DMA while software takes translations away, waits, and uses the memory for something else. A
//! single access that lands after the wait fails the test. Untranslated and with ATS; reads, writes and AtomicOps.

mod common;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, mpsc};
use std::time::Duration;

use common::descriptors::{
    context_device, iotlb_domain, pasid_cache, pasid_cache_entry, pasid_device_tlb, pasid_iotlb,
    pasid_iotlb_pages, wait,
};
use common::{Guest, Memory, ROOT_TABLE, SOURCE_ID, WAIT_STATUS, entry};
use patience::{Raise, eventually};
use vm_memory::{Bytes, GuestAddress};
use vtd_spec::descriptors::PasidCacheGranularity;
use vtd_spec::registers::offset;
use vtd_spec::{AddressRange, Descriptor, DomainId, Pasid, SourceId};
use vtd_unit::{Access, DmaError, Endpoint, Requester};

const PASID: Pasid = Pasid::truncated(0x42);
const DOMAIN: DomainId = DomainId(1);
const ADDRESS: u64 = 0x7f12_3456_7000;
/// What the page is used for once it is no longer the device's. No device may read it, or write over it.
const SECRET: u64 = 0x5ec2_e75e_c2e7_5ec2;
/// What devices write, and what is in the page while it is theirs: anything but the secret.
const DATA: u64 = 0x1111_1111_1111_1111;
const ROUNDS: usize = 60;
/// One in so many accesses is slow.
const SLOW: u64 = 5;
/// Where each kind of worker works in the page.
const WORDS: [u64; 3] = [0, 0x800, 0xff8];
const FUNCTIONS: [SourceId; 2] = [SOURCE_ID, SourceId::new(0, 0x13, 7)];

/// A thread that does DMA as fast as it can.
struct Worker {
    endpoint: Endpoint<Memory>,
    requester: Requester,
    access: Access,
    word: u64,
    attempts: AtomicU64,
    successes: AtomicU64,
}

impl Worker {
    fn run(&self, stop: &AtomicBool) {
        while !stop.load(Ordering::Relaxed) {
            let address = ADDRESS + self.word;
            let attempt = self.attempts.load(Ordering::Relaxed);
            let result = match self.access {
                _ if attempt.is_multiple_of(SLOW) => self.slowly(address),
                Access::Read | Access::ZeroLengthRead => {
                    let mut data = [0; 8];
                    self.endpoint.read(self.requester, address, &mut data).map(|()| {
                        assert_ne!(u64::from_ne_bytes(data), SECRET, "a read after the wait");
                    })
                }
                Access::Write => self.endpoint.write(self.requester, address, &DATA.to_ne_bytes()),
                Access::Atomic => {
                    let found = self.endpoint.compare_and_swap(self.requester, address, DATA, DATA + 1);
                    found.and_then(|found| {
                        assert_ne!(found, SECRET, "an AtomicOp after the wait");
                        self.endpoint.compare_and_swap(self.requester, address, DATA + 1, DATA).map(|_| ())
                    })
                }
            };
            if result.is_ok() {
                self.successes.fetch_add(1, Ordering::Relaxed);
            }
            // Software gets its turn on a machine with few processors.
            if self.attempts.fetch_add(1, Ordering::Release).is_multiple_of(16) {
                std::thread::yield_now();
            }
        }
    }
}

impl Worker {
    /// An access that takes its time once it has been translated. Were it not drained, it would land after the wait.
    fn slowly(&self, address: u64) -> Result<(), DmaError> {
        self.endpoint.access(self.requester, address, 8, self.access, &mut |_, slice| {
            std::thread::sleep(Duration::from_micros(100));
            if self.access != Access::Write {
                assert_ne!(slice.load::<u64>(0, Ordering::Acquire).unwrap(), SECRET, "a read after the wait");
            }
            if self.access != Access::Read {
                slice.store(DATA, 0, Ordering::Release).unwrap();
            }
        })
    }
}

fn await_progress(counter: &AtomicU64, steps: u64) {
    let from = counter.load(Ordering::Acquire);
    eventually("a worker that stands still", || counter.load(Ordering::Acquire) >= from + steps);
}

/// How software takes the page away, and how it gives it back.
struct Removal {
    name: &'static str,
    remove: fn(&Guest),
    restore: fn(&Guest),
    /// The page tables are reused as well: not even an accessed bit may be set in them.
    tables_too: bool,
}

/// As Linux after a change of a process's tables: the IOTLB first, then the device-TLBs, then a wait.
fn flush(guest: &Guest, mut descriptors: Vec<Descriptor>) {
    descriptors.extend(FUNCTIONS.map(|sid| pasid_device_tlb(sid, PASID, AddressRange::ALL)));
    guest.submit_all(&descriptors);
}

fn pasid_entry(guest: &Guest) -> u64 {
    guest.pasid_entry_address(PASID)
}

fn remove_root(guest: &Guest) {
    guest.write64(offset::RTADDR, guest.page() | 0x400);
    guest.command(1 << 30);
}

fn restore_root(guest: &Guest) {
    guest.write64(offset::RTADDR, ROOT_TABLE | 0x400);
    guest.command(1 << 30);
}

const REMOVALS: [Removal; 7] = [
    Removal {
        name: "the page is unmapped",
        remove: |guest| {
            let leaf = guest.walk_addresses(PASID, ADDRESS)[3];
            guest.store(leaf, guest.load(leaf) & !entry::P);
            let mut descriptors = vec![pasid_iotlb_pages(DOMAIN, PASID, AddressRange::new(ADDRESS, 0))];
            let range = AddressRange::new(ADDRESS, 0);
            descriptors.extend(FUNCTIONS.map(|sid| pasid_device_tlb(sid, PASID, range)));
            guest.submit_all(&descriptors);
        },
        restore: |guest| {
            let leaf = guest.walk_addresses(PASID, ADDRESS)[3];
            guest.store(leaf, guest.load(leaf) | entry::P);
        },
        tables_too: false,
    },
    Removal {
        name: "the PASID entry is removed",
        remove: |guest| {
            guest.store(pasid_entry(guest), guest.load(pasid_entry(guest)) & !1 | 2);
            flush(guest, vec![pasid_cache_entry(DOMAIN, PASID), pasid_iotlb(DOMAIN, PASID)]);
        },
        restore: |guest| {
            guest.store(pasid_entry(guest), guest.load(pasid_entry(guest)) & !2 | 1);
            flush(guest, vec![pasid_cache_entry(DOMAIN, PASID), pasid_iotlb(DOMAIN, PASID)]);
        },
        tables_too: true,
    },
    Removal {
        name: "the PASID is bound to an empty table",
        remove: |guest| {
            let at = pasid_entry(guest) + 16;
            let table = guest.load(at);
            guest.store(at, guest.page());
            guest.store(WAIT_STATUS + 0x800, table);
            flush(
                guest,
                vec![
                    pasid_cache(PasidCacheGranularity::Domain, DOMAIN, Pasid::ZERO),
                    pasid_iotlb(DOMAIN, PASID),
                ],
            );
        },
        restore: |guest| {
            guest.store(pasid_entry(guest) + 16, guest.load(WAIT_STATUS + 0x800));
            flush(
                guest,
                vec![
                    pasid_cache(PasidCacheGranularity::Global, DOMAIN, Pasid::ZERO),
                    pasid_iotlb(DOMAIN, PASID),
                ],
            );
        },
        tables_too: true,
    },
    Removal {
        name: "the context entries are removed",
        remove: |guest| {
            for sid in FUNCTIONS {
                guest.write_context(sid, Guest::context().with_present(false).with_fpd(true));
            }
            let mut descriptors: Vec<_> = FUNCTIONS.map(context_device).into();
            descriptors.push(pasid_cache(PasidCacheGranularity::Domain, DOMAIN, Pasid::ZERO));
            descriptors.push(iotlb_domain(DOMAIN));
            flush(guest, descriptors);
        },
        restore: |guest| {
            for sid in FUNCTIONS {
                guest.write_context(sid, Guest::context());
                guest.submit(&context_device(sid));
            }
        },
        tables_too: true,
    },
    Removal {
        name: "translation is turned off",
        // ADDRESS itself is no memory, so that what is no longer translated goes nowhere.
        remove: |guest| guest.command_off(1 << 31),
        restore: |guest| guest.command(1 << 31),
        tables_too: true,
    },
    Removal {
        name: "the root table is replaced",
        remove: remove_root,
        restore: restore_root,
        tables_too: true,
    },
    Removal {
        name: "the unit is reset",
        remove: |guest| guest.unit.reset(),
        restore: |guest| {
            guest.restart_queue();
            restore_root(guest);
            guest.command(1 << 31);
        },
        tables_too: true,
    },
];

fn workers(endpoints: &[Endpoint<Memory>]) -> Vec<Worker> {
    [Access::Write, Access::Read, Access::Atomic]
        .into_iter()
        .zip(WORDS)
        .enumerate()
        .map(|(index, (access, word))| Worker {
            endpoint: endpoints[index % endpoints.len()].clone(),
            requester: Guest::with_pasid(PASID),
            access,
            word,
            attempts: AtomicU64::new(0),
            successes: AtomicU64::new(0),
        })
        .collect()
}

fn run(removal: &Removal, ats: bool) {
    let guest = Guest::new();
    guest.write32(offset::FECTL, 1 << 31);
    let (second, _) = guest.endpoint_at(FUNCTIONS[1]);
    let endpoints = [guest.endpoint.clone(), second];
    endpoints.iter().for_each(|endpoint| endpoint.set_ats_enabled(ats));
    guest.bind(PASID);
    let page = guest.page();
    guest.map(PASID, ADDRESS, page, entry::USER);
    let tables: Vec<u64> = guest.walk_addresses(PASID, ADDRESS).iter().map(|entry| entry & !0xfff).collect();
    let workers = workers(&endpoints);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for worker in &workers {
            scope.spawn(|| worker.run(&stop));
        }
        // Whatever fails, the workers end.
        let _stop = Raise(&stop);
        for _ in 0..ROUNDS {
            // The page is the devices', and all of them have it cached.
            workers.iter().for_each(|worker| await_progress(&worker.successes, 2));
            (removal.remove)(&guest);
            // From here on it is not.
            let owned: Vec<u64> =
                if removal.tables_too { tables.iter().copied().chain([page]).collect() } else { vec![page] };
            let before: Vec<Vec<u64>> = owned.iter().map(|page| words(&guest, *page)).collect();
            for page in &owned {
                for at in (0..4096).step_by(8) {
                    guest.store(page + at, SECRET);
                }
            }
            workers.iter().for_each(|worker| await_progress(&worker.attempts, 3));
            for page in &owned {
                let found = words(&guest, *page);
                assert!(
                    found.iter().all(|word| *word == SECRET),
                    "{} (ats: {ats}): an access landed",
                    removal.name
                );
            }
            for (page, words) in owned.iter().zip(before) {
                for (index, word) in words.into_iter().enumerate() {
                    guest.store(page + 8 * index as u64, word);
                }
            }
            (removal.restore)(&guest);
        }
    });
    assert!(workers.iter().all(|worker| worker.successes.load(Ordering::Relaxed) >= 2 * ROUNDS as u64));
}

fn words(guest: &Guest, page: u64) -> Vec<u64> {
    (0..4096).step_by(8).map(|at| guest.load(page + at)).collect()
}

/// One test, so that its threads have the processors for themselves.
#[test]
fn no_access_lands_after_the_wait() {
    for removal in &REMOVALS {
        run(removal, false);
        run(removal, true);
    }
}

/// An access that is held in the middle: the wait behind the invalidation does not complete before it ends.
fn wait_is_held_by(access: impl FnOnce(&Guest, &mut dyn FnMut()) + Send, descriptor: Descriptor) {
    let guest = Guest::new();
    guest.bind(PASID);
    guest.map(PASID, ADDRESS, guest.page(), entry::USER);
    let status = WAIT_STATUS + 0x40;
    let (entered, inside) = mpsc::channel();
    let (leave, left) = mpsc::channel::<()>();
    let left = Mutex::new(left);
    std::thread::scope(|scope| {
        let guest = &guest;
        // Gone with this closure, however it ends: a failure lets the access go.
        let leave = leave;
        scope.spawn(move || {
            access(guest, &mut || {
                entered.send(()).unwrap();
                let _ = left.lock().unwrap().recv();
            });
        });
        inside.recv().unwrap();
        guest.queue(&descriptor);
        guest.queue(&wait(status, 2));
        scope.spawn(|| guest.ring());
        // However long it takes: not while the access is in flight.
        for _ in 0..20 {
            std::thread::sleep(Duration::from_millis(5));
            assert_eq!(guest.memory.read_obj::<u32>(GuestAddress(status)).unwrap(), 0, "{descriptor:?}");
        }
        drop(leave);
        guest.await_status(status);
    });
}

#[test]
fn a_wait_does_not_complete_while_an_access_is_in_flight() {
    for descriptor in [
        pasid_iotlb_pages(DOMAIN, PASID, AddressRange::new(ADDRESS, 0)),
        pasid_iotlb(DOMAIN, PASID),
        iotlb_domain(DOMAIN),
        pasid_cache_entry(DOMAIN, PASID),
        context_device(SOURCE_ID),
        pasid_device_tlb(SOURCE_ID, PASID, AddressRange::ALL),
    ] {
        wait_is_held_by(
            |guest, hold| {
                let requester = Guest::with_pasid(PASID);
                guest.endpoint.access(requester, ADDRESS, 8, Access::Write, &mut |_, _| hold()).unwrap();
            },
            descriptor,
        );
    }
}

#[test]
fn a_wait_does_not_complete_while_memory_is_pinned() {
    wait_is_held_by(
        |guest, hold| {
            let pinned = guest.endpoint.pin(Guest::with_pasid(PASID), ADDRESS).unwrap();
            hold();
            pinned.write_obj(1u8, GuestAddress(ADDRESS)).unwrap();
        },
        pasid_iotlb_pages(DOMAIN, PASID, AddressRange::new(ADDRESS, 0)),
    );
}

#[test]
fn translation_is_not_reported_off_while_an_access_is_in_flight() {
    let guest = Guest::new();
    guest.bind(PASID);
    guest.map(PASID, ADDRESS, guest.page(), entry::USER);
    let (entered, inside) = mpsc::channel();
    let (leave, left) = mpsc::channel::<()>();
    std::thread::scope(|scope| {
        let guest = &guest;
        let leave = leave;
        scope.spawn(move || {
            let requester = Guest::with_pasid(PASID);
            let hold = &mut |_, _: vm_memory::VolatileSlice<'_, _>| {
                entered.send(()).unwrap();
                let _ = left.recv();
            };
            guest.endpoint.access(requester, ADDRESS, 8, Access::Write, hold).unwrap();
        });
        inside.recv().unwrap();
        let status = guest.read32(offset::GSTS) & 0x96ff_ffff;
        scope.spawn(move || guest.write32(offset::GCMD, status & !(1 << 31)));
        for _ in 0..20 {
            std::thread::sleep(Duration::from_millis(5));
            assert_ne!(guest.read32(offset::GSTS) >> 31, 0);
        }
        drop(leave);
        eventually("translation's end", || guest.read32(offset::GSTS) >> 31 == 0);
    });
    assert_eq!(
        guest.endpoint.write(Guest::with_pasid(PASID), ADDRESS, &[1]),
        Err(DmaError::Refused { address: ADDRESS })
    );
}
