// SPDX-License-Identifier: MIT OR Apache-2.0
//! Time: the architecture's counter beside the kernel's clock, timers on every CPU, and stamps for who reads the console.

use std::arch::asm;
use std::time::Duration;

use crate::sys;

/// How long counter and clock are compared.
const WATCH: Duration = Duration::from_secs(2);
/// A wait of that length is to be longer by less than 1 % in some round of [`ROUNDS`].
const OVER: Duration = Duration::from_millis(20);
/// Timers of each CPU, and how long each runs.
const TIMERS: u32 = 20;
const TIMER: Duration = Duration::from_millis(10);
/// Half of them are to be late by less in some round, of so many: the machine may be loaded.
const LATE: Duration = Duration::from_millis(5);
const ROUNDS: u32 = 20;
/// Loaded machines are late, but not by minutes.
const LATEST: Duration = Duration::from_secs(20);

fn counter() -> u64 {
    let ticks: u64;
    // SAFETY: reads a register that user space may read.
    unsafe { asm!("isb", "mrs {}, cntvct_el0", out(reg) ticks, options(nomem, nostack)) };
    ticks
}

fn frequency() -> u64 {
    let hertz: u64;
    // SAFETY: reads a register that user space may read.
    unsafe { asm!("mrs {}, cntfrq_el0", out(reg) hertz, options(nomem, nostack)) };
    hertz
}

/// Stamps in a row, in case that one was interrupted in its middle.
const ROW: u32 = 3;

/// Tells the clock's time in nanoseconds, and the counter's.
pub(crate) fn stamp() {
    for _ in 0..ROW {
        println!("fh-guest: stamp {} {}", sys::monotonic().as_nanos(), counter());
        sys::drain();
    }
}

/// Whether the clock goes as fast as the counter, to one in a hundred, and a wait lasts as long as it is to, to one in a
/// hundred in some round.
pub(crate) fn agrees() -> Result<String, String> {
    let mut what = String::new();
    for _ in 0..ROUNDS {
        let (ticks, clock) = (counter(), sys::monotonic());
        std::thread::sleep(WATCH);
        let (ticks, clock) = (counter() - ticks, sys::monotonic() - clock);
        let counted = u128::from(ticks) * 1_000_000_000 / u128::from(frequency().max(1));
        let off = counted.abs_diff(clock.as_nanos()) * 10_000 / clock.as_nanos().max(1);
        let over = clock.saturating_sub(WATCH);
        what = format!(
            "{}.{:02} % apart over {} ms, {} us late",
            off / 100,
            off % 100,
            clock.as_millis(),
            over.as_micros()
        );
        if off >= 100 || clock < WATCH {
            return Err(what);
        }
        if over < OVER {
            return Ok(what);
        }
    }
    Err(what)
}

/// Whether on every CPU no timer is early, none is forgotten, and in some round half of them are at most so late.
pub(crate) fn timers() -> Result<String, String> {
    let late = sys::on_each(0..sys::online(), |cpu| {
        let mut best = Duration::MAX;
        for _ in 0..ROUNDS {
            let mut late = (0..TIMERS).map(|_| one(cpu)).collect::<Result<Vec<_>, _>>()?;
            late.sort_unstable();
            best = best.min(late[late.len() / 2]);
            if best < LATE {
                return Ok(best);
            }
        }
        Err(format!("on CPU {cpu} half of the timers are {} us late or more, each time", best.as_micros()))
    })?;
    let latest = late.iter().max().copied().unwrap_or_default();
    Ok(format!("{TIMERS} on each of {}, half of them late by {} us or less", late.len(), latest.as_micros()))
}

/// How late one timer is.
fn one(cpu: usize) -> Result<Duration, String> {
    let begin = sys::monotonic();
    std::thread::sleep(TIMER);
    let took = sys::monotonic() - begin;
    if took < TIMER || took > LATEST {
        return Err(format!("on CPU {cpu} a timer of {} ms took {} us", TIMER.as_millis(), took.as_micros()));
    }
    Ok(took - TIMER)
}
