// SPDX-License-Identifier: MIT OR Apache-2.0
//! Bytes become calls, the calls go to the shipped source, and something that shares no code with it judges.
//!
//! Each target is a function of bytes that stops the process on a finding. `engine` feeds them from libFuzzer, the
//! tests here from the committed corpus and from proptest, which shrinks. Steps have a fixed size, so that an input
//! can be cut, spliced and shrunk anywhere; a step says what it wants ("a frame of the host's"), and the state says
//! which one that is, so that about half of the calls succeed.
#![forbid(unsafe_code)]

pub mod calls;
pub mod dtb;
mod machine;
pub mod tables;
mod walk;

/// What one input did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Steps that were taken.
    pub steps: u64,
    /// Steps that were not refused.
    pub done: u64,
}

impl core::ops::AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.steps += other.steps;
        self.done += other.done;
    }
}
