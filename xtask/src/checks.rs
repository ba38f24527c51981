// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What needs no guest: formatting, lints, documentation, and the tests of the crates.

use std::fs;

use anyhow::{Context, Result};

use crate::binaries::cargo;
use crate::cache::workspace;
use crate::floors;
use crate::process;
use crate::say;

const RUST: &str = "install Rust with rustfmt and clippy (rustup component add rustfmt clippy)";

/// Formatting, the crates' floors, clippy and the documentation, all without a warning.
pub fn check() -> Result<()> {
    say::line("cargo fmt");
    process::run(cargo().args(["fmt", "--all", "--check"]), RUST)?;
    say::line("floors: which file uses which");
    floors::check()?;
    say::line("cargo clippy");
    process::run(cargo().args(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]), RUST)?;
    say::line("cargo doc");
    // The command has the library's name, and its place in the documentation: one after the other.
    document(&["--package", "vmm", "--bin", "vsva"])?;
    document(&["--workspace"])?;
    say::line("the driver half without the standard library");
    if process::output(&mut bare("build"), BARE_REMEDY).is_err() {
        // The target may be missing; a build that fails otherwise fails again below, and says why.
        let mut install = std::process::Command::new("rustup");
        process::run(install.args(["target", "add", BARE_TARGET]), BARE_REMEDY)?;
        process::run(&mut bare("build"), BARE_REMEDY)?;
    }
    process::run(bare("clippy").args(["--", "-D", "warnings"]), BARE_REMEDY)
}

/// A target without an operating system: there is no std for it.
const BARE_TARGET: &str = "x86_64-unknown-none";
const BARE_REMEDY: &str = "install the bare target (rustup target add x86_64-unknown-none)";

/// Builds documentation, private items included, without a warning.
fn document(what: &[&str]) -> Result<()> {
    let mut doc = cargo();
    doc.arg("doc").args(what).args(["--no-deps", "--document-private-items"]);
    process::run(doc.env("RUSTDOCFLAGS", "-D warnings"), RUST)
}

/// A cargo command on the kernel that is linked without std.
fn bare(command: &str) -> std::process::Command {
    let mut cargo = cargo();
    cargo.args([command, "--manifest-path", "bare/Cargo.toml", "--target-dir", "target/bare"]);
    cargo.args(["--target", BARE_TARGET]);
    cargo
}

/// The unit and in-process tests of every crate.
pub fn cargo_test() -> Result<()> {
    say::line("cargo test");
    process::run(cargo().args(["test", "--workspace"]), RUST)?;
    say::line("the example");
    process::run(cargo().args(["run", "--quiet", "--package", "vsva", "--example", "embed"]), RUST)
}

/// The fuzz targets, and how many inputs each gets: some seconds' worth.
pub const FUZZ_TARGETS: [(&str, u32); 6] = [
    ("unit", 20_000),
    ("joint", 4000),
    ("dsa", 5000),
    ("pci", 20_000),
    ("virtio", 3000),
    ("concurrent", 300),
];

/// What fuzzing takes.
pub const FUZZ_REMEDY: &str =
    "install cargo-fuzz (cargo install cargo-fuzz --locked) and a C++ compiler (g++)";

/// Installs cargo-fuzz where it is missing.
pub fn install_cargo_fuzz() -> Result<()> {
    let installed = process::output(cargo().args(["fuzz", "--version"]), FUZZ_REMEDY);
    if installed.is_ok_and(|output| output.status.success()) {
        return Ok(());
    }
    say::line("installing cargo-fuzz");
    process::run(cargo().args(["install", "cargo-fuzz", "--locked"]), FUZZ_REMEDY)
}

/// A bounded run of each fuzz target, with cargo-fuzz installed where it is missing.
pub fn fuzz() -> Result<()> {
    install_cargo_fuzz()?;
    for (target, runs) in FUZZ_TARGETS {
        say::line(&format!("fuzzing: {target}"));
        let mut command = cargo();
        // libFuzzer's instrumentation is a flag that only nightly compilers take without being told.
        command.env("RUSTC_BOOTSTRAP", "1").args(["fuzz", "run", target, "--sanitizer", "none"]);
        // What is found goes to the first directory, the second is only read.
        for kind in ["corpus", "seeds"] {
            let directory = workspace().join("fuzz").join(kind).join(target);
            fs::create_dir_all(&directory).with_context(|| directory.display().to_string())?;
            command.arg(directory);
        }
        command.args(["--", &format!("-runs={runs}"), "-max_len=4096", "-len_control=0"]);
        process::run(&mut command, FUZZ_REMEDY)?;
    }
    Ok(())
}
