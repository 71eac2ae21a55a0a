// SPDX-License-Identifier: MIT OR Apache-2.0
//! The switch that a rewritten crate asks: whether this one of its mutants is on. The environment names the one and a
//! file that is made when it is asked for, so that nobody takes a failure of another cause for a kill. What a compiler
//! computes has every mutant off; compiled by itself, with the compiler's unstable parts allowed.
#![feature(const_eval_select, core_intrinsics)]
#![allow(internal_features)]

use std::sync::atomic::{AtomicU32, Ordering};

const UNKNOWN: u32 = u32::MAX;
const NONE: u32 = UNKNOWN - 1;
/// The mutant that is on and was not asked for yet.
static ON: AtomicU32 = AtomicU32::new(UNKNOWN);

/// Whether it is on.
#[inline(always)]
pub const fn on(mutant: u32) -> bool {
    std::intrinsics::const_eval_select((mutant,), off, asked)
}

const fn off(_: u32) -> bool {
    false
}

#[inline(always)]
fn asked(mutant: u32) -> bool {
    let on = ON.load(Ordering::Relaxed);
    if on == mutant { reached(mutant) } else { on == UNKNOWN && first(mutant) }
}

#[cold]
fn first(mutant: u32) -> bool {
    let on = std::env::var("FREEHOLD_MUTANT").ok().and_then(|text| text.parse().ok()).unwrap_or(NONE);
    ON.store(on, Ordering::Relaxed);
    asked(mutant)
}

fn reached(_: u32) -> bool {
    static TOLD: std::sync::Once = std::sync::Once::new();
    TOLD.call_once(|| {
        if let Ok(path) = std::env::var("FREEHOLD_MUTANT_REACHED") {
            let _ = std::fs::write(path, "");
        }
    });
    true
}
