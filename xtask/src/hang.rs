// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Kernels that hang: the lab must tell of each, and blame no level that lives.

use std::fs;

use anyhow::Result;

use crate::kernel::Kernel;
use crate::lab::{Boot, Lab};
use crate::report::Report;

/// Machine code of each: its 64-bit entry point.
const KERNELS: [(&str, &[u8]); 2] = [
    // jmp to itself
    ("loops", &[0xeb, 0xfe]),
    // cli; hlt; and again
    ("halts", &[0xfa, 0xf4, 0xeb, 0xfc]),
];

/// Boots a kernel that computes for ever, and one that waits for ever. `kernel` lends its modules to the initramfs, which
/// neither looks at.
pub fn hang(lab: &Lab, kernel: &Kernel, report: &mut Report) -> Result<()> {
    for (name, code) in KERNELS {
        let directory = tempfile::tempdir()?;
        let image = directory.path().join("vmlinuz");
        fs::write(&image, bzimage(code))?;
        let run = format!("hang-{name}");
        let outcome = lab.attempt(&Boot {
            name: &run,
            kernel: &Kernel {
                release: format!("a kernel that {name}"),
                image,
                modules: kernel.modules.clone(),
                user_sva: false,
            },
            append: "",
            modules: &[],
            tree: None,
            script: "",
            programs: 0,
            arguments: &[],
            trace: None,
            cpus: 1,
            memory_mib: 256,
            disk: false,
        })?;
        let told = outcome.failure.unwrap_or_else(|| "it came to its end".to_owned());
        let right = told.contains("no progress") && told.contains("the guest or vsva hangs");
        report.check(&format!("{run}: the lab tells of it"), right, told);
        report.figure(&format!("{run}: whole run"), outcome.took.as_secs_f64(), "s");
    }
    Ok(())
}

/// The least that passes for a kernel: a setup header of protocol 2.15, and the code at its 64-bit entry point.
/// \[Linux Documentation/arch/x86/boot.rst\]
fn bzimage(code: &[u8]) -> Vec<u8> {
    /// One sector of setup code beside the boot sector, then the protected-mode part, whose 64-bit entry is at 0x200.
    const PROTECTED_MODE: usize = 1024;
    const SIZE: usize = 0x1000;
    let mut image = vec![0; PROTECTED_MODE + SIZE];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1f1, &[1]);
    put(0x1f4, &((SIZE / 16) as u32).to_le_bytes());
    put(0x1fe, &[0x55, 0xaa]);
    put(0x202, b"HdrS");
    put(0x206, &0x20f_u16.to_le_bytes());
    put(0x211, &[1]);
    put(0x214, &0x10_0000_u32.to_le_bytes());
    put(0x22c, &0x7fff_ffff_u32.to_le_bytes());
    put(0x236, &1_u16.to_le_bytes());
    put(0x238, &2047_u32.to_le_bytes());
    put(0x258, &0x10_0000_u64.to_le_bytes());
    put(0x260, &0x20_0000_u32.to_le_bytes());
    put(PROTECTED_MODE + 0x200, code);
    image
}
