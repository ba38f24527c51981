// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! QEMU, which gives level 1 a processor with SVM: the machine's own, or one from Debian's archive with its loader
//! and libraries unpacked beside it, so that it runs on any release and installs nothing.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::apt::Apt;
use crate::cache::Cache;
use crate::process;
use crate::sources::Mirror;
use crate::unpack::unpacked;
use crate::version;

/// The oldest QEMU that the lab trusts. Older ones have the SVM that is needed, but 7.2 was seen to crash level 1's
/// kernel, and 10.0 to hang or triple-fault the guest at any point, in one boot of ten and more on a busy machine.
const OLDEST: &str = "11.0";
/// The suite whose QEMU is fetched where the machine has none.
const SUITE: &str = "trixie-backports";

/// A QEMU that can be started.
pub struct Qemu {
    program: PathBuf,
    before: Vec<String>,
    after: Vec<String>,
}

/// What it takes while it is unpacked: packages of 36 MiB and a tree of 150 MiB.
const QEMU_BYTES: u64 = 200 << 20;

impl Qemu {
    /// The machine's own where it is new enough, else a private one.
    pub fn find(cache: &Cache, mirror: Option<&Mirror>) -> Result<Self> {
        let own = Self { program: "qemu-system-x86_64".into(), before: vec![], after: vec![] };
        match own.version() {
            Ok(version) if version::compare(&version, OLDEST).is_ge() => Ok(own),
            _ => Self::private(cache, mirror),
        }
    }

    fn private(cache: &Cache, mirror: Option<&Mirror>) -> Result<Self> {
        let apt = Apt::open(cache, mirror, SUITE)?;
        let name = format!("qemu/{}", apt.newest(SUITE, "qemu-system-x86")?.file_version());
        let tree =
            unpacked(cache, &name, QEMU_BYTES, |_| apt.download_with_dependencies("qemu-system-x86", SUITE))?;
        let path = |name: &str| tree.join(name).display().to_string();
        let libraries = path("usr/lib/x86_64-linux-gnu");
        let qemu = Self {
            program: format!("{libraries}/ld-linux-x86-64.so.2").into(),
            before: vec!["--library-path".into(), libraries, path("usr/bin/qemu-system-x86_64")],
            after: vec!["-L".into(), path("usr/share/qemu"), "-L".into(), path("usr/share/seabios")],
        };
        qemu.version()
            .context("the QEMU from Debian's archive does not run here: install qemu-system-x86")?;
        Ok(qemu)
    }

    /// A command that starts it; the caller adds the machine.
    pub fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.before).args(&self.after);
        command
    }

    /// Such as `10.0.13`.
    pub fn version(&self) -> Result<String> {
        let output = process::output(self.command().arg("--version"), "install qemu-system-x86")?;
        let text = String::from_utf8_lossy(&output.stdout);
        parse_version(&text).map(str::to_owned).context("QEMU printed no version")
    }
}

fn parse_version(text: &str) -> Option<&str> {
    text.strip_prefix("QEMU emulator version ")?.split([' ', '\n', '(']).next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_read() {
        assert_eq!(parse_version("QEMU emulator version 7.2.19 (Debian 1:7.2)\nCopyright\n"), Some("7.2.19"));
        assert_eq!(parse_version("QEMU emulator version 11.1.3\n"), Some("11.1.3"));
        assert_eq!(parse_version("something else"), None);
    }
}
