// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What the benchmarks share: tables of one stage and of two that lie one entry to a cache line, orders to walk them in,
//! and the same walks as bare chains of dependent loads.

#![allow(dead_code, reason = "each benchmark uses its own part")]

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::hint::black_box;
use std::sync::Barrier;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress};
use vtd_spec::{AddressWidth, DomainId, Pasid, PasidEntry, PasidGranularTranslationType};
use vtd_unit::{Access, Endpoint, UnitConfig};

use crate::common::{Guest, Memory, entry};

/// The PASID that the benchmarks translate for.
pub const PASID: Pasid = Pasid::truncated(0x42);

/// Where mapped addresses begin.
pub const BASE: u64 = 0x7f00_0000_0000;

/// Leaf entries whose cache lines all together are far larger than any cache: 256 MiB.
pub const BEYOND_CACHES: u64 = 1 << 22;

/// Leaf entries that stay in the first-level cache.
pub const WARM: u64 = 64;

/// Second-stage read and write, accessed, dirty.
const SECOND: u64 = 0x303;

const POINTER: u64 = 0x000f_ffff_ffff_f000;

/// A guest with as much memory as tables for `lines` leaf entries need, with and without a second stage.
pub fn guest(config: &UnitConfig, lines: u64) -> Guest {
    let bytes = (64 << 20) + lines * 96;
    let memory = Memory::from_ranges(&[(GuestAddress(0), bytes as usize)]).unwrap();
    Guest::powered_up_in(config, memory).boot()
}

/// The page whose leaf entry is in cache line `line` of the tables.
pub fn address(line: u64) -> u64 {
    BASE + (line * 8 + line % 8) * 4096
}

/// Lines in an order that no prefetcher follows, each time far from the last.
pub struct Order {
    lines: u64,
    state: u64,
}

impl Order {
    /// `lines` is a power of two.
    pub fn new(lines: u64) -> Self {
        assert!(lines.is_power_of_two());
        Self { lines, state: 1 }
    }

    /// The next address.
    pub fn next(&mut self) -> u64 {
        let line = if self.lines <= 1024 {
            self.state = self.state.wrapping_add(37);
            self.state % self.lines
        } else {
            self.state = self.state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            self.state >> (64 - self.lines.trailing_zeros())
        };
        address(line)
    }
}

/// One read of four bytes as far as the memory's address.
pub fn probe(endpoint: &Endpoint<Memory>, address: u64) {
    endpoint.probe(Guest::with_pasid(PASID), address, 4, Access::Read).unwrap();
}

/// A guest whose `lines` pages are mapped by a first stage; and its table's address.
pub fn first_stage(config: &UnitConfig, lines: u64) -> (Guest, u64) {
    let guest = guest(config, lines);
    guest.bind(PASID);
    let page = guest.page();
    for line in 0..lines {
        guest.map(PASID, address(line), page, entry::USER | entry::A | entry::D);
    }
    let root = guest.walk_addresses(PASID, BASE)[0] & !0xfff;
    (guest, root)
}

/// Both stages with 4 levels and pages of 4 KiB.
pub struct Nested {
    pub guest: Guest,
    /// The first stage's table: a guest physical address.
    pub first: u64,
    /// The second stage's table.
    pub second: u64,
    next: Cell<u64>,
    tables: RefCell<HashMap<u64, u64>>,
}

/// What a nested unit is configured as.
pub fn nested_config() -> UnitConfig {
    UnitConfig { ssts: true, nest: true, ssads: true, ..UnitConfig::default() }
}

impl Nested {
    /// Where the guest's pages begin in its own view, and where those that hold no tables begin.
    const GUEST_TABLES: u64 = 0x40_0000_0000;
    const GUEST_PAGES: u64 = 0x80_0000_0000;

    /// A guest whose `lines` pages are mapped by a first stage in guest physical memory, every page of its own there.
    pub fn new(config: &UnitConfig, lines: u64) -> Self {
        let guest = guest(config, lines);
        let second = guest.page();
        let nested = Self {
            guest,
            first: Self::GUEST_TABLES,
            second,
            next: Cell::new(Self::GUEST_TABLES),
            tables: RefCell::default(),
        };
        nested.table();
        let page = nested.guest.page();
        for line in 0..lines {
            let guest_physical = Self::GUEST_PAGES + line * 4096;
            nested.map_second(guest_physical, page);
            nested.map_first(address(line), guest_physical);
        }
        nested.bind(PASID);
        nested
    }

