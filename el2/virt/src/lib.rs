// SPDX-License-Identifier: MIT OR Apache-2.0
//! What a virtual machine is, and what the host may ask of `el2`.
//!
//! Pure policy: handles, the life of VMs and vCPUs, call decoding, exits as data, the system registers that a
//! protected guest sees, and which of the host's firmware calls pass. It touches no register, no static and no
//! clock; what the machine says is passed in, what is to be done is returned. Atomics are a type parameter
//! ([`cell::Cell`]). It knows nothing of frames beyond what `freehold_mem` lets it name.
//!
//! Keeps its half of I7 (no input makes `el2` panic, loop or wait without bound): nothing here indexes, unwraps or
//! overflows.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

pub mod board;
pub mod call;
pub mod cell;
pub mod exit;
pub mod guard;
pub mod guest_call;
pub mod guest_power;
pub mod handle;
pub mod measure;
pub mod psci;
mod refused;
pub mod registers;
pub mod setting;
pub mod sha256;
pub mod smc;
pub mod sysreg;
pub mod timer;
pub mod trng;
pub mod vcpu;
pub mod vgic;
pub mod vm;

pub use refused::Refused;
