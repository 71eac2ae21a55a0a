// SPDX-License-Identifier: MIT OR Apache-2.0
//! Which CPU goes on where a call may be cut: at its locks, its lock-free words, and while its guest runs.

/// A place where another CPU may go on first.
pub(crate) fn point() {}

/// The CPU waits for a lock. `false` if nobody schedules, so that waiting is the lock's own.
pub(crate) fn wait() -> bool {
    false
}
