// SPDX-License-Identifier: MIT OR Apache-2.0
//! The one atomic word that this crate's state is made of, as a port.
//!
//! Every load acquires and every store releases: what was written before a state word changed is seen by whoever
//! sees the change. A model checker supplies its own word; the shipped one is [`core::sync::atomic::AtomicU64`].

use core::sync::atomic::{AtomicU64, Ordering};

/// An atomic word with acquire loads and release stores.
pub trait Cell {
    /// Reads the word.
    fn load(&self) -> u64;
    /// Writes the word.
    fn store(&self, value: u64);
    /// Replaces `from` by `to`; `Err` holds what was found instead.
    fn exchange(&self, from: u64, to: u64) -> Result<(), u64>;
}

impl Cell for AtomicU64 {
    fn load(&self) -> u64 {
        AtomicU64::load(self, Ordering::Acquire)
    }

    fn store(&self, value: u64) {
        AtomicU64::store(self, value, Ordering::Release);
    }

    fn exchange(&self, from: u64, to: u64) -> Result<(), u64> {
        self.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire).map(|_| ())
    }
}
