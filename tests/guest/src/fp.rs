// SPDX-License-Identifier: MIT OR Apache-2.0
//! Floating point and SIMD, by hand: the compiler never touches these registers, so what stands in
//! them stays there across Rust code, and only a world switch can lose it.

use crate::device;
use crate::proto::{REG_SCRATCH, pattern};
use crate::sysreg::{counter, read, write};
use core::arch::{asm, global_asm};

/// CPACR_EL1.FPEN, ZEN and SMEN: EL1 traps none of FP, SVE and SME, so that what it meets is EL2's doing.
const FP_ENABLED: u64 = 3 << 20 | 3 << 16 | 3 << 24;
/// FPCR: default NaN, flush to zero, round towards minus infinity.
const FPCR_PATTERN: u64 = 1 << 25 | 1 << 24 | 2 << 22;
/// FPSR: saturation, and the cumulative flags.
const FPSR_PATTERN: u64 = 1 << 27 | 0x1f;

/// Lets EL1 use FP.
pub(crate) fn enable() {
    write!("cpacr_el1", FP_ENABLED);
}

/// Whether 1.5 * 2.25 + 0.5 is 3.875 here.
pub(crate) fn computes() -> bool {
    let result: u64;
    // SAFETY: only v0-v3 change, which the compiler does not use.
    unsafe {
        asm!(
            ".arch_extension fp",
            "fmov d0, #1.5", "fmov d1, #2.25", "fmov d2, #0.5", "fmadd d3, d0, d1, d2", "fmov {}, d3",
            ".arch_extension nofp",
            out(reg) result, options(nostack),
        );
    }
    result == 3.875f64.to_bits()
}

/// Whether the registers are those of a CPU that was just reset. Asked before anything sets one.
pub(crate) fn is_reset() -> bool {
    let mut found = [u64::MAX; 64];
    // SAFETY: the area holds 32 registers of 16 bytes.
    unsafe { guest_save_v(found.as_mut_ptr()) };
    found == [0; 64] && read!("s3_3_c4_c4_0") == 0 && read!("s3_3_c4_c4_1") == 0
}

/// One instruction.
pub(crate) fn use_it() {
    // SAFETY: only v0 changes, which the compiler does not use.
    unsafe { asm!(".arch_extension fp", "fmov d0, #1.5", ".arch_extension nofp", options(nostack)) };
}

/// Fills all registers, makes `exits` exits that EL2 answers itself and as many that reach the host, and counts the
/// registers that changed.
pub(crate) fn survives(exits: u64) -> u64 {
    survives_all(|| {
        (0..exits).for_each(|n| {
            let _ = read!("id_aa64pfr0_el1");
            device::write64(REG_SCRATCH, n);
        })
    })
}

/// The same, but spins for so many ticks: whoever interrupts that is the host.
pub(crate) fn survives_time(ticks: u64) -> u64 {
    survives_all(|| {
        let start = counter();
        while counter() - start < ticks {
            core::hint::spin_loop();
        }
    })
}

/// Fills all registers, and leaves them so.
pub(crate) fn leave_full(seed: u64) {
    let filled: [u64; 64] = core::array::from_fn(|n| pattern(seed, n as u64));
    // SAFETY: the area holds 32 registers of 16 bytes.
    unsafe { guest_load_v(filled.as_ptr()) };
    write!("s3_3_c4_c4_0", FPCR_PATTERN);
    write!("s3_3_c4_c4_1", FPSR_PATTERN);
}

fn survives_all(what: impl FnOnce()) -> u64 {
    let seed = read!("cntvct_el0");
    let filled: [u64; 64] = core::array::from_fn(|n| pattern(seed, n as u64));
    let mut found = [0u64; 64];
    // SAFETY: the area holds 32 registers of 16 bytes.
    unsafe { guest_load_v(filled.as_ptr()) };
    write!("s3_3_c4_c4_0", FPCR_PATTERN);
    write!("s3_3_c4_c4_1", FPSR_PATTERN);
    what();
    // SAFETY: as above.
    unsafe { guest_save_v(found.as_mut_ptr()) };
    let control = [(read!("s3_3_c4_c4_0"), FPCR_PATTERN), (read!("s3_3_c4_c4_1"), FPSR_PATTERN)];
    write!("s3_3_c4_c4_0", 0);
    let vectors = filled.chunks(2).zip(found.chunks(2)).filter(|(was, is)| was != is).count();
    (vectors + control.iter().filter(|(is, was)| is != was).count()) as u64
}

unsafe extern "C" {
    /// # Safety
    /// `area` holds 512 bytes.
    fn guest_save_v(area: *mut u64);
    /// # Safety
    /// `area` holds 512 bytes.
    fn guest_load_v(area: *const u64);
}

global_asm!(
    ".pushsection .text.guest_fp, \"ax\"",
    ".arch_extension fp",
    ".arch_extension simd",
    ".macro guest_all_v operation",
    "    \\operation q0, q1, [x0, #0]",
    "    \\operation q2, q3, [x0, #32]",
    "    \\operation q4, q5, [x0, #64]",
    "    \\operation q6, q7, [x0, #96]",
    "    \\operation q8, q9, [x0, #128]",
    "    \\operation q10, q11, [x0, #160]",
    "    \\operation q12, q13, [x0, #192]",
    "    \\operation q14, q15, [x0, #224]",
    "    \\operation q16, q17, [x0, #256]",
    "    \\operation q18, q19, [x0, #288]",
    "    \\operation q20, q21, [x0, #320]",
    "    \\operation q22, q23, [x0, #352]",
    "    \\operation q24, q25, [x0, #384]",
    "    \\operation q26, q27, [x0, #416]",
    "    \\operation q28, q29, [x0, #448]",
    "    \\operation q30, q31, [x0, #480]",
    "    ret",
    ".endm",
    ".global guest_save_v",
    "guest_save_v:",
    "    guest_all_v stp",
    ".global guest_load_v",
    "guest_load_v:",
    "    guest_all_v ldp",
    ".arch_extension nosimd",
    ".arch_extension nofp",
    ".popsection",
);
