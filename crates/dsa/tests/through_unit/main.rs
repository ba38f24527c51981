// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The accelerator as a PCI function behind a remapping unit, driven as Linux's idxd drives it, on the memory of a
//! process that it knows by PASID. The test is the guest: driver, page tables and page fault handler.

mod function;
mod hostile;
mod machine;
mod memory;
