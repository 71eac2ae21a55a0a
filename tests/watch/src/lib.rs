// SPDX-License-Identifier: MIT OR Apache-2.0
//! What watches el2 while it runs: locks that show what they protect, ports that note what they do, and a judge.
//!
//! Each part of the state is looked at when its lock is taken, and compared with what it was when the lock was let go
//! last; when the last lock of a call is let go, what changed is compared with what the specification says of that
//! call. A difference stops the machine with one line. Knows nothing of how el2 comes to its answers: it sees what
//! stands in registers, the ledger and a VM's books. It keeps all it knows in arrays of its own.
#![cfg_attr(target_os = "none", no_std)]
#![forbid(unsafe_code)]
#![expect(clippy::result_large_err, reason = "a difference is the last thing that is ever returned")]

pub mod board;
pub mod cpu;
pub mod fault;
pub mod given;
pub mod judge;
pub mod lock;
pub mod marks;
pub mod platform;
pub mod ports;
pub mod ring;
pub mod shadow;
pub mod spec;
pub mod stage2;
pub mod turn;
pub mod watcher;
pub mod windows;

#[cfg(test)]
mod tests;
