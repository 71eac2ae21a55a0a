// SPDX-License-Identifier: MIT OR Apache-2.0
//! TLB invalidation, named for what it ends. Keeps I3. Batches are counted by `mem`, which asks for them.

use crate::barrier;

/// Ends every translation of the VMID in VTTBR_EL2, stage 1 and 2, on every CPU. One broadcast.
#[inline(always)]
pub fn invalidate_current_vmid_everywhere() {
    barrier::stores_visible();
    // SAFETY: a TLB invalidation only makes later walks read the tables again.
    unsafe { core::arch::asm!("tlbi vmalls12e1is", options(nostack)) };
    finish();
}

/// Ends every EL1 translation of all VMIDs on every CPU. Used once, before the host starts.
pub fn invalidate_all_el1_everywhere() {
    barrier::stores_visible();
    // SAFETY: as above.
    unsafe { core::arch::asm!("tlbi alle1is", options(nostack)) };
    finish();
}

/// Ends every EL1 translation that this CPU may still hold from before it entered EL2.
pub fn invalidate_all_el1_here() {
    // SAFETY: as above.
    unsafe { core::arch::asm!("tlbi alle1", options(nostack)) };
    // SAFETY: IC IALLU only makes later fetches of this CPU read memory again.
    unsafe { core::arch::asm!("ic iallu", options(nostack)) };
    barrier::system_done();
    barrier::registers_in_effect();
}

/// Completes a broadcast. The dummy EL2 invalidation repeats the wait for the cores on which the
/// first DSB may return early (CVE-2025-10263 and the older errata of that kind); it costs little
/// and is done on all.
#[inline(always)]
fn finish() {
    barrier::maintenance_done();
    // SAFETY: invalidates the EL2 translation of page 0, which is never mapped.
    unsafe { core::arch::asm!("tlbi vale2is, xzr", options(nostack)) };
    barrier::maintenance_done();
    barrier::registers_in_effect();
}
