// SPDX-License-Identifier: MIT OR Apache-2.0
//! The calls as the host makes them, on a machine of words in a map.

mod cpus;
mod guarded;
mod interrupts;
mod kept;
mod measure;
mod ordinary;
mod refusals;
mod rig;
mod runs;
mod storm;
