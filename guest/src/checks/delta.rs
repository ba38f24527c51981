// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Delta records: created, and applied.

use anyhow::{Result, ensure};

use super::{all_bytes, has_status, same, succeeded};
use crate::completion::status;
use crate::descriptor::{CHECK_RESULT, Descriptor};
use crate::memory::{Mapping, PAGE};
use crate::pattern::{self, Random};
use crate::process::Findings;
use crate::reference::{DELTA_ENTRY, create_delta};
use crate::runner::Lab;

const SIZE: usize = 3 * PAGE + 8;
/// Room for every word of the range.
const ALL: u32 = (SIZE / 8 * DELTA_ENTRY) as u32;

struct Ranges {
    first: Mapping,
    second: Mapping,
    record: Mapping,
}

fn ranges(lab: &Lab) -> Result<Ranges> {
    let mut first = Mapping::touched(4 * PAGE)?;
    let mut second = Mapping::touched(4 * PAGE)?;
    pattern::fill(first.bytes_mut(), lab.seed);
    pattern::fill(second.bytes_mut(), lab.seed);
    Ok(Ranges { first, second, record: Mapping::touched(8 * PAGE)? })
}

/// Create: equal ranges, some differences, too many.
pub fn create(lab: &Lab, _: &mut Findings) -> Result<String> {
    let queue = lab.queue(0)?;
    let mut r = ranges(lab)?;
    let mut random = Random::new(lab.seed);
    let mut seen = Vec::new();
    for differences in [0usize, 1, 8, 9, 60] {
        pattern::fill(r.second.bytes_mut(), lab.seed);
        for _ in 0..differences {
            let at = random.below(SIZE as u64) as usize;
            r.second.bytes_mut()[at] ^= 0x11;
        }
        for limit in [80, ALL] {
            let expected = create_delta(&r.first.bytes()[..SIZE], &r.second.bytes()[..SIZE], limit as usize);
            r.record.bytes_mut().fill(0xa5);
            let (a, b, to) = (r.first.address(), r.second.address(), r.record.at(8));
            let c = queue.run(Descriptor::create_delta(a, b, SIZE, to, limit))?;
            let what = format!("{differences} differences, record of {limit} bytes");
            succeeded(&c, &what)?;
            ensure!(c.result == expected.result, "{what}: result {} expected: {c}", expected.result);
            let recorded = c.value as u32 as usize;
            ensure!(
                recorded == expected.record.len(),
                "{what}: {recorded} bytes instead of {}",
                expected.record.len()
            );
            if expected.result == 2 {
                ensure!(
                    c.completed == expected.bytes_completed,
                    "{what}: {} compared: {c}",
                    expected.bytes_completed
                );
            }
            same(&r.record.bytes()[8..8 + recorded], &expected.record, &what)?;
            all_bytes(&r.record.bytes()[..8], 0xa5, "before the record")?;
            all_bytes(&r.record.bytes()[8 + limit as usize..], 0xa5, "behind the record")?;
            if !seen.contains(&c.result) {
                seen.push(c.result);
            }
        }
    }
    ensure!(seen.len() == 3, "not all results were provoked: {seen:?}");
    // Expected mask: bit n allows result n. The last contents have result 1.
    let d = Descriptor::create_delta(r.first.address(), r.second.address(), SIZE, r.record.address(), ALL);
    succeeded(&queue.run(d.flags(CHECK_RESULT).u8_at(56, 0b010))?, "result 1 expected")?;
    has_status(
        &queue.run(d.flags(CHECK_RESULT).u8_at(56, 0b101))?,
        status::FALSE_PREDICATE,
        "result 1 not expected",
    )?;
    Ok("10 records: equal ranges, differences recorded, records too small, check-result".into())
}

/// Apply: what was created turns the first range into the second; wrong records are refused.
pub fn apply(lab: &Lab, _: &mut Findings) -> Result<String> {
    let queue = lab.queue(0)?;
    let mut r = ranges(lab)?;
    let mut random = Random::new(lab.seed ^ 0x5555);
    for _ in 0..40 {
        let at = random.below(SIZE as u64) as usize;
        r.second.bytes_mut()[at] = !r.second.bytes()[at];
    }
    let created = queue.run(Descriptor::create_delta(
        r.first.address(),
        r.second.address(),
        SIZE,
        r.record.address(),
        ALL,
    ))?;
    succeeded(&created, "create delta")?;
    let record_size = created.value as u32;
    let behind = r.first.bytes()[SIZE..].to_vec();
    let apply = Descriptor::apply_delta(r.record.address(), record_size, r.first.address(), SIZE);
    succeeded(&queue.run(apply)?, "apply delta")?;
    same(&r.first.bytes()[..SIZE], &r.second.bytes()[..SIZE], "range after applying the record")?;
    same(&r.first.bytes()[SIZE..], &behind, "bytes behind the range")?;

    let entry = |offset: u16| {
        let mut bytes = offset.to_le_bytes().to_vec();
        bytes.extend_from_slice(&[7; 8]);
        bytes
    };
    for (record, size, code, what) in [
        ([entry(4), entry(4)].concat(), SIZE, status::DELTA_NOT_INCREASING, "offsets that do not increase"),
        ([entry(4), entry(64)].concat(), 512, status::DELTA_OFFSET, "offset beyond the range"),
    ] {
        r.record.bytes_mut()[..record.len()].copy_from_slice(&record);
        let d = Descriptor::apply_delta(r.record.address(), record.len() as u32, r.first.address(), size);
        has_status(&queue.run(d)?, code, what)?;
    }
    Ok(format!("a record of {record_size} bytes applied; unsorted and out-of-range records refused"))
}
