// SPDX-License-Identifier: MIT OR Apache-2.0
//! Links the watched `el2` as the released one is linked.

fn main() {
    println!("cargo:rerun-if-changed=../../el2/hyp/el2.ld");
    println!("cargo:rerun-if-changed=build.rs");
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() != Ok("none") {
        return;
    }
    let root = std::env::var("CARGO_MANIFEST_DIR").expect("cargo names the package's directory");
    for argument in [
        &format!("-T{root}/../../el2/hyp/el2.ld"),
        "-pie",
        "--no-dynamic-linker",
        // Constants that hold addresses are relocated before they are mapped read-only.
        "-znotext",
        "-zmax-page-size=4096",
        "-znorelro",
        "-znognustack",
        "--build-id=none",
    ] {
        println!("cargo:rustc-link-arg-bins={argument}");
    }
}
