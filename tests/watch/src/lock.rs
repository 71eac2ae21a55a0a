// SPDX-License-Identifier: MIT OR Apache-2.0
//! A lock that shows what it protects to an observer: right after it was taken, and right before it is let go.

use core::ops::{Deref, DerefMut};
use freehold_mem::lock::Mutex;

/// Who looks.
pub trait Observer<T> {
    /// The lock is held, and nothing was changed under it yet.
    fn taken(&self, value: &T);
    /// The lock is held for the last moment.
    fn letting_go(&self, value: &T);
}

/// A lock, and who looks.
#[derive(Debug)]
pub struct Lock<M, O> {
    inner: M,
    observer: O,
}

impl<M, O> Lock<M, O> {
    /// Has `observer` look at what `inner` protects.
    pub const fn new(inner: M, observer: O) -> Self {
        Self { inner, observer }
    }

    /// The lock below, by which nobody looks.
    #[cfg(test)]
    pub(crate) const fn below(&self) -> &M {
        &self.inner
    }
}

impl<M: Mutex, O: Observer<M::Value>> Mutex for Lock<M, O> {
    type Value = M::Value;
    type Guard<'a>
        = Guard<'a, M, O>
    where
        Self: 'a;

    fn acquire(&self) -> Guard<'_, M, O> {
        let guard = self.inner.acquire();
        self.observer.taken(&guard);
        Guard { guard, observer: &self.observer }
    }
}

/// The lock is held.
pub struct Guard<'a, M: Mutex + 'a, O: Observer<M::Value>> {
    guard: M::Guard<'a>,
    observer: &'a O,
}

impl<M: Mutex, O: Observer<M::Value>> core::fmt::Debug for Guard<'_, M, O> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Guard")
    }
}

impl<M: Mutex, O: Observer<M::Value>> Deref for Guard<'_, M, O> {
    type Target = M::Value;

    fn deref(&self) -> &M::Value {
        &self.guard
    }
}

impl<M: Mutex, O: Observer<M::Value>> DerefMut for Guard<'_, M, O> {
    fn deref_mut(&mut self) -> &mut M::Value {
        &mut self.guard
    }
}

impl<M: Mutex, O: Observer<M::Value>> Drop for Guard<'_, M, O> {
    fn drop(&mut self) {
        self.observer.letting_go(&self.guard);
    }
}
