// SPDX-License-Identifier: MIT OR Apache-2.0
//! The host's stage 2 on this CPU, the host's syndrome at a trap, and the first entry into it.
//!
//! Keeps D12: there is no function here that lets EL1 run with stage 2 off.

use crate::features::{Ids, configure_host, host_hcr};
use crate::{barrier, tlb};

/// Most IPA bits of the host: two concatenated level 1 tables.
const MAX_IPA_BITS: u32 = 40;
const VTCR_RES1: u64 = 1 << 31;
const VTCR_VS: u64 = 1 << 19;
const VTTBR_CNP: u64 = 1;
/// EL1h with everything masked.
const SPSR_EL1H_MASKED: u64 = 0x3c5;
/// SCTLR_EL1 with MMU and caches off; RES1 bits and SPAN.
const SCTLR_EL1_OFF: u64 = 0x30d0_0800;

/// How many IPA bits the host's stage 2 covers on this machine.
pub fn ipa_bits() -> u32 {
    Ids.physical_bits().min(MAX_IPA_BITS)
}

/// VTCR_EL2 for a 4 KB, level 1 start, `ipa_bits` stage 2, on this CPU.
fn vtcr(ipa_bits: u32) -> u64 {
    let range = Ids.physical_range();
    let vs = if Ids.has_16_bit_vmid() { VTCR_VS } else { 0 };
    // PS, SH0 inner shareable, write-back walks, SL0 = 1 (start at level 1), T0SZ.
    VTCR_RES1 | vs | range << 16 | 3 << 12 | 1 << 10 | 1 << 8 | 1 << 6 | u64::from(64_u32.wrapping_sub(ipa_bits))
}

/// VTTBR_EL2 for a root that this CPU alone walks under this VMID, if any does.
pub(crate) fn private_vttbr(root: u64, vmid: u64) -> u64 {
    root | vmid << 48
}

/// VTTBR_EL2 for a root and a VMID, the same on every CPU that uses the VMID: this CPU shares what it translates, if it can.
fn vttbr(root: u64, vmid: u64) -> u64 {
    let cnp = if Ids.has_cnp() { VTTBR_CNP } else { 0 };
    private_vttbr(root, vmid) | cnp
}

/// What stage 2 depends on and every CPU of a machine must have alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Alike {
    ipa_bits: u32,
    fwb: bool,
    granule: bool,
}

impl Alike {
    /// What this CPU has.
    pub fn here() -> Self {
        Self { ipa_bits: ipa_bits(), fwb: Ids.has_s2fwb(), granule: Ids.has_4k_granule() }
    }
}

/// Puts this CPU under the host's stage 2 and sets every register that governs the host.
pub fn configure(root: u64) {
    configure_host();
    write_sysreg!("vtcr_el2", vtcr(ipa_bits()));
    write_sysreg!("vttbr_el2", vttbr(root, 0));
    write_sysreg!("hcr_el2", host_hcr());
    barrier::registers_in_effect();
    tlb::invalidate_all_el1_here();
}

/// Leaves EL2 for the host at `pc` with `context` in x0, MMU off, as the boot protocol and PSCI say.
pub fn enter(pc: u64, context: u64) -> ! {
    write_sysreg!("sctlr_el1", SCTLR_EL1_OFF);
    write_sysreg!("elr_el2", pc);
    write_sysreg!("spsr_el2", SPSR_EL1H_MASKED);
    barrier::registers_in_effect();
    // SAFETY: EL2 is left for good on this stack: the next exception starts again at the stack's
    // top, which nothing else uses. Every general register but x0 is cleared.
    unsafe { leave(pc, context) }
}

/// # Safety
/// ELR_EL2 and SPSR_EL2 hold the host's entry; nothing on this CPU's stack is needed any more.
unsafe fn leave(_pc: u64, context: u64) -> ! {
    // SAFETY: the caller's promise; TPIDR_EL2 points at this CPU's record, whose first word is its
    // stack top.
    unsafe {
        core::arch::asm!(
            "mrs x1, tpidr_el2",
            "ldr x1, [x1, #{stack_top}]",
            "mov sp, x1",
            "mov x1, xzr", "mov x2, xzr", "mov x3, xzr", "mov x4, xzr", "mov x5, xzr",
            "mov x6, xzr", "mov x7, xzr", "mov x8, xzr", "mov x9, xzr", "mov x10, xzr",
            "mov x11, xzr", "mov x12, xzr", "mov x13, xzr", "mov x14, xzr", "mov x15, xzr",
            "mov x16, xzr", "mov x17, xzr", "mov x18, xzr", "mov x19, xzr", "mov x20, xzr",
            "mov x21, xzr", "mov x22, xzr", "mov x23, xzr", "mov x24, xzr", "mov x25, xzr",
            "mov x26, xzr", "mov x27, xzr", "mov x28, xzr", "mov x29, xzr", "mov x30, xzr",
            "eret",
            "dsb nsh",
            "isb",
            stack_top = const core::mem::offset_of!(crate::percpu::PerCpu, stack_top),
            in("x0") context,
            options(noreturn),
        )
    }
}

/// What the hardware says about the exception that was just taken.
#[derive(Clone, Copy, Debug)]
pub struct Syndrome(u64);

impl Syndrome {
    /// Reads ESR_EL2.
    #[inline(always)]
    pub fn read() -> Self {
        Self(read_sysreg!("esr_el2"))
    }

    /// The whole register.
    pub fn bits(self) -> u64 {
        self.0
    }

    /// Exception class.
    #[inline(always)]
    pub fn class(self) -> u64 {
        self.0 >> 26 & 0x3f
    }

    /// Immediate of an HVC or SMC.
    pub fn immediate(self) -> u16 {
        self.0 as u16
    }
}

/// The faulting virtual address.
pub fn fault_address() -> u64 {
    read_sysreg!("far_el2")
}

/// The faulting IPA's page, where HPFAR_EL2 is valid: stage-2 translation, access-flag and address
/// size faults, and any fault of a stage-1 walk.
pub fn fault_page() -> u64 {
    (read_sysreg!("hpfar_el2") & 0x0fff_ffff_fff0) << 8
}

/// Lets the host continue behind the instruction that trapped.
pub fn skip_instruction() {
    write_sysreg!("elr_el2", read_sysreg!("elr_el2").wrapping_add(4));
}

/// Makes the instruction before the return address the one that trapped: an HVC's return address is
/// behind it, that of an exception that it is turned into is not.
pub fn step_back() {
    write_sysreg!("elr_el2", read_sysreg!("elr_el2").wrapping_sub(4));
}

/// Where the exception was taken from: (ELR_EL2, SPSR_EL2).
pub fn return_state() -> (u64, u64) {
    (read_sysreg!("elr_el2"), read_sysreg!("spsr_el2"))
}

/// Name and revision of this CPU, as MIDR_EL1 says it.
pub fn midr() -> u64 {
    read_sysreg!("midr_el1")
}
