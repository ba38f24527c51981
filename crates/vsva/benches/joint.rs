// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What a whole system costs in one process: guest tables and queue, the joint, the soft host and its physical unit.
//! Binding and unbinding with few and with many PASIDs bound, PASID-cache invalidations, page requests there and back,
//! DMA on one and on two functions, and the memory that a bound PASID takes beside its tables. `docs/performance.md` says
//! what came out, `cargo run -p vtd-unit --example ratios` compares it with what is aimed at.

#[path = "../tests/rig/mod.rs"]
mod rig;

use std::alloc::{GlobalAlloc, Layout, System};
use std::hint::black_box;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use rig::common::{Guest, Messages, PAGE_REQUEST_QUEUE, SOURCE_ID, Sink, entry, pasid};
use rig::{Rig, pasid_cache, piotlb_all};
use vsva::SoftHostConfig;
use vtd_spec::descriptors::{PageGroupResponse, PasidCache, PasidCacheGranularity};
use vtd_spec::registers::offset;
use vtd_spec::{Descriptor, DomainId, Pasid, PasidEntry, ResponseCode, SourceId};
use vtd_unit::{EndpointSink, Notify, PageRequest, UnitConfig};

/// Counts the bytes that are allocated, so that what a bound PASID takes can be measured rather than estimated.
struct Counting;

static ALLOCATED: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator as it came; counting touches no memory of it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATED.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps `alloc`'s contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        ALLOCATED.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps `dealloc`'s contract.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The PASID that is measured, and where the others begin.
const PASID: Pasid = Pasid::truncated(0x42);
const OTHERS: u32 = 0x1000;

const ADDRESS: u64 = 0x7f12_3456_7000;

fn rig() -> Rig {
    let host = SoftHostConfig { pasid_quota: 200_000, ..SoftHostConfig::default() };
    Rig::with(&UnitConfig::default(), &host)
}

fn announce(rig: &Rig, pasid: Pasid, entry: PasidEntry) {
    rig.guest.write_pasid_entry(pasid, entry);
    rig.guest.submit_all(&[pasid_cache(pasid), piotlb_all(pasid)]);
}

/// Binds `count` PASIDs from `first` on, all to one table: what a table holds costs nothing here.
fn bind_others(rig: &Rig, entry: PasidEntry, first: u32, count: u32) {
    let before = rig.assigned.bound_count();
    for number in first..first + count {
        announce(rig, pasid(number), entry);
    }
    assert_eq!(rig.assigned.bound_count(), before + count as usize, "the host took them");
}

fn bind(c: &mut Criterion) {
    let mut group = c.benchmark_group("joint");
    let rig = rig();
    let entry = Guest::first_stage(DomainId(1), rig.guest.page());
    let mut bound = 0;
    let mut allocated = ALLOCATED.load(Ordering::Relaxed);
    for others in [1, 1000, 100_000] {
        if others == 100_000 {
            allocated = ALLOCATED.load(Ordering::Relaxed);
        }
        bind_others(&rig, entry, OTHERS + bound, others - bound);
        if others == 100_000 {
            let grown = ALLOCATED.load(Ordering::Relaxed) - allocated;
            report_memory(grown as f64 / f64::from(others - bound));
        }
        bound = others;
        group.bench_function(format!("bind_beside_{others}"), |b| {
            b.iter_custom(|iterations| {
                let mut sum = Duration::ZERO;
                for _ in 0..iterations {
                    let started = Instant::now();
                    announce(&rig, PASID, entry);
                    sum += started.elapsed();
                    assert!(rig.assigned.host_pasid(PASID).is_some());
                    announce(&rig, PASID, PasidEntry::default());
                }
                sum
            });
        });
        group.bench_function(format!("unbind_beside_{others}"), |b| {
            b.iter_custom(|iterations| {
                let mut sum = Duration::ZERO;
                for _ in 0..iterations {
                    announce(&rig, PASID, entry);
                    let started = Instant::now();
                    rig.unbind(PASID);
                    sum += started.elapsed();
                }
                sum
            });
        });
        assert_eq!(rig.assigned.bound_count(), others as usize);
    }
    group.finish();
}

/// Where criterion leaves its results.
fn results() -> PathBuf {
    let target = |name| std::env::var_os(name).map(PathBuf::from);
    target("CRITERION_HOME")
        .or_else(|| Some(target("CARGO_TARGET_DIR")?.join("criterion")))
        .unwrap_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/criterion")))
}

fn report_memory(bytes: f64) {
    println!("joint/memory            {bytes:.0} bytes for each PASID bound, beside the tables");
    let directory = results().join("joint");
    let written = std::fs::create_dir_all(&directory)
        .and_then(|()| std::fs::write(directory.join("bytes_per_pasid.json"), format!("{bytes:.1}")));
    if let Err(error) = written {
        eprintln!("cannot keep the bytes for each PASID in {}: {error}", directory.display());
    }
}

