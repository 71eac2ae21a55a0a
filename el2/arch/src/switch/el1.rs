// SPDX-License-Identifier: MIT OR Apache-2.0
//! EL1 system state: what host and guest each have a copy of.
//!
//! SCTLR_EL1 and TCR_EL1 are apart from the rest: they say whether and how stage 1 is walked, and are
//! changed only in the two orders that `stop_walks` and `start_walks` spell out.

use crate::barrier;

/// SCTLR_EL1 with MMU and caches off: the RES1 bits and SPAN.
const SCTLR_RESET: u64 = 0x30d0_0800;
const SCTLR_M: u64 = 1 << 0;
/// TCR_EL1: a TLB miss for either half faults instead of walking.
const TCR_EPD0: u64 = 1 << 7;
const TCR_EPD1: u64 = 1 << 23;

macro_rules! el1_registers {
    ($($field:ident = $register:literal),+ $(,)?) => {
        /// A copy of the EL1 registers that a guest may use.
        #[derive(Clone, Copy, Debug)]
        #[repr(C)]
        pub(super) struct El1State {
            pub(super) sctlr: u64,
            pub(super) tcr: u64,
            $(pub(super) $field: u64,)+
        }

        impl El1State {
            /// Of nobody: all zero.
            pub(super) const fn new() -> Self {
                Self { sctlr: 0, tcr: 0, $($field: 0,)+ }
            }

            /// Registers of a core that was just reset.
            pub(super) const fn reset() -> Self {
                Self { sctlr: SCTLR_RESET, ..Self::new() }
            }

            /// Copies the registers of this CPU.
            pub(super) fn save(&mut self) {
                // All are read before the first is stored, and below loaded before the first is written: in pairs.
                *self = Self {
                    sctlr: read_sysreg!("sctlr_el1"),
                    tcr: read_sysreg!("tcr_el1"),
                    $($field: read_sysreg!($register),)+
                };
            }

            /// Each of them, in the order of the host's ABI.
            pub(super) fn words(&mut self) -> impl Iterator<Item = &mut u64> {
                [&mut self.sctlr, &mut self.tcr, $(&mut self.$field),+].into_iter()
            }

            /// Loads everything but SCTLR_EL1 and TCR_EL1. Walks must be off, or what they depend on be in force already.
            pub(super) fn load_all_but_regime(&self) {
                let Self { sctlr: _, tcr: _, $($field),+ } = *self;
                $(write_sysreg!($register, $field);)+
            }
        }
    };
}

// The order is that of the host's ABI, from `REG_EL1` on.
el1_registers! {
    cpacr = "cpacr_el1", ttbr0 = "ttbr0_el1", ttbr1 = "ttbr1_el1", mair = "mair_el1",
    amair = "amair_el1",
    vbar = "vbar_el1", esr = "esr_el1", far = "far_el1", afsr0 = "afsr0_el1",
    afsr1 = "afsr1_el1", contextidr = "contextidr_el1", par = "par_el1", tpidr0 = "tpidr_el0",
    tpidrro = "tpidrro_el0", tpidr1 = "tpidr_el1", cntkctl = "cntkctl_el1", sp0 = "sp_el0",
    sp1 = "sp_el1", elr = "elr_el1", spsr = "spsr_el1",
}

/// Sets SCTLR_EL1, then lets the walks begin. Stage 2 and the other registers must be this world's
/// already; the walks begin with the next ISB or exception return.
#[inline(always)]
pub(super) fn start_walks(sctlr: u64, tcr: u64) {
    barrier::registers_in_effect();
    write_sysreg!("sctlr_el1", sctlr);
    barrier::registers_in_effect();
    write_sysreg!("tcr_el1", tcr);
}

/// Ends stage-1 walks on this CPU: with EPD0 and EPD1 set and the MMU on, no address is walked, so
/// nothing is translated by a mix of two worlds. The values are any world's: TCR_EL1 only supplies the
/// sizes.
///
/// A walk may have begun before that, also by speculation after the exception to EL2. The DSB waits
/// for it: none is under way, and none of its results can still be cached, when this returns.
#[inline(always)]
pub(super) fn stop_walks(sctlr: u64, tcr: u64) {
    write_sysreg!("tcr_el1", tcr | TCR_EPD0 | TCR_EPD1);
    barrier::registers_in_effect();
    write_sysreg!("sctlr_el1", sctlr | SCTLR_M);
    barrier::registers_in_effect();
    barrier::walks_finished_here();
    barrier::registers_in_effect();
}
