// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a translation, a DMA and an invalidation cost, beside the floors they stand on: an uncontended lock, a hash
//! look-up, and a chain of dependent loads. Machines differ and are noisy, so compare within one run, as ratios;
//! `docs/performance.md` says which and what was measured, `cargo run -p vtd-unit --example ratios` works them out.

mod setting;

#[path = "../tests/common/mod.rs"]
mod common;

use std::cell::LazyCell;
use std::collections::HashMap;
use std::hint::black_box;
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use common::descriptors::{global_device_tlb, iotlb, iotlb_domain, pasid_iotlb, pasid_iotlb_pages};
use common::{Guest, SOURCE_ID, entry, pasid};
use criterion::{Criterion, criterion_group, criterion_main};
use setting::{BASE, BEYOND_CACHES, Order, PASID, WARM, address, chain, first_stage, layered, plain, probe};
use vtd_spec::descriptors::IotlbGranularity;
use vtd_spec::{AddressRange, Descriptor, DomainId, PasidGranularTranslationType, SourceId};
use vtd_unit::{Access, EndpointSink, UnitConfig};

fn floors(c: &mut Criterion) {
    let mut group = c.benchmark_group("floor");
    let lock = RwLock::new(1u64);
    group.bench_function("rwlock_read", |b| b.iter(|| *black_box(&lock).read().unwrap()));
    let map: HashMap<u32, u64> = (0..1000).map(|key| (key, u64::from(key))).collect();
    group.bench_function("hash_lookup", |b| b.iter(|| *black_box(&map).get(&black_box(0x42)).unwrap()));
    group.finish();
}

fn hit(c: &mut Criterion) {
    let (guest, _) = first_stage(&UnitConfig::default(), 512);
    let mut group = c.benchmark_group("hit");
    group.bench_function("one_page", |b| b.iter(|| probe(&guest.endpoint, black_box(BASE))));
    let mut order = Order::new(512);
    group.bench_function("512_random_pages", |b| b.iter(|| probe(&guest.endpoint, order.next())));
    let mut data = [0; 4];
    group.bench_function("dma_read_4_bytes", |b| {
        b.iter(|| guest.endpoint.read(Guest::with_pasid(PASID), black_box(BASE), &mut data).unwrap());
    });
    guest.endpoint.set_ats_enabled(true);
    group.bench_function("device_tlb_one_page", |b| b.iter(|| probe(&guest.endpoint, black_box(BASE))));
    group.finish();
}

/// A lock that shares no cache line with another.
#[repr(align(128))]
struct Apart(RwLock<u64>);

/// One thread on one endpoint, and two threads on two, each time for all translations of one thread; and the same with
/// nothing but a lock of one's own, which is what the machine makes of two threads.
fn threads(c: &mut Criterion) {
    let (guest, _) = first_stage(&UnitConfig::default(), 16);
    let second = SourceId::new(0, 4, 0);
    guest.add_function(second);
    let second = guest.unit.endpoint(second, Arc::clone(&guest.sink) as Arc<dyn EndpointSink>).unwrap();
    let endpoints = [guest.endpoint.clone(), second];
    let locks = [Apart(RwLock::new(1)), Apart(RwLock::new(1))];
    let mut group = c.benchmark_group("threads");
    for count in [1, 2] {
        group.bench_function(format!("{count}_on_{count}_locks"), |b| {
            b.iter_custom(|iterations| {
                setting::together(&locks[..count], iterations, |lock| {
                    black_box(*lock.0.read().unwrap());
                })
            });
        });
        group.bench_function(format!("{count}_on_{count}_endpoints"), |b| {
            b.iter_custom(|iterations| {
                setting::together(&endpoints[..count], iterations, |endpoint| probe(endpoint, BASE))
            });
        });
    }
    group.finish();
}

