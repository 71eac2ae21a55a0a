// SPDX-License-Identifier: MIT OR Apache-2.0
//! A plugin of QEMU that counts what the emulated CPU executes, apart by who executes it.
//!
//! Guarantees that every instruction of a machine with one CPU is counted once, in the class of the exception level and
//! half of the address space that it ran in, and that each mark (`HINT #0x7a`, a no-operation on any CPU) writes one
//! line with all counters. Knows neither what is measured nor whose code it is.

mod calls;
mod decode;
// What they call is defined by the emulator that loads them, and by nobody in a test.
#[cfg(not(test))]
mod emulator;
#[cfg(not(test))]
mod plugin;

pub use calls::Calls;
pub use decode::{Class, Kind, class, kind};
