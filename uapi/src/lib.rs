// SPDX-License-Identifier: MIT OR Apache-2.0
//! What is said to Freehold, and nothing else.
//!
//! Three tables: the calls a host makes to EL2 ([`hvc`]), the calls a guest makes ([`guest`]), and the ioctls a VMM
//! makes to the driver ([`ioctl`]). Each item is declared once. From that declaration come the Rust constants and
//! types, the C header `include/freehold.h` and `docs/abi.md` (the last two written by `cargo xtask gen`, compared by
//! a test). The crate knows nothing of how a call is served.
#![no_std]
#![forbid(unsafe_code)]

#[macro_use]
pub mod table;

pub mod guest;
pub mod hvc;
pub mod ioctl;
pub mod render;

/// ABI version that this crate describes: major in bits `[31:16]`, minor in bits `[15:0]`.
///
/// A driver refuses an `el2` whose major differs or whose minor is smaller than its own.
pub const ABI_VERSION: u32 = 2;
