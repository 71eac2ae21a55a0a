// SPDX-License-Identifier: MIT OR Apache-2.0
//! Hands the payload's layout to the linker.

fn main() {
    let here = std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR");
    println!("cargo:rerun-if-changed=guest.ld");
    println!("cargo:rustc-link-arg-bins=-T{here}/guest.ld");
    println!("cargo:rustc-link-arg-bins=--no-pie");
}
