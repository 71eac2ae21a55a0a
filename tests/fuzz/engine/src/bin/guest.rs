// SPDX-License-Identifier: MIT OR Apache-2.0
//! A guest that runs.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let _ = freehold_fuzz::calls::run_guest(data);
});
