// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which stage-2 tables are in force on this CPU.

use super::el1::{start_walks, stop_walks};
use crate::barrier;
use freehold_virt::setting::{Stage2, Stage2Here};

/// How a VM's addresses are translated, and who its vCPU is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestRegime {
    /// VTTBR_EL2 and VTCR_EL2, but for what belongs to the CPU.
    pub stage2: Stage2,
    /// VMPIDR_EL2: the affinity that the vCPU reads from MPIDR_EL1.
    pub vmpidr: u64,
    /// Another vCPU of this VM may have been the last one of it on this CPU: what the TLB cached for that one under a like
    /// ASID must go.
    pub flush_local: bool,
}

/// Puts tables in force. Stage-1 walks must be off.
#[inline(always)]
pub(super) fn load(stage2: Stage2Here) {
    write_sysreg!("vtcr_el2", stage2.vtcr);
    write_sysreg!("vttbr_el2", stage2.vttbr);
    barrier::registers_in_effect();
}

/// Does something under another VTTBR_EL2 at a trap of the host, and puts the host's back.
///
/// The host's profiling and trace buffers are written, and its stage 1 is walked, with the VTTBR_EL2 in
/// force, EL2 or not: the buffers are drained and the walks off before it changes, so that neither the
/// other root nor the other VMID is ever used, or cached, together with the host's stage 1.
#[inline(always)]
pub(crate) fn with_other_stage2(vttbr: u64, what: impl FnOnce()) {
    let (sctlr, tcr) = (read_sysreg!("sctlr_el1"), read_sysreg!("tcr_el1"));
    let hosts = read_sysreg!("vttbr_el2");
    barrier::host_traffic_done();
    stop_walks(sctlr, tcr);
    write_sysreg!("vttbr_el2", vttbr);
    barrier::registers_in_effect();
    what();
    write_sysreg!("vttbr_el2", hosts);
    start_walks(sctlr, tcr);
    barrier::registers_in_effect();
}

/// Forgets stage-1 translations and instructions that a sibling vCPU left on this CPU. The guest's
/// VMID must be in force.
pub(super) fn forget_sibling_here() {
    // SAFETY: a TLB invalidation only makes later walks read the tables again.
    unsafe { core::arch::asm!("tlbi vmalle1", options(nostack)) };
    // SAFETY: an instruction cache invalidation only makes later fetches read memory again.
    unsafe { core::arch::asm!("ic iallu", options(nostack)) };
    barrier::walks_finished_here();
    barrier::registers_in_effect();
}
