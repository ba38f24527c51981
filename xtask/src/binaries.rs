// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The programs that run inside the levels, built static: an initramfs has no libraries.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

use crate::cache::workspace;
use crate::process;
use crate::say::Step;

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// The programs of this workspace.
pub struct Binaries {
    /// The VMM.
    pub vsva: PathBuf,
    /// The guest program.
    pub guest: PathBuf,
}

/// A cargo command in the workspace.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
    command.current_dir(workspace());
    command
}

impl Binaries {
    /// Builds them.
    pub fn build() -> Result<Self> {
        let step = Step::begin("building vsva and the guest program");
        // Naming the target keeps its flags away from build scripts and procedural macros, which are not static.
        let mut command = cargo();
        command
            .args(["build", "--release", "-p", "vmm", "-p", "guest", "--bins", "--target", TARGET])
            .env("CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS", "-C target-feature=+crt-static");
        process::run(&mut command, "install Rust")?;
        step.done("built");
        let target = std::env::var_os("CARGO_TARGET_DIR").map_or(workspace().join("target"), PathBuf::from);
        Self::in_directory(&target.join(TARGET).join("release"))
    }

    /// Those that stand in a directory.
    pub fn in_directory(directory: &Path) -> Result<Self> {
        let binaries = Self { vsva: directory.join("vsva"), guest: directory.join("guest") };
        for binary in [&binaries.vsva, &binaries.guest] {
            if !binary.exists() {
                bail!("there is no {}", binary.display());
            }
        }
        Ok(binaries)
    }
}
