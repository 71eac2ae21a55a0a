// SPDX-License-Identifier: MIT OR Apache-2.0
//! Waiting in line: who came first is served first, and one at a time.
//!
//! Guarantees that nobody is served before those who came earlier have left, and that whatever one did while it was
//! served is seen by all who are served later: the orderings that this takes are stated here, and a checker that
//! tries every interleaving supplies its own [`Number`]. It does not know what the line is for, nor how a CPU idles.
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

    /// Joins the line and waits to be served; `idle` is what a CPU does between two looks.
    pub fn join(&self, mut idle: impl FnMut()) {
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
