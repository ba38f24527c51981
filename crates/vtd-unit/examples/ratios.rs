// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Compares what the benchmarks have measured with what is aimed at: one line for each target, as the ratio of two
//! measurements of one run. Run the benchmarks first (`cargo bench -p vtd-unit -p vsva`), then
//! `cargo run -p vtd-unit --example ratios`.
//!
//! Of each measurement the fastest sample counts, which other users of the machine have disturbed least. Ends with an
//! error where something has not been measured; a target that is missed is only said to be.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use serde_json::Value;

/// What a line compares, and the largest ratio that is aimed at; none where the line only tells.
struct Target {
    name: &'static str,
    measured: &'static str,
    floor: &'static str,
    at_most: Option<f64>,
}

const fn target(name: &'static str, measured: &'static str, floor: &'static str, at_most: f64) -> Target {
    Target { name, measured, floor, at_most: Some(at_most) }
}

const fn told(name: &'static str, measured: &'static str, floor: &'static str) -> Target {
    Target { name, measured, floor, at_most: None }
}

const TARGETS: &[Target] = &[
    target("hit : lock", "hit/one_page", "floor/rwlock_read", 2.0),
    target("hit, 512 random pages : lock", "hit/512_random_pages", "floor/rwlock_read", 2.0),
    told("DMA read of 4 bytes : lock", "hit/dma_read_4_bytes", "floor/rwlock_read"),
    target("hit, device-TLB : lock", "hit/device_tlb_one_page", "floor/rwlock_read", 2.0),
    told("2 threads on 2 locks : 1 on 1", "threads/2_on_2_locks", "threads/1_on_1_locks"),
    target("2 threads on 2 endpoints : 1 on 1", "threads/2_on_2_endpoints", "threads/1_on_1_endpoints", 1.1),
    target(
        "page invalidation, 1,000 cached : none",
        "invalidation/page_wait_1000_cached",
        "invalidation/page_wait_0_cached",
        1.3,
    ),
    target(
        "page invalidation, 100,000 cached : none",
        "invalidation/page_wait_100000_cached",
        "invalidation/page_wait_0_cached",
        1.3,
    ),
    target(
        "PASID invalidation, 100,000 cached : none",
        "invalidation/pasid_wait_100000_cached",
        "invalidation/pasid_wait_0_cached",
        1.3,
    ),
    target(
        "domain invalidation, 100,000 cached : none",
        "invalidation/domain_wait_100000_cached",
        "invalidation/domain_wait_0_cached",
        1.3,
    ),
    target(
        "miss, warm : 4 loads, memory layer",
        "miss/tables_warm",
        "miss/tables_warm_4_loads_through_memory",
        3.0,
    ),
    told(
        "miss, warm, no structure caches : the same",
        "miss/tables_warm_without_structure_caches",
        "miss/tables_warm_4_loads_through_memory",
    ),
    told(
        "miss, beyond caches : 4 loads, bare",
        "miss/tables_beyond_caches",
        "miss/tables_beyond_caches_4_loads_plain",
    ),
    target(
        "nested hit : first-stage hit",
        "nested_hit/nested_one_page",
        "nested_hit/first_stage_one_page",
        1.05,
    ),
    target(
        "nested hit, 512 random pages : first-stage",
        "nested_hit/nested_512_random_pages",
        "nested_hit/first_stage_512_random_pages",
        1.05,
    ),
    target(
        "nested DMA read of 4 bytes : first-stage",
        "nested_hit/nested_dma_read_4_bytes",
        "nested_hit/first_stage_dma_read_4_bytes",
        1.05,
    ),
    target(
        "nested hit, another's page requests : elsewhere",
        "nested_hit_beside/page_requests",
        "nested_hit_beside/page_requests_elsewhere",
        1.1,
    ),
    target(
        "nested miss, warm : 24 loads, memory layer",
        "nested_miss/tables_warm",
        "nested_miss/tables_warm_24_loads_through_memory",
        2.0,
    ),
    told(
        "nested miss, warm, no structure caches : same",
        "nested_miss/tables_warm_without_structure_caches",
        "nested_miss/tables_warm_24_loads_through_memory",
    ),
    target(
        "nested miss, beyond caches : 24 loads, bare",
        "nested_miss/tables_beyond_caches",
        "nested_miss/tables_beyond_caches_24_loads_plain",
        1.3,
    ),
    told(
        "nested miss, beyond, no structure caches : same",
        "nested_miss/tables_beyond_caches_without_structure_caches",
        "nested_miss/tables_beyond_caches_24_loads_plain",
    ),
    told(
        "24 loads, beyond caches, memory layer : bare",
        "nested_miss/tables_beyond_caches_24_loads_through_memory",
        "nested_miss/tables_beyond_caches_24_loads_plain",
    ),
    told(
        "PASID-cache global, 10,000 bound : 1",
        "pasid_cache/global_with_10000_bound",
        "pasid_cache/global_with_1_bound",
    ),
    target(
        "nested hit, 2 threads on 2 : 1 on 1",
        "nested_threads_hit/2_on_2_endpoints",
        "nested_threads_hit/1_on_1_endpoints",
        1.1,
    ),
    target(
        "nested miss, 2 threads on 2 : 1 on 1",
        "nested_threads_miss/2_on_2_endpoints",
        "nested_threads_miss/1_on_1_endpoints",
        1.1,
    ),
    target("bind beside 1,000 : beside 1", "joint/bind_beside_1000", "joint/bind_beside_1", 1.3),
    target("bind beside 100,000 : beside 1", "joint/bind_beside_100000", "joint/bind_beside_1", 1.3),
    target("unbind beside 1,000 : beside 1", "joint/unbind_beside_1000", "joint/unbind_beside_1", 1.3),
    target("unbind beside 100,000 : beside 1", "joint/unbind_beside_100000", "joint/unbind_beside_1", 1.3),
    target(
        "PASID-selective, 10,000 bound : 1",
        "pasid_cache/pasid_with_10000_bound",
        "pasid_cache/pasid_with_1_bound",
        1.3,
    ),
    told(
        "global, one of 10,000 changed : none changed",
        "pasid_cache/global_that_changes_one_of_10000",
        "pasid_cache/global_with_10000_bound",
    ),
    target(
        "assigned DMA, 2 threads on 2 : 1 on 1",
        "assigned_dma/read_4_bytes_2_on_2",
        "assigned_dma/read_4_bytes_1_on_1",
        1.1,
    ),
];

