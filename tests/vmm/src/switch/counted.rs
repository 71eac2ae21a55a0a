// SPDX-License-Identifier: MIT OR Apache-2.0
//! The host's cycle counter, which is armed while a guest runs, tells the host nothing of it.

use super::{Bench, STEP};
use crate::hostile::{COUNTING, Counted};
use crate::proto::*;

/// Of the cycles that the host would have counted, so many are counted at most: 1 in 4.
const PART: u64 = 4;
/// Stays that are enough to judge.
const ENOUGH: usize = 8;

impl Counted {
    /// Cycles that the host counts in the time of the stay.
    fn expected(self) -> u64 {
        self.own_cycles.saturating_mul(self.ticks) / self.own_ticks.max(1)
    }

    /// The counter stood still for most of the stay.
    fn stood(self) -> bool {
        self.cycles.saturating_mul(PART) < self.expected()
    }
}

/// A guest spins. A counter that counts guests does so in the stays in which one runs; a loaded machine makes others of
/// them, which pass in `el2` or on the way there, so that most decide.
pub(super) fn stays(bench: &mut Bench<'_>) -> Result<(), String> {
    bench.manner = COUNTING;
    for _ in 0..32 {
        bench.command(CMD_SPIN, [62_500_000, 0, 0])?;
        if long(bench).len() >= ENOUGH {
            break;
        }
    }
    bench.manner = 0;
    let stays = long(bench);
    let seen = format!("{} stays, the longest: {:?}", stays.len(), stays.iter().max_by_key(|stay| stay.ticks));
    let held = stays.len() >= ENOUGH && stays.iter().all(|stay| stay.own_cycles > 0);
    STEP.judged("tools: the cycle counter counts while the host itself spins", "in 8 stays or more", &seen, held);
    let stood = stays.iter().filter(|stay| stay.stood()).count();
    let held = stood * 2 > stays.len();
    let seen = format!("in {stood} of {seen}");
    STEP.judged("the host's cycle counter stands still while a guest runs", "in most stays", seen, held);
    Ok(())
}

/// The stays of a millisecond and more, beside which a call's own way there and back is little.
fn long(bench: &Bench<'_>) -> Vec<Counted> {
    let second: u64;
    // SAFETY: Linux lets processes read it.
    unsafe { core::arch::asm!("mrs {}, cntfrq_el0", out(reg) second, options(nomem, nostack)) };
    bench.counted.iter().copied().filter(|stay| stay.ticks >= second / 1000).collect()
}
