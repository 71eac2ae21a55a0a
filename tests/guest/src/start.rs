// SPDX-License-Identifier: MIT OR Apache-2.0
//! The first instructions, and the header before them.

use crate::proto::{HEADER_MAGIC, VOLATILE_BASE, VOLATILE_END};
use core::arch::global_asm;

global_asm!(
    ".pushsection .text.start, \"ax\"",
    ".global _start",
    "_start:",
    "    b       1f",
    "    .word   0",
    "    .quad   {magic}",
    // Length and hash of the file, patched when the image is flattened.
    "guest_header_length:",
    "    .quad   0",
    ".global guest_header_hash",
    "guest_header_hash:",
    "    .quad   0",
    "    .balign 64",
    // x0, x1: boot arguments, kept to the call. MMU off: the loop's stores go to memory, and what a
    // cache may hold of it from before is thrown away line by line.
    "1:  msr     daifset, #15",
    "    msr     spsel, #1",
    "    mov     x2, #({volatile_base} & 0xffff)",
    "    movk    x2, #({volatile_base} >> 16), lsl #16",
    "    mov     x3, #({volatile_end} & 0xffff)",
    "    movk    x3, #({volatile_end} >> 16), lsl #16",
    "2:  stp     xzr, xzr, [x2]",
    "    tst     x2, #63",
    "    b.ne    3f",
    "    dc      ivac, x2",
    "3:  add     x2, x2, #16",
    "    cmp     x2, x3",
    "    b.lo    2b",
    "    dsb     sy",
    "    adrp    x2, guest_stack_top",
    "    mov     sp, x2",
    "    mov     x29, xzr",
    "    mov     x30, xzr",
    "    bl      guest_main",
    ".popsection",
    magic = const HEADER_MAGIC,
    volatile_base = const VOLATILE_BASE,
    volatile_end = const VOLATILE_END,
);
