// SPDX-License-Identifier: MIT OR Apache-2.0
//! How a CPU waits for a lock: in line. The order of locks is `mem`'s.

use freehold_mem::lock::Mutex;
use spin::mutex::{TicketMutex, TicketMutexGuard};

/// A fair spin lock.
pub struct Ticket<T>(TicketMutex<T>);

impl<T> Ticket<T> {
    /// A free lock around a value.
    pub const fn new(value: T) -> Self {
        Self(TicketMutex::new(value))
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
        = TicketMutexGuard<'a, T>
    where
        T: 'a;

    fn acquire(&self) -> Self::Guard<'_> {
        self.0.lock()
    }
}
