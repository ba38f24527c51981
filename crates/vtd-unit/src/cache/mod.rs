// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What is kept of translations: it knows neither tables nor guest memory.

mod sequence;
mod tlb;

pub(crate) use sequence::Sequence;
pub(crate) use tlb::{PageSize, Space, Tlb, Translation};