/// A PASID-cache invalidation that changes nothing, and one that finds one entry changed.
fn pasid_cache_invalidation(c: &mut Criterion) {
    let mut group = c.benchmark_group("pasid_cache");
    let rig = rig();
    let page = rig.guest.page();
    let entry = |table| Guest::first_stage(DomainId(1), table);
    announce(&rig, PASID, entry(page));
    let invalidate = |granularity| {
        rig.guest.submit(&Descriptor::PasidCache(PasidCache { granularity, did: DomainId(1), pasid: PASID }));
    };
    let tables = [rig.guest.page(), page];
    let mut bound = 1;
    for count in [1, 100, 10_000] {
        bind_others(&rig, entry(page), OTHERS + bound, count - bound);
        bound = count;
        for (name, granularity) in [
            ("pasid", PasidCacheGranularity::Pasid),
            ("domain", PasidCacheGranularity::Domain),
            ("global", PasidCacheGranularity::Global),
        ] {
            group.bench_function(format!("{name}_with_{count}_bound"), |b| {
                b.iter(|| invalidate(granularity));
            });
        }
        group.bench_function(format!("global_that_changes_one_of_{count}"), |b| {
            b.iter_custom(|iterations| {
                let mut sum = Duration::ZERO;
                for index in 0..iterations {
                    rig.guest.write_pasid_entry(PASID, entry(tables[index as usize % 2]));
                    let started = Instant::now();
                    invalidate(PasidCacheGranularity::Global);
                    sum += started.elapsed();
                }
                sum
            });
        });
    }
    group.finish();
}

/// Device, host's queue, joint, guest's queue, guest's response, joint, host's queue, device.
fn page_requests(c: &mut Criterion) {
    let mut group = c.benchmark_group("page_request");
    let rig = rig();
    let queue_bytes = 4096;
    rig.port.set_ats_enabled(true);
    announce(&rig, PASID, Guest::first_stage(DomainId(1), rig.guest.page()));
    let mut head = rig.guest.read64(offset::PQT);
    for groups in [1, 32] {
        group.bench_function(format!("round_trip_of_{groups}"), |b| {
            b.iter(|| {
                for index in 0..groups {
                    rig.port.page_request(PageRequest {
                        requester: Guest::with_pasid(PASID),
                        address: ADDRESS,
                        read: true,
                        write: false,
                        last: true,
                        group: index,
                    });
                }
                for _ in 0..groups {
                    while rig.guest.read64(offset::PQT) == head {
                        std::thread::yield_now();
                    }
                    let [low, high] = [0, 8].map(|at| rig.guest.load(PAGE_REQUEST_QUEUE + head + at));
                    head = (head + 32) % queue_bytes;
                    rig.guest.write64(offset::PQH, head);
                    rig.guest.submit(&Descriptor::PageGroupResponse(PageGroupResponse {
                        pasid: Pasid::new((low >> 32 & 0xf_ffff) as u32),
                        rid: SOURCE_ID,
                        rc: ResponseCode::Success,
                        prgi: (high >> 3 & 0x1ff) as u16,
                    }));
                }
                while rig.sink.responses.lock().unwrap().len() < usize::from(groups) {
                    std::thread::yield_now();
                }
                rig.sink.responses.lock().unwrap().clear();
            });
        });
    }
    group.finish();
}

/// DMA of assigned functions, whose translations are cached: one thread on one, two threads on two.
fn dma(c: &mut Criterion) {
    let rig = rig();
    rig.bind(PASID);
    rig.guest.map(PASID, ADDRESS, rig.guest.page(), entry::USER);
    let second = SourceId::new(0, 4, 0);
    rig.guest.add_function(second);
    let (sink, messages) = (Arc::new(Sink::default()), Arc::new(Messages::default()));
    let (device, port) =
        rig.host.function(sink as Arc<dyn EndpointSink>, messages as Arc<dyn Notify>).unwrap();
    let _assigned = rig.joint.assign(second, device).unwrap();
    let ports = [rig.port.clone(), port];
    let mut group = c.benchmark_group("assigned_dma");
    for count in [1, 2] {
        group.bench_function(format!("read_4_bytes_{count}_on_{count}"), |b| {
            b.iter_custom(|iterations| {
                let barrier = std::sync::Barrier::new(count);
                let run = |port: &vtd_unit::Endpoint<vsva::HostMemory>| {
                    let mut data = [0; 4];
                    let mut read = || {
                        port.read(Guest::with_pasid(PASID), black_box(ADDRESS), &mut data).unwrap();
                    };
                    read();
                    barrier.wait();
                    let started = Instant::now();
                    (0..iterations).for_each(|_| read());
                    started.elapsed()
                };
                let run = &run;
                let slowest = std::thread::scope(|scope| {
                    let threads: Vec<_> =
                        ports[..count].iter().map(|port| scope.spawn(move || run(port))).collect();
                    threads.into_iter().map(|thread| thread.join().unwrap()).max()
                });
                slowest.unwrap_or_default()
            });
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .measurement_time(Duration::from_secs(1))
        .warm_up_time(Duration::from_millis(300))
        .sample_size(50);
    targets = bind, pasid_cache_invalidation, page_requests, dma
}
criterion_main!(benches);
