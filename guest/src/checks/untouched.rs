// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Memory that the CPU has never touched: the device's page requests make the kernel allocate it.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::{all_bytes, same, succeeded};
use crate::completion::RECORD_SIZE;
use crate::descriptor::{Descriptor, Opcode};
use crate::memory::{Mapping, PAGE};
use crate::pattern;
use crate::portal::wait_at;
use crate::process::Findings;
use crate::progress::Patience;
use crate::reference::crc32c;
use crate::runner::Lab;

const PAGES: usize = 24;

/// As destination.
pub fn destination(lab: &Lab, _: &mut Findings) -> Result<String> {
    let queue = lab.queue(0)?;
    let mut source = Mapping::touched(PAGES * PAGE)?;
    pattern::fill(source.bytes_mut(), lab.seed);
    let size = PAGES * PAGE - 200;
    for (n, name) in ["move", "fill", "copy with CRC", "dualcast"].into_iter().enumerate() {
        let target = Mapping::untouched(2 * PAGES * PAGE)?;
        ensure!(!target.page_state(0)?.present, "fresh memory is already present");
        let (s, t) = (source.at(3), target.at(100));
        let d = match n {
            0 => Descriptor::copy(s, t, size),
            1 => Descriptor::fill(0x0101_0101_0101_0101 * 0x5a, t, size),
            2 => Descriptor::copy_crc(s, t, size, 0),
            _ => Descriptor::dualcast(s, t, target.at(PAGES * PAGE + 100), size),
        };
        succeeded(&queue.run(d)?, name)?;
        if n == 1 {
            all_bytes(&target.bytes()[100..100 + size], 0x5a, name)?;
        } else {
            same(&target.bytes()[100..100 + size], &source.bytes()[3..3 + size], name)?;
        }
        if n == 3 {
            let second = PAGES * PAGE + 100;
            same(&target.bytes()[second..second + size], &source.bytes()[3..3 + size], "second destination")?;
        }
        all_bytes(&target.bytes()[..100], 0, "before the destination")?;
        all_bytes(&target.bytes()[100 + size..PAGES * PAGE], 0, "behind the destination")?;
    }
    Ok(format!("4 operations into {PAGES} pages that nobody had touched"))
}

/// As source: zeroes.
pub fn source(lab: &Lab, _: &mut Findings) -> Result<String> {
    let queue = lab.queue(0)?;
    let mut target = Mapping::touched(PAGES * PAGE)?;
    let size = PAGES * PAGE - 9;
    target.bytes_mut().fill(0xa5);
    let fresh = Mapping::untouched(PAGES * PAGE)?;
    ensure!(!fresh.page_state(0)?.present, "fresh memory is already present");
    succeeded(&queue.run(Descriptor::copy(fresh.at(7), target.at(1), size))?, "move")?;
    all_bytes(&target.bytes()[1..1 + size], 0, "data moved from untouched memory")?;
    all_bytes(&target.bytes()[1 + size..], 0xa5, "behind the destination")?;

    let fresh = Mapping::untouched(PAGES * PAGE)?;
    let c = queue.run(Descriptor::crc(fresh.at(7), size, 0))?;
    succeeded(&c, "CRC")?;
    ensure!(c.value as u32 == crc32c(&vec![0; size], 0), "CRC of untouched memory is {:#x}", c.value);

    // What was only read must still be private to write: the kernel had mapped its page of zeroes.
    let mut once_read = Mapping::untouched(4 * PAGE)?;
    succeeded(&queue.run(Descriptor::copy(once_read.address(), target.address(), 4 * PAGE))?, "first read")?;
    succeeded(&queue.run(Descriptor::fill(u64::MAX, once_read.at(PAGE), PAGE))?, "then write")?;
    all_bytes(&once_read.bytes()[..PAGE], 0, "page beside the written one")?;
    all_bytes(&once_read.bytes()[PAGE..2 * PAGE], 0xff, "page written after it was read")?;
    once_read.bytes_mut()[2 * PAGE..3 * PAGE].fill(1);
    succeeded(
        &queue.run(Descriptor::copy(once_read.at(2 * PAGE), target.address(), 2 * PAGE))?,
        "read after write",
    )?;
    all_bytes(&target.bytes()[..PAGE], 1, "page that the CPU wrote after the device had read it")?;
    all_bytes(&target.bytes()[PAGE..2 * PAGE], 0, "page that stayed untouched")?;
    let zeroes = Mapping::untouched(PAGE)?;
    all_bytes(zeroes.bytes(), 0, "fresh memory of another mapping")?;
    Ok(format!("{PAGES} untouched pages read as zeroes, and became private when written"))
}

/// As completion record: always faulted in by a page request, whatever the flags [D 8.1.3].
pub fn record(lab: &Lab, _: &mut Findings) -> Result<String> {
    let queue = lab.queue(0)?;
    for n in 0..4 {
        let page = Mapping::untouched(PAGE)?;
        let offset = (n * 37 % 128) * RECORD_SIZE;
        queue.submit(&Descriptor::new(Opcode::Noop).record(page.at(offset)));
        // The CPU must not be the first to touch the page.
        let mut patience = Patience::of_a_check();
        while !page.page_state(0)?.present {
            let what = "the device to fault the page of its completion record in";
            patience.sleep(Duration::from_micros(500), what)?;
        }
        succeeded(&wait_at(&page, offset)?, "no-op")?;
        all_bytes(&page.bytes()[..offset], 0, "before the record")?;
        all_bytes(&page.bytes()[offset + RECORD_SIZE..], 0, "behind the record")?;
    }
    Ok("4 completion records on pages that nobody had touched".into())
}

/// As descriptor list of a batch: 64 bytes of zeroes are a no-op without a record.
pub fn list(lab: &Lab, _: &mut Findings) -> Result<String> {
    let queue = lab.queue(0)?;
    let count = (queue.limits().max_batch as usize).min(2 * PAGE / 64);
    let list = Mapping::untouched(2 * PAGE)?;
    succeeded(&queue.run(Descriptor::batch(list.address(), count))?, "batch")?;
    ensure!(list.page_state(0)?.present, "the page of the list is not present after the device has read it");
    Ok(format!("a batch of {count} no-ops read from pages that nobody had touched"))
}
