// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Whether this machine's KVM can run a stock guest.

use std::fs::{self, OpenOptions};

use anyhow::{Result, bail};

/// Why the guest runs where it runs.
pub enum Kvm {
    /// The machine's own KVM serves.
    Usable,
    /// It does not, and why.
    Unusable(String),
}

/// Looks at the processor's flags and at `/dev/kvm`.
pub fn kvm() -> Result<Kvm> {
    if cfg!(not(all(target_arch = "x86_64", target_os = "linux"))) {
        bail!("the lab runs on amd64 Linux only");
    }
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    if !has_virtualization(&cpuinfo) {
        return Ok(Kvm::Unusable("the processor shows neither vmx nor svm".to_owned()));
    }
    Ok(match OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        Ok(_) => Kvm::Usable,
        Err(e) => Kvm::Unusable(format!("/dev/kvm: {e}")),
    })
}

/// A `/dev/kvm` without either flag is a paravirtual one, in which stock 64-bit kernels hang.
fn has_virtualization(cpuinfo: &str) -> bool {
    cpuinfo
        .lines()
        .filter_map(|line| line.strip_prefix("flags")?.split_once(':'))
        .any(|(_, flags)| flags.split_whitespace().any(|flag| flag == "vmx" || flag == "svm"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_flag_itself_counts() {
        assert!(has_virtualization("model name\t: x\nflags\t\t: fpu vmx sse\n"));
        assert!(has_virtualization("flags : svm\n"));
        assert!(!has_virtualization("flags\t\t: fpu svm_lock\nvmx flags\t: vnmi\n"));
    }
}
