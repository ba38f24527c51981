// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What an operation works with, and how it takes its range apart.

use crate::dma::{Dma, Fault, OnFault, Progress};

/// How much is moved at once.
pub(crate) const CHUNK: usize = 64 << 10;
pub(super) const PAGE: u64 = 0x1000;

/// An engine's buffers.
pub(crate) struct Scratch {
    pub(super) first: Vec<u8>,
    pub(super) second: Vec<u8>,
}

impl Scratch {
    pub fn new() -> Self {
        Self { first: vec![0; CHUNK], second: vec![0; CHUNK] }
    }
}

/// What an operation works with.
pub(crate) struct Task<'a, B> {
    pub dma: Dma<'a, B>,
    pub on_fault: OnFault,
    pub scratch: &'a mut Scratch,
}

/// The pieces of a transfer in ascending order: offset and length.
pub(super) fn pieces(size: u32) -> impl Iterator<Item = (u32, usize)> {
    (0..size).step_by(CHUNK).map(move |offset| (offset, CHUNK.min((size - offset) as usize)))
}

/// The address `offset` bytes behind `base`; addresses wrap, as the hardware's adders do.
pub(super) const fn at(base: u64, offset: u32) -> u64 {
    base.wrapping_add(offset as u64)
}

/// `offset` advanced by a part of a piece: never beyond the transfer size, which is 32 bits wide.
pub(super) const fn advance(offset: u32, done: usize) -> u32 {
    offset.saturating_add(done as u32)
}

/// The earlier of two ends of parallel accesses: the bytes that both reached, and the fault that stopped there.
pub(super) fn earlier(first: Progress, second: Progress) -> (usize, Option<Fault>) {
    if second.done < first.done {
        (second.done, second.fault)
    } else {
        (first.done, first.fault.or(second.fault))
    }
}
