// SPDX-License-Identifier: MIT OR Apache-2.0
//! Exceptions that EL2 gives to EL1: the fault policy's alignment abort, and UNDEFINED.
//!
//! Guarantees that EL1 sees what an exception taken by the hardware would have shown it. The choice
//! of the alignment code is the design's (D7).

use crate::features::Ids;
use crate::host;

const MODE: u64 = 0x1f;
const EL0: u64 = 0x0;
const EL1T: u64 = 0x4;
const EL1H: u64 = 0x5;
const AARCH32: u64 = 1 << 4;

const DAIF: u64 = 0xf << 6;
const PSTATE_SSBS: u64 = 1 << 12;
const PSTATE_ALLINT: u64 = 1 << 13;
const PSTATE_PAN: u64 = 1 << 22;
const PSTATE_DIT: u64 = 1 << 24;
const PSTATE_TCO: u64 = 1 << 25;
/// N, Z, C, V.
const FLAGS: u64 = 0xf << 28;
const SCTLR_SPAN: u64 = 1 << 23;
const SCTLR_DSSBS: u64 = 1 << 44;
const SCTLR_SPINTMASK: u64 = 1 << 62;

const IL: u64 = 1 << 25;
const CLASS_UNKNOWN: u64 = 0x00;
const CLASS_FETCH_LOWER: u64 = 0x20;
const CLASS_DATA_LOWER: u64 = 0x24;
/// Added to an abort's class when EL1 itself caused it.
const SAME_LEVEL: u64 = 1;
const FSC_ALIGNMENT: u64 = 0x21;
const WRITE_NOT_READ: u64 = 1 << 6;
const CACHE_MAINTENANCE: u64 = 1 << 8;

/// Which abort EL1 is to see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Abort {
    /// Of an instruction fetch.
    Fetch,
    /// Of a load, store or cache operation.
    Data,
}

/// Set in an address that TTBR1_EL1 translates, whatever its tag.
const KERNEL_HALF: u64 = 1 << 55;

/// Gives EL1 an alignment abort at the address that this exception reported.
pub fn alignment_abort(abort: Abort, syndrome: host::Syndrome) {
    let (_, spsr) = host::return_state();
    let lower = match abort {
        Abort::Fetch => CLASS_FETCH_LOWER,
        Abort::Data => CLASS_DATA_LOWER,
    };
    let class = if from_el0(spsr) { lower } else { lower + SAME_LEVEL };
    let kept = match abort {
        Abort::Fetch => 0,
        Abort::Data => syndrome.bits() & (WRITE_NOT_READ | CACHE_MAINTENANCE),
    };
    write_sysreg!("far_el1", host::fault_address());
    enter_el1(class << 26 | IL | kept | FSC_ALIGNMENT);
}

/// Gives EL1 an UNDEFINED instruction exception at the trapped instruction.
pub fn undefined() {
    enter_el1(CLASS_UNKNOWN << 26 | IL);
}

fn enter_el1(esr: u64) {
    let (elr, spsr) = host::return_state();
    write_sysreg!("esr_el1", esr);
    write_sysreg!("elr_el1", elr);
    write_sysreg!("spsr_el1", spsr);
    write_sysreg!("elr_el2", read_sysreg!("vbar_el1").wrapping_add(vector_offset(spsr)));
    write_sysreg!("spsr_el2", exception_state(spsr, read_sysreg!("sctlr_el1"), &Ids));
}

fn from_el0(spsr: u64) -> bool {
    spsr & AARCH32 != 0 || spsr & MODE == EL0
}

/// Whether the access that this exception reported was the host kernel's, at an address of its own half (bit 55).
pub fn is_of_kernel_address() -> bool {
    let (_, spsr) = host::return_state();
    !from_el0(spsr) && host::fault_address() & KERNEL_HALF != 0
}

/// Offset of the synchronous vector for an exception from where `spsr` says.
pub(crate) fn vector_offset(spsr: u64) -> u64 {
    match spsr & MODE {
        EL1H => 0x200,
        EL1T => 0x000,
        mode if mode & AARCH32 != 0 => 0x600,
        _ => 0x400,
    }
}

/// PSTATE on entry to EL1 (Arm ARM, AArch64.TakeException).
pub(crate) fn exception_state(spsr: u64, sctlr: u64, ids: &Ids) -> u64 {
    // In an AArch32 SPSR the flags are where they are in AArch64, DIT and PAN are elsewhere.
    let kept = if spsr & AARCH32 != 0 { FLAGS } else { FLAGS | PSTATE_DIT | PSTATE_PAN };
    let mut state = spsr & kept | DAIF | EL1H;
    if ids.has_pan() && sctlr & SCTLR_SPAN == 0 {
        state |= PSTATE_PAN;
    }
    if ids.has_ssbs() && sctlr & SCTLR_DSSBS != 0 {
        state |= PSTATE_SSBS;
    }
    if ids.has_nmi() && sctlr & SCTLR_SPINTMASK == 0 {
        state |= PSTATE_ALLINT;
    }
    if ids.has_mte2() {
        state |= PSTATE_TCO;
    }
    state
}
