// SPDX-License-Identifier: MIT OR Apache-2.0
//! Page tables and ledger.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let _ = freehold_fuzz::tables::run(data);
});
