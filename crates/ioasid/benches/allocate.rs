// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Allocate, bind, find, unbind and free one PASID while 0, 1,000 and 100,000 others are out: the cost is to be flat.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use ioasid::{Allocator, MAX_ID};

fn allocate(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("ioasid");
    for others in [0, 1000, 100_000] {
        let mut ids: Allocator<u64> = Allocator::new(1..=MAX_ID).unwrap();
        let set = ids.create_set(200_000).unwrap();
        for _ in 0..others {
            ids.allocate(set, 1..=MAX_ID, Some(0)).unwrap();
        }
        group.bench_function(BenchmarkId::from_parameter(others), |bencher| {
            bencher.iter(|| {
                let id = ids.allocate(set, 1..=MAX_ID, Some(1)).unwrap();
                ids.bind(Some(set), id).unwrap();
                black_box(ids.find(Some(set), id).unwrap());
                ids.unbind(Some(set), id).unwrap();
                ids.free(set, id).unwrap()
            });
        });
    }
    group.finish();
}

criterion_group!(benches, allocate);
criterion_main!(benches);
