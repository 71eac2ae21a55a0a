// SPDX-License-Identifier: MIT OR Apache-2.0
//! Barriers, named for why they are there.

use aarch64_cpu::asm::barrier;

/// Makes system register writes take effect before the next instruction.
#[inline(always)]
pub fn registers_in_effect() {
    barrier::isb(barrier::SY);
}

/// Waits until earlier stores (descriptors, mailboxes) are visible to every CPU and table walker.
#[inline(always)]
pub fn stores_visible() {
    barrier::dsb(barrier::ISHST);
}

/// Waits until earlier TLB and cache maintenance has finished on every CPU.
#[inline(always)]
pub fn maintenance_done() {
    barrier::dsb(barrier::ISH);
}

/// Waits until earlier accesses and maintenance have reached the whole system, devices included.
#[inline(always)]
pub fn system_done() {
    barrier::dsb(barrier::SY);
}

/// Waits until this CPU's earlier accesses, table walks and local maintenance have finished.
#[inline(always)]
pub fn walks_finished_here() {
    barrier::dsb(barrier::NSH);
}

/// Waits until the statistical profiling extension has written all that it has sampled.
pub fn profiling_drained() {
    // SAFETY: PSB CSYNC (a hint) orders the profiling buffer and has no other effect.
    unsafe { core::arch::asm!("hint #17", options(nostack)) };
    barrier::dsb(barrier::NSH);
}

/// Waits until the trace unit has handed all that it has traced to the buffer, and that is written.
pub fn trace_drained() {
    // SAFETY: TSB CSYNC (a hint) orders the trace buffer and has no other effect.
    unsafe { core::arch::asm!("hint #18", options(nostack)) };
    barrier::dsb(barrier::NSH);
}

/// Waits until profiling and trace records of EL1 are written, and walks for EL1 are over, on this CPU.
pub fn host_traffic_done() {
    // SAFETY: PSB CSYNC and TSB CSYNC only wait; they are NOPs where the features are absent.
    unsafe { core::arch::asm!("hint #17", "hint #18", options(nostack)) };
    barrier::dsb(barrier::NSH);
    barrier::isb(barrier::SY);
}

/// Nothing behind this is executed by guessing the outcome of a branch before it (Arm, "Cache
/// Speculation Side-channels": DSB and ISB where SB may be missing).
#[inline(always)]
pub fn no_guessing() {
    barrier::dsb(barrier::NSH);
    barrier::isb(barrier::SY);
}

/// Stops this CPU for good.
pub fn halt() -> ! {
    loop {
        aarch64_cpu::asm::wfe();
    }
}
