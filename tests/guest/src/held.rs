// SPDX-License-Identifier: MIT OR Apache-2.0
//! Exits of a CPU that goes on afterwards, with a word in every register that no exit may show.

use crate::proto::CANARY;
use core::arch::global_asm;

unsafe extern "C" {
    /// Stores `until` to `device`, spins until then, and waits for an interrupt.
    ///
    /// # Safety
    /// `device` must not be memory of this program; an interrupt must be on its way.
    pub(crate) fn guest_held(until: u64, device: u64);
}

global_asm!(
    // x0: until when, x1: the device, then the time. All others are the canary; x19-x30 are on the stack meanwhile.
    ".pushsection .text.guest_held, \"ax\"",
    ".arch_extension fp",
    ".arch_extension simd",
    ".global guest_held",
    "guest_held:",
    "    stp     x29, x30, [sp, #-96]!",
    "    stp     x19, x20, [sp, #16]",
    "    stp     x21, x22, [sp, #32]",
    "    stp     x23, x24, [sp, #48]",
    "    stp     x25, x26, [sp, #64]",
    "    stp     x27, x28, [sp, #80]",
    "    ldr     x2, 9f",
    ".irp n, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30",
    "    mov     x\\n, x2",
    ".endr",
    ".irp v, v0.2d, v1.2d, v2.2d, v3.2d, v4.2d, v5.2d, v6.2d, v7.2d, v8.2d, v9.2d, v10.2d, v11.2d, v12.2d, v13.2d, v14.2d, v15.2d, v16.2d, v17.2d, v18.2d, v19.2d, v20.2d, v21.2d, v22.2d, v23.2d, v24.2d, v25.2d, v26.2d, v27.2d, v28.2d, v29.2d, v30.2d, v31.2d",
    "    dup     \\v, x2",
    ".endr",
    "    str     x0, [x1]",
    "1:  mrs     x1, cntvct_el0",
    "    cmp     x1, x0",
    "    b.lo    1b",
    "    wfi",
    "    ldp     x19, x20, [sp, #16]",
    "    ldp     x21, x22, [sp, #32]",
    "    ldp     x23, x24, [sp, #48]",
    "    ldp     x25, x26, [sp, #64]",
    "    ldp     x27, x28, [sp, #80]",
    "    ldp     x29, x30, [sp], #96",
    "    ret",
    ".balign 8",
    "9:  .quad   {canary}",
    ".arch_extension nosimd",
    ".arch_extension nofp",
    ".popsection",
    canary = const CANARY,
);
