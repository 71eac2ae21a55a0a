// SPDX-License-Identifier: MIT OR Apache-2.0
//! Registers and instructions that a protected guest must not have: each is tried, and each must be
//! UNDEFINED, with the exception taken at EL1 as the architecture says, and nothing else changed. Debug registers, which
//! kernels touch before they look, read as zero whatever is written to them.

use crate::sysreg::{read, write};
use crate::trap;
use core::arch::asm;

/// ESR_EL1 of an undefined instruction: class 0, 32-bit.
const UNDEFINED: u64 = 1 << 25;

macro_rules! probes {
    ($($text:literal),+ $(,)?) => {
        [$(|| {
            // SAFETY: the instruction either traps, or reads or writes one register that nothing
            // else in this program uses; x0 is declared.
            unsafe { asm!($text, inout("x0") 0u64 => _, options(nostack)) };
        }),+]
    };
}

/// Tries them all. Returns how many did not trap, the index of the first of those, and the total.
pub(crate) fn try_all() -> (u64, u64, u64) {
    let probes: &[fn()] = &probes![
        "mrs x0, s3_3_c9_c12_0",  // 0 PMCR_EL0
        "mrs x0, s3_3_c9_c13_0",  // 1 PMCCNTR_EL0
        "msr s3_3_c9_c12_1, x0",  // 2 PMCNTENSET_EL0
        "mrs x0, s3_0_c1_c2_0",   // 3 ZCR_EL1
        "mrs x0, s3_0_c1_c2_6",   // 4 SMCR_EL1
        "mrs x0, s3_3_c4_c2_2",   // 5 SVCR
        "mrs x0, s3_3_c13_c0_5",  // 6 TPIDR2_EL0
        "mrs x0, s3_0_c9_c9_0",   // 7 PMSCR_EL1
        "mrs x0, s3_0_c9_c11_0",  // 8 TRBLIMITR_EL1
        "mrs x0, s3_0_c1_c2_1",   // 9 TRFCR_EL1
        "mrs x0, s2_1_c9_c0_0",   // 10 BRBCR_EL1
        "mrs x0, s3_3_c13_c2_0",  // 11 AMCR_EL0
        "mrs x0, s3_0_c10_c4_3",  // 12 LORC_EL1
        "mrs x0, s3_0_c1_c0_6",   // 13 GCR_EL1
        "mrs x0, s3_0_c2_c0_3",   // 14 TCR2_EL1
        "mrs x0, s3_0_c10_c2_3",  // 15 PIR_EL1
        "mrs x0, s3_0_c10_c5_0",  // 16 MPAM1_EL1
        "mrs x0, s3_0_c4_c6_0",   // 17 ICC_PMR_EL1
        "mrs x0, s3_0_c12_c12_0", // 18 ICC_IAR1_EL1
        "msr s3_0_c12_c11_5, x0", // 19 ICC_SGI1R_EL1
        "mrs x0, s3_0_c15_c0_0",  // 20 implementation defined
        "mrs x0, s3_1_c15_c2_0",  // 21 implementation defined
        "mrs x0, s3_4_c1_c1_0",   // 22 HCR_EL2
        "msr s3_4_c2_c1_0, x0",   // 23 VTTBR_EL2
        "mrs x0, s3_6_c1_c1_0",   // 24 SCR_EL3
        "dc isw, x0",             // 25 by set and way
        "dc cisw, x0",            // 26
        ".inst 0x04bf5000",       // 27 RDVL x0, #0: SVE
        ".inst 0xd503477f",       // 28 SMSTART
        ".inst 0x00000000",       // 29 UDF
        "mrs x0, s3_3_c13_c0_7",  // 30 SCXTNUM_EL0
        "msr s3_3_c13_c0_7, x0",  // 31
        "mrs x0, s3_0_c13_c0_7",  // 32 SCXTNUM_EL1
        "msr s3_0_c13_c0_7, x0",  // 33
        "mrs x0, s3_0_c5_c6_0",   // 34 TFSR_EL1
        "mrs x0, s3_0_c1_c0_5",   // 35 RGSR_EL1
    ];
    let mut result = (0, 0, probes.len() as u64);
    // Each probe finds registers that were written since the last exit, and the exception leaves them as they are.
    let before = exchange(0);
    for (index, probe) in (0..).zip(probes) {
        let mark = 0x5eed_0000 + index;
        exchange(mark);
        let ((), esr) = trap::catching(probe);
        if esr != UNDEFINED || exchange(0) != mark {
            result = (result.0 + 1, if result.0 == 0 { index } else { result.1 }, result.2);
        }
    }
    exchange(before);
    result
}

macro_rules! empty {
    ($($register:literal = $value:expr),+ $(,)?) => {
        [$(|| {
            write!($register, $value);
            read!($register)
        }),+]
    };
}

/// Writes the debug registers. Returns how many took it or caused an exception, the index of the first, and the total.
/// Nothing of it would start to debug this program, were it to arrive.
pub(crate) fn try_debug() -> (u64, u64, u64) {
    const ALL_BUT_ON: u64 = 0xffff_fffe;
    let registers: &[fn() -> u64] = &empty![
        "dbgbvr0_el1" = u64::MAX << 2,
        "dbgbcr0_el1" = ALL_BUT_ON,
        "dbgwvr0_el1" = u64::MAX << 3,
        "dbgwcr0_el1" = ALL_BUT_ON,
        "dbgbvr1_el1" = u64::MAX << 2,
        "dbgwvr1_el1" = u64::MAX << 3,
        "mdscr_el1" = 1 << 12,
        "mdccint_el1" = 3 << 29,
        "oseccr_el1" = 0xffff_ffff,
        "osdtrrx_el1" = 0xffff_ffff,
        "osdlr_el1" = 1,
        "dbgclaimset_el1" = 0xff,
        "dbgclaimclr_el1" = 0xff,
    ];
    let lock = || {
        write!("oslar_el1", 1);
        read!("oslsr_el1")
    };
    let all = registers.iter().copied().chain([lock as fn() -> u64]);
    let mut result = (0, 0, registers.len() as u64 + 1);
    for (index, register) in (0..).zip(all) {
        let (value, esr) = trap::catching(register);
        if value != 0 || esr != 0 {
            result = (result.0 + 1, if result.0 == 0 { index } else { result.1 }, result.2);
        }
    }
    result
}

/// Writes a register of EL1 that this program uses for nothing, TPIDR_EL1, and returns what it held.
fn exchange(new: u64) -> u64 {
    let old: u64;
    // SAFETY: the register means nothing to the CPU, and nobody else here reads it but to compare.
    unsafe { asm!("mrs {}, tpidr_el1", "msr tpidr_el1, {}", out(reg) old, in(reg) new, options(nostack)) };
    old
}
