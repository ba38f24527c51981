// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Why there is no accelerator.

use std::io;

/// Why an accelerator cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Its configuration space cannot be built: a fault of this crate.
    #[error(transparent)]
    Function(#[from] pci::BuildError),
    /// There are no threads for its engines.
    #[error("cannot start the threads of an accelerator: {0}")]
    Threads(io::Error),
}
