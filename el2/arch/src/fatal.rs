// SPDX-License-Identifier: MIT OR Apache-2.0
//! The end of the line: say why, and stop every CPU for good. Stage 2 stays on.

use crate::percpu::this_cpu;
use crate::{barrier, uart::Uart};
use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, Ordering};

static STOPPED: AtomicBool = AtomicBool::new(false);

/// Whether some CPU has stopped the machine. Every entry to EL2 asks.
#[inline(always)]
pub fn is_stopped() -> bool {
    STOPPED.load(Ordering::Relaxed)
}

/// Stops the machine with one line on the console.
///
/// The first CPU to come here speaks; any other, and a failure while speaking, halts in silence. CPUs
/// in the host or in a guest stop at their next entry to EL2.
pub fn stop(kind: &str, why: fmt::Arguments<'_>) -> ! {
    if !STOPPED.swap(true, Ordering::AcqRel) {
        let _ = writeln!(Uart, "freehold: {kind}: {why}");
    }
    barrier::halt()
}

/// Stops the machine for a defect of el2's own, with what the exception registers hold.
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
