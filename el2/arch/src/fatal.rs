// SPDX-License-Identifier: MIT OR Apache-2.0
//! The end of the line: say why, and stop every CPU for good.
//!
//! Stage 2 is never switched off. On the contrary: the host's tables are emptied, so that a CPU which
//! runs the host comes to EL2 at its next instruction and finds the machine stopped.

use crate::percpu::this_cpu;
use crate::{barrier, tlb, uart::Uart};
use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

static STOPPED: AtomicBool = AtomicBool::new(false);

/// The host's root table, and how many entries it has; none until the host starts.
static HOST_ROOT: AtomicUsize = AtomicUsize::new(0);
static HOST_ENTRIES: AtomicUsize = AtomicUsize::new(0);

/// Tells which table to empty when the machine stops: the root of the host's stage 2 with so many
/// address bits, which stands for as long as the machine runs.
pub fn guard_host(root: u64, ipa_bits: u32) {
    HOST_ENTRIES.store(1 << (ipa_bits - 30), Ordering::Relaxed);
    HOST_ROOT.store(root as usize, Ordering::Release);
}

/// Takes all memory from the host, whoever holds its lock: nothing will be undone any more.
fn starve_host() {
    let root = HOST_ROOT.load(Ordering::Acquire) as *const AtomicU64;
    if root.is_null() {
        return;
    }
    for index in 0..HOST_ENTRIES.load(Ordering::Relaxed) {
        // SAFETY: `guard_host` named a table of that many entries, which is never freed.
        let entry = unsafe { root.add(index) };
        // SAFETY: as above; table words are accessed atomically by everyone.
        unsafe { &*entry }.store(0, Ordering::Relaxed);
    }
    tlb::invalidate_all_el1_everywhere();
}

/// Whether some CPU has stopped the machine. Every entry to EL2 asks.
#[inline(always)]
pub fn is_stopped() -> bool {
    STOPPED.load(Ordering::Relaxed)
}

/// Stops the machine with one line on the console.
///
/// The first CPU to come here speaks; any other, and a failure while speaking, halts in silence. CPUs
/// in the host stop at once, CPUs in a guest when they come back to the host.
#[cold]
#[inline(never)]
pub fn stop(kind: &str, why: fmt::Arguments<'_>) -> ! {
    if !STOPPED.swap(true, Ordering::AcqRel) {
        starve_host();
        let _ = writeln!(Uart, "freehold: {kind}: {why}");
    }
    barrier::halt()
}

/// Stops the machine for a defect of el2's own, with what the exception registers hold.
#[cold]
#[inline(never)]
pub fn panic(why: fmt::Arguments<'_>) -> ! {
    stop(
        "panic",
        format_args!(
            "{why} (cpu {}, esr {:#x}, elr {:#x}, far {:#x}, hpfar {:#x}, spsr {:#x})",
            this_cpu().index(),
            read_sysreg!("esr_el2"),
            read_sysreg!("elr_el2"),
            read_sysreg!("far_el2"),
            read_sysreg!("hpfar_el2"),
            read_sysreg!("spsr_el2"),
        ),
    )
}

/// Stops the machine for what no input can cause. Together with `mem`'s port and the report of an exception at EL2 the
/// only way from a trap to a stop, which the check of the linked image relies on: hence a function of its own.
#[cold]
#[inline(never)]
pub fn defect(what: &'static str) -> ! {
    panic(format_args!("{what}"))
}

/// Reports an exception that EL2 took from itself. `vector` is its place in the table.
#[unsafe(no_mangle)]
extern "C" fn freehold_fatal_exception(vector: u64, sp: u64) -> ! {
    let names = ["synchronous exception", "IRQ", "FIQ", "SError"];
    let what = names[vector as usize & 3];
    let stack_top = this_cpu().stack_top.load(Ordering::Relaxed) as u64;
    let lowest = stack_top - crate::percpu::STACK_SIZE as u64;
    let overflow = if sp < lowest + 256 { ", stack overflow" } else { "" };
    panic(format_args!("{what} at EL2 (vector {vector}, sp {sp:#x}{overflow})"))
}