/// Bytes that a bound PASID may take beside its tables.
const BYTES_PER_PASID: f64 = 512.0;

/// Where criterion leaves its results.
fn results() -> PathBuf {
    let directory = |name| std::env::var_os(name).map(PathBuf::from);
    directory("CRITERION_HOME")
        .or_else(|| Some(directory("CARGO_TARGET_DIR")?.join("criterion")))
        .unwrap_or_else(|| PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/criterion")))
}

/// Nanoseconds of the fastest sample.
fn fastest(results: &Path, benchmark: &str) -> Option<f64> {
    let text = std::fs::read_to_string(results.join(benchmark).join("new/sample.json")).ok()?;
    let sample: Value = serde_json::from_str(&text).ok()?;
    let numbers = |name| sample[name].as_array().map(|list| list.iter().filter_map(Value::as_f64));
    numbers("times")?.zip(numbers("iters")?).map(|(time, iterations)| time / iterations).reduce(f64::min)
}

fn nanoseconds(value: f64) -> String {
    match value {
        value if value >= 1e6 => format!("{:.2} ms", value / 1e6),
        value if value >= 1e4 => format!("{:.1} us", value / 1e3),
        value => format!("{value:.1} ns"),
    }
}

fn verdict(ratio: f64, at_most: f64) -> &'static str {
    if ratio <= at_most { "reached" } else { "missed" }
}

fn main() -> ExitCode {
    let results = results();
    let mut missing = 0;
    println!("{:<47} {:>10} {:>10} {:>7} {:>8}", "", "measured", "beside", "ratio", "target");
    for Target { name, measured, floor, at_most } in TARGETS {
        match fastest(&results, measured).zip(fastest(&results, floor)) {
            Some((time, beside)) => {
                let ratio = time / beside;
                let (time, beside) = (nanoseconds(time), nanoseconds(beside));
                let (most, verdict) = match at_most {
                    Some(most) => (format!("{most:.2}"), verdict(ratio, *most)),
                    None => (String::new(), ""),
                };
                let line = format!("{name:<47} {time:>10} {beside:>10} {ratio:>7.2} {most:>8}  {verdict}");
                println!("{}", line.trim_end());
            }
            None => {
                missing += 1;
                println!("{name:<47} not measured: {measured} or {floor}");
            }
        }
    }
    let bytes = std::fs::read_to_string(results.join("joint/bytes_per_pasid.json")).ok();
    match bytes.and_then(|text| text.trim().parse::<f64>().ok()) {
        Some(bytes) => {
            let (name, verdict) = ("bytes for each PASID bound, of 100,000", verdict(bytes, BYTES_PER_PASID));
            println!("{name:<47} {bytes:>10.0} {:>10} {:>7} {BYTES_PER_PASID:>8.0}  {verdict}", "", "");
        }
        None => missing += 1,
    }
    if missing == 0 {
        return ExitCode::SUCCESS;
    }
    eprintln!("{missing} of the measurements are missing: run cargo bench -p vtd-unit -p vsva first");
    ExitCode::FAILURE
}
