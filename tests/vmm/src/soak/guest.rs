// SPDX-License-Identifier: MIT OR Apache-2.0
//! The program of the soak's guests: it loads, stores, lends, takes back and gives up its frames, starts its other CPU,
//! waits, and with an interrupt controller signals both and ends what is pending, for ever.

use crate::proto;

core::arch::global_asm!(
    ".balign 8",
    ".global fh_soak_begin",
    "fh_soak_begin:",
    // x0: seed. Live: x19 random number, x20 first guest frame to play with, x21 the seed, x22 the CPU's number.
    "    mov     x19, x0",
    "    mov     x21, x0",
    "    mrs     x22, mpidr_el1",
    "    and     x22, x22, #0xff",
    "    movz    x20, #{ram}, lsl #16",
    "    movk    x20, #0x1000",
    "    tbz     x21, #63, 14f",
    // Group 1 and its priorities are open; SGIs of this CPU and the SPIs from 32 on are enabled. Nothing is taken as an
    // exception: PSTATE masks it.
    "    movz    x6, #{gicd}, lsl #16",
    "    mov     w7, #2",
    "    str     w7, [x6]",
    "    mov     w7, #-1",
    "    str     w7, [x6, #0x84]",
    "    str     w7, [x6, #0x104]",
    "    movz    x6, #{gicr}, lsl #16",
    "    add     x6, x6, x22, lsl #17",
    "    add     x6, x6, #0x10000",
    "    str     w7, [x6, #0x80]",
    "    str     w7, [x6, #0x100]",
    "    mov     x7, #0xff",
    "    msr     s3_0_c4_c6_0, x7",
    "    mov     x7, #1",
    "    msr     s3_0_c12_c12_7, x7",
    "    isb",
    "14: cbz     x22, 7f",
    "1:  eor     x19, x19, x19, lsl #13",
    "    eor     x19, x19, x19, lsr #7",
    "    eor     x19, x19, x19, lsl #17",
    "    ubfx    x1, x19, #20, #5",
    "    add     x1, x20, x1, lsl #12",
    "    ubfx    x4, x19, #30, #4",
    "    mov     x2, xzr",
    "    mov     x3, xzr",
    "    movz    w0, #0xc600, lsl #16",
    "    cbz     x4, 2f",
    "    cmp     x4, #1",
    "    b.eq    3f",
    "    cmp     x4, #2",
    "    b.eq    4f",
    "    cmp     x4, #4",
    "    b.lo    5f",
    "    b.eq    6f",
    "    cmp     x4, #5",
    "    b.eq    7f",
    "    cmp     x4, #6",
    "    b.eq    8f",
    "    cmp     x4, #8",
    "    b.lo    9f",
    "    b.eq    12f",
    // What asks for something is rarer than it looks: most of it begins with a fault.
    "    cmp     x4, #11",
    "    b.lo    2f",
    "    b.eq    3f",
    "    cmp     x4, #12",
    "    b.eq    4f",
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
    // The other CPU, where there is one.
    "7:  movz    w0, #{on_high}, lsl #16",
    "    movk    w0, #{on}",
    "    eor     x1, x22, #1",
    "    sub     x2, x20, #0x1000",
    "    mov     x3, x19",
    "    bfxil   x3, x21, #0, #1",
    "    lsr     x4, x21, #63",
    "    bfi     x3, x4, #63, #1",
    "    hvc     #0",
    "    b       1b",
    "8:  wfi",
    "    b       1b",
    // An SGI to both; else what is pending is acknowledged and ended.
    "9:  tbz     x21, #63, 1b",
    "    tbz     x19, #40, 13f",
    "    mov     x7, #3",
    "    bfi     x7, x19, #24, #4",
    "    msr     s3_0_c12_c11_5, x7",
    "    isb",
    "    b       1b",
    "13: mrs     x7, s3_0_c12_c12_0",
    "    cmp     x7, #1020",
    "    b.hs    1b",
    "    msr     s3_0_c12_c12_1, x7",
    "    b       1b",
    // A CPU that another one can start again may go off.
    "12: cbz     x22, 1b",
    "    ubfx    x4, x19, #40, #3",
    "    cbnz    x4, 1b",
    "    movz    w0, #{off_high}, lsl #16",
    "    movk    w0, #{off}",
    "    hvc     #0",
    "    b       1b",
    "    .balign 8",
    ".global fh_soak_end",
    "fh_soak_end:",
    ram = const proto::RAM_BASE >> 16,
    gicd = const proto::GICD_GFN >> 4,
    gicr = const proto::GICR_GFN >> 4,
    share = const freehold_uapi::guest::MEM_SHARE & 0xffff,
    unshare = const freehold_uapi::guest::MEM_UNSHARE & 0xffff,
    relinquish = const freehold_uapi::guest::MEM_RELINQUISH & 0xffff,
    on_high = const freehold_uapi::guest::PSCI_CPU_ON_64 >> 16,
    on = const freehold_uapi::guest::PSCI_CPU_ON_64 & 0xffff,
    off_high = const freehold_uapi::guest::PSCI_CPU_OFF >> 16,
    off = const freehold_uapi::guest::PSCI_CPU_OFF & 0xffff,
);

/// Bit of the seed that tells the program of its interrupt controller.
pub(super) const HAS_GIC: u64 = 1 << 63;

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
