// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What two stages cost: a nested hit beside a first-stage hit, a nested miss beside its 24 loads as a bare chain, with
//! tables that are warm and with tables far beyond the caches, with paging-structure caches and without.

mod setting;

#[path = "../tests/common/mod.rs"]
mod common;

use std::cell::LazyCell;
use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::Guest;
use criterion::{Criterion, criterion_group, criterion_main};
use setting::{
    BASE, BEYOND_CACHES, Nested, Order, PASID, WARM, first_stage, layered, nested_chain, nested_config,
    plain, probe,
};
use vtd_spec::registers::offset;
use vtd_spec::{DomainId, Pasid, SourceId};
use vtd_unit::{EndpointSink, PageRequest, UnitConfig};

fn hit(c: &mut Criterion) {
    let nested = Nested::new(&nested_config(), 512);
    // The same unit, so that nothing but the kind of translation differs.
    let (first, _) = first_stage(&nested_config(), 512);
    let mut group = c.benchmark_group("nested_hit");
    for (name, guest) in [("first_stage", &first), ("nested", &nested.guest)] {
        guest.endpoint.set_ats_enabled(false);
        group.bench_function(format!("{name}_one_page"), |b| {
            b.iter(|| probe(&guest.endpoint, black_box(BASE)));
        });
        let mut order = Order::new(512);
        group.bench_function(format!("{name}_512_random_pages"), |b| {
            b.iter(|| probe(&guest.endpoint, order.next()));
        });
        let mut data = [0; 4];
        group.bench_function(format!("{name}_dma_read_4_bytes"), |b| {
            b.iter(|| guest.endpoint.read(Guest::with_pasid(PASID), black_box(BASE), &mut data).unwrap());
        });
        guest.endpoint.set_ats_enabled(true);
        group.bench_function(format!("{name}_device_tlb_one_page"), |b| {
            b.iter(|| probe(&guest.endpoint, black_box(BASE)));
        });
    }
    group.finish();
}

fn threads(c: &mut Criterion) {
    // A single set: every page of the order misses, so that walks are what runs side by side.
    for (name, lines, config) in [
        ("nested_threads_hit", 1, nested_config()),
        ("nested_threads_miss", WARM, UnitConfig { iotlb_entries: 1, ..nested_config() }),
    ] {
        let nested = Nested::new(&config, WARM);
        let second = SourceId::new(0, 4, 0);
        nested.guest.add_function(second);
        let sink = Arc::clone(&nested.guest.sink) as Arc<dyn EndpointSink>;
        let endpoints = [nested.guest.endpoint.clone(), nested.guest.unit.endpoint(second, sink).unwrap()];
        let mut group = c.benchmark_group(name);
        for count in [1, 2] {
            group.bench_function(format!("{count}_on_{count}_endpoints"), |b| {
                b.iter_custom(|iterations| {
                    let rounds = iterations.div_ceil(WARM);
                    let elapsed = setting::together(&endpoints[..count], rounds, |endpoint| {
                        let mut order = Order::new(lines);
                        for _ in 0..WARM {
                            probe(endpoint, order.next());
                        }
                    });
                    elapsed.mul_f64(iterations as f64 / (rounds * WARM) as f64)
                });
            });
        }
        group.finish();
    }
}

fn miss(c: &mut Criterion) {
    let mut group = c.benchmark_group("nested_miss");
    let small = UnitConfig { iotlb_entries: 1, ..nested_config() };
    for (name, lines, config) in
        [("tables_warm", WARM, small), ("tables_beyond_caches", BEYOND_CACHES, nested_config())]
    {
        let bare = UnitConfig { structure_entries: 0, ..config.clone() };
        for (suffix, config) in [("", config), ("_without_structure_caches", bare)] {
            let nested = Nested::new(&config, lines);
            let (first, second) = (nested.first, nested.second);
            let guest = nested.guest;
            let mut order = Order::new(lines);
            let (before, mut probes) = (guest.unit.statistics().nested_walks, 0);
            group.bench_function(format!("{name}{suffix}"), |b| {
                b.iter(|| {
                    probes += 1;
                    probe(&guest.endpoint, order.next());
                });
            });
            let walks = guest.unit.statistics().nested_walks - before;
            assert!(walks >= probes * 99 / 100, "{walks} of {probes} missed");
            if !suffix.is_empty() {
                continue;
            }
            let load = layered(&guest.memory);
            // Each walk waits for what the last one found, which only the compiler cannot know is of no consequence.
            let (mut carry, nothing) = (0, black_box(0));
            group.bench_function(format!("{name}_24_loads_through_memory"), |b| {
                b.iter(|| carry = nested_chain(&load, first, second, order.next() | carry & nothing));
            });
            let plain = LazyCell::new(|| plain(&guest));
            group.bench_function(format!("{name}_24_loads_plain"), |b| {
                let plain = &*plain;
                let load = |address: u64| plain[(address / 8) as usize];
                b.iter(|| carry = nested_chain(load, first, second, order.next() | carry & nothing));
            });
            black_box(carry);
        }
    }
    group.finish();
}

/// What one device's hits cost while another one asks for pages, whose PASID has a domain-id of its own: beside the same
/// requests made of another unit, so that only what the unit shares differs.
fn page_requests(c: &mut Criterion) {
    const ASKING: Pasid = Pasid::truncated(0x43);
    let neighbour = SourceId::new(0, 4, 0);
    let units = [Nested::new(&nested_config(), WARM), Nested::new(&nested_config(), WARM)];
    for nested in &units {
        nested.bind_in(ASKING, DomainId(2));
        nested.guest.add_function(neighbour);
    }
    let sink = Arc::clone(&units[0].guest.sink) as Arc<dyn EndpointSink>;
    let endpoint = units[0].guest.unit.endpoint(neighbour, sink).unwrap();
    let mut group = c.benchmark_group("nested_hit_beside");
    for (name, asked) in [("page_requests_elsewhere", &units[1].guest), ("page_requests", &units[0].guest)] {
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| flood(asked, ASKING, &stop));
            let mut order = Order::new(WARM);
            group.bench_function(name, |b| b.iter(|| probe(&endpoint, order.next())));
            stop.store(true, Ordering::Relaxed);
        });
    }
    group.finish();
}

/// Page requests, one after the other, and the guest takes each out of the queue.
fn flood(guest: &Guest, pasid: Pasid, stop: &AtomicBool) {
    let requester = Guest::with_pasid(pasid);
    let request = PageRequest { requester, address: BASE, read: true, write: false, last: false, group: 0 };
    while !stop.load(Ordering::Relaxed) {
        guest.endpoint.page_request(request);
        guest.write64(offset::PQH, guest.read64(offset::PQT));
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .measurement_time(Duration::from_secs(1))
        .warm_up_time(Duration::from_millis(300))
        .sample_size(50);
    targets = hit, threads, miss, page_requests
}
criterion_main!(benches);
