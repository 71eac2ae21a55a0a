// SPDX-License-Identifier: MIT OR Apache-2.0
//! Image header, bundle manifest, and the way of a CPU from the boot loader or firmware into Rust.
//!
//! Guarantees to what it calls: EL2, E2H=0, interrupts masked, this CPU's own stack, TPIDR_EL2 set;
//! `freehold_early` runs with the MMU off, everything after it with MMU and caches on.
//! Anything else is one line on the early console and a stop.

use crate::mmu::offsets;
use crate::percpu::PerCpu;
use crate::uart;
use core::arch::global_asm;
use core::mem::offset_of;

unsafe extern "C" {
    /// Where firmware starts a secondary or resumes a CPU; x0 is the address of its `PerCpu`.
    fn freehold_secondary();
}

/// Address of the entry that firmware is given in place of the host's.
pub fn secondary_address() -> u64 {
    freehold_secondary as *const () as u64
}

global_asm!(
    // The Image header (Linux, Documentation/arch/arm64/booting.rst) and the manifest behind it. The
    // bundler patches image_size and the manifest.
    ".pushsection .head.text, \"ax\"",
    ".balign 4096",
    ".global _start",
    "_start:",
    "    b       freehold_entry",
    "    .long   0",
    "    .quad   0",                    // text_offset
    "    .quad   __image_size",         // el2's own; the bundler adds the payload's
    "    .quad   0xa",                  // little endian, 4 KB pages, anywhere
    "    .quad   0, 0, 0",
    "    .ascii  \"ARM\\x64\"",
    "    .long   0",
    "    .quad   0, 0, 0, 0, 0, 0, 0, 0",

    // x0 = DTB. Live: x19 DTB, x20 image start.
    "freehold_entry:",
    "    msr     daifset, #0xf",
    "    mov     x19, x0",
    "    adr     x20, _start",
    "    bl      freehold_check_level",
    "    ldr     x0, =0x30c50830",      // SCTLR_EL2: RES1, MMU and caches off
    "    msr     sctlr_el2, x0",
    "    msr     cptr_el2, xzr",
    "    isb",

    // What we are about to write with caches off must not be overwritten by an older line.
    "    adrp    x0, __image_start",
    "    adrp    x1, __image_end",
    "    bl      freehold_clean_invalidate",

    // Relocate. Live: x0 cursor, x1 end.
    "    adrp    x0, __rela_start",
    "    add     x0, x0, :lo12:__rela_start",
    "    adrp    x1, __rela_end",
    "    add     x1, x1, :lo12:__rela_end",
    "1:  cmp     x0, x1",
    "    b.hs    2f",
    "    ldp     x2, x3, [x0], #16",
    "    ldr     x4, [x0], #8",
    "    cmp     x3, #1027",            // R_AARCH64_RELATIVE, the only one the link may leave
    "    b.ne    freehold_bad_relocation",
    "    add     x4, x4, x20",
    "    str     x4, [x20, x2]",
    "    b       1b",

    // Zero bss and stacks.
    "2:  adrp    x0, __bss_start",
    "    add     x0, x0, :lo12:__bss_start",
    "    adrp    x1, __image_end",
    "3:  cmp     x0, x1",
    "    b.hs    4f",
    "    stp     xzr, xzr, [x0], #16",
    "    b       3b",

    // The boot has a stack of its own; the CPU's is taken when the host is entered.
    "4:  adrp    x0, __boot_stack_end",
    "    add     x0, x0, :lo12:__boot_stack_end",
    "    mov     sp, x0",
    "    mov     x29, xzr",
    "    mov     x30, xzr",
    "    mov     x0, x19",
    "    bl      freehold_early",
    "    adrp    x0, __image_start",
    "    adrp    x1, __image_end",
    "    bl      freehold_clean_invalidate",
    "    bl      freehold_mmu_on",
    "    adrp    x0, {cpus}",
    "    add     x0, x0, :lo12:{cpus}",
    "    msr     tpidr_el2, x0",
    "    mov     x0, x19",
    "    bl      freehold_main",
    "    b       freehold_hang",

    // x0 = PerCpu. MMU and caches off, everything that is read here was cleaned to memory.
    ".global freehold_secondary",
    "freehold_secondary:",
    "    msr     daifset, #0xf",
    "    mov     x19, x0",
    "    bl      freehold_check_level",
    "    ldr     x0, =0x30c50830",
    "    msr     sctlr_el2, x0",
    "    msr     cptr_el2, xzr",
    "    isb",
    "    bl      freehold_mmu_on",
    "    msr     tpidr_el2, x19",
    "    ldr     x0, [x19, #{stack_top}]",
    "    mov     sp, x0",
    "    mov     x29, xzr",
    "    mov     x30, xzr",
    "    bl      freehold_secondary_main",
    "    b       freehold_hang",

    // Returns if this is EL2 with E2H=0. Clobbers x0, x1.
    "freehold_check_level:",
    "    mrs     x0, CurrentEL",
    "    cmp     x0, #8",
    "    b.ne    freehold_wrong_level",
    "    msr     spsel, #1",
    "    mov     x0, #1 << 31",         // HCR_EL2: RW, and E2H=0
    "    msr     hcr_el2, x0",
    "    isb",
    "    mrs     x0, hcr_el2",
    "    tbnz    x0, #34, freehold_vhe_only",
    "    mrs     x0, s3_0_c0_c7_4",     // ID_AA64MMFR4_EL1.E2H0 is negative where E2H is RES1
    "    tbnz    x0, #27, freehold_vhe_only",
    "    mov     x0, #1",               // and where the ID register does not say so, FAR_EL1 is
    "    msr     far_el1, x0",          // another name of FAR_EL2
    "    mov     x0, #2",
    "    msr     far_el2, x0",
    "    isb",
    "    mrs     x0, far_el1",
    "    cmp     x0, #2",
    "    b.eq    freehold_vhe_only",
    "    ret",

    // Cleans and invalidates [x0, x1) to the point of coherency. Clobbers x0, x2, x3.
    "freehold_clean_invalidate:",
    "    mrs     x2, ctr_el0",
    "    ubfx    x2, x2, #16, #4",
    "    mov     x3, #4",
    "    lsl     x3, x3, x2",
    "5:  dc      civac, x0",
    "    add     x0, x0, x3",
    "    cmp     x0, x1",
    "    b.lo    5b",
    "    dsb     sy",
    "    ret",

    // Loads the translation registers and switches MMU and caches on. Clobbers x0-x4.
    "freehold_mmu_on:",
    "    adrp    x0, FREEHOLD_MMU_REGISTERS",
    "    add     x0, x0, :lo12:FREEHOLD_MMU_REGISTERS",
    "    ldr     x1, [x0, #{mair}]",
    "    ldr     x2, [x0, #{tcr}]",
    "    ldr     x3, [x0, #{ttbr}]",
    "    ldr     x4, [x0, #{sctlr}]",
    "    msr     mair_el2, x1",
    "    msr     tcr_el2, x2",
    "    msr     ttbr0_el2, x3",
    "    adrp    x1, freehold_vectors",
    "    add     x1, x1, :lo12:freehold_vectors",
    "    msr     vbar_el2, x1",
    "    tlbi    alle2",
    "    ic      iallu",
    "    dsb     sy",
    "    isb",
    "    msr     sctlr_el2, x4",
    "    isb",
    "    ret",

    // The stops that come before Rust. Position independent, no stack, early console only.
    "freehold_wrong_level:",
    "    adr     x0, freehold_text_level",
    "    b       freehold_say",
    "freehold_vhe_only:",
    "    adr     x0, freehold_text_vhe",
    "    b       freehold_say",
    "freehold_bad_relocation:",
    "    adr     x0, freehold_text_relocation",
    "freehold_say:",
    "    ldr     x1, ={early_uart}",
    "    cbz     x1, freehold_hang",
    "6:  ldrb    w2, [x0], #1",
    "    cbz     w2, freehold_hang",
    "7:  ldr     w3, [x1, #0x18]",
    "    tbnz    w3, #5, 7b",
    "    str     w2, [x1]",
    "    b       6b",
    "freehold_hang:",
    "    wfe",
    "    b       freehold_hang",
    "freehold_text_level:",
    "    .asciz  \"freehold: stop: not entered at EL2 at the image entry; start this image at EL2 (QEMU: -M virt,virtualization=on)\\r\\n\"",
    "freehold_text_vhe:",
    "    .asciz  \"freehold: stop: this CPU only has EL2 with E2H=1, which this version does not support, at the image entry\\r\\n\"",
    "freehold_text_relocation:",
    "    .asciz  \"freehold: stop: the image has a relocation that is not R_AARCH64_RELATIVE at the image entry\\r\\n\"",
    "    .balign 8",
    "    .ltorg",
    ".popsection",
    cpus = sym crate::percpu::CPUS,
    stack_top = const offset_of!(PerCpu, stack_top),
    mair = const offsets::MAIR,
    tcr = const offsets::TCR,
    ttbr = const offsets::TTBR,
    sctlr = const offsets::SCTLR,
    early_uart = const uart::EARLY_BASE,
);
