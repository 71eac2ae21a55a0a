// SPDX-License-Identifier: MIT OR Apache-2.0
//! The shipped calls of `el2` over a small machine on the development machine, and what enumerates its worlds.
//!
//! [`Rig`] is the machine: RAM is a vector, the tables in it are those that `freehold_mem` writes, and its TLB is the
//! worst that a CPU may have: it holds every translation that stood at any moment since the last invalidation. Calls
//! enter by `freehold_el2::calls::serve` with registers, guests are scripts of [`Act`]s. The rig knows no rule about who
//! may own what, but for what no order of calls may ever do to a machine: whoever is still in the TLB reaches a frame.
#![forbid(unsafe_code)]
#![expect(clippy::wildcard_enum_match_arm, reason = "of what the oracle may say, a comparison wants one thing")]

mod act;
mod agree;
mod board;
mod cases;
mod cells;
mod contended;
mod digest;
mod guarded;
mod label;
mod large;
mod lock;
mod lockstep;
mod odd;
mod op;
mod ordinary;
mod owners;
mod pair;
mod picture;
mod platform;
mod ports;
mod races;
mod rig;
mod search;
pub mod small;
mod stream;
mod tlb;
mod turns;
mod vcpus;

pub use act::Act;
pub use agree::agree;
pub use board::{Fault, Layout};
pub use cases::{CASES, Case};
pub use label::Label;
pub use lockstep::{Cell, Decide, Lockstep, Tally};
pub use op::Op;
pub use picture::{FrameView, Picture, VcpuView, VmView};
pub use rig::{Answer, Rig};
pub use search::Report;
pub use stream::{Asked, Handles, Stream, Whole};

#[cfg(test)]
mod tests;
