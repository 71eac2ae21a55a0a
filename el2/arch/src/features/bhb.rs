// SPDX-License-Identifier: MIT OR Apache-2.0
//! Spectre-BHB: branch history that a lower exception level has trained is forgotten at each entry.
//!
//! Guarantees that a core which does not isolate the history by itself forgets it before EL2 takes an
//! indirect branch: by instruction where it has one, else by a loop of branches long enough to
//! overwrite it. Source: Arm, "Spectre-BHB" white paper, with the counts that it gives per core. A73
//! and A75 forget only by a call of firmware, which is not made: see the threat model.

use super::Ids;
use crate::percpu::this_cpu;
use crate::sysreg::field;
use core::sync::atomic::Ordering;

const ARM: u64 = 0x41;
/// For a core that is not known: the longest of all.
const LONGEST: u32 = 132;
/// With CLRBHB: the vectors reach the instruction and its ISB, and branch once.
const BY_INSTRUCTION: u32 = 1;

/// Sets how many branches the vectors of this CPU run.
pub(super) fn configure(ids: &Ids) {
    let loops = match () {
        () if ids.isolates_branch_history() => 0,
        () if ids.has_clrbhb() => BY_INSTRUCTION,
        () => loops_of(read_sysreg!("midr_el1")),
    };
    this_cpu().bhb_loops.store(loops, Ordering::Relaxed);
}

fn loops_of(midr: u64) -> u32 {
    if field(midr, 24, 8) != ARM {
        return LONGEST;
    }
    match field(midr, 4, 12) {
        // In-order cores: A35, A53, A55, A510, A520.
        0xd03..=0xd05 | 0xd46 | 0xd80 => 0,
        // A57, A72.
        0xd07 | 0xd08 => 8,
        // A76, A76AE, A77, N1.
        0xd0b..=0xd0e => 24,
        // A78, A78AE, A78C, X1, X1C, A710, X2, N2, V1.
        0xd41 | 0xd42 | 0xd4b | 0xd44 | 0xd4c | 0xd47 | 0xd48 | 0xd49 | 0xd40 => 32,
        // A715, A720.
        0xd4d | 0xd81 => 38,
        _ => LONGEST,
    }
}
