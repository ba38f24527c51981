// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A software Intel Data Streaming Accelerator, version 1.0, that stock Linux's idxd driver drives.
//!
//! Sources are cited as `[D n]`: section n of the Intel Data Streaming Accelerator Architecture Specification,
//! order number 341204, revision 3.0, and as `file:function` of Linux, below drivers/dma/idxd.
#![forbid(unsafe_code)]

mod bus;
mod command;
mod core;
mod crc;
mod descriptor;
mod device;
mod dma;
mod engine;
mod error;
mod function;
mod group;
mod interrupt;
mod operation;
mod page_request;
mod portal;
mod registers;
mod software_error;
mod state;
mod status;
#[cfg(test)]
mod testing;
mod work_queue;

pub use error::Error;
pub use function::Dsa;
