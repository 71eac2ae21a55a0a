// SPDX-License-Identifier: MIT OR Apache-2.0
//! Waiting in line: one is served at a time, and who stands in line is served in turn.
//!
//! Who comes looks a bounded number of times whether nobody is there, and only then stands in line: a line hands over
//! to one CPU and no other, which may be one that an emulator or a hypervisor below does not run just then. Guarantees
//! that nobody is served before those who stood in line earlier have left, and that whatever one did while it was
//! served is seen by all who are served later: the orderings that this takes are stated here, and a checker that tries
//! every interleaving supplies its own [`Number`]. It does not know what the line is for, nor how a CPU idles.
//! More than 2^32 waiting at once would meet the same number; there are fewer CPUs.

use core::sync::atomic::{AtomicU32, Ordering};

/// An atomic number as a port. Its user states the orderings.
pub trait Number {
    /// Reads it.
    fn load(&self, order: Ordering) -> u32;
    /// Writes it.
    fn store(&self, value: u32, order: Ordering);
    /// Adds one, around the end, and returns what was there.
    fn increment(&self, order: Ordering) -> u32;
    /// Adds one, around the end, if `seen` is there; whether it was.
    fn increment_if(&self, seen: u32, order: Ordering) -> bool;
}

impl Number for AtomicU32 {
    fn load(&self, order: Ordering) -> u32 {
        Self::load(self, order)
    }

    fn store(&self, value: u32, order: Ordering) {
        Self::store(self, value, order);
    }

    fn increment(&self, order: Ordering) -> u32 {
        self.fetch_add(1, order)
    }

    fn increment_if(&self, seen: u32, order: Ordering) -> bool {
        self.compare_exchange(seen, seen.wrapping_add(1), order, order).is_ok()
    }
}

/// A line that CPUs stand in.
#[derive(Debug)]
pub struct Line<N> {
    next: N,
    served: N,
}

impl<N: Number> Line<N> {
    /// An empty line. Both numbers are zero.
    pub const fn new(next: N, served: N) -> Self {
        Self { next, served }
    }

    /// Waits to be served: looks so often whether nobody is there, and then joins the line. `idle` is what a CPU does
    /// between two looks.
    pub fn join(&self, looks: u32, mut idle: impl FnMut()) {
        for _ in 0..looks {
            // Nobody is there while both numbers are the same: who takes the next one then is served.
            if self.next.increment_if(self.served.load(Ordering::Acquire), Ordering::Relaxed) {
                return;
            }
            idle();
        }
        // Order between the waiting comes from the number itself.
        let mine = self.next.increment(Ordering::Relaxed);
        while self.served.load(Ordering::Acquire) != mine {
            idle();
        }
    }

    /// Lets the next one be served. Only for who is being served, and once.
    pub fn leave(&self) {
        // Nobody else writes to it now.
        let mine = self.served.load(Ordering::Relaxed);
        self.served.store(mine.wrapping_add(1), Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A line whose numbers come round soon.
    fn line() -> Line<AtomicU32> {
        Line::new(AtomicU32::new(u32::MAX), AtomicU32::new(u32::MAX))
    }

    #[test]
    fn who_finds_nobody_is_served_at_once() {
        let line = line();
        for looks in [0, 1, 2] {
            line.join(looks, || panic!("nobody is there"));
            line.leave();
        }
    }

    #[test]
    fn who_comes_second_looks_so_often_and_then_stands_in_line_until_it_is_served() {
        for looks in [0, 1, 3] {
            let line = line();
            line.join(0, || panic!("nobody is there"));
            let mut idle = 0;
            line.join(looks, || {
                idle += 1;
                // After the looks there is a place in line, and the first one goes only then.
                let stands = idle > looks;
                assert_eq!(line.next.load(Ordering::Relaxed), if stands { 1 } else { 0 }, "look {idle} of {looks}");
                if idle == looks + 2 {
                    line.leave();
                }
                assert!(idle < looks + 3, "it is its turn");
            });
            assert_eq!(idle, looks + 2);
            line.leave();
            line.join(0, || panic!("both have left"));
        }
    }
}
