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
    // x4: a bit of any other register, none of which anybody has set.
    "1:  msr     daifset, #15",
    ".irp n, 2, 3, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30",
    "    orr     x4, x4, x\\n",
    ".endr",
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
    "    mov     x2, x4",
    "    mov     x29, xzr",
    "    mov     x30, xzr",
    "    bl      guest_main",
    ".popsection",
    magic = const HEADER_MAGIC,
    volatile_base = const VOLATILE_BASE,
    volatile_end = const VOLATILE_END,
);
