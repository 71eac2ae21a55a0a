// SPDX-License-Identifier: MIT OR Apache-2.0
//! The host's calls.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let _ = freehold_fuzz::calls::run_host(data);
});
