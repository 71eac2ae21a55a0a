// SPDX-License-Identifier: MIT OR Apache-2.0
//! Work without an end that el2 has a part in: interrupts that come again for ever, SGIs, aborts. With interrupts masked,
//! so that nobody but the host brings this CPU out. And two CPUs that send each other SGIs as fast as they can.

use crate::interrupts::{GICD, PENDING, SGI_FRAME, acknowledge, end, send_sgi, store, take_sgi};
use crate::mmu::EXECUTABLE;
use crate::proto::{LAST_ABORT, LAST_LEVEL, LAST_SGI, NO_INTERRUPT, SGI};
use crate::sysreg::{counter, read, write};
use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

/// Of the flood alone.
const FLOOD: u64 = SGI + 4;
/// So many come to either CPU before it ends,
const ENOUGH: u64 = 20;
/// which takes no longer than this: 60 s at 62.5 MHz.
const PATIENCE: u64 = 3_750_000_000;

/// CPUs to which enough came.
static CONTENT: AtomicU64 = AtomicU64::new(0);

/// Goes on until the host has had enough.
pub(crate) fn begin(what: u64) -> ! {
    match what {
        // The host holds the wire of its SPI high.
        LAST_LEVEL => loop {
            end(acknowledge());
        },
        LAST_SGI => loop {
            send_sgi(SGI, 0);
            end(acknowledge());
        },
        LAST_ABORT => write!("vbar_el1", EXECUTABLE + GICD),
        _ => {}
    }
    // SAFETY: there is no way back: the fetch faults, and so does that of each vector.
    unsafe { asm!("br {}", in(reg) EXECUTABLE + GICD, options(noreturn)) };
}

/// Sends SGIs to another CPU and takes those that come, for so many ticks and until enough came to both; how many of either,
/// and of others.
fn flood(target: u64, ticks: u64) -> [u64; 3] {
    let (start, mut sent, mut got, mut others) = (counter(), 0, 0, 0);
    let is_over = |after: u64| after >= ticks && (CONTENT.load(Ordering::SeqCst) == 2 || after >= PATIENCE);
    while !is_over(counter() - start) {
        send_sgi(FLOOD, target);
        sent += 1;
        if read!("isr_el1") & PENDING != 0 {
            let interrupt = acknowledge();
            end(interrupt);
            got += u64::from(interrupt == FLOOD);
            if interrupt == FLOOD && got == ENOUGH {
                CONTENT.fetch_add(1, Ordering::SeqCst);
            }
            others += u64::from(interrupt != FLOOD);
        }
    }
    [sent, got, others]
}

/// Lets the flood's SGI through, or does not and forgets it, on a CPU.
fn open(cpu: u64, opens: bool) {
    let frame = SGI_FRAME + (cpu << 17);
    store(frame + if opens { 0x100 } else { 0x180 }, 1 << FLOOD);
    if !opens {
        store(frame + 0x280, 1 << FLOOD);
    }
}

/// The other CPU's half, on `cpu`.
pub(crate) fn there(cpu: u64, ticks: u64) -> [u64; 3] {
    open(cpu, true);
    let [sent, got, others] = flood(0, ticks);
    open(cpu, false);
    [u64::from(got < ENOUGH) + others, sent, got]
}

/// Before either half.
pub(crate) fn prepare() {
    CONTENT.store(0, Ordering::SeqCst);
}

/// This CPU's half, and what came of the other's, which is done when its SGI comes.
pub(crate) fn here(cpu: u64, ticks: u64, others: impl FnOnce() -> [u64; 3]) -> [u64; 3] {
    open(0, true);
    let [sent, got, done] = flood(cpu, ticks);
    // It says so by an SGI of its own, once.
    let got = got + if done == 0 { take_sgi() } else { 0 };
    open(0, false);
    let [wrong, theirs, there] = others();
    let quiet = read!("isr_el1") & PENDING == 0 && acknowledge() == NO_INTERRUPT;
    [wrong + u64::from(got < ENOUGH || done > 1 || !quiet), sent + theirs, got + there]
}
