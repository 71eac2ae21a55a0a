// SPDX-License-Identifier: MIT OR Apache-2.0
//! Device loads of every width and sign: what lands in the register is what the instruction says,
//! whatever the VMM answers.

use crate::proto::{DEVICE, REG_SCRATCH};
use core::arch::asm;

macro_rules! load {
    ($text:literal) => {{
        let value: u64;
        // SAFETY: the device lies outside RAM; only the named register changes.
        unsafe { asm!($text, inout("x0") 0x5555_5555_5555_5555u64 => value, in("x1") DEVICE + REG_SCRATCH, options(nostack)) };
        value
    }};
}

/// Counts loads whose result is not what all ones give.
pub(crate) fn check() -> u64 {
    let ones = u64::MAX;
    let word = u64::from(u32::MAX);
    let results = [
        (load!("ldrb w0, [x1]"), 0xff),
        (load!("ldrh w0, [x1]"), 0xffff),
        (load!("ldr w0, [x1]"), word),
        (load!("ldr x0, [x1]"), ones),
        (load!("ldrsb w0, [x1]"), word),
        (load!("ldrsb x0, [x1]"), ones),
        (load!("ldrsh w0, [x1]"), word),
        (load!("ldrsh x0, [x1]"), ones),
        (load!("ldrsw x0, [x1]"), ones),
        (load!("ldr xzr, [x1]"), 0x5555_5555_5555_5555),
    ];
    results.iter().filter(|(is, should)| is != should).count() as u64
}
