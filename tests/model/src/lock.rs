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

/// A lock that is taken last and under which nothing else happens: nobody needs to be let in.
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
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
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
        loop {
            match self.0.try_lock() {
                Ok(guard) => {
                    turns::got();
                    return guard;
                }
                // A call that stopped with the lock is a finding already; what it left is looked at.
                Err(TryLockError::Poisoned(left)) => return left.into_inner(),
                Err(TryLockError::WouldBlock) if turns::wait() => {}
                Err(TryLockError::WouldBlock) => return self.0.lock().unwrap_or_else(PoisonError::into_inner),
            }
        }
    }
}
