// SPDX-License-Identifier: MIT OR Apache-2.0
//! I1 to I9, held against a world and against a transition.
//!
//! Nothing here uses the step: an invariant is stated on records alone, so that a wrong step does not excuse itself.

mod change;
mod exit;
mod standing;

use core::ops::Range;

pub use change::change;
pub use exit::exit;
pub use standing::{driven, standing};

use crate::state::State;
use crate::world::World;

/// A broken invariant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken {
    /// Its number.
    pub rule: u8,
    /// What is wrong.
    pub what: &'static str,
    /// With which frame or slot.
    pub at: u64,
}

/// A state that is known whole, so that it can be walked.
pub trait Whole: State {
    /// Every frame that may be RAM.
    fn frames(&self) -> Range<u64>;
    /// Every guest frame that may be backed or marked.
    fn gfns(&self) -> Range<u64>;
}

impl<const P: usize, const V: usize, const U: usize, const G: usize, const C: usize> Whole for World<P, V, U, G, C> {
    fn frames(&self) -> Range<u64> {
        self.first_pfn..self.first_pfn.saturating_add(P as u64)
    }

    fn gfns(&self) -> Range<u64> {
        self.first_gfn..self.first_gfn.saturating_add(G as u64)
    }
}

/// Objects if a condition does not hold.
fn must(holds: bool, rule: u8, what: &'static str, at: u64) -> Result<(), Broken> {
    if holds { Ok(()) } else { Err(Broken { rule, what, at }) }
}

/// Whether a VM reaches a frame: its own, or one that it borrows. A dying VM reaches nothing.
fn guest_reaches(s: &impl Whole, slot: u8, pfn: u64) -> bool {
    let own = matches!(s.page(pfn).owner, crate::Owner::Guest { slot: o, .. } if o == slot);
    let borrowed = || s.gfns().any(|g| matches!(s.mark(slot, g), crate::Mark::Borrow { pfn: p, .. } if p == pfn));
    s.vm(slot).alive() && (own || borrowed())
}
