// SPDX-License-Identifier: MIT OR Apache-2.0
//! All vector registers, filled by two threads on each CPU that take it from each other.

use std::arch::asm;
use std::time::Duration;

use crate::sys;

/// How long each thread goes on.
const WATCH: Duration = Duration::from_secs(2);
/// Turns between filling and looking.
const TURNS: u64 = 2_000_000;

/// Fills v0 to v31 from `seed`, spins, and looks: bits that differ.
fn differs(seed: u64, turns: u64) -> u64 {
    macro_rules! each {
        ($($n:literal)*) => {{
            let differ: u64;
            // SAFETY: touches registers alone, all of them declared.
            unsafe {
                asm!(
                    $(concat!("add {t}, {seed}, #", $n), concat!("dup v", $n, ".2d, {t}"),)*
                    "2: subs {turns}, {turns}, #1",
                    "b.ne 2b",
                    "mov {differ}, #0",
                    $(
                        concat!("add {t}, {seed}, #", $n),
                        concat!("umov {a}, v", $n, ".d[0]"),
                        "eor {a}, {a}, {t}",
                        "orr {differ}, {differ}, {a}",
                        concat!("umov {a}, v", $n, ".d[1]"),
                        "eor {a}, {a}, {t}",
                        "orr {differ}, {differ}, {a}",
                    )*
                    seed = in(reg) seed, turns = inout(reg) turns => _, differ = out(reg) differ,
                    t = out(reg) _, a = out(reg) _,
                    out("v0") _, out("v1") _, out("v2") _, out("v3") _, out("v4") _, out("v5") _, out("v6") _,
                    out("v7") _, out("v8") _, out("v9") _, out("v10") _, out("v11") _, out("v12") _, out("v13") _,
                    out("v14") _, out("v15") _, out("v16") _, out("v17") _, out("v18") _, out("v19") _, out("v20") _,
                    out("v21") _, out("v22") _, out("v23") _, out("v24") _, out("v25") _, out("v26") _, out("v27") _,
                    out("v28") _, out("v29") _, out("v30") _, out("v31") _,
                    options(nomem, nostack)
                );
            }
            differ
        }};
    }
    each!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31)
}

/// Whether every thread finds what it filled in, although others had its CPU meanwhile.
pub(crate) fn survives() -> Result<String, String> {
    let begin = sys::monotonic();
    let threads = (0..sys::online()).flat_map(|cpu| [cpu, cpu]);
    let taken = sys::on_each(threads, |cpu| {
        let seed = (std::ptr::from_ref(&cpu) as u64).rotate_left(20);
        let (mut rounds, before) = (0u64, sys::preemptions());
        while rounds == 0 || sys::monotonic() - begin < WATCH {
            match differs(seed.wrapping_add(rounds << 8), TURNS) {
                0 => rounds += 1,
                bits => return Err(format!("on CPU {cpu} bits {bits:#x} differ after {rounds} rounds")),
            }
        }
        Ok((rounds, sys::preemptions() - before))
    })?;
    let rounds: u64 = taken.iter().map(|(rounds, _)| rounds).sum();
    let preempted: u64 = taken.iter().map(|(_, preempted)| preempted).sum();
    let what = format!("{rounds} rounds in {} threads, preempted {preempted} times", taken.len());
    // Without a preemption nothing was tried.
    if preempted > 0 { Ok(what) } else { Err(what) }
}
