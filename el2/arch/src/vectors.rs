// SPDX-License-Identifier: MIT OR Apache-2.0
//! Exception vectors while the host runs, and what they save.
//!
//! Guarantees: an exception from EL1 or EL0 reaches `freehold_host_sync` with x0-x18, x29 and x30 in
//! a frame (Rust keeps x19-x28 by its calling convention). An exception from EL2 itself is always a
//! defect: it goes to `freehold_fatal_exception` on the emergency stack and never returns.
//! The world switch has vectors of its own and swaps VBAR_EL2 while a guest runs.

use crate::percpu::PerCpu;
use core::arch::global_asm;
use core::mem::offset_of;

/// The host's caller-saved registers at a trap.
#[derive(Debug)]
#[repr(C, align(16))]
pub struct HostFrame {
    x: [u64; 19],
    fp: u64,
    lr: u64,
    _pad: u64,
}

impl HostFrame {
    /// Reads x0-x18; any other number reads as zero.
    #[inline(always)]
    pub fn x(&self, n: usize) -> u64 {
        self.x.get(n).copied().unwrap_or(0)
    }

    /// All of them: x0-x18.
    #[inline(always)]
    pub fn registers(&mut self) -> &mut [u64; 19] {
        &mut self.x
    }

    /// Writes x0-x18; any other number is ignored.
    #[inline(always)]
    pub fn set_x(&mut self, n: usize, value: u64) {
        if let Some(register) = self.x.get_mut(n) {
            *register = value;
        }
    }
}

unsafe extern "C" {
    static freehold_vectors: u8;
}

/// Address of the table, for the world switch to put back.
pub fn host_vectors() -> u64 {
    &raw const freehold_vectors as u64
}

global_asm!(
    ".pushsection .text.freehold_vectors, \"ax\"",
    ".macro freehold_host_pair op, n, m",
    "    \\op    x\\n, x\\m, [sp, #(8 * \\n)]",
    ".endm",
    ".macro freehold_x2_to_x17 op",
    ".altmacro",
    ".irp n, 2, 4, 6, 8, 10, 12, 14, 16",
    "    freehold_host_pair \\op, \\n, %\\n + 1",
    ".endr",
    ".noaltmacro",
    ".endm",
    ".macro freehold_fatal kind",
    "    .balign 128",
    "    mov     x1, sp",
    "    mrs     x0, tpidr_el2",
    "    ldr     x0, [x0, #{emergency_top}]",
    "    mov     sp, x0",
    "    mov     x0, #\\kind",
    "    b       freehold_fatal_exception",
    ".endm",
    ".macro freehold_host",
    "    .balign 128",
    "    sub     sp, sp, #{frame}",
    "    stp     x0, x1, [sp, #0]",
    "    freehold_x2_to_x17 stp",
    "    stp     x18, x29, [sp, #144]",
    "    str     x30, [sp, #160]",
    "    bl      freehold_forget_branches",
    "    mov     x0, sp",
    "    bl      freehold_host_sync",
    "    b       freehold_return_to_host",
    ".endm",

    // Forgets the branch history of a lower level (`features::bhb`). Clobbers x2 and x3.
    ".balign 64",
    ".global freehold_forget_branches",
    ".hidden freehold_forget_branches",
    "freehold_forget_branches:",
    "    mrs     x2, tpidr_el2",
    "    ldr     w3, [x2, #{bhb_loops}]",
    "    cbz     w3, 2f",
    // CLRBHB, a NOP where it is not implemented. Like the loop, it is done once the ISB is.
    "    hint    #22",
    "1:  b       . + 4",
    "    subs    w3, w3, #1",
    "    b.ne    1b",
    "    dsb     nsh",
    "    isb",
    "2:  ret",

    ".balign 2048",
    ".global freehold_vectors",
    ".hidden freehold_vectors",
    "freehold_vectors:",
    // Current EL, SP_EL0: never used.
    "    freehold_fatal 0",
    "    freehold_fatal 1",
    "    freehold_fatal 2",
    "    freehold_fatal 3",
    // Current EL, SP_EL2.
    "    freehold_fatal 4",
    "    freehold_fatal 5",
    "    freehold_fatal 6",
    "    freehold_fatal 7",
    // Lower EL, AArch64. Interrupts and SErrors of the host go to EL1 (IMO=FMO=AMO=0).
    "    freehold_host",
    "    freehold_fatal 9",
    "    freehold_fatal 10",
    "    freehold_fatal 11",
    // Lower EL, AArch32: EL0 only, for the host's EL1 is AArch64.
    "    freehold_host",
    "    freehold_fatal 13",
    "    freehold_fatal 14",
    "    freehold_fatal 15",
    "    .balign 128",
    "freehold_return_to_host:",
    "    freehold_x2_to_x17 ldp",
    "    ldp     x18, x29, [sp, #144]",
    "    ldr     x30, [sp, #160]",
    "    ldp     x0, x1, [sp], #{frame}",
    "    eret",
    // Nothing behind an ERET is ever executed, not even speculatively.
    "    dsb     nsh",
    "    isb",
    ".popsection",
    emergency_top = const offset_of!(PerCpu, emergency_top),
    bhb_loops = const offset_of!(PerCpu, bhb_loops),
    frame = const size_of::<HostFrame>(),
);
