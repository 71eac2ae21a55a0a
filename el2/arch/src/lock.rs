// SPDX-License-Identifier: MIT OR Apache-2.0
//! How a CPU waits for a lock: a while for its chance, and then in line. The order of locks and the line are `mem`'s.
//!
//! UNSAFETY: the value is reached through a shared reference, by whoever is being served.
use core::cell::UnsafeCell;
use core::hint::spin_loop;
use core::marker::PhantomData;
use core::ops::{Deref, DerefMut};
use core::sync::atomic::AtomicU32;

use freehold_mem::lock::Mutex;
use freehold_mem::lock::line::Line;

/// Looks at a lock before a CPU stands in line: a tenth of a second or so, longer than whoever has it may not be run.
const LOOKS: u32 = 1 << 24;

/// A spin lock, fair to whoever has waited for a while.
pub struct Ticket<T> {
    line: Line<AtomicU32>,
    value: UnsafeCell<T>,
}

// SAFETY: `value` is reached only through a `Held`; one exists at a time, for `Line` serves one at a time, and what one
// CPU did is seen by the next. The value moves between CPUs that way, so it must be `Send`.
unsafe impl<T: Send> Sync for Ticket<T> {}

/// The lock is held while this lives.
pub struct Held<'a, T> {
    /// INVARIANT: this is being served in the lock's line.
    lock: &'a Ticket<T>,
    /// It may be shared, and sent, where `&mut T` may.
    value: PhantomData<&'a mut T>,
}

impl<T> Ticket<T> {
    /// A free lock around a value.
    pub const fn new(value: T) -> Self {
        Self { line: Line::new(AtomicU32::new(0), AtomicU32::new(0)), value: UnsafeCell::new(value) }
    }
}

impl<T> core::fmt::Debug for Ticket<T> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Ticket")
    }
}

impl<T> Mutex for Ticket<T> {
    type Value = T;
    type Guard<'a>
        = Held<'a, T>
    where
        T: 'a;

    fn acquire(&self) -> Held<'_, T> {
        self.line.join(LOOKS, spin_loop);
        // INVARIANT: `join` returned, and `leave` is called by the drop alone.
        Held { lock: self, value: PhantomData }
    }
}

impl<T> Deref for Held<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: no other `Held` of the lock exists (its invariant), and this one is borrowed.
        unsafe { &*self.lock.value.get() }
    }
}

impl<T> DerefMut for Held<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: no other `Held` of the lock exists (its invariant), and this one is borrowed for writing.
        unsafe { &mut *self.lock.value.get() }
    }
}

impl<T> Drop for Held<'_, T> {
    fn drop(&mut self) {
        self.lock.line.leave();
    }
}
