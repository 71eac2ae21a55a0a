// SPDX-License-Identifier: MIT OR Apache-2.0
//! The lock of the development machine, at which another CPU may be let in.

use std::sync::{Mutex as Std, MutexGuard, PoisonError, TryLockError};

use freehold_mem::lock::Mutex;

use crate::turns;

/// A lock.
#[derive(Debug)]
pub(crate) struct Lock<T>(Std<T>);

impl<T> Lock<T> {
    pub(crate) const fn new(value: T) -> Self {
        Self(Std::new(value))
    }
}

/// A lock that is taken last. Nobody is let in before it, for what is done under it passes points of its own.
#[derive(Debug)]
pub(crate) struct Leaf<T>(Std<T>);

impl<T> Leaf<T> {
    pub(crate) const fn new(value: T) -> Self {
        Self(Std::new(value))
    }
}

impl<T> Mutex for Leaf<T> {
    type Value = T;
    type Guard<'a>
        = MutexGuard<'a, T>
    where
        T: 'a;

    fn acquire(&self) -> MutexGuard<'_, T> {
        take(&self.0)
    }
}

impl<T> Mutex for Lock<T> {
    type Value = T;
    type Guard<'a>
        = MutexGuard<'a, T>
    where
        T: 'a;

    fn acquire(&self) -> MutexGuard<'_, T> {
        turns::point();
        take(&self.0)
    }
}

fn take<T>(lock: &Std<T>) -> MutexGuard<'_, T> {
    loop {
        match lock.try_lock() {
            Ok(guard) => {
                turns::got();
                return guard;
            }
            // A call that stopped with the lock is a finding already; what it left is looked at.
            Err(TryLockError::Poisoned(left)) => return left.into_inner(),
            Err(TryLockError::WouldBlock) if turns::wait() => {}
            Err(TryLockError::WouldBlock) => return lock.lock().unwrap_or_else(PoisonError::into_inner),
        }
    }
}
