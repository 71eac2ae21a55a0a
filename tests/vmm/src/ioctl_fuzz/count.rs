// SPDX-License-Identifier: MIT OR Apache-2.0
//! What came of the calls: how many did something, and of each ioctl how many were carried out.

use std::sync::atomic::{AtomicU64, Ordering};

use freehold_uapi::ioctl::{IOCTLS, KVM_RUN};

/// What was made of calls so far.
pub(super) struct Count {
    pub(super) calls: AtomicU64,
    pub(super) done: AtomicU64,
    pub(super) interrupted: AtomicU64,
    /// `KVM_RUN`s that a guest or a signal ended.
    pub(super) ran: AtomicU64,
    /// Calls of each of [`IOCTLS`], in their order, that were carried out.
    each: [AtomicU64; IOCTLS.len()],
}

impl Count {
    pub(super) const fn new() -> Self {
        let [calls, done, interrupted, ran] = [const { AtomicU64::new(0) }; 4];
        Self { calls, done, interrupted, ran, each: [const { AtomicU64::new(0) }; IOCTLS.len()] }
    }

    /// A call was answered.
    pub(super) fn note(&self, request: u32, done: Result<i64, i32>) {
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.done.fetch_add(u64::from(done.is_ok()), Ordering::Relaxed);
        self.interrupted.fetch_add(u64::from(done == Err(libc::EINTR)), Ordering::Relaxed);
        let ran = request == KVM_RUN && (done.is_ok() || done == Err(libc::EINTR));
        self.ran.fetch_add(u64::from(ran), Ordering::Relaxed);
        let which = IOCTLS.iter().position(|item| item.value == i64::from(request));
        if let Some(each) = which.and_then(|at| self.each.get(at)).filter(|_| done.is_ok()) {
            each.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The ioctls, with how many of each were carried out.
    pub(super) fn carried_out(&self) -> impl Iterator<Item = (&'static str, u64)> {
        IOCTLS.iter().zip(&self.each).map(|(item, each)| (item.name, each.load(Ordering::Relaxed)))
    }
}