/// Misses, beside as many dependent loads as a cold walk does: 4 levels, with context and PASID entry cached.
fn miss(c: &mut Criterion) {
    let mut group = c.benchmark_group("miss");
    let default = UnitConfig::default();
    // With a single set, every other page misses.
    let small = UnitConfig { iotlb_entries: 1, ..UnitConfig::default() };
    for (name, lines, config) in
        [("tables_warm", WARM, small), ("tables_beyond_caches", BEYOND_CACHES, default)]
    {
        let bare = UnitConfig { structure_entries: 0, ..config.clone() };
        for (suffix, config) in [("", config), ("_without_structure_caches", bare)] {
            let (guest, root) = first_stage(&config, lines);
            let mut order = Order::new(lines);
            let (before, mut probes) = (guest.unit.statistics().first_stage_walks, 0);
            group.bench_function(format!("{name}{suffix}"), |b| {
                b.iter(|| {
                    probes += 1;
                    probe(&guest.endpoint, order.next());
                });
            });
            let walks = guest.unit.statistics().first_stage_walks - before;
            assert!(walks >= probes * 99 / 100, "{walks} of {probes} missed");
            if !suffix.is_empty() {
                continue;
            }
            let load = layered(&guest.memory);
            // Each walk waits for what the last one found, which only the compiler cannot know is of no consequence.
            let (mut carry, nothing) = (0, black_box(0));
            group.bench_function(format!("{name}_4_loads_through_memory"), |b| {
                b.iter(|| carry = chain(&load, root, order.next() | carry & nothing));
            });
            let plain = LazyCell::new(|| plain(&guest));
            group.bench_function(format!("{name}_4_loads_plain"), |b| {
                let plain = &*plain;
                let load = |address: u64| plain[(address / 8) as usize];
                b.iter(|| carry = chain(load, root, order.next() | carry & nothing));
            });
            black_box(carry);
        }
    }
    group.finish();
}

/// Translations that are cached in all while the others are invalidated.
const CACHED: [u64; 3] = [0, 1000, 100_000];

/// Of these, as many belong to the PASID and the domain that are invalidated.
const NAMED: u64 = 1000;

/// Others belong to PASIDs from here on, each with as many at the most.
const OTHERS: u32 = 0x1000;
const EACH: u64 = 8192;

fn invalidation(c: &mut Criterion) {
    let domain = DomainId(1);
    let range = AddressRange::new(address(0), 0);
    let page = pasid_iotlb_pages(domain, PASID, range);
    let kinds = [
        ("page", page, 1),
        ("pasid", pasid_iotlb(domain, PASID), NAMED),
        ("domain", iotlb_domain(domain), NAMED),
    ];
    let config = UnitConfig { iotlb_entries: 1 << 18, ..UnitConfig::default() };
    let (guest, _) = first_stage(&config, EACH);
    let mut group = c.benchmark_group("invalidation");
    for (name, descriptor, removed) in kinds {
        for cached in CACHED {
            fill(&guest, cached);
            check(&guest, &descriptor, cached, removed);
            // What goes is put back each time, which takes much longer and is not measured.
            let time = if removed > 1 { Duration::from_millis(10) } else { Duration::from_millis(500) };
            group.measurement_time(time).warm_up_time(time / 4);
            group.bench_function(format!("{name}_wait_{cached}_cached"), |b| {
                b.iter_custom(|iterations| {
                    let mut sum = Duration::ZERO;
                    for _ in 0..iterations {
                        for line in 0..removed.min(cached) {
                            probe(&guest.endpoint, address(line));
                        }
                        let started = Instant::now();
                        guest.submit(&descriptor);
                        sum += started.elapsed();
                    }
                    sum
                });
            });
        }
    }
    fill(&guest, NAMED);
    group.measurement_time(Duration::from_secs(1)).warm_up_time(Duration::from_millis(300));
    group.bench_function("page_batch_of_64_wait", |b| {
        let batch: Vec<Descriptor> = (0..64)
            .map(|line| pasid_iotlb_pages(domain, PASID, AddressRange::new(address(line), 0)))
            .collect();
        b.iter_custom(|iterations| {
            let mut sum = Duration::ZERO;
            for _ in 0..iterations {
                for line in 0..64 {
                    probe(&guest.endpoint, address(line));
                }
                let started = Instant::now();
                guest.submit_all(&batch);
                sum += started.elapsed();
            }
            sum
        });
    });
    group.finish();
}

