// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The programs that run inside the levels, built static: an initramfs has no libraries.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::cache::{need_space, workspace};
use crate::process::{self, Guarded, TICK};
use crate::say::Step;

/// What a build from nothing takes, in bytes.
const BUILD_BYTES: u64 = 400 << 20;
/// How often people are told how far a build is.
const EVERY: Duration = Duration::from_secs(10);

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

/// Where cargo builds.
pub fn target_directory() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or(workspace().join("target"), PathBuf::from)
}

/// A build under way.
pub struct Build {
    cargo: Guarded,
    log: PathBuf,
    step: Step,
}

impl Build {
    /// Begins it, beside whatever else has to be done meanwhile.
    pub fn begin() -> Result<Self> {
        let step = Step::begin("building vsva and the guest program");
        let directory = target_directory();
        if !directory.join(TARGET).exists() {
            need_space(&directory, BUILD_BYTES, "set CARGO_TARGET_DIR to another directory")?;
        }
        fs::create_dir_all(&directory).with_context(|| directory.display().to_string())?;
        let log = directory.join("build.log");
        let file = File::create(&log).with_context(|| log.display().to_string())?;
        // Naming the target keeps its flags away from build scripts and procedural macros, which are not static.
        let mut command = cargo();
        command
            .args(["build", "--release", "-p", "vmm", "-p", "guest", "--bins", "--target", TARGET])
            .env("CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS", "-C target-feature=+crt-static")
            .env("CARGO_TERM_PROGRESS_WHEN", "always")
            .env("CARGO_TERM_PROGRESS_WIDTH", "120")
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file);
        Ok(Self { cargo: Guarded::spawn(&mut command, "install Rust")?, log, step })
    }

    /// Waits for its end.
    pub fn finish(mut self) -> Result<Binaries> {
        let mut told = Instant::now();
        let status = loop {
            if let Some(status) = self.cargo.status()? {
                break status;
            }
            process::check_interrupt()?;
            std::thread::sleep(TICK);
            if told.elapsed() >= EVERY {
                told = Instant::now();
                if let Some((done, all)) = progress(&self.log()) {
                    eprintln!("    {done} of {all} crates built");
                }
            }
        };
        if !status.success() {
            eprintln!("{}", self.log());
            bail!("cargo cannot build vsva and the guest program: see above");
        }
        self.step.done("built");
        Binaries::in_directory(&target_directory().join(TARGET).join("release"))
    }

    fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }
}

/// Programs that are there, or will be.
pub enum Coming {
    /// The user's own.
    Given(Binaries),
    /// Those of a build.
    Built(Build),
}

impl Coming {
    /// Waits for them.
    pub fn finish(self) -> Result<Binaries> {
        match self {
            Self::Given(binaries) => Ok(binaries),
            Self::Built(build) => build.finish(),
        }
    }
}

/// The last `34/120` of cargo's progress bar.
fn progress(log: &str) -> Option<(u32, u32)> {
    let bar = log.rsplit("Building [").next().filter(|_| log.contains("Building ["))?;
    let (done, all) = bar.split_once("] ")?.1.split(':').next()?.split_once('/')?;
    Some((done.trim().parse().ok()?, all.trim().parse().ok()?))
}

impl Binaries {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cargos_progress_is_read() {
        let log = "   Compiling a v1\n\r    Building [===>     ] 3/120: a\r\x1b[K   Compiling b v1\n\
                   \r    Building [======>  ] 34/120: b, c(build)\r";
        assert_eq!(progress(log), Some((34, 120)));
        assert_eq!(progress("   Compiling a v1\n"), None);
    }
}
