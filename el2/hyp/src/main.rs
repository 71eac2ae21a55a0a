// SPDX-License-Identifier: MIT OR Apache-2.0
//! The hypervisor: it boots first, keeps EL2, and drops the host to EL1 under its stage 2.
//!
//! This crate is the wiring. What may happen is decided in `freehold_mem` and `freehold_virt`, how it
//! is done in `freehold_arch`; here are the boot, the trap loop and the statics. `unsafe` stands only
//! where memory that the boot has just placed is named for the first time, and at the symbols that
//! the entry and the vectors call.
#![cfg_attr(target_os = "none", no_std, no_main)]

#[cfg(target_os = "none")]
mod boot;
#[cfg(target_os = "none")]
mod counters;
#[cfg(target_os = "none")]
mod fault;
#[cfg(target_os = "none")]
mod hypercalls;
#[cfg(target_os = "none")]
mod power;
#[cfg(target_os = "none")]
mod statics;
#[cfg(target_os = "none")]
mod trap;

/// On the development machine there is nothing to run: the binary exists for `aarch64-unknown-none`.
#[cfg(not(target_os = "none"))]
fn main() {}