/// A doorbell of 100 descriptors beside few and many address spaces that the function has cached: what a descriptor costs
/// must not be the product of its range and of their number.
fn doorbell(c: &mut Criterion) {
    const DOMAIN: DomainId = DomainId(3);
    let range = AddressRange::new(0x1000, 9);
    let pass_through = Guest::first_stage(DOMAIN, 0).with_pgtt(PasidGranularTranslationType::PassThrough);
    let mut group = c.benchmark_group("doorbell_of_100");
    group.sample_size(10);
    for spaces in [1, 20_000] {
        for (name, through, descriptor) in [
            ("global_device_tlb", false, global_device_tlb(SOURCE_ID, range)),
            ("page_of_pass_through", true, iotlb(IotlbGranularity::Page, DOMAIN, range)),
            ("domain_of_pass_through", true, iotlb(IotlbGranularity::Domain, DOMAIN, range)),
            ("global_of_pass_through", true, iotlb(IotlbGranularity::Global, DOMAIN, range)),
        ] {
            let guest = Guest::new();
            guest.endpoint.set_ats_enabled(true);
            guest.bind(PASID);
            guest.map(PASID, 0x1000, guest.page(), entry::USER);
            let batch = vec![descriptor; 100];
            group.bench_function(format!("{name}_beside_{spaces}_spaces"), |b| {
                b.iter_custom(|iterations| {
                    let mut sum = Duration::ZERO;
                    for _ in 0..iterations {
                        for number in (OTHERS..).take(spaces).map(pasid) {
                            match through {
                                true => guest.write_pasid_entry(number, pass_through),
                                false => guest.share(number, PASID),
                            }
                            guest.endpoint.read(Guest::with_pasid(number), 0x1000, &mut [0]).unwrap();
                        }
                        let started = Instant::now();
                        guest.submit_all(&batch);
                        sum += started.elapsed();
                    }
                    sum
                });
            });
        }
    }
    group.finish();
}

/// Caches `count` translations and no others: [`NAMED`] of [`PASID`], the rest of PASIDs of another domain.
fn fill(guest: &Guest, count: u64) {
    guest.submit(&iotlb(IotlbGranularity::Global, DomainId(0), AddressRange::new(0, 0)));
    each(count, |number, address| {
        if number >= OTHERS && address == setting::address(0) {
            guest.share(pasid(number), PASID);
        }
        guest.endpoint.probe(Guest::with_pasid(pasid(number)), address, 4, Access::Read).unwrap();
    });
}

fn each(count: u64, mut f: impl FnMut(u32, u64)) {
    (0..count.min(NAMED)).for_each(|line| f(PASID.get(), address(line)));
    for other in 0..count.saturating_sub(NAMED) {
        f(OTHERS + (other / EACH) as u32, address(other % EACH));
    }
}

/// That as many are cached as is said, and that an invalidation removes what it is said to remove.
fn check(guest: &Guest, descriptor: &Descriptor, cached: u64, removed: u64) {
    let walks = || guest.unit.statistics().first_stage_walks;
    let before = walks();
    each(cached, |number, address| {
        guest.endpoint.probe(Guest::with_pasid(pasid(number)), address, 4, Access::Read).unwrap();
    });
    let lost = walks() - before;
    assert!(lost * 20 <= cached, "{lost} of {cached} are not cached");
    guest.submit(descriptor);
    let before = walks();
    (0..removed.min(cached)).for_each(|line| probe(&guest.endpoint, address(line)));
    assert_eq!(walks() - before, removed.min(cached), "removed by {descriptor:?}");
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .measurement_time(Duration::from_secs(1))
        .warm_up_time(Duration::from_millis(300))
        .sample_size(50);
    targets = floors, hit, threads, miss, invalidation, doorbell
}
criterion_main!(benches);