    /// Binds the table to one more PASID.
    pub fn bind(&self, pasid: Pasid) {
        self.bind_in(pasid, DomainId(1));
    }

    /// As [`Self::bind`], in another domain.
    pub fn bind_in(&self, pasid: Pasid, domain: DomainId) {
        let entry: PasidEntry = Guest::first_stage(domain, self.first)
            .with_pgtt(PasidGranularTranslationType::Nested)
            .with_ssptptr(self.second)
            .with_aw(AddressWidth::Bits48.into_bits())
            .with_ssade(true);
        self.guest.write_pasid_entry(pasid, entry);
    }

    /// A fresh table of the guest's.
    fn table(&self) -> u64 {
        let guest_physical = self.next.get();
        self.next.set(guest_physical + 4096);
        let page = self.guest.page();
        self.map_second(guest_physical, page);
        self.tables.borrow_mut().insert(guest_physical, page);
        guest_physical
    }

    fn map_second(&self, guest_physical: u64, page: u64) {
        let mut table = self.second;
        for level in (2..=4).rev() {
            let at = table + index(guest_physical, level);
            let mut next = self.guest.load(at);
            if next == 0 {
                next = self.guest.page() | SECOND;
                self.guest.store(at, next);
            }
            table = next & POINTER;
        }
        self.guest.store(table + index(guest_physical, 1), page | SECOND);
    }

    fn map_first(&self, address: u64, guest_physical: u64) {
        let host = |table: u64| self.tables.borrow()[&table];
        let mut table = self.first;
        for level in (2..=4).rev() {
            let at = host(table) + index(address, level);
            let mut next = self.guest.load(at);
            if next == 0 {
                next = self.table() | entry::USER | entry::A;
                self.guest.store(at, next);
            }
            table = next & POINTER;
        }
        let flags = entry::USER | entry::A | entry::D;
        self.guest.store(host(table) + index(address, 1), guest_physical | flags);
    }
}

fn index(address: u64, level: u32) -> u64 {
    (address >> (12 + 9 * (level - 1)) & 0x1ff) * 8
}

/// The loads of a walk through one stage of 4 levels, each from where the last one says.
#[inline]
pub fn chain(load: impl Fn(u64) -> u64, root: u64, address: u64) -> u64 {
    let mut table = root;
    for level in (1..=4).rev() {
        table = load(table + index(address, level)) & POINTER;
    }
    table
}

/// The 24 loads of a nested walk, 4 levels in each stage.
#[inline]
pub fn nested_chain(load: impl Fn(u64) -> u64, first: u64, second: u64, address: u64) -> u64 {
    let mut table = first;
    for level in (1..=4).rev() {
        let host = chain(&load, second, table);
        table = load(host + index(address, level)) & POINTER;
    }
    chain(&load, second, table)
}

/// Loads through the memory layer that the unit uses.
pub fn layered(memory: &Memory) -> impl Fn(u64) -> u64 {
    move |address| memory.load(GuestAddress(address), Ordering::Acquire).unwrap()
}

/// The whole of a guest's memory as a plain array.
pub fn plain(guest: &Guest) -> Vec<u64> {
    use vm_memory::GuestMemoryBackend;
    let quads = (guest.memory.last_addr().0 + 1) / 8;
    let mut plain = vec![0u64; quads as usize];
    let mut piece = [0u8; 4096];
    for (number, quads) in plain.chunks_exact_mut(512).enumerate() {
        guest.memory.read_slice(&mut piece, GuestAddress(number as u64 * 4096)).unwrap();
        for (quad, bytes) in quads.iter_mut().zip(piece.chunks_exact(8)) {
            *quad = u64::from_le_bytes(bytes.try_into().unwrap());
        }
    }
    plain
}

/// What the slowest of `work.len()` threads takes, one for each piece of work, that start together. Each does its work
/// once before.
pub fn together<T: Sync>(work: &[T], iterations: u64, f: impl Fn(&T) + Sync) -> Duration {
    let barrier = Barrier::new(work.len());
    let run = |piece| {
        f(piece);
        barrier.wait();
        let started = Instant::now();
        for _ in 0..iterations {
            f(black_box(piece));
        }
        started.elapsed()
    };
    let run = &run;
    let slowest = std::thread::scope(|scope| {
        let threads: Vec<_> = work.iter().map(|piece| scope.spawn(move || run(piece))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).max()
    });
    slowest.unwrap_or_default()
}
