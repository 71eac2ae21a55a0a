// SPDX-License-Identifier: MIT OR Apache-2.0
//! The CPUs' own redistributors, as far as EL2's interrupts need them: three bits each, in three registers.
//!
//! PPI 25 (maintenance), 26 (EL2's timer, and kicks of other CPUs) and 27 (the virtual timer) bring a guest out. EL2
//! never acknowledges one: they are levels, and fall when the guest's state is taken off the CPU; a kick is taken back
//! before the host goes on. The rest of the frame is the host's, which can switch these off and so hinder guests, no more.

use crate::barrier;
use crate::percpu::{self, AFFINITY, NO_CPU, PerCpu};
use core::sync::atomic::Ordering;

/// Frames of one redistributor of GICv3, and of one that has virtual LPIs (GICv4).
const STRIDE: usize = 0x2_0000;
const STRIDE_V4: usize = 0x4_0000;
/// GICR_TYPER: VLPIS, and Last.
const TYPER: usize = 8;
const HAS_VLPIS: u64 = 1 << 1;
const IS_LAST: u64 = 1 << 4;

const SGI_FRAME: usize = 0x1_0000;
const ENABLE: usize = SGI_FRAME + 0x100;
const PEND: usize = SGI_FRAME + 0x200;
const UNPEND: usize = SGI_FRAME + 0x280;
const ACTIVATE: usize = SGI_FRAME + 0x300;
const DEACTIVATE: usize = SGI_FRAME + 0x380;

const OWN: u32 = 1 << 25 | 1 << 26 | 1 << 27;
/// EL2's timer's: who kicks a CPU makes it pending there.
const KICK: u32 = 1 << 26;
const TIMER: u32 = 1 << 27;

/// Finds the redistributors of all CPUs in a region that is mapped as device memory.
///
/// Only the boot CPU calls this, before any other CPU runs.
pub fn find(start: usize, end: usize) {
    let mut frame = start;
    while frame.saturating_add(STRIDE) <= end {
        let place = (frame + TYPER) as *const u64;
        // SAFETY: the register lies in the region, which the caller has mapped; a load of it has no effect.
        let typer = unsafe { place.read_volatile() };
        let affinity = (typer >> 32 & 0xff_ffff) | (typer >> 56) << 32;
        for cpu in percpu::all() {
            let mpidr = cpu.mpidr.load(Ordering::Relaxed);
            if mpidr != NO_CPU && mpidr & AFFINITY == affinity {
                cpu.redistributor.store(frame, Ordering::Relaxed);
            }
        }
        if typer & IS_LAST != 0 {
            return;
        }
        frame += if typer & HAS_VLPIS != 0 { STRIDE_V4 } else { STRIDE };
    }
}

/// Whether every CPU's was found.
pub fn all_found() -> bool {
    percpu::all()
        .iter()
        .all(|cpu| cpu.mpidr.load(Ordering::Relaxed) == NO_CPU || cpu.redistributor.load(Ordering::Relaxed) != 0)
}

fn write(cpu: &PerCpu, offset: usize, bits: u32) {
    let frame = cpu.redistributor.load(Ordering::Relaxed);
    if frame != 0 {
        let place = frame.wrapping_add(offset) as *mut u32;
        // SAFETY: `find` saw the CPU's redistributor there, the boot has mapped all of it, and the registers written
        // here set or clear bits of EL2's own interrupts only.
        unsafe { place.write_volatile(bits) };
        if offset == PEND || offset == UNPEND {
            // SAFETY: as above. A load behind the store: it has reached the redistributor when this is done.
            unsafe { place.read_volatile() };
        }
    }
    barrier::system_done();
}

/// Lets EL2's interrupts through.
pub(crate) fn allow_own() {
    write(percpu::this_cpu(), ENABLE, OWN);
}

/// Keeps the virtual timer's interrupt quiet, for a guest that has it already or can not have it.
pub(crate) fn hold_timer() {
    write(percpu::this_cpu(), ACTIVATE, TIMER);
}

/// Ends the virtual timer's interrupt for whoever runs next. The timer is stopped.
pub(crate) fn release_timer() {
    write(percpu::this_cpu(), DEACTIVATE, TIMER);
}

/// Makes the guests of other CPUs, by number, come out: EL2's timer's interrupt is made pending there.
pub fn kick(cpus: u32) {
    for (n, cpu) in (0..32u32).zip(percpu::all()) {
        if cpus & 1u32.unbounded_shl(n) != 0 && cpu.index() != percpu::this_cpu().index() {
            write(cpu, PEND, KICK);
        }
    }
}

/// Takes back a kick that this CPU has heard of, or that came too late.
pub fn forget_kick() {
    write(percpu::this_cpu(), UNPEND, KICK);
}
