// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How much of what a guest reaches the fuzz targets' inputs reach: of each file the lines, by the target that knows it best.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;
use serde_json::Value;

use crate::binaries::cargo;
use crate::cache::workspace;
use crate::checks::{FUZZ_REMEDY, FUZZ_TARGETS, install_cargo_fuzz};
use crate::process;
use crate::say;

/// What a guest, or its devices, talk to.
const GUEST_FACING: [&str; 5] = ["vtd-unit/src/", "vsva/src/", "dsa/src/", "pci/src/", "vmm/src/virtio/"];
/// Below that many percent of its lines a file is a gap.
const GAP: f64 = 80.0;
const TRIPLE: &str = "x86_64-unknown-linux-gnu";

/// Lines of a file, and how many of them were reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Lines {
    count: u64,
    covered: u64,
}

impl Lines {
    fn percent(self) -> f64 {
        100.0 * self.covered as f64 / self.count.max(1) as f64
    }
}

/// Runs every target over its seeds, and over what was found on this machine, and prints the table.
pub fn coverage() -> Result<()> {
    install_cargo_fuzz()?;
    let tool = llvm_cov()?;
    let mut files = BTreeMap::new();
    for (target, _) in FUZZ_TARGETS {
        say::line(&format!("coverage: {target}"));
        let mut command = cargo();
        command.env("RUSTC_BOOTSTRAP", "1").args(["fuzz", "coverage", target, "--sanitizer", "none"]);
        command.args(
            ["corpus", "seeds"]
                .map(|kind| workspace().join("fuzz").join(kind).join(target))
                .iter()
                .filter(|directory| directory.is_dir()),
        );
        process::output(&mut command, FUZZ_REMEDY)?;
        let binary = workspace().join(format!("target/{TRIPLE}/coverage/{TRIPLE}/release/{target}"));
        let profile = workspace().join(format!("fuzz/coverage/{target}/coverage.profdata"));
        let mut export = Command::new(&tool);
        export.args(["export", "--summary-only"]).arg(&binary).arg("--instr-profile").arg(&profile);
        let json = process::output(&mut export, "run cargo xtask coverage again")?.stdout;
        add(&mut files, &serde_json::from_slice(&json)?);
    }
    for line in table(&files) {
        println!("{line}");
    }
    Ok(())
}

/// Of the toolchain's own LLVM: another's cannot read what its compiler writes.
fn llvm_cov() -> Result<PathBuf> {
    let mut rustc = Command::new("rustc");
    let root = process::output(rustc.args(["--print", "sysroot"]), "install Rust")?.stdout;
    let root = PathBuf::from(String::from_utf8_lossy(&root).trim());
    let tool = root.join("lib/rustlib").join(TRIPLE).join("bin/llvm-cov");
    if !tool.exists() {
        let mut install = Command::new("rustup");
        process::run(install.args(["component", "add", "llvm-tools"]), "rustup component add llvm-tools")?;
    }
    Ok(tool)
}

/// Takes what llvm-cov says of each guest-facing file, where that is more than what is known.
fn add(files: &mut BTreeMap<String, Lines>, export: &Value) {
    for file in export["data"][0]["files"].as_array().into_iter().flatten() {
        let lines = &file["summary"]["lines"];
        let (Some(path), Some(count), Some(covered)) =
            (file["filename"].as_str(), lines["count"].as_u64(), lines["covered"].as_u64())
        else {
            continue;
        };
        let Some(name) = guest_facing(path) else { continue };
        let lines = Lines { count, covered };
        let known = files.entry(name).or_insert(lines);
        if lines.percent() > known.percent() {
            *known = lines;
        }
    }
}

/// `dsa/src/engine.rs` of the path of a file that is meant.
fn guest_facing(path: &str) -> Option<String> {
    let (_, within) = path.split_once("/crates/")?;
    GUEST_FACING.iter().any(|part| within.starts_with(part)).then(|| within.to_owned())
}

fn table(files: &BTreeMap<String, Lines>) -> Vec<String> {
    let width = files.keys().map(String::len).max().unwrap_or_default().max(4);
    let mut lines = vec![format!("{:width$}  lines  reached", "file")];
    for (name, file) in files {
        let gap = if file.percent() < GAP { "  gap" } else { "" };
        lines.push(format!("{name:width$}  {:5}  {:6.1} %{gap}", file.count, file.percent()));
    }
    let gaps = files.values().filter(|file| file.percent() < GAP).count();
    lines.push(format!("{} files, {gaps} below {GAP} %", files.len()));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn export(path: &str, count: u64, covered: u64) -> Value {
        let lines = serde_json::json!({ "count": count, "covered": covered });
        serde_json::json!({ "data": [{ "files": [{ "filename": path, "summary": { "lines": lines } }] }] })
    }

    #[test]
    fn the_target_that_knows_a_file_best_counts() {
        let mut files = BTreeMap::new();
        for covered in [30, 90, 40] {
            add(&mut files, &export("/w/crates/dsa/src/engine.rs", 100, covered));
        }
        add(&mut files, &export("/w/crates/vtd-unit/src/queue.rs", 10, 2));
        for other in ["/w/crates/vtd-unit/tests/x.rs", "/w/crates/vmm/src/vcpu.rs", "/cargo/registry/a.rs"] {
            add(&mut files, &export(other, 10, 10));
        }
        assert_eq!(
            table(&files),
            [
                "file                   lines  reached",
                "dsa/src/engine.rs        100    90.0 %",
                "vtd-unit/src/queue.rs     10    20.0 %  gap",
                "2 files, 1 below 80 %",
            ]
        );
    }
}
