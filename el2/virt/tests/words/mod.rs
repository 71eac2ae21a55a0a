// SPDX-License-Identifier: MIT OR Apache-2.0
//! The checker's atomics under the shipped source: with its orderings, or, for the controls, without any.
#![allow(dead_code, reason = "each test file uses a part of this one")]

use freehold_mem::lock::line::Number;
use freehold_virt::cell::Atomic;
use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// A word of a VM's, of a vCPU's, or of the power relay's. `WEAK` ignores what the source asks for.
pub(crate) struct Word<const WEAK: bool>(AtomicU64);

/// A number of a line's.
pub(crate) struct Num<const WEAK: bool>(AtomicU32);

fn weakened(weak: bool, order: Ordering) -> Ordering {
    if weak { Ordering::Relaxed } else { order }
}

pub(crate) fn zero<const WEAK: bool>() -> Word<WEAK> {
    Word(AtomicU64::new(0))
}

impl<const WEAK: bool> Num<WEAK> {
    pub(crate) fn zero() -> Self {
        Self(AtomicU32::new(0))
    }
}

impl<const WEAK: bool> Atomic for Word<WEAK> {
    fn read(&self, order: Ordering) -> u64 {
        self.0.load(weakened(WEAK, order))
    }
    fn write(&self, value: u64, order: Ordering) {
        self.0.store(value, weakened(WEAK, order));
    }
    fn swap(&self, from: u64, to: u64, done: Ordering, failed: Ordering) -> Result<u64, u64> {
        self.0.compare_exchange(from, to, weakened(WEAK, done), weakened(WEAK, failed))
    }
}

impl<const WEAK: bool> Number for Num<WEAK> {
    fn load(&self, order: Ordering) -> u32 {
        self.0.load(weakened(WEAK, order))
    }
    fn store(&self, value: u32, order: Ordering) {
        self.0.store(value, weakened(WEAK, order));
    }
    fn increment(&self, order: Ordering) -> u32 {
        self.0.fetch_add(1, weakened(WEAK, order))
    }
    fn increment_if(&self, seen: u32, order: Ordering) -> bool {
        let order = weakened(WEAK, order);
        self.0.compare_exchange(seen, seen.wrapping_add(1), order, order).is_ok()
    }
}
