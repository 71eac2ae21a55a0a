// SPDX-License-Identifier: MIT OR Apache-2.0
//! The program of the soak's guests: it loads, stores, lends, takes back and gives up its frames, for ever.

use crate::proto;

core::arch::global_asm!(
    ".balign 8",
    ".global fh_soak_begin",
    "fh_soak_begin:",
    // x0: seed. Live: x19 random number, x20 first guest frame to play with.
    "    mov     x19, x0",
    "    movz    x20, #{ram}, lsl #16",
    "    movk    x20, #0x1000",
    "1:  eor     x19, x19, x19, lsl #13",
    "    eor     x19, x19, x19, lsr #7",
    "    eor     x19, x19, x19, lsl #17",
    "    ubfx    x1, x19, #20, #5",
    "    add     x1, x20, x1, lsl #12",
    "    ubfx    x4, x19, #30, #3",
    "    mov     x2, xzr",
    "    mov     x3, xzr",
    "    movz    w0, #0xc600, lsl #16",
    "    cbz     x4, 2f",
    "    cmp     x4, #1",
    "    b.eq    3f",
    "    cmp     x4, #2",
    "    b.eq    4f",
    "    cmp     x4, #3",
    "    b.eq    5f",
    "    cmp     x4, #4",
    "    b.eq    6f",
    "    str     x19, [x1]",
    "    b       1b",
    "2:  movk    w0, #{share}",
    "    hvc     #0",
    "    b       1b",
    "3:  movk    w0, #{unshare}",
    "    hvc     #0",
    "    b       1b",
    "4:  movk    w0, #{relinquish}",
    "    hvc     #0",
    "    b       1b",
    "5:  ldr     x5, [x1]",
    "    b       1b",
    // A device below RAM.
    "6:  movz    x6, #0x0900, lsl #16",
    "    ldr     w5, [x6]",
    "    b       1b",
    "    .balign 8",
    ".global fh_soak_end",
    "fh_soak_end:",
    ram = const proto::RAM_BASE >> 16,
    share = const freehold_uapi::guest::MEM_SHARE & 0xffff,
    unshare = const freehold_uapi::guest::MEM_UNSHARE & 0xffff,
    relinquish = const freehold_uapi::guest::MEM_RELINQUISH & 0xffff,
);

unsafe extern "C" {
    static fh_soak_begin: u64;
    static fh_soak_end: u64;
}

/// The guest's program.
pub(super) fn program() -> &'static [u64] {
    let (begin, end) = (&raw const fh_soak_begin, &raw const fh_soak_end);
    let words = (end.addr() - begin.addr()) / 8;
    // SAFETY: the assembly above stands between the two symbols, aligned, and nobody writes there.
    unsafe { std::slice::from_raw_parts(begin, words) }
}
