// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! No C start-up code and no libraries: what is not in the crates themselves must fail to link.

fn main() {
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("linux") {
        for argument in ["-nostartfiles", "-nostdlib", "-static"] {
            println!("cargo:rustc-link-arg={argument}");
        }
    }
}
