// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Descriptors that the device must refuse, with the status that says why [D 5.5, 5.8.1].

use anyhow::Result;

use super::{all_bytes, batch::Batch, has_status, succeeded};
use crate::completion::status;
use crate::descriptor::{Descriptor, FENCE, Opcode};
use crate::memory::{Mapping, PAGE};
use crate::process::Findings;
use crate::runner::Lab;

/// Wrong descriptors; nothing may be written for any of them, and the queue must work afterwards.
pub fn refused(lab: &Lab, _: &mut Findings) -> Result<String> {
    let queue = lab.queue(0)?;
    let source = Mapping::touched(4 * PAGE)?;
    let target = Mapping::touched(4 * PAGE)?;
    let (s, t) = (source.address(), target.address());
    let too_big = usize::try_from(queue.limits().max_transfer).unwrap_or(usize::MAX) + 1;
    let cases = [
        ("unknown operation", Descriptor::copy(s, t, 64).opcode(0x7f), status::OPCODE),
        ("fence outside a batch", Descriptor::copy(s, t, 64).flags(FENCE), status::FLAGS),
        ("reserved flag", Descriptor::copy(s, t, 64).flags(1 << 6), status::FLAGS),
        ("block on fault of a no-op", Descriptor::new(Opcode::Noop).flags(2), status::FLAGS),
        ("reserved field", Descriptor::copy(s, t, 64).u8_at(40, 1), status::RESERVED_FIELD),
        ("size 0", Descriptor::copy(s, t, 0), status::TRANSFER_SIZE),
        ("size above the queue's limit", Descriptor::fill(1, t, too_big), status::TRANSFER_SIZE),
        ("overlap in copy with CRC", Descriptor::copy_crc(t, t + 10, 64, 0), status::OVERLAP),
        ("overlap in dualcast", Descriptor::dualcast(s, t, t, 64), status::OVERLAP),
        (
            "dualcast to unlike offsets",
            Descriptor::dualcast(s, t, t + 4096 + 8, 64),
            status::DUALCAST_ALIGNMENT,
        ),
        ("misaligned delta", Descriptor::create_delta(s + 1, s + 4096, 64, t, 80), status::MISALIGNED),
        ("delta size", Descriptor::create_delta(s, s + 4096, 60, t, 80), status::MISALIGNED),
        ("misaligned list", Descriptor::batch(s + 32, 2), status::LIST_ALIGNMENT),
        ("batch of 0", Descriptor::batch(s, 0), status::DESCRIPTOR_COUNT),
    ];
    for (what, descriptor, code) in &cases {
        has_status(&queue.run(*descriptor)?, *code, what)?;
    }
    let mut nested = Batch::new(&[
        Descriptor::batch(s, 2),
        Descriptor::new(Opcode::Drain),
        Descriptor::new(Opcode::Noop),
    ])?;
    has_status(&nested.run(&queue)?, status::BATCH_FAILED, "batch with a batch and a drain inside")?;
    has_status(&nested.member(0)?, status::OPCODE, "batch in a batch")?;
    has_status(&nested.member(1)?, status::OPCODE, "drain in a batch")?;
    succeeded(&nested.member(2)?, "no-op beside them")?;
    all_bytes(target.bytes(), 0, "destination of refused descriptors")?;
    succeeded(&queue.run(Descriptor::new(Opcode::Noop))?, "no-op afterwards")?;
    Ok(format!("{} kinds of wrong descriptors refused with the right status", cases.len() + 2))
}
