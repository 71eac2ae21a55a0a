// SPDX-License-Identifier: MIT OR Apache-2.0
//! The one atomic word that this crate's state is made of, as a port.
//!
//! Every load acquires and every store releases: what was written before a state word changed is seen by whoever
//! sees the change. A model checker supplies its own [`Atomic`] and gets the orderings from here; the shipped one is
//! [`core::sync::atomic::AtomicU64`].

use core::sync::atomic::{AtomicU64, Ordering};

/// An atomic word whose user states the orderings.
pub trait Atomic {
    /// Reads the word.
    fn read(&self, order: Ordering) -> u64;
    /// Writes the word.
    fn write(&self, value: u64, order: Ordering);
    /// Replaces `from` by `to`; `Err` holds what was found instead.
    fn swap(&self, from: u64, to: u64, done: Ordering, failed: Ordering) -> Result<u64, u64>;
}

impl Atomic for AtomicU64 {
    fn read(&self, order: Ordering) -> u64 {
        self.load(order)
    }

    fn write(&self, value: u64, order: Ordering) {
        Self::store(self, value, order);
    }

    fn swap(&self, from: u64, to: u64, done: Ordering, failed: Ordering) -> Result<u64, u64> {
        self.compare_exchange(from, to, done, failed)
    }
}

/// An atomic word with acquire loads and release stores.
pub trait Cell {
    /// Reads the word.
    fn load(&self) -> u64;
    /// Writes the word.
    fn store(&self, value: u64);
    /// Replaces `from` by `to`; `Err` holds what was found instead.
    fn exchange(&self, from: u64, to: u64) -> Result<(), u64>;
}

impl<A: Atomic> Cell for A {
    fn load(&self) -> u64 {
        self.read(Ordering::Acquire)
    }

    fn store(&self, value: u64) {
        self.write(value, Ordering::Release);
    }

    fn exchange(&self, from: u64, to: u64) -> Result<(), u64> {
        self.swap(from, to, Ordering::AcqRel, Ordering::Acquire).map(|_| ())
    }
}
