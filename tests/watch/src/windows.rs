// SPDX-License-Identifier: MIT OR Apache-2.0
//! Guest frames outside RAM that guests have opened, of all VMs: as runs, for a guest may open very many.

use freehold_uapi::guest::MMIO_RUNS;
use freehold_virt::handle::MAX_VMS;

/// Runs of one VM. The specification refuses more.
const RUNS: usize = MMIO_RUNS as usize;

/// A run: its first guest frame, and the one behind its last.
type Run = (u64, u64);

/// No frame.
const NONE: Run = (0, 0);

/// What each VM's guest has opened.
///
/// # Invariants
/// No two runs of a VM touch.
#[derive(Debug)]
pub struct Windows([[Run; RUNS]; MAX_VMS]);

impl Windows {
    /// Nothing.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "only a static holds them")]
    pub const fn new() -> Self {
        Self([[NONE; RUNS]; MAX_VMS])
    }

    /// Whether a guest frame is open.
    #[must_use]
    pub fn is_open(&self, slot: u8, gfn: u64) -> bool {
        self.0.get(usize::from(slot)).is_some_and(|runs| runs.iter().any(|(from, to)| (*from..*to).contains(&gfn)))
    }

    /// Opens a guest frame, or shuts it.
    ///
    /// # Panics
    /// If these are more runs than a guest may have.
    pub fn set(&mut self, slot: u8, gfn: u64, open: bool) {
        if open == self.is_open(slot, gfn) {
            return;
        }
        let Some(runs) = self.0.get_mut(usize::from(slot)) else { return };
        let mut take = |which: &dyn Fn(&Run) -> bool| {
            runs.iter_mut().find(|run| **run != NONE && which(run)).map(|run| core::mem::replace(run, NONE))
        };
        let left = if open {
            let before = take(&|(_, to)| *to == gfn).map_or(gfn, |(from, _)| from);
            let behind = take(&|(from, _)| *from == gfn + 1).map_or(gfn + 1, |(_, to)| to);
            [(before, behind), NONE]
        } else {
            let (from, to) = take(&|(from, to)| (*from..*to).contains(&gfn)).unwrap_or((gfn, gfn + 1));
            [(from, gfn), (gfn + 1, to)]
        };
        for run in left.into_iter().filter(|(from, to)| from < to) {
            let Some(free) = runs.iter_mut().find(|run| **run == NONE) else {
                panic!("a guest has more runs open than it may")
            };
            *free = run;
        }
    }

    /// A VM has nothing open any more.
    pub fn clear(&mut self, slot: u8) {
        self.0.get_mut(usize::from(slot)).into_iter().for_each(|runs| *runs = [NONE; RUNS]);
    }

    /// Runs of a VM.
    #[cfg(test)]
    fn count(&self, slot: u8) -> usize {
        self.0[usize::from(slot)].iter().filter(|run| **run != NONE).count()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Held against a set, in two VMs, over guest frames that touch each other and the first of all.
    #[test]
    fn each_guest_frame_is_as_it_was_said_last() {
        let mut windows = Windows::new();
        let mut set = BTreeSet::new();
        let mut random = 0x9e37_79b9_7f4a_7c15_u64;
        for step in 0..100_000 {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let (slot, gfn) = ((random & 1) as u8, random >> 8 & 31);
            match random >> 24 & 63 {
                0 => {
                    windows.clear(slot);
                    set.retain(|(of, _)| *of != slot);
                }
                1..32 => {
                    windows.set(slot, gfn, true);
                    set.insert((slot, gfn));
                }
                _ => {
                    windows.set(slot, gfn, false);
                    set.remove(&(slot, gfn));
                }
            }
            for slot in 0..2 {
                let is = |gfn: u64| set.contains(&(slot, gfn));
                assert!((0..33).all(|gfn| windows.is_open(slot, gfn) == is(gfn)), "step {step}");
                let ends = (0..33).filter(|gfn| is(*gfn) && !is(gfn + 1)).count();
                assert_eq!(windows.count(slot), ends, "runs that touch are one, step {step}");
            }
        }
    }

    #[test]
    fn very_many_that_touch_are_one() {
        let mut windows = Windows::new();
        for gfn in (0..50_000).rev().chain(100_000..150_000) {
            windows.set(63, gfn, true);
        }
        assert_eq!(windows.count(63), 2);
        assert!(windows.is_open(63, 49_999) && !windows.is_open(63, 50_000) && !windows.is_open(62, 7));
    }

    #[test]
    #[should_panic(expected = "more runs open than it may")]
    fn too_many_are_not_forgotten() {
        let mut windows = Windows::new();
        (0..=MMIO_RUNS).for_each(|n| windows.set(0, 2 * n, true));
    }
}
