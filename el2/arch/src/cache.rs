// SPDX-License-Identifier: MIT OR Apache-2.0
//! Data and instruction cache maintenance by address. Keeps I4 where memory changes hands: what was
//! written reaches memory, and no older line comes back over it. The loops are not in line, so that the check of the
//! linked image finds them by name.

use crate::barrier;
use freehold_mem::{line_zeroed_at_once, smallest_line};

/// Whether instruction fetches see data writes without maintenance (CTR_EL0.DIC).
#[inline(always)]
pub fn instructions_are_coherent() -> bool {
    crate::sysreg::field(read_sysreg!("ctr_el0"), 29, 1) != 0
}

/// Does something to each `step` bytes of `[start, start + len)`, sixteen at a time: most often it is a frame.
#[inline(always)]
fn each(start: usize, len: usize, step: usize, what: impl Fn(usize)) {
    let (mut at, end) = (start & !step.wrapping_sub(1), start.wrapping_add(len));
    for _ in 0..end.wrapping_sub(at).checked_div(step).unwrap_or(0) / 16 {
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

/// Zeroes `[start, start + len)`, cleans and invalidates it to the point of coherency, a line at a time; false, and then
/// nothing was done, where what this CPU zeroes at once is no line or does not divide it.
///
/// # Safety
/// It is mapped, normal memory, which no reference leads into.
#[inline(never)]
pub unsafe fn zero_to_poc(start: usize, len: usize) -> bool {
    let Some(line) = line_zeroed_at_once(read_sysreg!("ctr_el0"), read_sysreg!("dczid_el0")) else { return false };
    if (start | len) & line.wrapping_sub(1) != 0 {
        return false;
    }
    each(start, len, line, |at| {
        // SAFETY: the line lies in what the caller names. Stores and maintenance of one line keep their order (D7.5.9.6).
        unsafe { core::arch::asm!("dc zva, {0}", "dc civac, {0}", in(reg) at, options(nostack)) };
    });
    barrier::system_done();
    true
}

/// Cleans and invalidates `[start, start + len)` to the point of coherency, for an observer with its caches off.
#[inline(never)]
pub fn clean_invalidate_to_poc(start: usize, len: usize) {
    each(start, len, smallest_line(read_sysreg!("ctr_el0")), |at| {
        // SAFETY: DC CIVAC writes back what this or another CPU stored; it never changes what a
        // coherent observer reads. The callers name mapped memory.
        unsafe { core::arch::asm!("dc civac, {}", in(reg) at, options(nostack)) };
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
