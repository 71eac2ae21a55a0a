// SPDX-License-Identifier: MIT OR Apache-2.0
//! The pure half: reading and editing the DTB, checking the bundle, placing the carve-out, and serving calls.
//!
//! Guarantees that no DTB and no bundle makes it panic, loop or read outside what it was given (I7).
//! Does not know addresses as memory: everything here is numbers and byte slices, and is tested on
//! the development machine. The binary of this package does what is decided here.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

pub mod banner;
pub mod bundle;
pub mod calls;
pub mod dtb;
pub mod layout;
mod run;
pub mod stop;
