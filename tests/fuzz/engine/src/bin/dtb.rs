// SPDX-License-Identifier: MIT OR Apache-2.0
//! The device tree reader and editor.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let _ = freehold_fuzz::dtb::run(data);
});
