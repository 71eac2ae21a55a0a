// SPDX-License-Identifier: MIT OR Apache-2.0
//! A trace of what `el2` does to translation tables, TLBs, caches and locks, and a checker of its order.
//!
//! [`record`] is the format: 32 bytes an event, in the order of one counter that all CPUs share. [`traced`] wraps the
//! ports of `freehold_mem`, so that whatever runs the real verbs (the debug `el2`, a test on the development machine)
//! leaves a trace. [`check`], which knows the architecture's rules and nothing of `freehold_mem`, judges it.
//!
//! A port stands for a short sequence of instructions. The trace spells out what the port promises; that the released
//! image has those instructions in that order is shown on the image itself (`cargo xtask test image`).
#![cfg_attr(target_os = "none", no_std)]
#![forbid(unsafe_code)]

#[cfg(not(target_os = "none"))]
pub mod check;
pub mod record;
pub mod traced;
