// SPDX-License-Identifier: MIT OR Apache-2.0
//! Exceptions of the payload itself. One that was announced is noted and stepped over; any other is
//! reported to the VMM and ends the VM.

use crate::proto::{REG_PANIC_ELR, REG_PANIC_ESR, REG_PANIC_FAR};
use crate::sysreg::{read, write};
use crate::{device, hypercall, interrupts};
use core::arch::global_asm;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// A fetch of this program's.
const CLASS_FETCH: u64 = 0x21;
/// SPSR_EL1.M of EL0, and PSTATE of this program: EL1h, all masked.
const MODE: u64 = 0xf;
const HERE: u64 = 0x3c5;

static EXPECTED: AtomicBool = AtomicBool::new(false);
static SEEN: AtomicU64 = AtomicU64::new(0);
static SEEN_AT: [AtomicU64; 2] = [AtomicU64::new(0), AtomicU64::new(0)];

unsafe extern "C" {
    static guest_vectors: u8;
}

/// Takes exceptions from here on.
pub(crate) fn install() {
    write!("vbar_el1", &raw const guest_vectors as u64);
}

/// Runs `probe`; returns what it returned and the ESR_EL1 of the exception that it caused, or 0.
pub(crate) fn catching<T>(probe: impl FnOnce() -> T) -> (T, u64) {
    SEEN.store(0, Ordering::Relaxed);
    EXPECTED.store(true, Ordering::SeqCst);
    let value = probe();
    EXPECTED.store(false, Ordering::SeqCst);
    (value, SEEN.load(Ordering::Relaxed))
}

/// ELR_EL1 and FAR_EL1 of the exception that was caught last.
pub(crate) fn seen_at() -> [u64; 2] {
    SEEN_AT.each_ref().map(|word| word.load(Ordering::Relaxed))
}

/// The vectors' Rust half. `return_address` is x30 at the exception. Returns where to go on, which is never at EL0.
#[unsafe(no_mangle)]
extern "C" fn guest_exception(return_address: u64) -> u64 {
    let (esr, elr) = (read!("esr_el1"), read!("elr_el1"));
    if interrupts::taken() {
        return elr;
    }
    if !EXPECTED.load(Ordering::SeqCst) {
        device::write64(REG_PANIC_ESR, esr);
        device::write64(REG_PANIC_ELR, elr);
        device::write64(REG_PANIC_FAR, read!("far_el1"));
        hypercall::system_off();
    }
    SEEN.store(esr, Ordering::Relaxed);
    SEEN_AT[0].store(elr, Ordering::Relaxed);
    SEEN_AT[1].store(read!("far_el1"), Ordering::Relaxed);
    if read!("spsr_el1") & MODE == 0 {
        write!("spsr_el1", HERE);
        return return_address;
    }
    if esr >> 26 == CLASS_FETCH { return_address } else { elr + 4 }
}

global_asm!(
    ".pushsection .text.guest_vectors, \"ax\"",
    ".macro guest_vector",
    "    .balign 128",
    "    b       guest_trap",
    ".endm",
    ".balign 2048",
    ".global guest_vectors",
    "guest_vectors:",
    ".rept 16",
    "    guest_vector",
    ".endr",
    // Live: everything. x0-x18, x29 and x30 are kept here, the rest by the calling convention.
    "    .balign 128",
    "guest_trap:",
    "    sub     sp, sp, #176",
    "    stp     x0, x1, [sp, #0]",
    "    stp     x2, x3, [sp, #16]",
    "    stp     x4, x5, [sp, #32]",
    "    stp     x6, x7, [sp, #48]",
    "    stp     x8, x9, [sp, #64]",
    "    stp     x10, x11, [sp, #80]",
    "    stp     x12, x13, [sp, #96]",
    "    stp     x14, x15, [sp, #112]",
    "    stp     x16, x17, [sp, #128]",
    "    stp     x18, x29, [sp, #144]",
    "    str     x30, [sp, #160]",
    "    mov     x0, x30",
    "    bl      guest_exception",
    "    msr     elr_el1, x0",
    "    ldp     x0, x1, [sp, #0]",
    "    ldp     x2, x3, [sp, #16]",
    "    ldp     x4, x5, [sp, #32]",
    "    ldp     x6, x7, [sp, #48]",
    "    ldp     x8, x9, [sp, #64]",
    "    ldp     x10, x11, [sp, #80]",
    "    ldp     x12, x13, [sp, #96]",
    "    ldp     x14, x15, [sp, #112]",
    "    ldp     x16, x17, [sp, #128]",
    "    ldp     x18, x29, [sp, #144]",
    "    ldr     x30, [sp, #160]",
    "    add     sp, sp, #176",
    "    eret",
    ".popsection",
);
