// SPDX-License-Identifier: MIT OR Apache-2.0
//! The control: page tables and ledger of a machine that loses the host's invalidations. Must be found.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let _ = freehold_fuzz::tables::run_deaf(data);
});
