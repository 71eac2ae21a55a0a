// SPDX-License-Identifier: MIT OR Apache-2.0
//! The instructions on both sides of a guest: load its general registers and leave EL2, come back
//! through vectors of its own and store them.
//!
//! While a guest runs, EL2's stack pointer is the one of [`run_guest`]'s frame, and the frame's first
//! word is the context. That is all the vectors need: no per-CPU pointer, no guest register lost.

use super::context::GuestContext;
use core::arch::global_asm;
use core::mem::offset_of;

/// What brought the CPU back to EL2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cause(pub(super) u64);

impl Cause {
    pub(super) const SYNC: Self = Self(0);
    pub(super) const IRQ: Self = Self(1);
    pub(super) const FIQ: Self = Self(2);
    pub(super) const SERROR: Self = Self(3);
    /// No vector's: a fault that is gone.
    pub(super) const AGAIN: Self = Self(1 << 9);
    /// Added to a vector's number for an exception from AArch32.
    const AARCH32: u64 = 4;
    /// Added when an SError was taken in the window behind the exit.
    const SERROR_AFTER: u64 = 1 << 8;

    pub(super) const fn has_serror(self) -> bool {
        self.0 & Self::SERROR_AFTER != 0
    }
}

unsafe extern "C" {
    static freehold_guest_vectors: u8;

    /// Runs the guest until the next exception to EL2; returns a [`Cause`].
    ///
    /// # Safety
    /// VBAR_EL2 is [`guest_vectors`]; every other register of the guest is loaded; `pc` and `pstate`
    /// of the context name a state below EL2.
    #[link_name = "freehold_run_guest"]
    pub(super) fn run_guest(context: *mut GuestContext) -> u64;
}

/// Address of the vectors for VBAR_EL2 while a guest runs.
pub(super) fn guest_vectors() -> u64 {
    &raw const freehold_guest_vectors as u64
}

/// The frame of `freehold_run_guest`: context and padding, then x19-x30.
const FRAME: usize = 16 + 12 * 8;

// The asm below pairs x[n] and x[n + 1], pc and pstate, esr and far.
const _: () = assert!(offset_of!(GuestContext, x) == 0);
const _: () = assert!(offset_of!(GuestContext, pstate) == offset_of!(GuestContext, pc) + 8);

