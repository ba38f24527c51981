// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What to do: from the kernel's command line (`vsva.KEY=VALUE`) as PID 1, else from the program's arguments.

use anyhow::{Context, Result, bail};

/// What the program does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Bring the DSA up through sysfs and run every check.
    Demo,
    /// Write and read back a disk.
    Disk,
    /// Bring the DSA up and give a shell.
    Shell,
    /// Bring the DSA up with Debian's `accel-config` and run the operations' checks.
    AccelConfig,
    /// Bring the kernel's log to the console.
    Follow,
}

/// All options.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// What to do.
    pub mode: Mode,
    /// Seed of all pseudo-random contents.
    pub seed: u64,
    /// Largest size of the large transfers, in MiB: less is moved where the machine is slow.
    pub large_mib: usize,
    /// Run only checks whose name contains one of these (empty: all).
    pub only: Vec<String>,
    /// The disk of [`Mode::Disk`].
    pub disk: String,
    /// The terminal of [`Mode::Follow`].
    pub console: String,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            mode: Mode::Demo,
            seed: 1,
            large_mib: 64,
            only: Vec::new(),
            disk: "/dev/vda".into(),
            console: "/dev/ttyS0".into(),
        }
    }
}

impl Options {
    /// From the kernel's command line: words that do not start with `vsva.` belong to others.
    pub fn from_kernel(command_line: &str) -> Result<Options> {
        let mut options = Options::default();
        for word in words(command_line) {
            if let Some(setting) = word.strip_prefix("vsva.") {
                options.set(setting)?;
            }
        }
        Ok(options)
    }

    /// From the program's arguments: a mode, then `--key=value` (or `vsva.key=value`).
    pub fn from_arguments(arguments: impl Iterator<Item = String>) -> Result<Options> {
        let mut options = Options::default();
        let mut mode_seen = false;
        for argument in arguments {
            if let Some(setting) = argument.strip_prefix("--").or_else(|| argument.strip_prefix("vsva.")) {
                options.set(setting)?;
            } else if !mode_seen {
                options.mode = mode(&argument)?;
                mode_seen = true;
            } else {
                bail!("unexpected argument {argument:?} (options have the form --key=value)");
            }
        }
        if !mode_seen {
            bail!(
                "usage: guest demo|disk|shell|accel-config|follow [--seed=N] [--large-mib=N] [--only=NAME,…] [--disk=PATH] [--console=PATH]"
            );
        }
        Ok(options)
    }

    /// Whether a check of this name is to run.
    pub fn wants(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|part| name.contains(part.as_str()))
    }

    fn set(&mut self, setting: &str) -> Result<()> {
        let (key, value) = setting.split_once('=').unwrap_or((setting, ""));
        match key {
            "mode" => self.mode = mode(value)?,
            "seed" => self.seed = number(key, value)?,
            "large-mib" => self.large_mib = number(key, value)?.clamp(1, 1024) as usize,
            "only" => self.only = value.split(',').filter(|s| !s.is_empty()).map(str::to_string).collect(),
            "disk" => self.disk = value.to_string(),
            "console" => self.console = value.to_string(),
            _ => bail!("unknown option vsva.{key} (known: mode, seed, large-mib, only, disk, console)"),
        }
        Ok(())
    }
}

fn mode(name: &str) -> Result<Mode> {
    Ok(match name {
        "demo" => Mode::Demo,
        "disk" => Mode::Disk,
        "shell" => Mode::Shell,
        "accel-config" => Mode::AccelConfig,
        "follow" => Mode::Follow,
        _ => bail!("unknown mode {name:?} (known: demo, disk, shell, accel-config, follow)"),
    })
}

fn number(key: &str, value: &str) -> Result<u64> {
    let parsed = match value.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => value.parse(),
    };
    parsed.with_context(|| format!("vsva.{key}={value} is not a number"))
}

/// Words of a kernel command line: separated by white space, double quotes keep it (Linux lib/cmdline.c:next_arg).
pub fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut quoted = false;
    for c in line.chars() {
        match c {
            '"' => quoted = !quoted,
            c if c.is_whitespace() && !quoted => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
            }
            c => word.push(c),
        }
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_command_line_is_read_and_foreign_words_are_ignored() {
        let options = Options::from_kernel(
            "console=ttyS0 quiet vsva.mode=disk vsva.seed=0x10 vsva.only=a,b foo=\"x vsva.y=1\"\n",
        )
        .unwrap();
        assert_eq!(options.mode, Mode::Disk);
        assert_eq!(options.seed, 16);
        assert_eq!(options.only, ["a", "b"]);
        assert_eq!(Options::from_kernel("").unwrap(), Options::default());
    }

    #[test]
    fn wrong_options_are_named_in_the_error() {
        for (line, part) in [
            ("vsva.mode=fast", "unknown mode \"fast\""),
            ("vsva.seed=x", "vsva.seed=x is not a number"),
            ("vsva.colour=red", "unknown option vsva.colour"),
        ] {
            let error = format!("{:#}", Options::from_kernel(line).unwrap_err());
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn arguments_need_a_mode() {
        let parse = |a: &[&str]| Options::from_arguments(a.iter().map(|s| s.to_string()));
        assert_eq!(parse(&["accel-config", "--seed=7"]).unwrap().seed, 7);
        assert_eq!(parse(&["shell"]).unwrap().mode, Mode::Shell);
        assert!(parse(&[]).is_err());
        assert!(parse(&["demo", "disk"]).is_err());
    }

    #[test]
    fn a_part_of_a_name_chooses_a_check() {
        let only = Options::from_kernel("vsva.only=munmap,fork").unwrap();
        assert!(only.wants("munmap-in-flight") && only.wants("fork-copy-on-write"));
        assert!(!only.wants("operation-move"));
        assert!(Options::default().wants("operation-move"));
    }

    #[test]
    fn quotes_keep_white_space() {
        assert_eq!(words("a \"b c\"  d=\"e f\""), ["a", "b c", "d=e f"]);
    }
}
