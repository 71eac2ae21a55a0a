// SPDX-License-Identifier: MIT OR Apache-2.0
//! The last that this program does, with a word in every register that no exit may show.

use crate::proto::{CANARY, LAST_OFF, LAST_RESET, LAST_RESET2, LAST_SPIN, LAST_STORE, LAST_WALK};
use core::arch::global_asm;

const SYSTEM_OFF: u64 = 0x8400_0008;
const SYSTEM_RESET: u64 = 0x8400_0009;
const SYSTEM_RESET2: u64 = 0xc400_0012;
/// Where there is neither RAM nor a device.
const OUTSIDE: u64 = 1 << 38;

/// How it ends, as the assembly tells it apart.
const CALLS: u64 = 0;
const STORES: u64 = 1;
const WALKS: u64 = 2;
const SPINS: u64 = 3;

/// Does it. The first two registers are what the way out needs.
pub(crate) fn act(what: u64) -> ! {
    let (x0, x1, how) = match what {
        LAST_OFF => (SYSTEM_OFF, CANARY, CALLS),
        LAST_RESET => (SYSTEM_RESET, CANARY, CALLS),
        LAST_RESET2 => (SYSTEM_RESET2, 0, CALLS),
        LAST_STORE => (CANARY, OUTSIDE, STORES),
        LAST_WALK => (CANARY, OUTSIDE, WALKS),
        LAST_SPIN => (CANARY, CANARY, SPINS),
        _ => (0, 0, CALLS),
    };
    // SAFETY: it does not return, and what it does reaches no memory of this program.
    unsafe { guest_last(x0, x1, how) }
}

unsafe extern "C" {
    /// # Safety
    /// There is nothing to come back to.
    fn guest_last(x0: u64, x1: u64, how: u64) -> !;
}

global_asm!(
    ".pushsection .text.guest_last, \"ax\"",
    ".arch_extension fp",
    ".arch_extension simd",
    ".macro guest_canary",
    "    ldr     x2, 9f",
    ".irp n, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30",
    "    mov     x\\n, x2",
    ".endr",
    ".irp v, v0.2d, v1.2d, v2.2d, v3.2d, v4.2d, v5.2d, v6.2d, v7.2d, v8.2d, v9.2d, v10.2d, v11.2d, v12.2d, v13.2d, v14.2d, v15.2d, v16.2d, v17.2d, v18.2d, v19.2d, v20.2d, v21.2d, v22.2d, v23.2d, v24.2d, v25.2d, v26.2d, v27.2d, v28.2d, v29.2d, v30.2d, v31.2d",
    "    dup     \\v, x2",
    ".endr",
    ".endm",
    ".global guest_last",
    // x0, x1: as they are to be at the end; x2: how it ends. All others are the canary then.
    "guest_last:",
    "    cbz     x2, 1f",
    "    cmp     x2, #{walks}",
    "    b.lo    2f",
    "    b.eq    3f",
    "    guest_canary",
    "    b       .",
    "1:  guest_canary",
    "    hvc     #0",
    "    b       .",
    "2:  guest_canary",
    "    stp     x2, x3, [x1]",
    "    b       .",
    "3:  guest_canary",
    "    msr     ttbr0_el1, x1",
    "    tlbi    vmalle1",
    "    dsb     sy",
    "    isb",
    "    b       .",
    ".balign 8",
    "9:  .quad   {canary}",
    ".arch_extension nosimd",
    ".arch_extension nofp",
    ".popsection",
    walks = const WALKS,
    canary = const CANARY,
);
