// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The 64-byte descriptor: its fields, and what they ask for. \[D 5.5, 8.1, 8.3\]

mod check;
mod layout;
#[cfg(test)]
pub(crate) mod tests;

pub(crate) use check::{Limits, Rejection, decode};
pub(crate) use layout::{CrcSetup, DELTA_ENTRY, DESCRIPTOR_SIZE, Descriptor, Operation, flag, opcode};