global_asm!(
    // x0: context. The caller's x19-x30 go to the frame, everything else is the caller's to lose.
    ".pushsection .text.freehold_run_guest, \"ax\"",
    // x0: context.
    ".macro freehold_guest_pair op, n, m",
    "    \\op    x\\n, x\\m, [x0, #(8 * \\n)]",
    ".endm",
    ".macro freehold_x2_to_x29 op",
    ".altmacro",
    ".irp n, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28",
    "    freehold_guest_pair \\op, \\n, %\\n + 1",
    ".endr",
    ".noaltmacro",
    ".endm",
    ".balign 64",
    ".global freehold_run_guest",
    ".type freehold_run_guest, %function",
    "freehold_run_guest:",
    "    sub     sp, sp, #{frame}",
    "    str     x0, [sp, #0]",
    "    stp     x19, x20, [sp, #16]",
    "    stp     x21, x22, [sp, #32]",
    "    stp     x23, x24, [sp, #48]",
    "    stp     x25, x26, [sp, #64]",
    "    stp     x27, x28, [sp, #80]",
    "    stp     x29, x30, [sp, #96]",
    // x0: context. From here on registers fill with the guest's, x0 and x1 last.
    "    ldp     x2, x3, [x0, #{pc}]",
    "    msr     elr_el2, x2",
    "    msr     spsr_el2, x3",
    "    freehold_x2_to_x29 ldp",
    "    ldr     x30, [x0, #240]",
    "    ldp     x0, x1, [x0, #0]",
    "    eret",
    // Nothing behind an ERET is ever executed, not even speculatively.
    "    dsb     nsh",
    "    isb",

    // sp: frame; two words below it the guest's x0 and x1. x0: context, x1: cause. Others: guest's.
    "freehold_guest_exit:",
    "    freehold_x2_to_x29 stp",
    "    str     x30, [x0, #240]",
    "    ldp     x2, x3, [sp]",
    // No word of a guest stays on EL2's stack: it would outlive the VM there.
    "    stp     xzr, xzr, [sp], #16",
    "    stp     x2, x3, [x0, #0]",
    // x0: context, x1: cause. The rest is free. The syndrome is read before anything can replace it.
    "    mrs     x2, elr_el2",
    "    mrs     x3, spsr_el2",
    "    stp     x2, x3, [x0, #{pc}]",
    "    mrs     x2, esr_el2",
    "    mrs     x3, far_el2",
    "    stp     x2, x3, [x0, #{esr}]",
    "    mrs     x2, hpfar_el2",
    "    str     x2, [x0, #{hpfar}]",
    "    bl      freehold_forget_branches",
    // An SError that the guest caused and that has not come yet comes here and not in the host: ESB
    // (a NOP without FEAT_RAS) defers it to DISR_EL1; else it is pending, and is taken in the window.
    "    hint    #16",
    "    dsb     sy",
    "    isb",
    "    mrs     x2, isr_el1",
    "    tbz     x2, #8, 1f",
    "    msr     daifclr, #4",
    "freehold_serror_window:",
    "    isb",
    "freehold_serror_window_end:",
    "    msr     daifset, #4",
    "1:",
    "    mov     x0, x1",
    "    ldp     x19, x20, [sp, #16]",
    "    ldp     x21, x22, [sp, #32]",
    "    ldp     x23, x24, [sp, #48]",
    "    ldp     x25, x26, [sp, #64]",
    "    ldp     x27, x28, [sp, #80]",
    "    ldp     x29, x30, [sp, #96]",
    "    add     sp, sp, #{frame}",
    "    ret",

    // An SError at EL2. In the window it is the guest's and only marks the cause; elsewhere it is a
    // defect, reported as the host's table does. Live: all; x2 and x3 are free in the window.
    "freehold_serror_at_el2:",
    "    stp     x2, x3, [sp, #-16]!",
    "    mrs     x2, elr_el2",
    "    adr     x3, freehold_serror_window",
    "    sub     x2, x2, x3",
    "    cmp     x2, #(freehold_serror_window_end - freehold_serror_window)",
    "    ldp     x2, x3, [sp], #16",
    "    b.hi    freehold_vectors + 0x380",
    "    orr     x1, x1, #{serror_after}",
    // Returns with SError masked, so that a second one cannot nest.
    "    mrs     x2, spsr_el2",
    "    orr     x2, x2, #(1 << 8)",
    "    msr     spsr_el2, x2",
    "    eret",
    "    dsb     nsh",
    "    isb",

    ".macro freehold_from_guest cause",
    "    .balign 128",
    "    stp     x0, x1, [sp, #-16]!",
    "    ldr     x0, [sp, #16]",
    "    mov     x1, #\\cause",
    "    b       freehold_guest_exit",
    ".endm",
    // EL2 itself: as while the host runs.
    ".macro freehold_defect offset",
    "    .balign 128",
    "    b       freehold_vectors + \\offset",
    ".endm",

    ".balign 2048",
    ".global freehold_guest_vectors",
    "freehold_guest_vectors:",
    "    freehold_defect 0x000",
    "    freehold_defect 0x080",
    "    freehold_defect 0x100",
    "    freehold_defect 0x180",
    "    freehold_defect 0x200",
    "    freehold_defect 0x280",
    "    freehold_defect 0x300",
    "    .balign 128",
    "    b       freehold_serror_at_el2",
    "    freehold_from_guest 0",
    "    freehold_from_guest 1",
    "    freehold_from_guest 2",
    "    freehold_from_guest 3",
    "    freehold_from_guest ({aarch32} + 0)",
    "    freehold_from_guest ({aarch32} + 1)",
    "    freehold_from_guest ({aarch32} + 2)",
    "    freehold_from_guest ({aarch32} + 3)",
    ".popsection",
    frame = const FRAME,
    pc = const offset_of!(GuestContext, pc),
    esr = const offset_of!(GuestContext, exit),
    hpfar = const offset_of!(GuestContext, exit) + 16,
    serror_after = const Cause::SERROR_AFTER,
    aarch32 = const Cause::AARCH32,
);
