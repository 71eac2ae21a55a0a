// SPDX-License-Identifier: MIT OR Apache-2.0
//! The pure half: reading and editing the DTB, checking the bundle, placing the carve-out, and serving calls.
//!
//! Guarantees that no DTB and no bundle makes it panic, loop or read outside what it was given (I7).
//! Does not know addresses as memory: all but `wiring` is numbers and byte slices, and is tested on
//! the development machine. [`wiring`], which exists for the machine only, does what is decided here.
#![cfg_attr(not(test), no_std)]
#![deny(unsafe_code)]
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
#[cfg(target_os = "none")]
#[allow(
    unsafe_code,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "the boot names memory for the first time, and stops where it is wrong"
)]
pub mod wiring;
