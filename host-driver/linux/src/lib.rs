// SPDX-License-Identifier: GPL-2.0-only
//! How Linux lets us ask: the Rust half of `freehold.ko`.
//!
//! Implements `freehold-driver-core`'s ports over the C glue's services and decides nothing itself. Built as a static
//! library without the standard library, for the kernel's own ABI (no FP, no SIMD), and linked by Kbuild.
#![no_std]

mod end;
mod event;
mod file;
mod gic;
mod moves;
mod pinned;
mod plain;
mod port;
mod slots;
mod sys;
mod system;
mod vcpu;
mod vm;
