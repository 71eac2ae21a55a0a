// SPDX-License-Identifier: MIT OR Apache-2.0
//! Data and instruction cache maintenance by address. Keeps I4 where memory changes hands: what was
//! written reaches memory, and no older line comes back over it. The loops are not in line, so that the check of the
//! linked image finds them by name.

use crate::barrier;

/// Size in bytes of the smallest data cache line of this system (CTR_EL0.DminLine).
pub fn line_size() -> usize {
    4 << crate::sysreg::field(read_sysreg!("ctr_el0"), 16, 4)
}

/// Whether instruction fetches see data writes without maintenance (CTR_EL0.DIC).
#[inline(always)]
pub fn instructions_are_coherent() -> bool {
    crate::sysreg::field(read_sysreg!("ctr_el0"), 29, 1) != 0
}

/// Bytes that one DC ZVA zeroes; none where it is prohibited (DCZID_EL0.BS and DZP).
fn zero_size() -> Option<usize> {
    let kind = read_sysreg!("dczid_el0");
    (kind & 1 << 4 == 0).then(|| 4 << (kind & 0xf))
}

/// Does something to each `step` bytes of `[start, start + len)`, sixteen at a time: most often it is a frame.
#[inline(always)]
fn each(start: usize, len: usize, step: usize, what: impl Fn(usize)) {
    let (mut at, end) = (start & !step.wrapping_sub(1), start.saturating_add(len));
    while end.saturating_sub(at) >= step.wrapping_mul(16) {
        for _ in 0..16 {
            what(at);
            at = at.wrapping_add(step);
        }
    }
    while at < end {
        what(at);
        at = at.wrapping_add(step);
    }
}

/// Zeroes `[start, start + len)`, a block of the cache at a time; false if this CPU has none that divide it.
///
/// # Safety
/// It is mapped, normal memory, which no reference leads into.
#[inline(never)]
pub unsafe fn zero_blocks(start: usize, len: usize) -> bool {
    let Some(block) = zero_size().filter(|block| start.is_multiple_of(*block) && len.is_multiple_of(*block)) else {
        return false;
    };
    each(start, len, block, |at| {
        // SAFETY: the block lies in what the caller names.
        unsafe { core::arch::asm!("dc zva, {}", in(reg) at, options(nostack)) };
    });
    true
}

/// Cleans and invalidates `[start, start + len)` to the point of coherency.
#[inline(never)]
pub fn clean_invalidate_to_poc(start: usize, len: usize) {
    each(start, len, line_size(), |at| {
        // SAFETY: DC CIVAC writes back what this or another CPU stored; it never changes what a
        // coherent observer reads. The callers name mapped memory.
        unsafe { core::arch::asm!("dc civac, {}", in(reg) at, options(nostack)) };
    });
    barrier::system_done();
}

/// Cleans `[start, start + len)` to the point of coherency, for an observer with its caches off.
#[inline(never)]
pub fn clean_to_poc(start: usize, len: usize) {
    each(start, len, line_size(), |at| {
        // SAFETY: DC CVAC only writes back; the callers name mapped memory.
        unsafe { core::arch::asm!("dc cvac, {}", in(reg) at, options(nostack)) };
    });
    barrier::system_done();
}

/// Drops every line of all instruction caches of the inner shareable domain.
pub fn invalidate_instructions_everywhere() {
    // SAFETY: IC IALLUIS only makes later fetches read memory again.
    unsafe { core::arch::asm!("ic ialluis", options(nostack)) };
    barrier::maintenance_done();
    barrier::registers_in_effect();
}
